"""Chapter 05 on a released checkpoint and COCO's files: `make real PRESET=t4|gpu DATA=DIR`.

DATA is what `sare-min fetch coco --into DIR` fills; CHECKPOINT= is another LLaVA of that size, on
disk or on the hub; BITS=4 puts the 7B model on 16 GB; IMAGES= and TESTED= are numbers of training
and test images, for a first try. All that the run keeps goes to OUT (build/real if it is not
given): the executed notebook, its figure, and a folder of adapters, captions and scores.

Stopped, killed or cut off, and run again by the same words, it goes on; LOG.md has a table of what
is kept, and `lab.tools.killed` tries it. No such run has been made on a GPU here, so its time is
only estimated.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig

from .. import files
from ..field import photos
from ..field.settings import SETTINGS, Setting, estimate, get_setting, parameters
from ..shell import ended
from .execute import execute

CHAPTER = "05_real_thing"
INSTANCES = ("instances_train*.json", "instances_val*.json")
NEEDED = (
    *INSTANCES,
    "captions_train*.json",
    "captions_val*.json",
    "pos_neg.json",
    "sentences.json",
    "coco_pope_random.json",
    "coco_pope_popular.json",
    "coco_pope_adversarial.json",
)


@dataclass(frozen=True)
class Asked:
    """What to run, on what, and where what it keeps goes."""

    preset: str
    setting: Setting
    data: Path
    out: Path


def asked(words: Sequence[str] | None = None) -> Asked:
    """What the words ask for; raises ValueError naming the variable that is wrong, before anything
    that takes long.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="", help=", ".join(SETTINGS))
    parser.add_argument("--data", default="", help="COCO's, POPE's and EFUF's files")
    parser.add_argument("--checkpoint", default="", help="another LLaVA; empty: the preset's")
    parser.add_argument("--bits", default="", help="16 or 4; empty: the preset's")
    parser.add_argument("--images", default="", help="training images; empty: the preset's")
    parser.add_argument("--tested", default="", help="test images; empty: the preset's")
    parser.add_argument("--out", default="", help="what the run keeps; empty: build/real")
    given = parser.parse_args(words)
    bits, images, tested = (number(given, name) for name in ("bits", "images", "tested"))
    setting = get_setting(given.preset, given.checkpoint, bits)
    setting = replace(setting, images=images or setting.images, tested=tested or setting.tested)
    if not given.data or not Path(given.data).is_dir():
        raise ValueError(
            f"DATA={given.data}: no such folder. Run `sare-min fetch coco --into DIR`."
        )
    data, out = Path(given.data).resolve(), Path(given.out or files.ROOT / "build/real").resolve()
    check_files(data)
    check_bits(setting.bits)
    check_checkpoint(setting.checkpoint)
    return Asked(given.preset, setting, data, out)


def number(given: argparse.Namespace, name: str) -> int:
    """The number given by that name, 0 if there is none."""
    word = getattr(given, name)
    if word and not (word.isascii() and word.isdigit() and int(word)):
        mend = "16, or 4 for a 7B model on a GPU of 16 GB" if name == "bits" else "a number from 1"
        raise ValueError(f"{name.upper()}={word}: give {mend}.")
    return int(word or 0)


def check_files(data: Path) -> None:
    """Raise ValueError naming a file that the chapter reads and DATA lacks, or a folder without
    images.
    """
    found = {pattern: photos.find(data, pattern) for pattern in NEEDED}
    for pattern in INSTANCES:
        home = photos.images_folder(found[pattern])
        if not any(home.iterdir()):
            raise ValueError(f"DATA={data}: {home} holds no image. Fetch them again.")


def check_bits(bits: int) -> None:
    """Raise ValueError if weights are asked for in 4 bits and cannot be had."""
    if bits == 4 and find_spec("bitsandbytes") is None:
        raise ValueError("BITS=4 needs bitsandbytes: pip install bitsandbytes, or give BITS=16.")
    if bits == 4 and not torch.cuda.is_available():
        raise ValueError("BITS=4 needs a CUDA GPU, and torch finds none: give BITS=16.")


def check_checkpoint(checkpoint: str) -> None:
    """Raise ValueError naming a checkpoint whose config cannot be had, or is no LLaVA's."""
    try:
        kind = AutoConfig.from_pretrained(checkpoint).model_type
    except Exception as error:  # each library below has its own; all mean the same to the reader
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"CHECKPOINT={checkpoint}: no checkpoint ({why}). Give a folder or a hub name."
        ) from error
    if kind != "llava":
        raise ValueError(
            f"CHECKPOINT={checkpoint}: a {kind} model, no LLaVA: give one whose config says llava."
        )


def spell(setting: Setting) -> str:
    """What will run, and what it may take."""
    parts = estimate(setting)
    minutes = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
    return (
        f"{setting.checkpoint}, {setting.bits} bits, on {setting.images} training and"
        f" {setting.tested} test images.\nEstimated, not measured: {sum(parts.values()):.0f}"
        f" minutes ({minutes}) on a GPU of {setting.gigabytes} GB, and loading beside it."
    )


def main(words: Sequence[str] | None = None) -> None:
    given = asked(words)
    print(spell(given.setting), flush=True)
    print(f"What it keeps goes to {given.out}; run again, it goes on from there.", flush=True)
    os.environ.setdefault("PYTHONHASHSEED", "0")  # peft writes a set into an adapter's config
    notebook = given.out / f"{given.preset}.ipynb"
    own = parameters(given.setting, str(given.data)) | {"into": str(given.out)}
    execute(CHAPTER, own, notebook)
    figures = files.figures_folder(own["preset"], [int(own["seeds"])])
    for end in ("json", "png"):  # the next run on other files would draw over it
        shutil.copy(figures / f"{CHAPTER}.{end}", given.out / f"{given.preset}.{end}")
    print(f"The chapter, as it ran: {notebook}")


if __name__ == "__main__":
    ended(main, None)
