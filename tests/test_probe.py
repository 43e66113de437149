"""Settings from the first steps: what was asked of a learning rate and a rho is what they do."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_llava

from lab.field import probe
from lab.field.probe import FURTHER, HALF, STEPS, Found, first_reaching
from sare_min.captions import sentence_nll
from sare_min.llava import set_trainable, trainable
from sare_min.metrics import span_nll
from sare_min.sam import perturbed
from sare_min.unlearn import METHODS, Training, gradient, unlearn


@pytest.fixture(scope="module")
def learnt(data):
    """The tiny model's weights when it has learnt these captions: at random it has none to lose."""
    model, data = tiny_llava(), replace(data, sentence=data.forget | data.retain | data.sentence)
    optimizer = torch.optim.AdamW(trainable(model), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sentence_nll(model, data).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def lora(learnt):
    """Makes that model anew, with a fresh adapter."""

    def make():
        model = tiny_llava()
        model.load_state_dict(learnt)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return set_trainable(model, "lora")

    return make


@pytest.fixture(scope="module")
def found(data, lora):
    return probe.probe(lora(), data)


def nll(model, data):
    return span_nll(model, data)["forget"]


def first_steps(model, data, lr):
    batch = data[data.forget.any(1)]
    how = Training(STEPS, len(batch), 64, lr, cooldown=0)
    unlearn(model, batch, METHODS["GA"], how, progress=False)
    return batch


def test_the_first_steps_go_half_the_way_and_the_ascent_step_half_of_that_back(data, lora, found):
    """Fails if rate or rho is not what the rule says: done here by the steps themselves, to a tenth
    of the length, which is a fifth of the effect or so.
    """
    model = lora()
    batch = first_steps(model, data, found.lr)
    went = nll(model, batch) - found.nll
    assert 0.7 * HALF * FURTHER < went < HALF * FURTHER
    gradient(model, batch, METHODS["GA"])
    with perturbed(trainable(model), [p.grad for p in trainable(model)], found.rho):
        back = went + found.nll - nll(model, batch)
    assert 0.7 * HALF * went < back < 1.01 * HALF * went
    assert found.back == pytest.approx(back, rel=1e-3)


@pytest.mark.parametrize("share, does", [(0.8, True), (0.3, False)])
def test_where_the_way_bends_the_step_that_takes_most_is_told(data, lora, monkeypatch, share, does):
    """Fails if a step far beyond, where the loss rises or overflows, is taken for one that goes
    back; or if one that takes next to nothing passes. Here no step takes more than a share.
    """
    asked = {}

    def bent(effect, wanted, start, within=0.1):
        if "lr" in asked:
            raise probe.TooLittle(0.25, share * wanted, wanted)
        return asked.setdefault("lr", first_reaching(effect, wanted, start))

    monkeypatch.setattr(probe, "first_reaching", bent)
    if does:
        assert probe.probe(lora(), data).rho == 0.25
    else:
        with pytest.raises(ValueError, match="no rho does it: .* at best, at 0.25.*of your own"):
            probe.probe(lora(), data)


def test_the_guess_costs_only_time(data, lora, found):
    """Fails if what is found hangs on where the search begins, by more than its own tenth."""
    for start in ((1e-6, 1e-3), (3e-4, 0.1)):
        other = probe.probe(lora(), data, start=start)
        assert 1 / 1.1 < other.lr / found.lr < 1.1
        assert 1 / 1.25 < other.rho / found.rho < 1.25  # from another lr


def test_the_lengths_are_of_the_weights(data, lora, found):
    """Fails if the rule copies a number: a model whose adapter's first half is ten times as long
    takes shorter steps to the same effect.
    """
    model = lora()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.mul_(10)
    other = probe.probe(model, data)
    assert other.nll == pytest.approx(found.nll)  # the second half is zero
    assert other.lr < found.lr / 2 and other.rho < found.rho / 2


def test_the_model_comes_back_bit_for_bit(data, lora):
    """Fails if a weight, a gradient, a mode or torch's generator is left changed, also after an
    error; and unless the weights have moved in between.
    """
    model, moved = lora(), []
    for p in trainable(model)[::2]:
        p.grad = torch.ones_like(p)
    whole = [(p, p.detach().clone(), p.grad) for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    weight = trainable(model)[1]
    before = weight.detach().clone()
    hook = model.get_base_model().register_forward_hook(
        lambda *_: moved.append(not torch.equal(weight, before))
    )
    probe.probe(model, data)
    with pytest.raises(RuntimeError), probe.borrowed(trainable(model)):
        first_steps(model, data, 1e-2)
        raise RuntimeError
    hook.remove()
    assert any(moved)
    for p, value, grad in whole:
        assert torch.equal(p, value) and p.grad is grad
    assert all(bool((p.grad == 1).all()) for p in trainable(model)[::2])
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_the_erasure_that_it_sets_forgets(data, lora, found):
    """Fails if a run of SARE at what was found does not reach the level in a hundred steps, or if
    it gets there in two.
    """
    model, level = lora(), found.nll + FURTHER
    how = Training(100, 8, 64, found.lr, cooldown=0)
    sare = replace(METHODS["SARE"], rho=found.rho)
    log = unlearn(model, data, sare, how, stop=lambda _: nll(model, data) >= level, progress=False)
    assert nll(model, data) >= level and 2 < len(log) < 100


@pytest.mark.parametrize("start", [1e-5, 0.3, 1e5])
@pytest.mark.parametrize("power", [0.5, 1, 3])
def test_a_length_is_found_from_any_guess(start, power):
    """Fails if the search stops early, beyond the mark, or past a tenth."""
    x = first_reaching(lambda x: x**power, 2.0, start)
    assert 2 ** (1 / power) / 1.1 <= x <= 2 ** (1 / power)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_blows_up_is_too_far(bad):
    """Fails if a rate at which the loss is not finite counts as too slow."""
    assert first_reaching(lambda x: x if x < 5 else bad, 3.0, 1e3) == pytest.approx(3, rel=0.1)


def test_the_first_of_several_is_found():
    """Fails if an effect that falls again is entered from behind, though the guess is before it."""
    assert first_reaching(lambda x: x * math.exp(-x), 0.3, 0.01) == pytest.approx(0.49, rel=0.1)


@pytest.mark.parametrize(
    "effect, said",
    [
        (lambda x: 1 - 1 / (1 + x), "1 at best"),
        (lambda x: 9.0, "not below 2"),
        (lambda x: x * (2 - x) if x < 99 else math.nan, "1 at best, at 1, not 2"),  # it falls
        (lambda x: x * (2 - x) if x < 99 else 9.0, "1 at best, at 1, not 2"),  # and rises far off
        (lambda x: x if x < 1.2 else math.nan, "1.19 at best"),  # and here it breaks off
    ],
)
def test_no_length_does_it(effect, said):
    """Fails if a search without an end goes on, or ends with a number."""
    with pytest.raises(ValueError, match=said):
        first_reaching(effect, 2.0, 1.0)


def test_what_cannot_be_probed_is_named(data, lora):
    """Fails if one of these gives numbers, or another library's words."""
    with pytest.raises(ValueError, match="nothing trains: call"):
        probe.probe(tiny_llava().requires_grad_(False), data)
    with pytest.raises(ValueError, match="no forget token in 2 captions"):
        probe.probe(lora(), data[~data.forget.any(1)])
    model = lora()
    with torch.no_grad():
        model.get_base_model().lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="nan before any step.*bf16 or fp32"):
        probe.probe(model, data)
    model = lora()
    for name, weight in model.named_parameters():  # what trains has no effect
        weight.requires_grad_("lora_A" in name and "layers.0" in name)
    with pytest.raises(ValueError, match="probe: no lr does it"):
        probe.probe(model, data)


def test_found_is_plain_numbers(found):
    assert found == Found(**vars(found)) and all(type(v) is float for v in vars(found).values())


def test_a_probe_that_was_stopped_tries_nothing_twice(data, lora, found, tmp_path, monkeypatch):
    """Fails if a run that goes on takes the first steps anew at a rate that it has tried, or has
    other settings by a last bit, or believes what was tried on other captions.
    """
    keep, tried, plain = tmp_path / "new/probe.json", [], probe._first_steps

    def first_steps(model, batch, micro_batch, lr):
        if len(tried) == 5 and is_short:
            raise KeyboardInterrupt
        tried.append(lr)
        return plain(model, batch, micro_batch, lr)

    monkeypatch.setattr(probe, "_first_steps", first_steps)
    is_short = True
    with pytest.raises(KeyboardInterrupt):
        probe.probe(lora(), data, keep=keep)
    before, is_short = list(tried), False
    tried.clear()
    assert probe.probe(lora(), data, keep=keep) == found
    assert len(before) == 5 and tried and not set(before) & set(tried)
    tried.clear()
    assert probe.probe(lora(), data, keep=keep) == found
    assert len(tried) == 1, "to where rho is read, and no further"
    tried.clear()
    probe.probe(lora(), data[:3], keep=keep)
    assert len(tried) > 5


@pytest.mark.parametrize("text", ["[]", "{}", '{"of": "x", "tried": {"lr": null}}', '{"lr": 1e-3'])
def test_another_file_is_no_probe(data, lora, tmp_path, text):
    """Fails if a file of something else is believed, or ends in another library's error."""
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(ValueError, match="probe.json.*Delete it"):
        probe.probe(lora(), data, keep=tmp_path / "probe.json")
