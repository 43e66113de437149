"""An erasure that is killed and started again ends with the bytes of one that was not."""

import hashlib
import json
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import tiny_llava

from lab.experiments import cheaper
from lab.llava.resuming import STATE, Checkpoint
from sare_min.llava import trainable
from sare_min.losses import simnpo
from sare_min.unlearn import METHODS, Training, unlearn

TRAINING = Training(steps=12, batch_size=4, micro_batch=4, lr=1e-3, cooldown=3)


def erase(data, folder=None, name="SARE", part="all", every=2, stop=None, training=TRAINING):
    """(a digest of the weights, the log) at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a fresh LoRA draws from it
        model = tiny_llava(part)
        checkpoint = None if folder is None else Checkpoint(folder, every)
        log = unlearn(
            model,
            data,
            METHODS[name],
            training,
            seed=3,
            stop=stop,
            checkpoint=checkpoint,
            progress=False,
        )
    digest = hashlib.sha256()
    for p in trainable(model):
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest(), repr(log)


def dies_at(step):
    def stop(now):
        if now == step:
            raise KeyboardInterrupt
        return now >= 5  # where the cool-down starts

    return stop


@pytest.mark.parametrize("part", ["all", "lora"])
@pytest.mark.parametrize("name", ["SARE", "EFUF released", "NPO"])
def test_a_stopped_run_goes_on_to_the_same_bytes(data, tmp_path, name, part):
    """Fails if weights, optimiser, log, the data's order, the schedule or the cool-down begin anew;
    the stops fall before, in and after it.
    """
    whole = erase(data, name=name, part=part, stop=lambda now: now >= 5)
    for step in (3, 5, 5):
        with pytest.raises(KeyboardInterrupt):
            erase(data, tmp_path, name, part, stop=dies_at(step))
    assert json.loads((tmp_path / STATE).read_text())["log"], "it must have got somewhere"
    assert erase(data, tmp_path, name, part, stop=lambda now: now >= 5) == whole
    # And once it has ended, nothing is left to do
    assert erase(data, tmp_path, name, part, stop=pytest.fail) == whole
    assert len([*tmp_path.iterdir()]) == 2


def test_random_generators_go_on(data, tmp_path):
    """Fails if what a run draws from torch's generator is drawn anew after a stop."""

    def draws(now):
        drawn.append(float(torch.rand(())))
        if now == 7 and len(drawn) == 8:
            raise KeyboardInterrupt
        return False

    drawn = []
    with pytest.raises(KeyboardInterrupt):
        erase(data, tmp_path, stop=draws)
    erase(data, tmp_path, stop=draws)
    # The checkpoint after six steps holds the generator after six draws
    whole, drawn = drawn[:6] + drawn[8:], []
    erase(data, stop=lambda now: drawn.append(float(torch.rand(()))))
    assert whole == drawn


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_20_kills_20_times_the_same_bytes(data, tmp_path):
    """Fails if a process that is killed at any moment, also while it writes, leaves what a new one
    cannot go on from, or goes on from to other bytes.
    """
    whole, rng = erase(data, every=1), random.Random(0)
    begun = time.perf_counter()
    assert erase(data, tmp_path / "timed", every=1) == whole
    took, killed, folder = time.perf_counter() - begun, 0, 0
    while killed < 20:
        folder += 1
        for _ in range(3):  # kills of one and the same run
            child = os.fork()
            if not child:
                try:
                    torch.set_num_threads(1)
                    erase(data, tmp_path / str(folder), every=1)
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0, took))
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert erase(data, tmp_path / str(folder), every=1) == whole


def begun(data, folder):
    erase(data, folder)
    return folder / STATE, next(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "hurt, says",
    [
        (lambda state, tensors: state.write_bytes(state.read_bytes()[:-40]), "cannot be read"),
        (lambda state, tensors: state.write_bytes(b""), "cannot be read"),
        (lambda state, tensors: state.write_text("[]"), "cannot be read"),
        (lambda state, tensors: os.truncate(tensors, 5000), "safetensors has changed"),
        (lambda state, tensors: tensors.unlink(), "cannot be read"),
        (
            lambda state, tensors: state.write_text(
                state.read_text().replace('"last": 11', '"last": 9')
            ),
            "it has changed since it was written",
        ),
        (
            lambda state, tensors: state.write_text(
                state.read_text().replace('"version": 1', '"version": 7')
            ),
            "version 7, not 1",
        ),
    ],
)
def test_a_hurt_checkpoint_is_refused(data, tmp_path, hurt, says):
    """Fails if a run goes on from what was not written, or ends in another library's error."""
    hurt(*begun(data, tmp_path))
    with pytest.raises(ValueError, match=f"state.json: no whole checkpoint: .*{says}.*Delete"):
        erase(data, tmp_path)


def test_one_flipped_bit_is_refused(data, tmp_path):
    """Fails if the tensors' checksum is a sample."""
    state, tensors = begun(data, tmp_path)
    whole, rng = tensors.read_bytes(), random.Random(0)
    for _ in range(20):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        tensors.write_bytes(flipped)
        with pytest.raises(ValueError, match="safetensors has changed"):
            erase(data, tmp_path)


@pytest.mark.parametrize(
    "other, says",
    [
        ({"name": "EFUF"}, "its method is"),
        ({"training": replace(TRAINING, lr=2e-3)}, "its training is"),
        ({"part": "lora"}, "its weights is"),
    ],
)
def test_another_runs_checkpoint_is_refused(data, tmp_path, other, says):
    """Fails if a run goes on from another one's weights."""
    begun(data, tmp_path)
    with pytest.raises(ValueError, match=f"state.json: the checkpoint of another run: {says}"):
        erase(data, tmp_path, **other)


def test_another_seed_data_or_base_is_refused(data, tmp_path):
    """Fails if a checkpoint is taken for that of another order, other captions, or (with LoRA) of
    another model underneath.
    """

    def go(given, seed=3, base=None):
        model = tiny_llava("lora")
        if base:
            with torch.no_grad():
                next(p for p in model.parameters() if not p.requires_grad).add_(1.0)
        short, kept = Training(steps=2, batch_size=4), Checkpoint(tmp_path, 1)
        with torch.random.fork_rng(devices=[]):
            unlearn(model, given, METHODS["SARE"], short, seed, checkpoint=kept, progress=False)

    go(data)
    go(data)
    for changed, says in (
        ({"seed": 4}, "seed"),
        ({"given": replace(data, features=data.features + 1)}, "data"),
        ({"base": True}, "frozen"),
    ):
        with pytest.raises(ValueError, match=f"another run: its {says} is"):
            go(**{"given": data} | changed)


def test_what_cannot_be_resumed_says_so(data, tmp_path, model):
    """Fails if a step that remembers goes on without its memory."""
    method = replace(METHODS["SARE"], step=cheaper.kept(2))
    with pytest.raises(ValueError, match="may remember what no checkpoint holds"):
        unlearn(model, data, method, TRAINING, checkpoint=Checkpoint(tmp_path), progress=False)
    with pytest.raises(ValueError, match="every=0"):
        Checkpoint(tmp_path, 0)


def test_a_method_is_known_by_all_that_it_holds(model, data, tmp_path):
    """Fails if a partial cannot be kept, if another one goes on from its state, or if a function
    made on the spot, whose name is any other's, is taken for it.
    """
    short = Training(steps=2, batch_size=4, cooldown=0)

    def run(loss):
        method = replace(METHODS["SimNPO"], forget_loss=loss)
        return unlearn(
            tiny_llava(), data, method, short, checkpoint=Checkpoint(tmp_path / "s"), progress=False
        )

    run(partial(simnpo, beta=2.0))
    with pytest.raises(ValueError, match="method"):
        run(partial(simnpo, beta=3.0))
    with pytest.raises(ValueError, match="has no name to be known by"):
        run(lambda *given: simnpo(*given))
