"""What a model has said is not asked again, and nothing else is taken for it."""

import os
import random
import signal
import sqlite3
import time
from contextlib import closing

import pytest
import torch
from conftest import tiny_llava
from peft.tuners.tuners_utils import BaseTunerLayer

from lab.llava.remembering import known_as, remembered
from lab.llava.resuming import sampled
from lab.llava.speech import generate
from sare_min.llava import trainable


def say(processor, features, path, model=None, temperature=1.0, n=8, seed=3):
    """Eight answers in four batches; drawn, so that each batch hangs on the draws before it."""
    model = model or tiny_llava()
    how = {"max_new_tokens": 6, "batch_size": 2, "temperature": temperature, "seed": seed}
    with remembered(model, path):
        return generate(model, processor, features[:n], **how)


def kept(path):
    with closing(sqlite3.connect(path)) as memory:
        return memory.execute("SELECT * FROM said ORDER BY key").fetchall()


@pytest.fixture
def asked(monkeypatch):
    """How many batches were generated."""
    count = []

    class Counted(type(tiny_llava())):
        def generate(self, **inputs):
            count.append(len(inputs["inputs_embeds"]))
            return super().generate(**inputs)

    def make(part="all"):
        model = tiny_llava(part)
        llava = model.get_base_model() if part == "lora" else model
        llava.__class__ = Counted
        return model

    return count, make


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_was_said_is_not_asked_again(processor, features, tmp_path, asked, temperature):
    """Fails if a batch is generated twice, if what is kept is other words, or if a batch that is
    drawn after a kept one is drawn from other random numbers.
    """
    count, make = asked
    plain = say(processor, features, None, temperature=temperature)
    path = tmp_path / "new/said.db"
    assert say(processor, features, path, make(), temperature, n=4) == plain[:4]
    assert count == [2, 2]
    assert say(processor, features, path, make(), temperature) == plain
    assert count == [2, 2, 2, 2] and len(kept(path)) == 4
    assert say(processor, features, path, make(), temperature) == plain
    assert len(count) == 4
    model = make()
    assert say(processor, features, path, model, temperature) == plain
    assert "generate" not in vars(model), "the model must be given back as it was"


def test_a_memory_is_of_one_model_and_one_question(processor, features, tmp_path, asked):
    """Fails if what another model, adapter, scale, image, seed or temperature led to is taken for
    this one's.
    """
    count, make = asked
    path = tmp_path / "said.db"

    def is_new(model, **how):
        before = len(count)
        say(processor, how.pop("features", features), path, model, n=2, **how)
        return len(count) > before

    assert is_new(make()) and not is_new(make())
    assert is_new(make(), seed=4) and is_new(make(), temperature=0.5)
    assert is_new(make(), features=features + 1)
    moved = make()
    with torch.no_grad():
        trainable(moved)[0].view(-1)[7] += 1e-3
    assert is_new(moved)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = make("lora")
    assert is_new(adapted) and not is_new(adapted)
    layer = next(m for m in adapted.modules() if isinstance(m, BaseTunerLayer))
    layer.scaling["default"] *= 2
    assert is_new(adapted)
    layer.scaling["default"] /= 2
    largest = max(trainable(adapted), key=torch.numel)
    assert largest.numel() % len(sampled(largest)) == 0 and largest.numel() > len(sampled(largest))
    with torch.no_grad():  # where no sample looks
        largest.view(-1)[-1] += 1e-6
    assert is_new(adapted)


def test_a_digest_is_of_the_captions_too(data):
    """Fails if a probe of other captions is taken for this one's."""
    model = tiny_llava()
    assert known_as(model, data) == known_as(tiny_llava(), data)
    assert len({known_as(model, data), known_as(model, data[:1]), known_as(model)}) == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_at_any_moment_the_words_are_the_same(processor, features, tmp_path):
    """Fails if a process that is killed, also while it writes, leaves a batch that is half written,
    or another one than it would have had.
    """
    path, rng = tmp_path / "said.db", random.Random(0)
    begun = time.perf_counter()
    plain = say(processor, features, tmp_path / "whole.db")
    took = time.perf_counter() - begun
    for _ in range(6):
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                say(processor, features, path)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert say(processor, features, path) == plain
    assert kept(path) == kept(tmp_path / "whole.db")


def test_another_file_is_refused(processor, features, tmp_path):
    """Fails if a damaged file ends in sqlite's own words, or is written over."""
    path = tmp_path / "said.db"
    path.write_text("these are notes, " * 100)
    with pytest.raises(ValueError, match="said.db: no file of what a model said.*delete it"):
        say(processor, features, path)
    assert path.read_text().startswith("these are notes")
    path.unlink()
    with closing(sqlite3.connect(path)) as memory:
        memory.execute("CREATE TABLE said (other)")
    with pytest.raises(ValueError, match="said.db: no file of what a model said"):
        say(processor, features, path)
