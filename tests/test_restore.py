"""Random cases of the ascent step: whatever trains, in whatever dtype, whatever goes wrong on the
way, the weights come back bit for bit.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from sare_min.sam import perturbed, targeted_sam

CASES = settings(max_examples=1000, suppress_health_check=list(HealthCheck))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERRORS = {
    "error": (RuntimeError, "out of memory"),
    "interrupt": (KeyboardInterrupt, "^$"),
    "nan": (ValueError, "not finite in parameter"),
    "inf": (ValueError, "not finite in parameter"),
    "zero": (ValueError, "zero everywhere"),
}


def bits(tensors):
    """Bytes, so that -0 is not 0 and a NaN equals itself."""
    return [t.detach().clone().contiguous().view(-1).view(torch.uint8) for t in tensors]


def same(one, other):
    return all(map(torch.equal, one, other))


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    lora: bool
    tied: bool
    frozen: str  # a part that does not train
    unused: str  # which pass does not use `side`
    fault: str
    rho: float
    width: int
    n_batches: int
    seed: int


CASE = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    lora=st.booleans(),
    tied=st.booleans(),
    frozen=st.sampled_from(["", "embed", "layer", "side"]),
    unused=st.sampled_from(["", "first", "second", "target", "rest"]),
    fault=st.sampled_from(["", "", *ERRORS]),
    rho=st.sampled_from([1e-3, 0.2, 30.0]),
    width=st.integers(1, 5),
    n_batches=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)


class Toy(nn.Module):
    """A model of words with a part beside the way, small enough for a thousand steps."""

    def __init__(self, case: Case):
        super().__init__()
        self.embed, self.layer = nn.Embedding(5, case.width), nn.Linear(case.width, case.width)
        self.head = nn.Linear(case.width, 5, bias=False)
        self.side = nn.Linear(case.width, 5)
        if case.tied:
            self.head.weight = self.embed.weight
        getattr(self, case.frozen, nn.Module()).requires_grad_(False)

    def forward(self, words, with_side):
        hidden = self.embed(words) + torch.tanh(self.layer(self.embed(words)))
        return self.head(hidden) + (self.side(hidden) if with_side else 0)


def build(case: Case):
    torch.manual_seed(case.seed)
    model = Toy(case)
    if case.lora:
        model = get_peft_model(model, LoraConfig(r=1, target_modules=["layer", "side"]))
    return model.to(case.dtype)


@CASES
@given(CASE)
def test_a_step_at_lr_zero_leaves_every_bit(case):
    """Fails if theta is not restored (also when the second pass ends by an exception), if a frozen
    or tied tensor moves, or if a NaN or a zero gradient passes without its error.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(case)
    params = [p for p in model.parameters() if p.requires_grad]
    before, seen = bits(model.parameters()), []
    batches = [torch.tensor([i % 5, (i + case.seed) % 5]) for i in range(case.n_batches)]

    def losses(batch):
        is_second = len(seen) >= case.n_batches
        seen.append(not same(bits(model.parameters()), before))
        if is_second and case.fault in ("error", "interrupt"):
            raise ERRORS[case.fault][0](*["out of memory"] * (case.fault == "error"))
        with_side = case.unused != ("second" if is_second else "first")
        said = model(batch, with_side and case.unused != "target")
        target = -F.cross_entropy(said.float(), batch.flip(0))
        nothing = torch.zeros((), requires_grad=True)  # a loss may have no part that trains
        scale = {"nan": float("nan"), "inf": float("inf"), "zero": 0.0}.get(case.fault, 1.0)
        rest = F.cross_entropy(model(batch, with_side and case.unused != "rest").float(), batch)
        return target * scale, rest + nothing

    if case.fault:
        with pytest.raises(ERRORS[case.fault][0], match=ERRORS[case.fault][1]):
            targeted_sam(params, batches, batches, losses, case.rho)
    else:
        assert targeted_sam(params, batches, batches, losses, case.rho) > 0
        torch.optim.AdamW(params, lr=0.0, weight_decay=0.0, fused=True).step()
    assert same(bits(model.parameters()), before)
    assert not any(seen[: case.n_batches]), "the first pass is at theta"
    if case.fault in ("", "error", "interrupt") and case.rho > 1e-3:
        assert seen[case.n_batches], "the second pass is at theta + eps*"


SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5)


@CASES
@given(
    shapes=SHAPES,
    dtypes=st.lists(st.sampled_from([*DTYPES, torch.float64]), min_size=5, max_size=5),
    scale=st.integers(-44, 38),
    rho=st.sampled_from([0.0, 1e-30, 0.5, 1e6, 1e30]),
    without=st.sets(st.integers(0, 4)),
    bad=st.sampled_from(["", "", "nan", "inf", "interrupt"]),
    seed=st.integers(0, 2**31),
)
def test_any_tensors_come_back(shapes, dtypes, scale, rho, without, bad, seed):
    """Fails if any weight is lost: subnormal or huge, overflowing on the way, empty, a scalar, or
    without a direction.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, dtype, factor):
        return (torch.randn(shape, generator=generator).double() * factor).to(dtype)

    params = [draw(s, d, 10.0**scale) for s, d in zip(shapes, dtypes, strict=False)]
    direction = [
        None if i in without else draw(p.shape, p.dtype, 1.0) for i, p in enumerate(params)
    ]
    given = [g for g in direction if g is not None and g.numel()]
    before = bits(params)
    if bad in ("nan", "inf") and given:
        given[-1].view(-1)[-1] = float(bad)
    if not given or bad in ("nan", "inf"):
        with (
            pytest.raises(ValueError, match="zero everywhere|not finite in parameter"),
            perturbed(params, direction, rho),
        ):
            raise AssertionError("must not come here")
    else:
        try:
            with perturbed(params, direction, rho):
                if bad:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert bad
    assert same(bits(params), before)
