"""Losses against independent references."""

import math
from dataclasses import replace

import pytest
import torch

from sare_min.captions import embed, encode, token_nll
from sare_min.llava import trainable
from sare_min.losses import counts, erasure, method_losses, npo, simnpo
from sare_min.unlearn import METHODS, gradient


def test_token_nll_is_the_models_own_loss(model, data):
    """Fails if tokens and logits are shifted against each other: transformers' loss on the same
    labels is the reference.
    """
    labels = data.input_ids.masked_fill(~data.sentence, -100)
    rows = data.sentence.any(1)
    embeds = embed(model, data.input_ids, data.features)[rows]
    reference = model(
        inputs_embeds=embeds, attention_mask=data.attention_mask[rows], labels=labels[rows]
    ).loss
    got = (token_nll(model, data) * data.sentence).sum() / data.sentence.sum()
    torch.testing.assert_close(got, reference)


def test_packed_gradients_equal_one_row_per_sub_sentence(
    model, data, processor, features, texts, spans
):
    """Fails if packing changes the gradient: EFUF's released layout has one row per sub-sentence,
    cut at its end.
    """
    gradient(model, data, METHODS["EFUF"])
    packed = [p.grad.clone() for p in trainable(model) if p.grad is not None]
    rows, row_spans, image = [], [], []
    for i, (text, kinds) in enumerate(zip(texts, spans, strict=True)):
        for kind, pieces in kinds.items():
            for start, end in pieces:
                rows.append(text[:end])
                row_spans.append({kind: [(start, end)]})
                image.append(i)
    assert len(rows) > 2 * len(texts), "there must be something to pack"
    unpacked = encode(processor, features, rows, row_spans, image=image)
    gradient(model, unpacked, METHODS["EFUF"])
    scale = max(float(g.abs().max()) for g in packed)
    for one, other in zip(
        packed, [p.grad for p in trainable(model) if p.grad is not None], strict=True
    ):
        assert float((one - other).abs().max()) <= 1e-5 * scale


def test_erasure_falls_as_tokens_become_unlikely():
    """Fails if L_neg is written as +CE (the sign trap)."""
    mask = torch.tensor([[False, True, True]])
    assert erasure(torch.tensor([[0.0, 5.0, 5.0]]), mask) < erasure(
        torch.tensor([[0.0, 1.0, 1.0]]), mask
    )
    assert erasure(torch.tensor([[9.0, 1.0, 2.0]]), mask).item() == -3.0


def test_npo_identities():
    """Fails if NPO loses its sign, its reference or its beta."""
    nll = torch.tensor([[2.0, 3.0]], requires_grad=True)
    mask, reference = torch.ones(1, 2, dtype=torch.bool), torch.tensor([5.0])
    value = npo(nll, mask, reference)
    assert value.item() == pytest.approx(2 / 0.1 * math.log(2)), (
        "at theta = ref the loss is (2 / beta) ln 2"
    )
    # There it is gradient ascent's
    torch.testing.assert_close(torch.autograd.grad(value, nll)[0], torch.tensor([[-1.0, -1.0]]))
    far = torch.autograd.grad(npo(nll, mask, torch.tensor([-200.0])), nll)[0]
    assert float(far.abs().max()) < 1e-6, "the weight vanishes once the span is unlikely"
    tiny = torch.autograd.grad(npo(nll, mask, torch.tensor([2.0]), beta=1e-6), nll)[0]
    # Beta -> 0 tends to gradient ascent
    torch.testing.assert_close(tiny, torch.tensor([[-1.0, -1.0]]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="reference"):
        npo(nll, mask, None)


def test_simnpo_identities():
    """Fails if SimNPO is not by the token, or lets go at another place."""
    nll, mask = (
        torch.tensor([[9.0, 0.2, 0.4]], requires_grad=True),
        torch.tensor([[False, True, True]]),
    )
    value = simnpo(nll, mask)
    assert value.item() == pytest.approx(-(2 / 4.5) * math.log(1 / (1 + math.exp(-4.5 * 0.3))))
    slope = torch.autograd.grad(value, nll)[0]
    weight = 2 * (1 - 1 / (1 + math.exp(-4.5 * 0.3)))
    # Half each of two tokens
    torch.testing.assert_close(slope, torch.tensor([[0.0, -weight / 2, -weight / 2]]))
    doubled = simnpo(nll[:, [0, 1, 2, 1, 2]], mask[:, [0, 1, 2, 1, 2]])
    # A longer span of the same NLL a token weighs the same
    torch.testing.assert_close(doubled, value)


def test_a_batch_without_forget_tokens_is_named(model, data):
    """Fails if nothing to forget gives a NaN or a silent zero step."""
    clean = data[torch.tensor([6, 7])]
    with pytest.raises(ValueError, match="no forget token in a batch of 2.*threshold"):
        gradient(model, clean, METHODS["SARE"])


def test_rows_without_any_mask_are_zeros_not_nan(model, data):
    """Fails if captions that curation left between its thresholds give NaN, or break a micro-batch
    of their own.
    """
    nothing = torch.zeros_like(data.forget)
    bare = replace(data, forget=nothing, retain=nothing, sentence=nothing)
    assert torch.equal(token_nll(model, bare), torch.zeros(data.input_ids.shape))
    keep = torch.arange(len(data)) != 7
    mixed = replace(
        data,
        **{kind: getattr(data, kind) & keep[:, None] for kind in ("forget", "retain", "sentence")},
    )
    for name in METHODS:
        gradient(model, mixed, METHODS[name], micro_batch=1)
        assert all(p.grad.isfinite().all() for p in trainable(model) if p.grad is not None)


def test_image_token_count_is_checked_per_row(model, data):
    """Fails if one row's spare image token may stand in for another's missing one (transformers
    only checks the batch's total).
    """
    ids = data.input_ids.clone()
    place = int((ids[0] == model.config.image_token_id).nonzero()[0])
    ids[0, place] = ids[0, -1]
    with pytest.raises(ValueError, match="row 0 has 8 image tokens, its image 9 features"):
        token_nll(model, replace(data, input_ids=ids))


def test_cutting_after_the_last_forget_token_changes_nothing(model, data):
    """Fails if the second pass of SARE, on cut rows, sees another L_neg."""
    forget, _ = data.split_forget()
    cut = forget.until_forget()
    assert cut.input_ids.shape[1] < forget.input_ids.shape[1]
    whole, short = (
        method_losses(model, d, METHODS["SARE"], counts(forget, "token"))["neg"]
        for d in (forget, cut)
    )
    torch.testing.assert_close(short, whole)


def test_nll_does_not_depend_on_padding(model, data):
    """Fails if padding leaks into attention or into the masks."""
    together = token_nll(model, data)
    for row in range(len(data)):
        one = data[torch.tensor([row])]
        mask = (one.forget | one.retain | one.sentence)[0]
        torch.testing.assert_close(
            token_nll(model, one)[0, mask], together[row, : len(mask)][mask], rtol=1e-4, atol=1e-5
        )


def test_rows_keep_each_image_once_and_their_own(model, data, processor, features, texts):
    """Fails if rows that share an image copy its features, or if a row's tokens meet another row's
    image.
    """
    image = [3, 3, 1, 3]
    rows = encode(processor, features, [texts[0]] * 4, image=image)
    some = rows[torch.tensor([0, 1, 3])]
    assert len(some.features) == 1 and len(rows[torch.arange(4)].features) == 2
    alone = encode(processor, features[3:4], [texts[0]])
    torch.testing.assert_close(token_nll(model, some)[0], token_nll(model, alone)[0])
    # Unsliced rows, too
    torch.testing.assert_close(token_nll(model, rows)[3], token_nll(model, alone)[0])
    assert not torch.allclose(token_nll(model, rows)[2], token_nll(model, alone)[0])


def test_the_first_token_has_no_nll(model, data):
    """Fails if a mask over the whole row shifts every token's NLL by one: nothing comes before the
    first token.
    """
    whole = replace(data, sentence=data.attention_mask.bool())
    nll = token_nll(model, whole)
    assert nll.shape == data.input_ids.shape and torch.equal(nll[:, 0], torch.zeros(len(data)))
    torch.testing.assert_close(nll[:, -3:], token_nll(model, data)[:, -3:])


@pytest.mark.parametrize("name", ["NPO", "SimNPO", "EFUF"])
def test_a_loss_is_a_mean_over_what_its_method_says(model, data, name):
    """Fails if NPO's mean is taken over forget tokens and not over the rows that have some, or
    EFUF's the other way round.
    """
    method, data = METHODS[name], data[data.forget.any(1)]
    n_rows, n_tokens = len(data), int(data.forget.sum())
    assert 0 < n_rows < n_tokens
    n = n_tokens if name == "EFUF" else n_rows
    assert counts(data, method.per)["neg"] == n
    terms = method.forget_loss(token_nll(model, data), data.forget, data.reference)
    assert gradient(model, data, method)["neg"] == pytest.approx(terms.sum().item() / n, rel=1e-4)


def test_simnpo_counts_one_token_as_one():
    """Fails if a sub-sentence of one token is divided by more than its length."""
    nll, mask = torch.tensor([[2.0, 5.0]]), torch.tensor([[True, False]])
    want = -(2 / 4.5) * torch.nn.functional.logsigmoid(torch.tensor(4.5 * 2.0))
    assert simnpo(nll, mask).tolist() == pytest.approx([want.item()])
