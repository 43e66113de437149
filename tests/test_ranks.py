"""Several processes under torchrun take the steps that one process takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_llava

from lab.field import ranks
from sare_min.llava import trainable
from sare_min.unlearn import METHODS, Training, get_method, unlearn

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("SARE", "EFUF", "NPO", "EFUF+SAM")
TRAINING = Training(steps=3, batch_size=8, micro_batch=4, lr=1e-3, cooldown=0)


def erase(name, data):
    """(weights after three steps, the gradient of the last one) of a method, in this process's
    share of the batches.
    """
    model = tiny_llava()
    model.double()  # so that the order in which numbers are added is not what differs
    params = trainable(model)
    with ranks.shared(params, data, get_method(name), TRAINING) as (method, training):
        unlearn(model, data, method, training, seed=0, progress=False)
    return [p.detach() for p in params], [p.grad for p in params]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, data):
    """What each of two processes ends with: {method: (weights, gradients)}, and their number."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(vars(data), folder / "data.pt")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "chapters", ROOT / "tests"))),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(folder),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(by_two, data, name):
    """Fails if a loss is divided by a process's own count, eps comes from one process's rows, or g
    is summed twice or not at all.
    """
    assert [found["world"] for found in by_two] == [2, 2]
    for mine, *theirs in zip(
        sum(erase(name, data), []), *(sum(found[name], []) for found in by_two), strict=True
    ):
        assert torch.equal(*theirs)
        torch.testing.assert_close(theirs[0], mine, rtol=1e-6, atol=1e-12)


def test_both_processes_work(by_two):
    """Fails if one of them does it all: then each would have seen every micro-batch."""
    assert all(found["rows"] == 4 for found in by_two)


def test_process_0_decides_when_to_stop(by_two):
    """Fails if each stops by its own forward: one would wait for the other for ever."""
    assert [found["agreed"] for found in by_two] == [[True, False]] * 2


def test_different_data_are_refused(by_two):
    """Fails if gradients of different captions are summed without a word."""
    assert all("different weights or captions" in found["refused"] for found in by_two)


def test_one_process_is_left_alone(data):
    method, training = METHODS["SARE"], Training()
    with ranks.shared([], data, method, training) as given:
        assert (
            given == (method, training)
            and ranks.join() == (0, 1)
            and ranks.agreed(True)
            and not ranks.agreed(False)
        )


def test_too_few_micro_batches_are_named(monkeypatch, data):
    monkeypatch.setattr(ranks, "join", lambda: (0, 4))
    with (
        pytest.raises(ValueError, match="4 processes, batches of 8 in micro-batches of 4"),
        ranks.shared([], data, METHODS["SARE"], TRAINING),
    ):
        pass


if __name__ == "__main__":  # what torchrun starts
    from sare_min import unlearn as module
    from sare_min.captions import Captions

    rank, world = ranks.join()
    torch.set_num_threads(1)
    folder, rows, losses = Path(sys.argv[1]), [], module.method_losses
    module.method_losses = lambda model, part, *rest: (
        rows.append(len(part)) or losses(model, part, *rest)
    )
    given = Captions(**torch.load(folder / "data.pt"))
    found = {"EFUF": erase("EFUF", given)}
    found["rows"] = sum(rows) / TRAINING.steps
    found["agreed"] = [ranks.agreed(rank == 0), ranks.agreed(rank == 1)]
    try:
        with ranks.shared([], given[torch.arange(4 + rank)], METHODS["SARE"], TRAINING):
            pass
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(
        {"world": world} | found | {name: erase(name, given) for name in NAMES if name != "EFUF"},
        folder / f"rank{rank}.pt",
    )
