"""Checkpoints on disk: load, caption, save, adapters; and the errors a reader meets first."""

import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_llava
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lab.llava.checkpoints import load, save
from lab.llava.speech import generate
from lab.world.models import build_clip, build_processor
from lab.world.scenes import caption, draw
from sare_min.captions import encode, render, sentence_nll, token_nll
from sare_min.llava import embed_images, set_trainable, trainable


def test_save_load_caption_round_trip(saved, processor, scenes, features):
    """Fails if a checkpoint saved here and loaded back captions a picture otherwise."""
    model, again = load(saved, device="cpu")
    assert all(
        torch.equal(p, q)
        for p, q in zip(tiny_llava().parameters(), model.parameters(), strict=True)
    )
    assert generate(model, again, features, max_new_tokens=8) == generate(
        tiny_llava(), processor, features, max_new_tokens=8
    )


def test_stock_transformers_captions_a_pil_image_alike(saved, scenes):
    """Fails if our path (cached features, own embedding) and the plain one (`generate` on pixels)
    part ways.
    """
    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(saved),
        AutoProcessor.from_pretrained(saved),
    )
    image = draw(scenes[0])
    inputs = processor(
        text=render(processor, "Describe the image."), images=image, return_tensors="pt"
    )
    out = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, suppress_tokens=[model.config.image_token_id]
    )
    stock = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert (
        stock.strip()
        == generate(model, processor, embed_images(model, processor, [image]), max_new_tokens=12)[0]
    )


def test_encoded_ids_are_the_processors_own(saved, scenes, features):
    """Fails if prompt, image tokens or BOS are put together otherwise than by the processor on a
    real image.
    """
    processor = AutoProcessor.from_pretrained(saved)
    text = caption(scenes[0])
    ours = encode(processor, features[:1], [text]).input_ids
    row, picture = (
        render(processor, "Describe the image.", opened=True)
        + text
        + processor.tokenizer.eos_token,
        draw(scenes[0]),
    )
    theirs = processor(text=row, images=picture, return_tensors="pt")["input_ids"]
    assert ours.tolist() == theirs.tolist()
    assert ours[0, -1] == processor.tokenizer.eos_token_id


def test_each_row_asks_its_own_question(processor, features):
    """Fails if one question is put to all images, or the prompt never reaches the row."""
    asked = ["Is there a fork in the image?", "Is there a bus in the image?"]
    data = encode(processor, features[:2], ["yes", "no"], question=asked)
    for row, noun in enumerate(("fork", "bus")):
        assert noun in processor.tokenizer.decode(data.input_ids[row])


def test_a_tokenizer_without_bos_gets_none(processor, features):
    """Fails if a beginning-of-sequence token is forced on a checkpoint (Qwen2's) that has none, or
    is put twice.
    """
    bos = processor.tokenizer.bos_token_id
    rows = encode(processor, features[:1], ["a kitchen with a fork."]).input_ids
    assert int((rows == bos).sum()) == 1
    other = build_processor()
    other.chat_template = "{{ '<s>' }}" + other.chat_template
    assert torch.equal(encode(other, features[:1], ["a kitchen with a fork."]).input_ids, rows)


def test_a_prefix_is_put_into_the_models_mouth(model, processor, features):
    """Fails if the prefix is dropped: the first words change what follows."""
    free, led = (
        generate(model, processor, features, prefix=p, max_new_tokens=6)
        for p in ("", " a kitchen with a")
    )
    mixed = generate(
        model,
        processor,
        features,
        prefix=[""] + [" a kitchen with a"] * (len(features) - 1),
        max_new_tokens=6,
    )
    assert mixed == free[:1] + led[1:]
    assert free != led


def test_answers_come_back_in_their_order(model, processor, features):
    """Fails if sorting the prompts by length, so that a batch needs little padding, mixes up whose
    answer is whose.
    """
    prefixes = [" a kitchen with a" * (3 - i % 3) for i in range(len(features))]
    alone = [
        generate(model, processor, features[i : i + 1], prefix=p, max_new_tokens=6)[0]
        for i, p in enumerate(prefixes)
    ]
    assert (
        len(set(alone)) > 1
        and generate(model, processor, features, prefix=prefixes, max_new_tokens=6, batch_size=3)
        == alone
    )


def test_batches_of_questions_pad_on_the_left(model, processor, features):
    """Fails if padding stands between the prompt and the answer: a batch must answer as one row at
    a time.
    """
    asked = ["Describe the image.", "Is there a fork in the image?"]
    together = generate(model, processor, features[:2], asked, max_new_tokens=6)
    assert together == [
        generate(model, processor, features[i : i + 1], asked[i], max_new_tokens=6)[0]
        for i in range(2)
    ]


def test_the_image_placeholder_is_never_sampled(model, processor, features):
    """Fails if a sampled placeholder gets into a text and breaks its next forward."""
    with torch.no_grad():
        model.lm_head.weight[model.config.image_token_id] = 10 * model.lm_head.weight.abs().max()
    texts = generate(model, processor, features, temperature=1.0, seed=0, max_new_tokens=12)
    encode(processor, features, texts)
    assert not any("<image>" in text for text in texts) and all(texts)


def test_masks_cover_the_words_they_name(processor, data, spans, texts):
    """Fails if character spans land on the wrong tokens."""
    row = 0
    forgotten = processor.tokenizer.decode(data.input_ids[row][data.forget[row]])
    start, end = spans[row]["forget"][0]
    assert forgotten == texts[row][start:end].strip()
    assert data.input_ids[7][data.sentence[7]][-1] == processor.tokenizer.eos_token_id


def test_sampling_gives_the_global_generator_back(model, processor, features):
    """Fails if generation seeds the global generator behind the caller's back."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = generate(model, processor, features, temperature=1.0, seed=1, max_new_tokens=8)
    assert torch.rand(1) == expected
    assert first == generate(model, processor, features, temperature=1.0, seed=1, max_new_tokens=8)
    assert first != generate(model, processor, features, temperature=1.0, seed=2, max_new_tokens=8)


def test_lora_adapter_is_loaded_by_stock_peft(saved, processor, data, tmp_path):
    """Fails if what LoRA trains cannot be read without this package."""
    model = set_trainable(load(saved, device="cpu")[0], "lora")
    assert all("language_model" in n for n, p in model.named_parameters() if p.requires_grad), (
        "the CLIP tower must not be adapted"
    )
    before = token_nll(model, data).detach()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sentence_nll(model, data).backward()
        optimizer.step()
    after = token_nll(model, data).detach()
    assert not torch.allclose(before, after), "the adapter must have learnt something"
    save(model, processor, tmp_path / "adapter")
    assert {f.name for f in (tmp_path / "adapter").glob("*.safetensors")} == {
        "adapter_model.safetensors"
    }
    stock = PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(saved), tmp_path / "adapter"
    )
    assert torch.equal(token_nll(stock, data), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "part, trains",
    [("all", "language_model"), ("projector", "multi_modal_projector"), ("lora", "lora_")],
)
def test_trainable_parts(saved, part, trains, dtype):
    """Fails if a part trains too much or too little, or in bf16 (where the ascent step rounds
    away).
    """
    model = set_trainable(load(saved, device="cpu", dtype=dtype)[0], part)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any(trains in n for n in names) and not any("vision_tower" in n for n in names)
    assert {p.dtype for p in trainable(model)} == {torch.float32}


def test_unknown_part_is_named(model):
    with pytest.raises(ValueError, match="part='head'.*'all', 'projector' and 'lora'"):
        set_trainable(model, "head")


def test_no_llava_is_named(tmp_path, saved):
    """Fails if a directory that holds no LLaVA, or one with missing weights, loads with random
    tensors.
    """
    with pytest.raises(ValueError, match="nothing.*no LLaVA checkpoint"):
        load(tmp_path / "nothing")
    build_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="clip.*no LLaVA checkpoint"):
        load(tmp_path / "clip")
    shutil.copytree(saved, tmp_path / "holes")
    weights = load_file(tmp_path / "holes/model.safetensors")
    weights.pop(next(n for n in weights if "q_proj" in n and "language" in n))
    save_file(weights, tmp_path / "holes/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no whole LLaVA checkpoint.*q_proj"):
        load(tmp_path / "holes")


@pytest.mark.parametrize("lost", ["text_config", "vision_config"])
def test_a_config_of_another_size_is_named(tmp_path, saved, lost):
    """Fails if a config.json without one of its parts, which then is a 7B model's, makes that model
    before its weights are missed.
    """
    path = Path(shutil.copytree(saved, tmp_path / "lost"))
    config = json.loads((path / "config.json").read_text())
    config.pop(lost)
    (path / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"lost: .*\d,\d+ weights, and the files hold.*{lost}"):
        load(path, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # KiB


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, saved, value):
    """Fails if a checkpoint with one weight that is no number loads."""
    path = Path(shutil.copytree(saved, tmp_path / "broken"))
    weights = load_file(path / "model.safetensors")
    name = next(n for n in weights if "up_proj" in n)
    weights[name].view(-1)[3] = value
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="broken: .*up_proj.* holds nan or infinity"):
        load(path, device="cpu")


def test_processor_that_disagrees_with_the_tower_is_named(tmp_path, saved):
    """Fails if a wrong patch size is only met inside the forward, as "features and tokens do not
    match".
    """
    shutil.copytree(saved, tmp_path / "odd")
    config = json.loads((tmp_path / "odd/processor_config.json").read_text())
    config["patch_size"] = 8
    (tmp_path / "odd/processor_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="36 image tokens, the vision tower 9 features.*patch_size"
    ):
        load(tmp_path / "odd", device="cpu")


def test_encode_counts_its_arguments(processor, features):
    with pytest.raises(ValueError, match="9 captions.*8 features"):
        encode(processor, features, ["a kitchen with a fork."] * 9)


def test_bad_spans_are_named(processor, features):
    """Fails if a span that does not fit its caption, or a kind that is none, marks nothing in
    silence.
    """
    for spans in ({"forget": [(50, 60)]}, {"forgot": [(0, 3)]}, {"retain": [(3, 3)]}):
        with pytest.raises(
            ValueError, match="caption 0: .* span .* does not fit 'a kitchen with a fork.'"
        ):
            encode(processor, features[:1], ["a kitchen with a fork."], [spans])


def test_questions_are_counted(model, processor, features):
    with pytest.raises(ValueError, match="5 questions and 8 prefixes for 8 images"):
        generate(model, processor, features, ["Is there a fork in the image?"] * 5)


def test_save_never_replaces_what_is_no_checkpoint(saved, processor, tmp_path):
    """Fails if saving deletes unrelated files, or an adapter replaces its base model."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("months of work")
    with pytest.raises(ValueError, match="thesis: holds something else"):
        save(tiny_llava(), processor, tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter1.txt").exists()
    shutil.copytree(saved, tmp_path / "base")
    with pytest.raises(ValueError, match="base: holds something else.*adapter_config.json"):
        save(
            set_trainable(load(tmp_path / "base", device="cpu")[0], "lora"),
            processor,
            tmp_path / "base",
        )
    save(tiny_llava(), processor, tmp_path / "base")  # its own kind is replaced
    assert load(tmp_path / "base", device="cpu") and not list(tmp_path.glob("base.*"))


def test_images_are_embedded_behind_a_bf16_tower(saved, scenes):
    """Fails if a bf16 checkpoint whose projector trains in fp32 can no longer look at pictures."""
    model, processor = load(saved, device="cpu", dtype=torch.bfloat16)
    picture = [draw(scenes[0])]
    before = embed_images(model, processor, picture)
    assert torch.equal(embed_images(set_trainable(model, "all"), processor, picture), before)


def test_an_answer_begins_where_the_template_puts_it(processor):
    """Fails if the mark that is put in for an answer is found in the prompt, where a template may
    hold the same letter.
    """
    qwen = (
        "X {% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if"
        " c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor"
        " %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{%"
        " endif %}"
    )
    other = build_processor()
    other.chat_template = qwen
    assert (
        render(other, "X?", opened=True)
        == render(other, "X?")
        == "X <|im_start|>user\n<image>X?<|im_end|>\n<|im_start|>assistant\n"
    )
    # LLaVA-1.5 opens an answer with a space
    assert render(processor, "X?", opened=True) == render(processor, "X?") + " "


def test_more_options_reach_the_checkpoint(saved):
    """Fails if load keeps what it is given for from_pretrained to itself: a 4-bit checkpoint needs
    its quantization_config.
    """
    assert (
        load(saved, device="cpu", attn_implementation="eager")[
            0
        ].config.text_config._attn_implementation
        == "eager"
    )
    assert load(saved, device="cpu")[0].config.text_config._attn_implementation != "eager"


TURN = (
    "{% for m in messages %}{{ m.role + ':' }}{% for c in m.content %}{{ c.text if c.type == 'text'"
    " else '<image>' }}{% endfor %}{% endfor %}"
)
ASK = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.mark.parametrize(
    "template, opened",
    [
        ("be X, or EXACT. " + TURN + ASK, "be X, or EXACT. user:<image>Q?assistant:"),
        (TURN.replace("+ ':'", "+ ': X '") + ASK, "user: X <image>Q?assistant: X "),
        # The prompt is longer than what opens an answer
        (TURN + ASK.replace("t:", "t:<think></think>"), "user:<image>Q?assistant:"),
    ],
)
def test_a_template_may_add_to_an_answers_opening(template, opened):
    """Fails if words of the template's own are taken for the answer, or end in an error."""
    other = build_processor()
    other.chat_template = template
    assert render(other, "Q?", opened=True) == opened


def test_a_template_that_leaves_answers_out_is_refused():
    """Fails if that ends in "substring not found"."""
    other = build_processor()
    other.chat_template = TURN.replace("c.text if", "c.text[:2] if m.role == 'user' and") + ASK
    with pytest.raises(ValueError, match="the chat template leaves the answer out: .*Mend it"):
        render(other, "Q?", opened=True)
    assert "<image>" in render(other, "Q?")
