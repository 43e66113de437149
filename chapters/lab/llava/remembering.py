"""What a model has answered before: a run of hours that was killed asks it nothing twice.

Generation is a function of the weights, the inputs, the settings and, where it samples, of torch's
generators. So a batch is known by a digest of all of these, and of the libraries and the device
that round its numbers. What was kept under that digest is what would be generated again. A memory
of another model, of other captions or of another code is never found.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sare_min.captions import Captions, base

from .resuming import hashed, sampled

PACKAGES = ("torch", "transformers", "peft")


@contextmanager
def remembered(model: nn.Module, path: str | Path | None) -> Iterator[None]:
    """Inside, every batch that the model generates is kept in the SQLite file `path`, and one that
    is there already is not generated again: the tokens are the same, and torch's generators stand
    where they would. None: nothing is kept.

    The weights must not change inside. Raises ValueError naming the file if it holds something
    else, is damaged or cannot be written.
    """
    if path is None:
        yield
        return
    llava, who = base(model), known_as(model)
    plain = llava.generate
    with closing(_opened(Path(path))) as memory:

        def generate(**inputs: Tensor) -> Tensor:
            is_drawn = llava.generation_config.do_sample
            key = _key(who, llava.generation_config.to_json_string(), inputs, is_drawn)
            return _recalled(memory, key, llava.device, is_drawn, lambda: plain(**inputs))

        llava.generate = generate  # where lab.llava.speech asks it
        try:
            yield
        except sqlite3.Error as error:
            raise _refused(path, error) from error
        finally:
            del llava.generate


def known_as(model: nn.Module, *given: Captions) -> str:
    """A digest of a model, of the captions given, the device and the libraries. Of the model: its
    config, its weights (an adapter's in full, a sample of each other one), its adapter's scale.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    how = [base(model).config.to_json_string(), str(base(model).dtype), _device(base(model))]
    how += [repr((layer.scaling, layer.merged, layer.disable_adapters)) for layer in layers]
    how += [f"{package} {version(package)}" for package in PACKAGES]
    whole = [p for name, p in model.named_parameters() if ".lora_" in name or p.requires_grad]
    own = {id(p) for p in whole}
    rest = [sampled(p) for p in model.parameters() if id(p) not in own]
    rest += [value for data in given for value in vars(data).values() if value is not None]
    return hashlib.sha256(json.dumps([how, hashed(whole), hashed(rest)]).encode()).hexdigest()


def _device(model: nn.Module) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "CREATE TABLE IF NOT EXISTS said (key PRIMARY KEY, tokens TEXT, after BLOB)"
    try:
        with closing(sqlite3.connect(path)) as memory:
            memory.execute(table)
        return sqlite3.connect(path)
    except sqlite3.Error as error:
        raise _refused(path, error) from error


def _refused(path: str | Path, error: sqlite3.Error) -> ValueError:
    return ValueError(
        f"{path}: no file of what a model said, or a damaged one ({error}). Is the disk full? Make"
        " room. If not: delete it, and the model is asked anew."
    )


def _key(who: str, settings: str, inputs: dict[str, Tensor], is_drawn: bool) -> str:
    given = [*inputs.values(), *(_generators() if is_drawn else ())]
    text = json.dumps([who, settings, sorted(inputs), hashed(given)])
    return hashlib.sha256(text.encode()).hexdigest()


def _recalled(
    memory: sqlite3.Connection,
    key: str,
    device: torch.device,
    is_drawn: bool,
    ask: Callable[[], Tensor],
) -> Tensor:
    """The tokens kept under the key, or those that `ask` gives, which are then kept."""
    kept = memory.execute("SELECT tokens, after FROM said WHERE key = ?", (key,)).fetchone()
    if kept:
        if is_drawn:
            _set_generators(kept[1])
        return torch.tensor(json.loads(kept[0]), dtype=torch.long, device=device)
    tokens = ask()
    after = b"".join(state.numpy().tobytes() for state in _generators()) if is_drawn else None
    with memory:  # a transaction: the whole batch or nothing
        memory.execute(
            "INSERT OR REPLACE INTO said VALUES (?, ?, ?)",
            (key, json.dumps(tokens.tolist()), after),
        )
    return tokens


def _generators() -> list[Tensor]:
    """The states of torch's own: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _set_generators(after: bytes) -> None:
    now, states, at = _generators(), [], 0
    for state in now:
        states.append(torch.tensor(list(after[at : at + len(state)]), dtype=torch.uint8))
        at += len(state)
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])
