"""Does this erasure last? Attacks an erased LLaVA and writes a report.

    sare-min audit --base CHECKPOINT --erased CHECKPOINT_OR_ADAPTER --data DIR --out DIR

DIR holds COCO's instances_*.json, captions_*.json and images, and POPE's three files, as they are
released (chapter 05 says where they lie). OUT gets report.html, audit.json and the parts that a
stopped run goes on from: call it again with the same words.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from .settings import ATTACKS, Settings, read_budget


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code (1 with one line on stderr for bad input)."""
    given = _parser().parse_args(arguments)
    try:
        settings, budget = _settings(given), given.budget and read_budget(given.budget)
        # transformers calls its own renamed property when peft asks about checkpointing
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is", FutureWarning)
        from .run import Asked, audit  # torch and transformers, after the words are checked

        asked = Asked(given.base, given.erased, given.data, Path(given.out), settings, budget)
        found = audit(asked, say=lambda line: print(line, file=sys.stderr))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped: the same words go on from here.", file=sys.stderr)
        return 130
    print(found["answer"]["says"])
    print(f"The report: {Path(given.out) / 'report.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sare-min audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Settings()
    parser.add_argument("--base", required=True, help="a LLaVA's folder or hub name")
    parser.add_argument("--erased", required=True, help="the same, or a peft adapter's folder")
    parser.add_argument("--data", required=True, help="a folder of COCO's and POPE's files")
    parser.add_argument("--out", required=True, help="a folder for the report")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="some of %(default)s")
    parser.add_argument("--seeds", type=int, default=usual.seeds, help="of the attacker")
    parser.add_argument("--budget", help="as 20m: the least worthy parts are left out, and named")
    parser.add_argument("--test-images", type=int, default=usual.test)
    parser.add_argument("--train-images", type=int, default=usual.train)
    parser.add_argument(
        "--skip", type=int, default=usual.skip, help="training images that the erasure saw"
    )
    parser.add_argument("--lrs", help="learning rates of relearning, the worthiest first")
    parser.add_argument("--lora-lrs", help="the same of relearning by a fresh LoRA")
    parser.add_argument("--convention", default=usual.convention, choices=("efuf", "official"))
    parser.add_argument("--synonyms", default=usual.synonyms, help="CHAIR's list of words")
    return parser


def _settings(given: argparse.Namespace) -> Settings:
    rates = {
        name: tuple(_rate(text) for text in words.split(","))
        for name, words in (("relearn", given.lrs), ("lora", given.lora_lrs))
        if words
    }
    return Settings(
        attacks=tuple(given.attacks.split(",")),
        seeds=given.seeds,
        test=given.test_images,
        train=given.train_images,
        skip=given.skip,
        convention=given.convention,
        synonyms=given.synonyms,
        **rates,
    )


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"learning rate {text!r}: give numbers, as 1e-4,1e-3.") from error
