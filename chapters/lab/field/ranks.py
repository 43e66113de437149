"""Erasure by several processes under torchrun: each takes its share of a batch's micro-batches, and
the gradients are summed.

The steps are those of one process. All draw the same batches by the same seed and count their
tokens over the whole batch; the ascent direction is summed over the processes before the step to
theta + eps, and g before the optimiser's step. Each holds all weights (DDP's way, `shared`).

Where they do not fit one device, `shard` spreads them over the processes by FSDP2. Then each takes
the whole batch: sharding saves memory, not time, and needs neither `shared` nor a step of its own.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sare_min.captions import Captions, base
from sare_min.losses import Method
from sare_min.sam import targeted_sam
from sare_min.unlearn import Training


def join() -> tuple[int, int]:
    """(this process's rank, how many there are): (0, 1) unless torchrun started it, whose group it
    then joins, on its own device.

    Raises ValueError if there are more processes than GPUs to put them on.
    """
    if not dist.is_torchelastic_launched():  # a scheduler sets RANK for single processes, too
        return 0, 1
    if not dist.is_initialized():
        local, n_local, n_gpus = (
            int(os.environ["LOCAL_RANK"]),
            int(os.environ["LOCAL_WORLD_SIZE"]),
            torch.cuda.device_count(),
        )
        if 0 < n_gpus < n_local:
            raise ValueError(
                f"{n_local} processes, {n_gpus} GPUs: give torchrun --nproc_per_node {n_gpus}."
            )
        if n_gpus:
            torch.cuda.set_device(local)
        # One process may score thousands of images while the others wait.
        dist.init_process_group("nccl" if n_gpus else "gloo", timeout=timedelta(hours=6))
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def shard(model: nn.Module) -> nn.Module:
    """Spread the weights over the processes by FSDP2, the frozen tower aside; the same model.

    It is what `unlearn` takes, with the same batches in every process; `perturbed` then moves and
    restores each process's shards. A process that raises must end, as it does under torchrun: then
    what the others wait for fails, and they restore theirs. Raises ValueError for input and output
    embeddings that are one tensor: FSDP2 would make two of it.
    """
    llava = base(model)
    tokens, head = llava.get_input_embeddings(), llava.get_output_embeddings()
    if tokens.weight is head.weight:
        raise ValueError("the embeddings are tied: untie them (tie_word_embeddings) to shard them.")
    # Embeddings and projector are units of their own, because sare_min.captions calls them directly
    alone = [tokens, llava.model.multi_modal_projector, *llava.model.language_model.layers]
    for unit in alone:
        fully_shard(unit)
    # By default the root would stay whole after a forward without a backward, and grow stale
    tower = set(llava.model.vision_tower.parameters())
    fully_shard(llava, reshard_after_forward=True, ignored_params=tower)
    with torch.no_grad():  # a first forward from the root tells the units that they have one
        first = torch.zeros(1, 1, tokens.embedding_dim, dtype=llava.dtype, device=llava.device)
        llava(inputs_embeds=first, use_cache=False)
    return model


def agreed(flag: bool) -> bool:
    """Process 0's answer, in all: two devices may differ in a last bit, and one alone must not
    stop.
    """
    if join()[1] == 1:
        return flag
    answer = torch.tensor([int(flag)], device=_device())
    dist.broadcast(answer, 0)
    return bool(answer)


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _check_same(tensors: Sequence[Tensor]) -> None:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tensor.shape).encode() + tensor.detach().float().cpu().numpy().tobytes())
    mine = torch.tensor(list(digest.digest()), device=_device())
    lowest, highest = mine.clone(), mine.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise ValueError(
            "the processes hold different weights or captions, so their gradients must not be"
            " added: seed all alike, and give each the same files."
        )


def summed(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's sum over all processes; None counts as zeros like its neighbour in `like`."""
    totals = [
        torch.zeros_like(p) if t is None else t.contiguous()
        for t, p in zip(tensors, like, strict=True)
    ]
    for total in totals:
        dist.all_reduce(total)
    return totals


def _its_part(rank: int, n_ranks: int, params, batches, again, losses, rho) -> float:
    """targeted_sam over every n-th micro-batch from the rank-th on. Each is its part of the whole
    batch's mean, so the processes' gradients add up.
    """
    mine = batches[rank::n_ranks], again[rank::n_ranks]
    return targeted_sam(params, *mine, losses, rho, lambda found: summed(found, params))


@contextmanager
def shared(
    params: Sequence[Tensor], data: Captions, method: Method, training: Training
) -> Iterator[tuple[Method, Training]]:
    """(method, training) by which each process does its part of `unlearn`; as they are where there
    is only one.

    training.micro_batch must leave every process some rows: with too few micro-batches one only
    waits. Raises ValueError if they are surely too few, if the method brings a step of its own, or
    if the processes hold different params or data.
    """
    rank, n_ranks = join()
    if n_ranks == 1:
        yield method, training
        return
    if (
        method.step is not targeted_sam
        or training.micro_batch < 1
        or training.batch_size <= training.micro_batch * (n_ranks - 1)
    ):
        raise ValueError(
            f"{n_ranks} processes, batches of {training.batch_size} in micro-batches of"
            f" {training.micro_batch}, step {method.step}: give at least a micro-batch to each"
            " process, and leave the step to targeted_sam."
        )

    _check_same([*params, *(value for value in vars(data).values() if value is not None)])

    def sum_gradients(optimizer, args, kwargs) -> None:
        for parameter, total in zip(params, summed([p.grad for p in params], params), strict=True):
            parameter.grad = total

    hook = register_optimizer_step_pre_hook(sum_gradients)
    try:
        yield replace(method, step=partial(_its_part, rank, n_ranks)), training
    finally:
        hook.remove()
