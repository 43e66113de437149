"""METHODS, a table of settings, and the one training loop that they all share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .captions import Captions, token_nll
from .llava import trainable
from .losses import Method, counts, method_losses, npo, simnpo
from .sam import length


def efuf_released(done: float) -> dict[str, float]:
    """The weights of EFUF's released code, which fall during the run (starreeze/efuf
    finetune/loss.py).
    """
    return {"lambda_neg": 0.3 * min(1.0, (1 - done) / 0.6), "lambda_pos": 1 - done / 2}


METHODS: dict[str, Method] = {
    "GA": Method(lambda_pos=0.0, lambda_sent=0.0),  # gradient ascent on the forget spans alone
    "GradDiff": Method(lambda_sent=0.0),
    "EFUF": Method(),  # constant weights
    # The released code's ratio of whole captions to retain spans.
    "EFUF released": Method(lambda_sent=0.36, schedule=efuf_released),
    "EFUF+SAM": Method(rho=0.2, perturb=("neg", "pos", "sent")),  # untargeted: all is perturbed
    "NPO": Method(npo, per="row"),
    "SimNPO": Method(simnpo, per="row", lambda_neg=0.125),  # published beta and weight
    "NPO+Targeted-SAM": Method(npo, per="row", rho=0.2),
    "SARE": Method(rho=0.2),
}


@dataclass(frozen=True)
class Training:
    """How long and how fast, at a microworld's scale (EFUF's released code, on 7B: lr 1e-5, weight
    decay 0.05).
    """

    steps: int = 96
    batch_size: int = 64  # captions
    micro_batch: int = 64  # captions in one forward; smaller saves memory and changes nothing else
    lr: float = 2e-4
    weight_decay: float = 0.0
    # Last steps, over which the learning rate falls linearly: the end of a run must not hang on its
    # last batch.
    cooldown: int = 12


def get_method(name: str, **changes) -> Method:
    """METHODS[name] with some settings changed; raises ValueError listing the known names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: METHODS has {', '.join(METHODS)}.")
    return replace(METHODS[name], **changes)


def draw_batches(has_forget: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless row indices, each batch with the data's own share of forget rows (at least one), each
    pool in shuffled passes.
    """
    pools = [has_forget.nonzero()[:, 0], (~has_forget).nonzero()[:, 0]]
    if not len(pools[0]):
        raise ValueError(f"no forget token in {len(has_forget)} captions: raise the threshold.")
    # From two rows on neither pool is left out, however small.
    share = round(batch_size * len(pools[0]) / len(has_forget))
    n_forget = max(1, min(batch_size - (len(pools[1]) > 0), share))
    generator = torch.Generator().manual_seed(seed)

    def passes(pool: Tensor) -> Iterator[int]:
        while len(pool):
            yield from pool[torch.randperm(len(pool), generator=generator)].tolist()

    forget, other = map(passes, pools)
    while True:
        rows = [next(forget) for _ in range(n_forget)]
        yield torch.tensor(rows + [next(other) for _ in range(batch_size - n_forget)])


def gradient(
    model: nn.Module, batch: Captions, method: Method, micro_batch: int = 64
) -> dict[str, float]:
    """Leave the method's gradient for one batch in .grad; return {"neg", "pos", "sent": the losses,
    "norm": ||grad target||}.

    With Targeted-SAM, rows without forget tokens take no part in the ascent step: they cost one
    forward and one backward. Raises ValueError if a loss or a gradient is not finite.
    """
    n = counts(batch, method.per)
    logged: dict[int, dict[str, float]] = {}
    weights = {"neg": method.lambda_neg, "pos": method.lambda_pos, "sent": method.lambda_sent}
    is_targeted, nothing = method.perturb == ("neg",), torch.zeros((), requires_grad=True)
    halves = batch.split_forget() if method.rho and is_targeted else (batch,)
    parts = [part for half in halves for part in half.split(micro_batch)]

    def losses(part: Captions) -> tuple[Tensor, Tensor]:
        found = method_losses(model, part, method, n)
        logged.setdefault(id(part), {name: loss.item() for name, loss in found.items()})
        weighted = {name: weights[name] * loss for name, loss in found.items()}
        # A micro-batch may have no token for one of the losses.
        target = sum((loss for k, loss in weighted.items() if k in method.perturb), nothing)
        rest = sum((loss for k, loss in weighted.items() if k not in method.perturb), nothing)
        return target, rest

    again = [p.until_forget() for p in parts if p.forget.any()] if is_targeted else parts
    norm = method.step(trainable(model), parts, again, losses, method.rho)
    # At theta; a process may take but some of the parts.
    log = {name: sum(logged.get(id(p), {}).get(name, 0.0) for p in parts) for name in weights}
    if not all(map(math.isfinite, log.values())):
        raise ValueError(f"a loss is not finite ({log}), no step taken: lower the learning rate.")
    length([p.grad for p in trainable(model)], "the gradient")  # or one nan would be every weight's
    return log | {"norm": norm}


@torch.no_grad()
def with_reference(model: nn.Module, data: Captions, batch_size: int = 64) -> Captions:
    """The same captions with each row's forget NLL under this (base) model, which NPO compares
    with.
    """
    device = next(model.parameters()).device
    parts = (part.to(device) for part in data.split(batch_size))
    nll = [(token_nll(model, part) * part.forget).sum(1).cpu() for part in parts]
    return replace(data, reference=torch.cat(nll).to(data.input_ids.device))


def unlearn(
    model: nn.Module,
    data: Captions,
    method: Method,
    training: Training = Training(),
    seed: int = 0,
    *,
    stop: Callable[[int], bool] | None = None,
    checkpoint=None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train the model's trainable parameters by one method; returns a log row per step.

    data: captions with forget, retain and sentence masks. stop(step): asked after each step; True
    starts the cool-down that ends the run (a matched forget level). Asked again at its end: False,
    and the run goes on at full speed until a later cool-down holds. checkpoint: keeps the run's
    state, so that one that was killed goes on to the same bytes (resume and save, as in
    lab.llava.resuming; what `stop` and a schedule remember by themselves is theirs to keep). Raises
    ValueError if nothing trains, nothing is to be forgotten, or a loss or a gradient is not finite:
    the weights are then those after the last good step.
    """
    params, end = trainable(model), training.steps - 1
    log: list[dict[str, float]] = []
    if not params:
        raise ValueError("nothing trains: call sare_min.llava.set_trainable(model, part) first.")
    fused = len({*map(type, params)}) == 1  # the kernel takes all sharded (DTensors), or none
    optimizer = torch.optim.AdamW(params, weight_decay=training.weight_decay, fused=fused)
    rows, last = draw_batches(data.forget.any(1), training.batch_size, seed), end
    if checkpoint:  # fills log: a row a step that was done
        last = checkpoint.resume(model, data, method, training, seed, optimizer, log)
        rows = islice(rows, len(log), None)  # the same batches, drawn and passed over
    for step in tqdm(range(len(log), training.steps), desc="unlearn", disable=not progress):
        if step > last:
            break
        changes = method.schedule(step / training.steps) if method.schedule else {}
        now = replace(method, **changes)
        left = min(1.0, (last - step + 1) / (training.cooldown + 1))
        optimizer.param_groups[0]["lr"] = training.lr * left
        batch = data[next(rows)].to(params[0].device)
        log.append(gradient(model, batch, now, training.micro_batch))
        optimizer.step()
        if stop and last in (end, step):  # while it cools down at its last step only
            last = min(last, step + training.cooldown) if stop(step) else end
        if checkpoint:
            checkpoint.save(optimizer, log, last)
    return log
