"""What chapter 05 needs on a GPU, and tests/on_gpu.sh, as far as a CPU can tell; the numbers of a
real one are in figures/gpu.json, if there are any.
"""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from importlib.metadata import version as version_of

import pytest
import torch
from conftest import ROOT, tiny_llava
from packaging.requirements import Requirement
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from lab.field import devices
from lab.llava.checkpoints import load, save
from lab.llava.speech import generate
from lab.tools import agreement, gpu, rounds, seven
from lab.world.scenes import draw
from sare_min.captions import base, encode
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.unlearn import METHODS, Training, gradient, unlearn

TINY = seven.TINY
# All that a machine may have on which the script must run; what these bring comes with them.
THERE = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "scipy",
    "seaborn",
    "pillow",
    "tqdm",
    "pytest",
)


@pytest.mark.parametrize(
    "cuda, bf16, expected",
    [(False, False, "float32"), (True, True, "bfloat16"), (True, False, "float16")],
)
def test_the_dtype_is_one_that_the_device_computes_in(monkeypatch, cuda, bf16, expected):
    """Fails if a T4, where torch emulates bf16, gets it all the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    assert devices.compute_dtype() == getattr(torch, expected)


def test_missing_bitsandbytes_is_named(monkeypatch):
    """Fails if the reader is left with bitsandbytes' own error, or none."""
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        devices.four_bit(torch.float16)


@pytest.mark.parametrize("name", ["EFUF", "SARE", "EFUF+SAM"])
def test_recomputing_changes_no_gradient(data, name):
    """Fails if recomputed activations belong to other weights than the first ones did, as at theta
    + eps they might, or none is.
    """

    def left(model):
        gradient(model, data, METHODS[name], 3)
        return [p.grad.clone() for p in trainable(model) if p.grad is not None]

    torch.manual_seed(0)
    model = set_trainable(tiny_llava(), "lora")
    with (
        torch.no_grad()
    ):  # a fresh adapter's second half is zero, and so would be the first one's gradient
        for p in trainable(model):
            p.add_(torch.randn(p.shape) * 0.05)
    plain, forwards = left(model), []
    layer = base(model).model.language_model.layers[0].mlp
    hook = layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    left(model)
    once = len(forwards)
    again = left(devices.recompute(model))
    hook.remove()
    assert len(forwards) - once > once, "nothing was recomputed"
    assert len(plain) == len(again) and all(
        torch.equal(p, q) for p, q in zip(plain, again, strict=True)
    )


@pytest.fixture(scope="module")
def random_llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "llava"
    return seven.random_checkpoint(TINY, folder, torch.float32, "cpu")


def test_the_random_checkpoint_has_the_size_that_was_asked_for(random_llava):
    """Fails if a size of the configuration is not that of the weights."""
    model, _ = load(random_llava, device="cpu")
    text, tower = model.config.text_config, model.config.vision_config
    sizes = (text.hidden_size, text.num_hidden_layers, text.vocab_size, tower.hidden_size)
    assert sizes == (64, 2, 200, 32)
    assert model.lm_head.weight.shape == (200, 64)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (64, 32)


def test_seven_billion():
    """Fails if the measured architecture is not LLaVA-1.5-7B's: 7.06 billion weights. Built on the
    meta device, without memory.
    """
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(seven.configuration(seven.Size()))
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 7.06


def test_what_trains_is_fp32_on_frozen_16_bits():
    """Fails if the step is measured in another dtype than chapter 05 computes in."""
    model = set_trainable(seven.random_llava(TINY, torch.bfloat16, "cpu"), "lora")
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("recomputing", [False, True])
def test_a_step_is_measured_in_full(recomputing):
    """Fails if a figure is missing, if SARE's FLOPs are not between one and 8/3 times EFUF's, or if
    those of recomputing are counted.
    """
    model = seven.random_llava(TINY, torch.float32, "cpu")
    data, model = seven.batch(model, TINY), set_trainable(model, "lora")
    once = seven.count_flops(lambda: gradient(model, data, METHODS["EFUF"], TINY.micro_batch))
    found = seven.measure(model, data, TINY, peak=1e12, recomputing=recomputing)
    assert list(found) == ["EFUF", "SARE", "SARE over EFUF"] and found["SARE over EFUF"]["time"] > 0
    assert found["EFUF"]["flops"] == once
    assert 1.2 < found["SARE"]["flops"] / once < 8 / 3
    for row in (found["EFUF"], found["SARE"]):
        assert row["seconds"] > 0 and row["memory_gb"] is None
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / 1e12)
        tokens = row["tokens_per_second"] * row["seconds"]
        assert tokens == pytest.approx(float(data.attention_mask.sum()))


def test_flops_are_about_four_a_frozen_weight_and_token():
    """Fails if the mfu's formula and the counter part: LoRA on frozen layers costs a forward and
    the gradient of its input, 2 FLOPs a weight and token each, and not a full training's 6.
    """
    size = seven.Size(
        width=512,
        mlp=1024,
        layers=4,
        heads=4,
        vocabulary=100,
        tower_width=32,
        tower_mlp=32,
        tower_layers=2,
        tower_heads=2,
        side=28,
        captions=4,
        micro_batch=4,
    )
    model = seven.random_llava(size, torch.float32, "cpu")
    data = seven.batch(model, size)
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
    model = set_trainable(model, "lora", rank=1)
    found = seven.count_flops(lambda: gradient(model, data, METHODS["EFUF"], 4))
    assert found / weights / data.input_ids.numel() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
        (None, None),
    ],
)
def test_the_peak_is_the_devices_own(name, peak):
    """Fails if an unknown device gets a known one's peak, and so an mfu that is not its own."""
    assert seven.peak_flops(name) == peak


def test_a_device_that_computes_otherwise_is_seen(monkeypatch):
    """Fails if a wrong gradient, a weight that is not given back or a direction that fp16 loses
    passes for the same.
    """
    assert all(row["ok"] for _, row in agreement.on_both("cpu", ("projector",)))
    true, calls = gradient, []

    def wrong(model, *rest):
        log = true(model, *rest)
        calls.append(1)
        if not len(calls) % 2:  # the device's, or the one in fp32
            trainable(model)[0].grad += 1.0
        return log

    monkeypatch.setattr(agreement, "gradient", wrong)
    rows = dict(agreement.on_both("cpu", ("projector",)))
    assert not any(rows[f"{name}, projector"]["ok"] for name in METHODS)
    half = dict(agreement.half("cpu", TINY, (torch.float16,)))
    assert not half["SARE, float16"]["ok"]


def test_weights_that_are_not_given_back_are_seen(monkeypatch):
    """Fails if a step that leaves theta + eps behind passes."""
    assert all(row["ok"] for _, row in agreement.given_back("cpu"))

    def unkind(theta, g, rho):
        for p in theta:
            p.add_(1)
        return open("/dev/null")  # a context that gives nothing back

    monkeypatch.setattr(agreement, "perturbed", unkind)
    assert not any(row["ok"] for _, row in agreement.given_back("cpu"))


def test_without_a_gpu_nothing_is_written(monkeypatch, tmp_path):
    """Fails if figures/gpu.json could hold a CPU's numbers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.files, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main([])
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--tiny"])
    assert not list(tmp_path.iterdir())


def rows_then(error):
    def part(*_):
        yield "first", {"value": 1.0}
        raise error

    return part


def test_a_part_that_fails_leaves_its_rows_and_the_next_goes_on(monkeypatch, tmp_path, capsys):
    """Fails if an error ends the run, loses what was found before it, spans lines, or leaves the
    exit status 0.
    """
    parts = {
        "broken": (rows_then(RuntimeError("CUDA error:\n  out of memory")), 9),
        "odd": (lambda *_: iter([("row", {"ok": False})]), 9),
        "whole": (lambda *_: iter([("row", {"ok": True})]), 9),
        "late": (lambda *_: iter([]), 0),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "broken": "failed",
        "odd": "failed",
        "whole": "done",
        "late": "skipped",
    }
    assert found["broken"]["error"] == "RuntimeError: CUDA error: out of memory"
    assert found["broken"]["rows"] == {"first": {"value": 1.0}}
    assert found["odd"]["error"] == "not ok: row"
    assert "broken: failed" in capsys.readouterr().out
    again = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "whole"]
    assert gpu.main(again) == 0, "what failed before is not this run's"
    assert len(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == 4


def test_another_devices_parts_do_not_stay(tmp_path):
    """Fails if one file could hold the numbers of two devices."""
    path = tmp_path / "gpu.json"
    gpu.record(path, "one", {"rows": {}}, {"device": "a"})
    gpu.record(path, "two", {"rows": {}}, {"device": "a"})
    assert list(json.loads(path.read_text())["parts"]) == ["one", "two"]
    gpu.record(path, "three", {"rows": {}}, {"device": "b"})
    assert json.loads(path.read_text()) == {"device": "b", "parts": {"three": {"rows": {}}}}


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize(
    "ends, error",
    [
        (subprocess.TimeoutExpired("python", 5), "ended after its 5 seconds"),
        (subprocess.CompletedProcess("python", -9), "its process ended with -9"),
    ],
)
def test_a_process_that_ends_too_early_is_recorded(monkeypatch, tmp_path, ends, error, has_begun):
    """Fails if a part that hung, or was killed, stands as running or by an earlier run's result, or
    loses the rows it had.
    """
    path, head = tmp_path / "gpu.json", {"device": "x"}
    begun = {"rows": {"a": {}} if has_begun else {}}
    gpu.record(path, "fp16", {"status": "done", "rows": {"old": {}}}, head)

    def run(*_, **__):
        if has_begun:
            gpu.record(path, "fp16", {"status": "running"} | begun, head)
        if isinstance(ends, Exception):
            raise ends
        return ends

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.do_apart("fp16", "cpu", True, path, 5) == "failed"
    found = json.loads(path.read_text())
    assert found == head | {"parts": {"fp16": {"status": "failed", "error": error} | begun}}


# Only these packages, and what they bring, can be found; the project is not installed either.
ONLY = """
import sys
from importlib.machinery import PathFinder

class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None and name.partition(".")[0] in {blocked}:
            return None
        return PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        for found in PathFinder.find_distributions(*context):
            if found.name.lower().replace("_", "-") in {there}:
                yield found

sys.meta_path = [f for f in sys.meta_path if f is not PathFinder and "editable" not in repr(f)]
sys.meta_path.append(Only)
from lab.tools import gpu
sys.exit(gpu.main({given}))
"""


def brought(names) -> set[str]:
    """The distributions that these bring with them, as far as they are here."""
    found, left = set(), [*names]
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = map(Requirement, requires(name) or ())
        except ModuleNotFoundError:  # not here, as NVIDIA's are not beside torch for the CPU
            continue
        found.add(name)
        left += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="before 3.11 Python does not know every package's modules"
)
def test_the_rehearsal_walks_every_part_where_little_is_installed(tmp_path):
    """Fails if a part cannot run to its end, here at a tiny size on the CPU, or leaves no rows; if
    one needs a package that such a machine lacks, or the project's own installation. The same way
    as tests/on_gpu.sh: PYTHONPATH alone.
    """
    there = brought(THERE)
    assert {"torch", "filelock"} <= there and "pytorch-optimizer" not in there
    blocked = {
        module
        for module, owners in packages_distributions().items()
        if not there & {owner.lower().replace("_", "-") for owner in owners}
    } - {"lab", "sare_min"}
    assert {"pytorch_optimizer", "nltk", "papermill"} <= blocked
    given = ["--device", "cpu", "--tiny", "--out", str(tmp_path)]
    code = ONLY.format(blocked=sorted(blocked), there=sorted(there), given=given)
    environment = {"PYTHONPATH": ".:chapters", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["device"], found["tiny"]) == ("cpu", True)
    assert found["versions"]["torch"] == version_of("torch")
    assert list(found["parts"]) == list(gpu.PARTS)
    quantised = found["parts"].pop("7B in 4 bits")
    assert (quantised["status"], quantised["error"]) == ("skipped", "bitsandbytes is not installed")
    for part in found["parts"].values():
        assert part["status"] == "done" and part["rows"] and "error" not in part


def test_the_script_goes_by_its_own_road(tmp_path):
    """Fails if tests/on_gpu.sh cannot be started from anywhere, or a part in a process of its own
    leaves nothing.
    """
    environment = {"PYTHON": sys.executable, "OUT": "here", "PATH": "/usr/bin:/bin"}
    told = ["--device", "cpu", "--tiny", "--only", "fp16"]
    done = subprocess.run(
        ["bash", str(ROOT / "tests/on_gpu.sh"), *told],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "here/gpu.json").read_text())["parts"]
    assert {name: part["status"] for name, part in found.items()} == {"fp16": "done"}
    assert "SARE, float16" in done.stdout


def test_an_adapter_on_4_bits_says_the_same_when_it_is_loaded_again(
    monkeypatch, random_llava, scenes, tmp_path
):
    """Needs bitsandbytes, which the requirements leave out. Fails if 4-bit weights do not train, or
    another adapter comes back.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # Its kernel of some CPUs, in bf16 and for inference alone
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)

    def loaded():
        return load(random_llava, device="cpu", **devices.four_bit(torch.float32))

    model, processor = loaded()
    features = embed_images(model, processor, [draw(scene, TINY.side) for scene in scenes])
    texts, spans = rounds.sampled(scenes)
    data, before = (
        encode(processor, features, texts, spans),
        generate(model, processor, features, max_new_tokens=8),
    )
    assert isinstance(base(model).model.language_model.layers[0].mlp.up_proj, modules.Linear4bit)
    model = devices.recompute(set_trainable(model, "lora"))
    unlearn(
        model,
        data,
        METHODS["SARE"],
        Training(steps=8, batch_size=4, lr=3e-2, cooldown=0),
        progress=False,
    )
    said = generate(model.eval(), processor, features, max_new_tokens=8)
    again = PeftModel.from_pretrained(
        loaded()[0], save(model, processor, tmp_path / "adapter")
    ).eval()
    assert before != said == generate(again, processor, features, max_new_tokens=8)
