"""Does a GPU compute what a CPU does? Steps, losses, captions; and does fp16 keep the direction?

Each function yields rows (name, {what: value, ..., "ok": bool}).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sare_min.captions import encode, token_nll
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.sam import perturbed
from sare_min.unlearn import METHODS, gradient, with_reference

from ..llava.speech import generate
from ..world.models import World, build_llava, build_processor
from ..world.scenes import draw, split_scenes
from . import seven
from .rounds import sampled

Row = tuple[str, dict]
WITHIN = 1e-4  # relative difference of two devices in fp32
COSINE = 0.99  # of a gradient in fp16 with the one in fp32


def far(found: Tensor, right: Tensor) -> float:
    """||found - right|| / ||right||, on the CPU in fp64."""
    found, right = found.detach().cpu().double(), right.detach().cpu().double()
    return float((found - right).norm() / right.norm())


def flat(model: nn.Module) -> Tensor:
    """The gradient of what trains as one vector, on the CPU in fp64; 0 where there is none."""
    parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(model))
    return torch.cat([part.detach().cpu().double().flatten() for part in parts])


def tiny_llava() -> nn.Module:
    """The microworld's architecture with random weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_llava(World(width=64)).eval().requires_grad_(False)


def trains(model: nn.Module, part: str) -> nn.Module:
    """A copy of the model whose part trains, the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = set_trainable(copy.deepcopy(model), part)
    return seven.nudge(model) if part == "lora" else model


def on_both(device: str, parts: tuple[str, ...] = ("all", "projector", "lora")) -> Iterator[Row]:
    """Features, captions, losses and gradients of every method on the device against the CPU's, in
    fp32: WITHIN apart at most.
    """
    # A convolution may use TF32 unless it is told not to, which is a thousandth apart.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        model, processor = tiny_llava(), build_processor()
        there = copy.deepcopy(model).to(device)
        scenes = split_scenes(0, some=8)["some"]
        pictures = [draw(scene) for scene in scenes]
        features = embed_images(model, processor, pictures)
        apart = far(embed_images(there, processor, pictures), features)
        yield "image features", {"apart": apart, "ok": apart <= WITHIN}
        said = [generate(m, processor, features, max_new_tokens=12) for m in (model, there)]
        yield "greedy captions", {"equal": said[0] == said[1], "ok": said[0] == said[1]}
        data = with_reference(model, encode(processor, features, *sampled(scenes)))
        with torch.no_grad():
            apart = far(token_nll(there, data.to(device)), token_nll(model, data))
        yield "NLL of tokens", {"apart": apart, "ok": apart <= WITHIN}
        for part in parts:
            for name in METHODS:
                yield f"{name}, {part}", step_on_both(trains(model, part), data, name, device)


def step_on_both(model: nn.Module, data, name: str, device: str) -> dict:
    """One method's losses and gradient on the device against the CPU's."""
    there = copy.deepcopy(model).to(device)
    before = [p.detach().clone() for p in trainable(there)]
    right = gradient(model, data, METHODS[name], 3)
    found = gradient(there, data.to(device), METHODS[name], 3)
    keys = [key for key in right if right[key] == right[key]]  # EFUF has no norm: nan
    losses = far(*(torch.tensor([log[key] for key in keys]) for log in (found, right)))
    apart = far(flat(there), flat(model))
    whole = all(torch.equal(p, q) for p, q in zip(trainable(there), before, strict=True))
    is_ok = whole and max(losses, apart) <= WITHIN
    return {"losses_apart": losses, "gradient_apart": apart, "restored": whole, "ok": is_ok}


def given_back(device: str) -> Iterator[Row]:
    """theta after theta + eps, bit for bit, in three dtypes, also where the body raises."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        theta, g = (
            [torch.randn(257, 63, generator=generator).to(device, dtype) for _ in range(3)]
            for _ in range(2)
        )
        before, moved = [p.clone() for p in theta], False
        try:
            with perturbed(theta, g, 30.0):
                moved = not any(map(torch.equal, theta, before))
                raise InterruptedError
        except InterruptedError:
            whole = all(map(torch.equal, theta, before))
        name = f"given back, {str(dtype).removeprefix('torch.')}"
        yield name, {"moved": moved, "restored": whole, "ok": moved and whole}


def half(device: str, size: seven.Size, dtypes=(torch.float16, torch.bfloat16)) -> Iterator[Row]:
    """Gradients of LoRA on frozen 16-bit weights against the same weights in fp32: finite, and in
    fp16 in the same direction (COSINE). zeros: the share of the gradient that is exactly zero, less
    the share in fp32, so what underflowed.
    """
    for dtype in dtypes:
        model = seven.random_llava(size, dtype, device)
        data = seven.batch(model, size)
        wide = trains(copy.deepcopy(model).float(), "lora")
        model = trains(model, "lora")
        for name in seven.NAMES:
            logs = [gradient(m, data, METHODS[name], size.micro_batch) for m in (model, wide)]
            found, right = flat(model), flat(wide)
            cosine = float(torch.nn.functional.cosine_similarity(found, right, dim=0))
            is_finite = bool(found.isfinite().all())
            is_close = cosine >= COSINE or dtype != torch.float16
            yield (
                f"{name}, {str(dtype).removeprefix('torch.')}",
                {
                    "finite": is_finite,
                    "cosine": cosine,
                    "norm_ratio": float(found.norm() / right.norm()),
                    "forget_loss": [log["neg"] for log in logs],
                    "zeros": float((found == 0).double().mean() - (right == 0).double().mean()),
                    "ok": is_finite and is_close,
                },
            )
        del model, wide
