"""Links into code find their line: [`perturbed`](../sare_min/sam.py#L34) points to its definition,
and `make evidence` moves the number with the code.
"""

from __future__ import annotations

import re
from pathlib import Path

LINK = re.compile(r"\[`([\w.]+)`\]\((?:\.\./)?((?:chapters/|sare_min/|lab/)[\w/]+\.py)#L\d+\)")


def aimed(text: str, home: Path, name: str = "text") -> str:
    """The text with each link to code at the line that defines what it names.

    home: the folder that links start from. Raises ValueError naming `name` and the link if the file
    is missing or defines no such thing.
    """

    def at_its_line(found: re.Match) -> str:
        what, target = found[1], found[0].split("](")[1].split("#")[0]
        path = home / target
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        last = re.escape(what.rpartition(".")[2])
        defines = re.compile(rf"\s*(def|class) {last}\b|{last}\b[^=()]*= ")
        line = next((i for i, text in enumerate(lines, 1) if defines.match(text)), None)
        if line is None:
            why = f"defines no {what}" if lines else "is not there"
            raise ValueError(f"{name}: {found[0]}: {path} {why}: mend the link.")
        return f"[`{what}`]({target}#L{line})"

    return LINK.sub(at_its_line, text)
