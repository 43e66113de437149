"""Read a chapter's notebook, or say which file is none."""

from __future__ import annotations

from pathlib import Path

import nbformat

from .. import files


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook of format 4; raises ValueError naming the file and the mend if it is none."""
    text, wrong = files.read_text(path), {}
    try:
        found = nbformat.reads(text, 4, capture_validation_error=wrong)
        if wrong:  # which nbformat only logs
            raise wrong["ValidationError"]
        return found
    except Exception as error:  # its converters of old formats raise whatever a key gives
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path}: no notebook ({why:.160}). Take it from the repository again, or delete it:"
            " `make sync` makes one without outputs."
        ) from error
