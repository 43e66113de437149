"""The released checkpoints' two families, tiny, with random weights and their own processors: CLIP
+ Llama, SigLIP + Qwen2.
"""

import pytest
import torch
from conftest import FIND
from peft import PeftModel
from transformers import (
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from lab.llava.checkpoints import load, save
from lab.llava.speech import generate
from lab.world.curate import Thresholds, curate
from lab.world.models import World, build_llava, build_processor, build_tokenizer
from lab.world.scenes import OBJECTS, draw
from sare_min.captions import encode, render, token_nll
from sare_min.llava import embed_images, set_trainable
from sare_min.unlearn import METHODS, Training, get_method, unlearn, with_reference

# The template of llava-hf/llava-interleave-qwen-0.5b-hf, whose turns end in a special token that is
# the EOS, too.
INTERLEAVE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in"
    " message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{%"
    " for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' +"
    " content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)


def siglip_qwen2():
    """SigLIP has no class token: every feature of its last layer is an image token. Qwen2's
    tokenizer has no BOS.
    """
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.post_processor = None
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = SiglipVisionConfig(**small, image_size=48, patch_size=16)
    text = Qwen2Config(
        **small,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=9,
        tie_word_embeddings=True,
    )
    images = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    return LlavaForConditionalGeneration(config), LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        chat_template=INTERLEAVE,
        num_additional_image_tokens=0,
    )


def clip_llama():
    return build_llava(World(width=64)), build_processor()


@pytest.fixture(scope="module", params=[clip_llama, siglip_qwen2], ids=lambda build: build.__name__)
def family(request, tmp_path_factory, scenes, texts):
    """(folder of the checkpoint, pictures, captions, spans)"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = request.param()
    truth = [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in scenes]
    folder = save(model.eval(), processor, tmp_path_factory.mktemp("family") / "llava")
    return (
        folder,
        [draw(scene) for scene in scenes],
        texts,
        curate(texts, truth, FIND, Thresholds(0.5, 0.5, 0.99)),
    )


def test_a_picture_is_described_as_by_stock_transformers(family):
    """Fails if the prompt, the number of image tokens or the layer of features is ours and not the
    checkpoint's.
    """
    folder, pictures, *_ = family
    model, processor = load(folder, device="cpu")
    stock, theirs = (
        LlavaForConditionalGeneration.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    inputs = theirs(
        text=render(theirs, "Describe the image."), images=pictures[0], return_tensors="pt"
    )
    out = stock.generate(
        **inputs, max_new_tokens=9, do_sample=False, suppress_tokens=[stock.config.image_token_id]
    )
    expected = theirs.decode(
        out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()
    assert (
        generate(model, processor, embed_images(model, processor, pictures), max_new_tokens=9)[0]
        == expected
    )


def test_a_caption_is_tokenised_as_by_its_processor(family):
    """Fails if a BOS is forced on Qwen2, if the image tokens miscount, or if the NLL is not that of
    the plain forward on pixels.
    """
    folder, pictures, texts, _ = family
    model, processor = load(folder, device="cpu")
    ours = encode(processor, embed_images(model, processor, pictures[:1]), texts[:1])
    row = (
        render(processor, "Describe the image.", opened=True)
        + texts[0]
        + processor.tokenizer.eos_token
    )
    theirs = processor(text=row, images=pictures[0], return_tensors="pt")
    assert ours.input_ids.tolist() == theirs["input_ids"].tolist()
    assert ours.input_ids[ours.sentence][-1] == processor.tokenizer.eos_token_id
    with torch.no_grad():
        logits = model(**theirs).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), theirs["input_ids"][:, 1:], reduction="none"
        )
        mine = token_nll(model, ours)
    assert torch.allclose((mine * ours.sentence)[:, 1:], nll * ours.sentence[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    "part, trains",
    [("all", "language_model"), ("projector", "multi_modal_projector"), ("lora", "lora_")],
)
@pytest.mark.parametrize("method", ["SARE", "NPO+Targeted-SAM"])
def test_an_erasure_forgets(family, method, part, trains):
    """Fails if a part is not found in this family, if the tower trains, or if the forgotten spans
    do not become less likely.
    """
    folder, pictures, texts, spans = family
    model, processor = load(folder, device="cpu")
    data = with_reference(
        model, encode(processor, embed_images(model, processor, pictures), texts, spans)
    )
    model = set_trainable(model, part)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(trains in name for name in names) and not any(
        "vision_tower" in name for name in names
    )
    before = (token_nll(model, data) * data.forget).sum().item()
    # Random weights learn the other words first
    alone = get_method(method, lambda_pos=0.0, lambda_sent=0.0)
    log = unlearn(model, data, alone, Training(steps=6, batch_size=8, lr=1e-2), progress=False)
    assert (token_nll(model, data) * data.forget).sum().item() > before + 0.1 and all(
        row["norm"] > 0 for row in log
    )


def test_an_adapter_goes_round(family, tmp_path):
    """Fails if stock peft cannot load what LoRA trained on this family, or merges it to other
    words.
    """
    folder, pictures, texts, spans = family
    model, processor = load(folder, device="cpu")
    data = encode(processor, embed_images(model, processor, pictures), texts, spans)
    model = set_trainable(model, "lora")
    unlearn(model, data, METHODS["SARE"], Training(steps=4, batch_size=8, lr=1e-2), progress=False)
    save(model, processor, tmp_path / "adapter")
    stock = PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(folder), tmp_path / "adapter"
    )
    assert torch.equal(token_nll(stock, data), token_nll(model, data))
    assert torch.allclose(
        token_nll(stock.merge_and_unload(), data), token_nll(model, data), atol=1e-4
    )
