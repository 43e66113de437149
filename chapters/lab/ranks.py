"""Erasure by several processes under torchrun: each takes its share of a batch's micro-batches, and the gradients are summed.

The steps are those of one process. All draw the same batches by the same seed and count their tokens over the whole batch; the ascent
direction is summed over the processes before the step to theta + eps, and g before the optimiser's step. Each holds all weights (DDP's
way): weights that are *sharded* over devices (FSDP) would need a norm over the shards, which sare_min.sam does not take.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sare_min.losses import Method
from sare_min.unlearn import Training


def join() -> tuple[int, int]:
    """(this process's rank, how many there are): (0, 1) unless torchrun started it, whose group it then joins, on its own device."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def summed(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's sum over all processes; None counts as zeros like its neighbour in `like`."""
    totals = [torch.zeros_like(p) if t is None else t.contiguous() for t, p in zip(tensors, like, strict=True)]
    for total in totals:
        dist.all_reduce(total)
    return totals


@contextmanager
def shared(params: Sequence[Tensor], method: Method, training: Training) -> Iterator[tuple[Method, Training]]:
    """(method, training) by which each process does its part of `unlearn`; as they are where there is only one.

    training.micro_batch must leave every process some rows: with too few micro-batches one only waits. Raises ValueError if they are
    surely too few, or if the method already turns its step.
    """
    rank, n_ranks = join()
    if n_ranks == 1:
        yield method, training
        return
    if method.turn or training.batch_size <= training.micro_batch * (n_ranks - 1):
        raise ValueError(f"{n_ranks} processes, batches of {training.batch_size} in micro-batches of {training.micro_batch}, turn="
                         f"{method.turn}: give at least a micro-batch to each process, and no turn.")

    def sum_gradients(optimizer, args, kwargs) -> None:
        for parameter, total in zip(params, summed([p.grad for p in params], params), strict=True):
            parameter.grad = total

    hook = register_optimizer_step_pre_hook(sum_gradients)
    try:
        yield replace(method, turn=lambda direction: summed(direction, params)), replace(training, share=(rank, n_ranks))
    finally:
        hook.remove()
