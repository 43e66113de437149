"""Two processes that hold a share of the weights each (FSDP2, tensor parallelism) take the steps
that one process takes with all of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_llava
from safetensors.torch import load_file, save_file

from lab.field import ranks
from sare_min import unlearn as module
from sare_min.captions import Captions
from sare_min.llava import trainable
from sare_min.unlearn import METHODS, Training, unlearn

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("SARE", "EFUF", "EFUF+SAM", "NPO", "NPO+Targeted-SAM")
TRAINING = Training(steps=3, batch_size=8, micro_batch=4, lr=1e-3, cooldown=0)
CASES = [*((name, "fsdp") for name in NAMES), ("SARE", "tensor"), ("EFUF+SAM", "tensor")]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, data):
    """The folder that the two processes wrote to; they had two minutes, so none hung."""
    folder = tmp_path_factory.mktemp("sharded")
    save_file({k: v.contiguous() for k, v in vars(data).items()}, folder / "data.safetensors")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "chapters", ROOT / "tests"))),
        "OMP_NUM_THREADS": "1",
    }
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *how, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def erased(model, data, name, training=TRAINING):
    unlearn(model, data, METHODS[name], training, seed=0, progress=False)
    return {str(i): p.detach() for i, p in enumerate(trainable(model))}


@pytest.mark.parametrize("name, how", CASES)
def test_sharded_steps_equal_one_processs(by_two, data, name, how):
    """Fails if the norm is a shard's own, if a shard's gradient is left out, or if the second pass
    still sees the weights of the first.
    """
    start = {str(i): p.detach() for i, p in enumerate(trainable(tiny_llava()))}
    mine = erased(tiny_llava(), data, name)
    assert any((mine[i] - start[i]).abs().max() > 1e-3 for i in mine), "it must have moved"
    for rank in (0, 1):
        theirs = load_file(by_two / f"{name} {how} {rank}.safetensors")
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_every_shard_is_restored_after_a_step_at_lr_zero(by_two):
    """Fails if a shard is not restored bit for bit, or if nothing was sharded at all."""
    for rank in (0, 1):
        assert (by_two / f"restored {rank}").read_text() == "moved, restored, sharded"


def test_one_process_that_raises_stops_all_and_every_shard_is_restored(by_two):
    """Fails if the other process waits for ever, goes on alone, or keeps a perturbed shard."""
    for rank, error in ((0, "RuntimeError"), (1, "KeyboardInterrupt")):
        found = (by_two / f"stopped {rank}").read_text()
        assert found.startswith(f"restored: {error}: "), found
        assert (rank == 0) == ("Connection closed by peer" in found), found


def test_tied_embeddings_are_refused(model):
    """Fails if FSDP2 makes two tensors of one in silence."""
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="tied: untie them"):
        ranks.shard(model)


def tensor_parallel(model):
    """Every second matrix of the MLPs and attention split by columns, the others by rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    plan["mlp.down_proj"] = RowwiseParallel()
    for layer in model.model.language_model.layers:
        parallelize_module(layer, init_device_mesh("cpu", (2,)), plan)
    return model


def whole(tensors):
    return {
        i: (t.full_tensor() if hasattr(t, "full_tensor") else t).contiguous()
        for i, t in tensors.items()
    }


def shards(params):
    return [p.detach().to_local().clone() for p in params]


def take_steps(folder, rank, data):
    for name, how in CASES:
        spread = ranks.shard if how == "fsdp" else tensor_parallel
        found = whole(erased(spread(tiny_llava()), data, name))
        save_file(found, folder / f"{name} {how} {rank}.safetensors")
    model, moved, losses = ranks.shard(tiny_llava()), [], module.method_losses
    params = trainable(model)
    start = shards(params)

    def look(*given):
        moved.append(not all(map(torch.equal, shards(params), start)))
        return losses(*given)

    module.method_losses = look
    erased(model, data, "SARE", Training(steps=1, batch_size=8, micro_batch=8, lr=0.0))
    module.method_losses = losses
    words = [
        "moved" if moved == [False, False, True] else str(moved),
        "restored" if all(map(torch.equal, shards(params), start)) else "left perturbed",
        "sharded" if all(p.to_local().numel() <= p.numel() // 2 + 64 for p in params) else "whole",
    ]
    (folder / f"restored {rank}").write_text(", ".join(words))


def raise_on_one(folder, rank, data):
    model, calls, losses = ranks.shard(tiny_llava()), [], module.method_losses
    params = trainable(model)
    start = shards(params)

    def dies(*given):
        calls.append(1)
        if rank == 1 and len(calls) == 3:  # forget rows, other rows; then the second pass
            assert not all(map(torch.equal, shards(params), start)), "it must have moved"
            raise KeyboardInterrupt
        return losses(*given)

    module.method_losses = dies
    try:
        erased(model, data, "SARE", Training(steps=1, batch_size=8, micro_batch=8, lr=0.0))
    except BaseException as error:
        is_same = all(map(torch.equal, shards(params), start))
        words = f"{'restored' if is_same else 'left perturbed'}: {type(error).__name__}: {error}"
        (folder / f"stopped {rank}").write_text(words)


if __name__ == "__main__":  # what torchrun starts
    rank, _ = ranks.join()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    given = Captions(**load_file(folder / "data.safetensors"))
    take_steps(folder, rank, given)
    raise_on_one(folder, rank, given)
