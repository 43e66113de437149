"""An erasure that goes on where it was killed, to the bytes that it would have had.

A checkpoint is two files: the tensors (what trains, the optimiser's state, the random generators)
as safetensors, and state.json, which names them, their checksum, the log, the end that a cool-down
has set, and the run that it is of. state.json is replaced last and in one go, so a process that is
killed at any moment leaves the checkpoint before, or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sare_min.captions import Captions
from sare_min.llava import trainable
from sare_min.losses import Method
from sare_min.sam import targeted_sam
from sare_min.unlearn import Training

from .. import files

VERSION = 1  # of this format
STATE = "state.json"


class Checkpoint:
    """What `unlearn` keeps in a folder every few steps, as its argument `checkpoint`.

    Started again with the same arguments, `unlearn` goes on from there; a run that had ended only
    gives its weights and log back. The folder is for one run. A `stop` or a schedule that remembers
    something (as experiments.levels.Watch and Held do) begins anew: such a run lands elsewhere.
    Other random generators than torch's own are the caller's, too.
    """

    def __init__(self, folder: str | Path, every: int = 50):
        """every: steps from one checkpoint to the next, at least 1; ValueError otherwise."""
        if every < 1:
            raise ValueError(f"every={every}: give a number of steps, 1 or more.")
        self.folder, self.every = Path(folder), every

    def resume(
        self,
        model: nn.Module,
        data: Captions,
        method: Method,
        training: Training,
        seed: int,
        optimizer: torch.optim.Optimizer,
        log: list[dict[str, float]],
    ) -> int:
        """Put the weights, the optimiser and torch's generators where the checkpoint has them, fill
        the empty log, and return the run's last step; without a checkpoint, change nothing.

        Raises ValueError naming the file if the checkpoint is not whole, or of another run, and if
        the method's step may remember what no checkpoint holds, or the weights are sharded.
        """
        self.params, self.run = trainable(model), _run(model, data, method, training, seed)
        path = self.folder / STATE
        if not path.exists():  # killed before the first one, or never begun
            return training.steps - 1
        state = _read(path)
        if odd := [key for key in self.run if state["run"].get(key) != self.run[key]]:
            theirs, mine = state["run"].get(odd[0]), self.run[odd[0]]
            raise ValueError(
                f"{path}: the checkpoint of another run: its {odd[0]} is {theirs!s:.120}, not"
                f" {mine!s:.120}. Give each run a folder of its own, or delete this one."
            )
        self._put(load_file(self.folder / state["tensors"]), optimizer)
        log.extend(state["log"])
        return state["last"]

    def _put(self, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "weight":
                with torch.no_grad():
                    self.params[int(rest[0])].copy_(tensor)
            elif kind == "optimizer":  # a copy, where the allocator would put it: kernels may round
                states.setdefault(int(rest[0]), {})[rest[1]] = tensor.clone()  # by the place
            elif rest[0] == "cpu":
                torch.set_rng_state(tensor.clone())
            else:
                torch.cuda.set_rng_state(tensor.clone(), self.params[0].device)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})

    def save(
        self, optimizer: torch.optim.Optimizer, log: Sequence[dict[str, float]], last: int
    ) -> None:
        """Write the checkpoint if it is time to, or this was the last step. Raises OSError naming
        the file if it cannot be written; the checkpoint before then still stands.
        """
        if len(log) % self.every and len(log) - 1 != last:
            return
        with files.named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(self.params)}
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.params[0].is_cuda:
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self.params[0].device)
        name = f"state-{len(log):08}.safetensors"
        whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        _replace(self.folder / name, lambda path: save_file(whole, path))
        state = {
            "version": VERSION,
            "run": self.run,
            "tensors": name,
            "sha256": _digest(self.folder / name),
            "last": last,
            "log": list(log),
        }
        text = json.dumps(state | {"check": _check(state)}, indent=1) + "\n"
        _replace(self.folder / STATE, lambda path: path.write_text(text))
        for old in (*self.folder.glob("state-*.safetensors"), *self.folder.glob("state*.part")):
            if old.name != name:
                old.unlink()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all, and see it onto the disk; raises OSError as `whole`."""
    with files.whole(path) as part:
        write(part)
        _settle(part)
    _settle(path.parent)


def _settle(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _check(state: dict) -> str:
    """A checksum of state.json's own content."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict:
    """What state.json says, if it and the tensors are what was written; ValueError otherwise."""
    try:
        state = json.loads(path.read_text())
        check = state.pop("check")
        tensors = path.parent / Path(state["tensors"]).name  # never out of the folder
        faults = {
            f"version {state['version']}, not {VERSION}": state["version"] != VERSION,
            "it has changed since it was written": check != _check(state),
            f"{tensors.name} has changed since it was written": _digest(tensors) != state["sha256"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        faults = {f"it cannot be read ({type(error).__name__}: {error})": True}
    if why := [fault for fault, is_there in faults.items() if is_there]:
        raise ValueError(
            f"{path}: no whole checkpoint: {why[0]}. Delete {path.parent} to begin anew."
        )
    return state


def _run(
    model: nn.Module, data: Captions, method: Method, training: Training, seed: int
) -> dict[str, object]:
    """What a run is known by: its settings, and digests of its data and of what does not train."""
    if method.step is not targeted_sam:
        raise ValueError(
            f"checkpoint: the step {method.step} may remember what no checkpoint holds: run it"
            " without, or take the plain step."
        )
    named = list(model.named_parameters())
    if any(isinstance(p, DTensor) for _, p in named):
        raise ValueError(
            "checkpoint: the weights are sharded, and each process has its share only: use"
            " torch.distributed.checkpoint."
        )
    frozen = [sampled(p) for _, p in named if not p.requires_grad]
    given = [value for value in vars(data).values() if value is not None]
    return {
        "method": {key: _told(value) for key, value in vars(method).items()},
        "training": asdict(training),
        "seed": seed,
        "weights": [[name, list(p.shape), str(p.dtype)] for name, p in named if p.requires_grad],
        "frozen": hashed(frozen),
        "data": hashed(given),
    }


def _told(value: object) -> object:
    """A setting as JSON has it; functions by their names, with what a partial fixes of them.

    Raises ValueError for one made on the spot, whose name says nothing of what it holds.
    """
    if isinstance(value, partial):
        fixed = {key: _told(given) for key, given in sorted(value.keywords.items())}
        return [_told(value.func), [_told(given) for given in value.args], fixed]
    if callable(value):
        if "<" in value.__qualname__:
            raise ValueError(
                f"checkpoint: {value.__qualname__} has no name to be known by: make it a function"
                " of a module."
            )
        return f"{value.__module__}.{value.__qualname__}"
    return list(value) if isinstance(value, tuple) else value


def sampled(weight: Tensor) -> Tensor:
    """At most 2047 of a weight's values, about evenly spread, as for an adapter's base."""
    return weight.detach().reshape(-1)[:: max(1, weight.numel() // 1024)]


def hashed(tensors: Sequence[Tensor]) -> str:
    """A digest of the tensors' dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
