"""How a command ends, for a shell: with its result, or with one line that says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def ended(work: Callable[[Sequence[str] | None], int | None], words: Sequence[str] | None) -> None:
    """Do work(words) and exit with what it returns; where something is wrong, with status 1 and one
    line on stderr.
    """
    try:
        sys.exit(work(words))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
