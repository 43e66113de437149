"""The two checkpoints of an audit: told apart, checked against each other before any long work,
loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from ..field import devices
from ..files import read_text
from ..llava.checkpoints import BASE, load

ADAPTER = "adapter_config.json"
# Of a config's text_config and vision_config: where two checkpoints of one architecture agree
SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)


@dataclass(frozen=True)
class Pair:
    """A base checkpoint and its erased one. prints: name -> a hash of its files, or the hub's
    commit.
    """

    base: str
    erased: str
    is_adapter: bool
    prints: dict[str, str]


def check(base: str, erased: str) -> Pair:
    """The pair, if the erased one can be an erasure of the base; only small files are read as such,
    the weights are only hashed.

    Raises ValueError naming the checkpoint and the mend: one is missing or no LLaVA, their
    architectures or tokenizers differ, the adapter names another base, or their files are the same.
    """
    is_adapter = Path(erased, ADAPTER).is_file()
    config = _config(base, "--base")
    prints = {"base": fingerprint(base, config, "--base")}
    if is_adapter:
        _check_adapter(base, Path(erased), prints["base"])
        prints["erased"] = fingerprint(erased, None, "--erased")
    else:
        other = _config(erased, "--erased")
        _check_shape(base, config, erased, other)
        _check_tokenizer(base, erased)
        prints["erased"] = fingerprint(erased, other, "--erased")
        if _weights(base) and _weights(base) == _weights(erased):
            raise ValueError(
                f"--erased {erased}: holds the very weights of --base {base}: nothing was erased."
                " Give the erased one."
            )
    return Pair(base, erased, is_adapter, prints)


def short(error: Exception) -> str:
    """Its kind and the start of what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _config(path: str, which: str):
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # the hub, the file system and transformers have each their own
        raise ValueError(
            f"{which} {path}: no checkpoint ({short(error)}). Give a"
            " folder with config.json and weights, or a hub name."
        ) from error
    if config.model_type != "llava":
        raise ValueError(
            f"{which} {path}: a {config.model_type}, not a llava: only"
            " LlavaForConditionalGeneration can be audited. Convert it first."
        )
    return config


def _check_shape(base: str, config, erased: str, other) -> None:
    for part in ("text_config", "vision_config"):
        for key in SHAPE:
            one, two = (getattr(getattr(c, part), key, None) for c in (config, other))
            if one != two:
                raise ValueError(
                    f"--erased {erased}: another architecture than --base {base}:"
                    f" {part}.{key} is {two}, not {one}. Give the base that was erased."
                )


def _check_tokenizer(base: str, erased: str) -> None:
    one, two = (_words(path, which) for path, which in ((base, "--base"), (erased, "--erased")))
    if one != two:
        odd = sorted({*one.items()} ^ {*two.items()})[0][0]
        raise ValueError(
            f"--erased {erased}: another tokenizer than --base {base}: they differ in {odd!r}."
            " Give the base that was erased."
        )


def _words(path: str, which: str) -> dict[str, int]:
    try:
        return AutoTokenizer.from_pretrained(path).get_vocab()
    except Exception as error:  # as in _config
        raise ValueError(
            f"{which} {path}: no tokenizer ({short(error)}). Save the processor beside the weights."
        ) from error


def _check_adapter(base: str, folder: Path, base_print: str) -> None:
    """The adapter names this base: by its name, its folder, or a folder of the same files."""
    try:
        named = json.loads(read_text(folder / ADAPTER))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / ADAPTER}: names no base ({error}). Save it again.") from error
    is_same = named == base or (
        Path(named).is_dir()
        and Path(base).is_dir()
        and (Path(named).samefile(base) or fingerprint(named, None, "") == base_print)
    )
    if not is_same:
        raise ValueError(
            f"--erased {folder}: an adapter for {named}, not for --base {base}: give that base, or"
            f" if they are the same, write its name into {ADAPTER}."
        )


def fingerprint(path: str | Path, config, which: str) -> str:
    """A hash of all files of a folder, or the hub's commit of a name; ValueError if it has none."""
    if Path(path).is_dir():
        return _hash(sorted(p for p in Path(path).rglob("*") if p.is_file()), Path(path))
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise ValueError(f"{which} {path}: neither a folder nor a name with a commit: download it.")
    return f"{path}@{commit}"


def _hash(paths: list[Path], home: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(home)} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _weights(path: str) -> str:
    """A hash of the weights alone; "" where they are not in a folder."""
    files = sorted(p for p in Path(path).glob("*") if p.suffix in (".safetensors", ".bin"))
    return _hash(files, Path(path)) if files else ""


def load_base(pair: Pair, device: str = "auto"):
    """(the base model, its processor), frozen, in the device's dtype."""
    return load(pair.base, device=device, dtype=devices.compute_dtype())


def load_erased(pair: Pair, device: str = "auto") -> nn.Module:
    """The erased model, an adapter merged into its base, as an attacker would have it.

    Raises ValueError naming the path if it does not load whole, or the adapter does not fit.
    """
    if not pair.is_adapter:
        return load(pair.erased, device=device, dtype=devices.compute_dtype())[0]
    if Path(pair.erased, BASE).exists():  # ours: it knows the weights that it was trained on
        model = load(pair.erased, device=device, dtype=devices.compute_dtype())[0]
        return devices.merged(model)
    model = load_base(pair, device)[0]
    try:
        model = PeftModel.from_pretrained(model, pair.erased)
        odd = get_peft_model_state_dict(model).keys() ^ load_peft_weights(pair.erased).keys()
    except Exception as error:  # peft, safetensors and torch have each their own
        raise ValueError(
            f"--erased {pair.erased}: the adapter does not fit --base {pair.base}"
            f" ({short(error)}). Give its own base."
        ) from error
    if odd:
        raise ValueError(
            f"--erased {pair.erased}: no whole adapter of --base {pair.base}: {sorted(odd)[0]} is"
            " missing or not used. Save it again."
        )
    return devices.merged(model)


def device_name() -> str:
    """What results of two devices are kept apart by."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{where}, {devices.compute_dtype()}".replace("torch.", "")
