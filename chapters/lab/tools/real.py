"""Chapter 05 on a released checkpoint and COCO's files: `make real PRESET=t4|gpu DATA=DIR`.

DATA is what `sare-min fetch coco --into DIR` fills; CHECKPOINT= is another LLaVA of that size, on
disk or on the hub; BITS=4 puts the 7B model on 16 GB. The executed notebook goes to build/real/,
adapters, captions and scores to build/05_real_thing/. Stopped and run again, an erasure goes on
from its last checkpoint. No such run has been made here, so its time is only estimated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..field import photos
from ..field.settings import SETTINGS, Setting, estimate, get_setting, parameters
from ..shell import ended
from .execute import execute

CHAPTER = "05_real_thing"
NEEDED = ("instances_train*.json", "instances_val*.json", "coco_pope_random.json")


def asked(words: Sequence[str] | None = None) -> tuple[str, Setting, Path]:
    """(preset, setting, data); raises ValueError naming the variable that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="", help=", ".join(SETTINGS))
    parser.add_argument("--data", default="", help="COCO's, POPE's and EFUF's files")
    parser.add_argument("--checkpoint", default="", help="another LLaVA; empty: the preset's")
    parser.add_argument("--bits", default="", help="16 or 4; empty: the preset's")
    given = parser.parse_args(words)
    if given.bits and not given.bits.isdigit():
        raise ValueError(f"BITS={given.bits}: give 16, or 4 for a 7B model on a GPU of 16 GB.")
    setting = get_setting(given.preset, given.checkpoint, int(given.bits or 0))
    data = Path(given.data)
    if not given.data or not data.is_dir():
        raise ValueError(
            f"DATA={given.data}: no such folder. Run `sare-min fetch coco --into DIR`."
        )
    for pattern in NEEDED:  # before a model is loaded
        photos.find(data, pattern)
    return given.preset, setting, data.resolve()


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
    preset, setting, data = asked(words)
    print(spell(setting), flush=True)
    out = files.ROOT / "build/real" / f"{preset}.ipynb"
    execute(CHAPTER, parameters(setting, str(data)), out)
    print(f"The chapter, as it ran: {out}")


if __name__ == "__main__":
    ended(main, None)
