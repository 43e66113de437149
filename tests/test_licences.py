"""What the book needs may be used as the book may: no package whose terms would bind a reader."""

import importlib.metadata
import re

from packaging.requirements import Requirement

from lab import files

FREE = ("mit", "bsd", "apache", "isc", "psf", "python software foundation", "mpl", "mozilla")
FREE += ("0bsd", "cc0", "public domain", "zlib", "unlicense")  # that of a package is one of these
BINDS = ("gpl", "affero", "sspl", "non-commercial", "noncommercial", "proprietary")
SAYS_NOTHING = {"axe-playwright-python"}  # MIT in its repository; its metadata are silent
GPU = ("nvidia-", "cuda-", "triton")  # of torch's build for GPUs, which brings NVIDIA's own


def needed() -> dict[str, importlib.metadata.Distribution]:
    """The installed packages that requirements.txt asks for, and those that they ask for."""
    lines = (files.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    found: dict[str, importlib.metadata.Distribution] = {}
    while asked:
        requirement = asked.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        is_meant = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name in found or not is_meant or name.startswith(GPU):
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another system's
        asked += map(Requirement, found[name].requires or [])
    return found


def licence(package: importlib.metadata.Distribution) -> list[str]:
    """What its metadata say; several entries are a choice."""
    meta = package.metadata
    if expression := meta.get("License-Expression"):
        return re.split(r" OR ", expression)
    known = [text for text in meta.get_all("Classifier") or [] if text.startswith("License")]
    names = [text.rpartition("::")[2].strip() for text in known]
    return names or [line for line in (meta.get("License") or "").splitlines()[:1] if line]


def is_free(name: str) -> bool:
    words = name.lower()
    return any(free in words for free in FREE) and not any(binds in words for binds in BINDS)


def test_every_package_may_be_used_freely():
    """Fails if a package comes under terms that bind what uses it, or under none that are known."""
    found = {name: licence(package) for name, package in needed().items()}
    assert {"torch", "transformers", "nltk"} <= found.keys() and len(found) > 40
    odd = {name: text for name, text in found.items() if not any(map(is_free, text))}
    assert odd.keys() <= SAYS_NOTHING, odd


def test_a_licence_that_binds_would_be_seen():
    """Fails if the check above lets anything pass."""
    assert not any(map(is_free, ("GPL-3.0-only", "AGPL-3.0", "MIT AND GPL-2.0", "UNKNOWN", "")))
    assert all(map(is_free, ("MIT", "Apache Software License", "BSD-3-Clause AND MIT")))
