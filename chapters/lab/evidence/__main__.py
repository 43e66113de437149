"""`make evidence`: all that follows from the committed rows, in seconds and without torch.

From chapters/, `python -m lab.evidence` recomputes claims*.json, claims.md, the README's table, the
numbers quoted in prose and the pictures. Given ../build/figures/full-seeds-from-1101, it first
keeps that run's rows in figures/.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..shell import ended
from . import after, figures, ledger, quotes


def main(
    runs: Sequence[str] = (),
    folder: Path = files.ROOT / "figures",
    readme: Path = files.ROOT / "README.md",
    prose: Sequence[Path] | None = None,
) -> None:
    """Redo the evidence in a figures folder. runs: folders to keep first; prose: files with quotes,
    by default quotes.places(). Raises ValueError if the rows are missing or of another plan.
    """
    for run in runs:
        print(f"kept {ledger.keep(Path(run), folder).name}")
    ledger.write(readme, folder)
    after.write(folder)
    filled = quotes.write(prose, folder)
    print(f"quotes changed in: {', '.join(path.name for path in filled) or 'no file'}")
    print(f"{len(figures.redraw(folder))} figures drawn again")


if __name__ == "__main__":
    ended(main, sys.argv[1:])
