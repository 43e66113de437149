"""`sare-min`: what is useful without the book, as a command.

    sare-min score pope --questions FILE --answers FILE [--parser official|strict]
    sare-min score chair --captions FILE --instances FILE... --human FILE... --convention NAME
    sare-min compare A B [--allow-unknown]
    sare-min fetch coco --into DIR [--images 2224] [--mirror [HOST=]URL] [--dry-run]
    sare-min audit --base CHECKPOINT --erased CHECKPOINT_OR_ADAPTER --data DIR --out DIR

The first three print one JSON object each, `audit` writes a report; `sare-min score pope --help`
and `sare-min audit --help` list the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from ..audit import command
from ..field import score


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 for bad input, or a disk that takes no output, 2
    for a command that is none.
    """
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # now: Python's own, at its exit, would fail with a traceback
        return code
    except OSError as error:  # a full disk; or a pipe whose reader has gone
        with suppress(OSError), open(os.devnull, "w") as nowhere:  # what is left in the buffer
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        what = error.filename or "the output cannot be written"
        print(f"error: {what}: {error.strerror or error}", file=sys.stderr)
        return 1


def _main(given: list[str]) -> int:
    if given[:1] == ["score"]:
        return score.main(given[1:], "sare-min score")
    if given[:1] == ["compare"]:
        return score.main(given, "sare-min")
    if given[:1] == ["fetch"]:
        from ..field import fetch  # and with it what downloads: scores need none of it

        return fetch.main(given[1:], "sare-min fetch")
    if given[:1] == ["audit"]:
        return command.main(given[1:])
    if given not in ([], ["-h"], ["--help"]):
        print(f"error: no such command: {given[0]}. See `sare-min --help`.", file=sys.stderr)
        return 2
    print((__doc__ or "").strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
