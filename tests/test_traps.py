"""The measured traps: each must show the fault, and show none where there is none."""

import torch
from conftest import tiny_llava

from lab.experiments import traps
from sare_min.llava import trainable


def a_step():
    params = trainable(tiny_llava())
    generator = torch.Generator().manual_seed(0)
    return params, [torch.randn(p.shape, generator=generator) for p in params]


def test_coarse_weights_swallow_a_short_step():
    """Fails if the cosine is taken of the intended step with itself, or if bf16 were as good as
    fp32.
    """
    params, direction = a_step()
    fine = traps.step_cosines(params, direction, (0.01, 1.0), torch.float32)
    coarse = traps.step_cosines(params, direction, (0.0001, 0.01, 1.0), torch.bfloat16)
    assert min(fine) > 0.999 and coarse[0] < coarse[1] < coarse[2] and coarse[0] < 0.9


def test_subtracting_is_not_giving_back():
    """Fails if the copy drifts, or if the drift of subtracting is not measured."""
    params, direction = a_step()
    found = traps.not_given_back(params, direction, 0.5, torch.bfloat16)
    assert found["copied"] == 0 and found["subtracted"] > 1e-4
    assert all(torch.equal(p, q) for p, q in zip(params, trainable(tiny_llava()), strict=True)), (
        "the given weights stay as they are"
    )
