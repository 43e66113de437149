"""`sare-min fetch coco`: what chapter 05 reads, and no more of COCO than that.

    sare-min fetch coco --into DIR [--images 2224] [--mirror [HOST=]URL] [--dry-run]

Into DIR come COCO 2014's annotations, the images that POPE asks about, the first --images training
images, POPE's questions, EFUF's curated captions and CHAIR's synonyms, from where their authors put
them (sources.py). It can be stopped and run again: what is there is not fetched twice, and no file
that is there is written over. Prints one JSON object; --dry-run prints what would come.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from . import coco
from .download import FetchError, Missing, Patience, Wanted, digest, download
from .images import open_image
from .sources import IMAGE_LICENCE, SOURCES, Source, mirrored

IMAGES = 2224  # training images: 1024 for the erasure, 1200 for the attacker, as in chapter 05
POPE_IMAGES = 500  # validation images in POPE's files
PER_IMAGE = 163_500  # bytes, the mean: train2014.zip and val2014.zip over their 123,287 images
# Bytes, about, of the four annotation files; the archive's own list says it before it is unpacked
UNPACKED = 600_000_000
MARGIN = 1.05  # of the disk that an estimate asks for
MEMBERS = tuple(  # of the archive: what chapter 05 finds; the rest, keypoints, stays in it
    f"annotations/{kind}_{split}2014.json"
    for kind in ("instances", "captions")
    for split in ("train", "val")
)
ARCHIVE, SYNONYMS = Path(SOURCES[0].path).name, Path(SOURCES[-1].path).name
POPE = tuple(Path(source.path).name for source in SOURCES if source.what.startswith("POPE"))
_read_efuf = partial(coco.read_rows, fields={"image": coco.NAME, "sentence": coco.TEXT})
CHECKS = {"pos_neg.json": _read_efuf, "sentences.json": _read_efuf}  # name -> what must read it
CHECKS |= dict.fromkeys(POPE, coco.read_questions)


@dataclass(frozen=True)
class Plan:
    """What is there and what is to come. at: file name -> where it lies, or will. members: of the
    archive, to unpack. images: split -> those to come, or how many if nothing lists them yet.
    wanted: split -> how many images chapter 05 reads.
    """

    at: dict[str, Path]
    files: list[Wanted]
    members: dict[str, Path]
    images: dict[str, list[Wanted] | int]
    wanted: dict[str, int]

    @property
    def is_full(self) -> bool:
        """Are all images known by name?"""
        return not any(isinstance(images, int) for images in self.images.values())

    def n_bytes(self) -> int:
        """That the disk needs, about."""
        n_images = sum(n if isinstance(n, int) else len(n) for n in self.images.values())
        files = sum(file.size or 0 for file in self.files)
        return files + UNPACKED * len(self.members) // len(MEMBERS) + PER_IMAGE * n_images


def fetch(
    into: str | Path,
    images: int = IMAGES,
    mirrors: Mapping[str, str] | None = None,
    sources: Sequence[Source] = SOURCES,
    patience: Patience = Patience(),
    progress: bool = True,
) -> dict:
    """Fetch what chapter 05 reads with data = into: {"into", "images": {split: how many there are
    now}, "fetched": files that came, "bytes": that came, "synonyms": the file for lab.score}.

    images: how many training images, in the annotations' order; all of POPE's come. mirrors: host
    -> where its files are, see `mirrored`. Raises FetchError naming URL or file, and the mend; what
    came before is kept, and the next call goes on from it.
    """
    into, how = Path(into), (images, mirrors or {}, sources)
    with _alone(into):
        plan = make_plan(into, *how)
        if progress:
            print(spell(into, plan, *how[1:]), file=sys.stderr)
        _room(into, plan.n_bytes())
        failed, n_bytes = _tried(plan.files, patience, progress, "files")
        needed = [*POPE, *([ARCHIVE] if plan.members else [])]  # to know which images
        if failed and not all(_is_there(plan.at[name]) for name in needed):
            raise failed
        _unpack(into, plan.at[ARCHIVE], plan.members)
        later = plan if plan.is_full else make_plan(into, *how)
        _room(into, later.n_bytes())
        lacking = [image for split in later.images.values() for image in split]
        n_bytes += download(lacking, patience, progress, "images")
    if failed:
        raise failed
    return {
        "into": str(into),
        "images": later.wanted,
        "fetched": len(plan.files) + len(lacking),
        "bytes": n_bytes,
        "synonyms": str(plan.at[SYNONYMS]),
    }


def _tried(files: list[Wanted], *how) -> tuple[Missing | None, int]:
    """What failed, if some files did and the others are there; the bytes that came."""
    try:
        return None, download(files, *how)
    except Missing as error:
        return error, 0


@contextmanager
def _alone(into: Path) -> Iterator[None]:
    """Make the folder, and keep a second fetch out of it: both would write the same parts."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / ".fetch.lock", timeout=0):
            yield
    except Timeout as error:
        raise FetchError(f"{into}: another fetch is at work there: wait for its end.") from error


def make_plan(
    into: Path, images: int, mirrors: Mapping[str, str], sources: Sequence[Source]
) -> Plan:
    """What lacks in the folder, from what lies in it; asks nobody and writes nothing.

    A file that is there, wherever below the folder, is not fetched again: chapter 05 finds it.
    Raises FetchError if it lies there twice, or is another file than its digest says.
    """
    at = _lying(into, [*(source.path for source in sources), *MEMBERS])
    members = {name: at[Path(name).name] for name in MEMBERS if not _is_there(at[Path(name).name])}
    files = []
    for source in sources:
        name = Path(source.path).name
        is_needed = members or name != ARCHIVE  # what is unpacked needs no archive
        if is_needed and not _is_known(at[name], source):
            file = Wanted(mirrored(source.url, mirrors), at[name], source.size, source.digest)
            files.append(_inside(into, file, CHECKS.get(name)))
    counts = {"val": POPE_IMAGES, "train": images}
    if members or any(not _is_there(at[name]) for name in POPE):
        return Plan(at, files, members, counts, counts)
    listed = {
        "val": _listed(at["instances_val2014.json"], names=_asked([at[name] for name in POPE])),
        "train": _listed(at["instances_train2014.json"], limit=images),
    }
    lacking = {
        split: _lacking(into, at[f"instances_{split}2014.json"], rows, mirrors)
        for split, rows in listed.items()
    }
    return Plan(at, files, members, lacking, {split: len(rows) for split, rows in listed.items()})


def _lying(into: Path, paths: Sequence[str]) -> dict[str, Path]:
    """File name -> where it lies below the folder, as photos.find finds it, or else will lie."""
    places, found = {Path(path).name: into / path for path in paths}, defaultdict(list)
    for path in into.rglob("*"):
        if path.name in places:
            found[path.name].append(path)
    for paths in found.values():
        if len(paths) > 1:
            first, second = sorted(paths)[:2]
            raise FetchError(f"{first} and {second}: keep one of them in {into}.")
    return places | {name: paths[0] for name, paths in found.items()}


def _is_there(path: Path) -> bool:
    """An empty file counts as none: a machine that lost power can leave one."""
    return path.is_file() and path.stat().st_size > 0


def _is_known(path: Path, source: Source) -> bool:
    """Is it there? Raises FetchError if it is, and is another."""
    if not _is_there(path):
        return False
    if source.digest and digest(path, source.digest.partition(":")[0]) != source.digest:
        raise FetchError(
            f"{path}: holds another file than {source.url} ({source.digest}): move it out of the"
            " folder, then run it again. Nothing was written over it."
        )
    return True


def _inside(into: Path, file: Wanted, check=None) -> Wanted:
    """The file with its check; raises FetchError if a link leads it out of the folder."""
    home = into.resolve()
    for path in (file.path, file.part):
        if not path.resolve().is_relative_to(home):
            raise FetchError(
                f"{path}: leads out of {into}, so nothing is written there. Remove the link, or"
                " name the folder that it leads to."
            )
    return Wanted(file.url, file.path, file.size, file.digest, check, file.about)


def _asked(questions: Sequence[Path]) -> set[str]:
    """The images that POPE asks about."""
    names = set()
    for path in questions:
        for row, question in enumerate(coco.read_questions(path), 1):
            if (name := coco.NAME.read(question.get("image"))) is None:
                raise FetchError(f"{path}, row {row}: names no image. Fetch the file again.")
            names.add(name)
    return names


def _listed(
    instances: Path, names: Collection[str] | None = None, limit: int | None = None
) -> list[tuple[str, str]]:
    """(file name, address) of the images with these names, or of the first `limit`, in the order of
    the file, which is photos.read_images'. It is read no further than that takes.
    """
    fields = {"file_name": coco.NAME, "coco_url": coco.NAME}
    most, found = len(names) if names is not None else limit, {}
    # Of the other two nothing is read, but a part that is not named is decoded as one: gigabytes
    rows = coco.stream(instances, {"images": fields, "annotations": {}, "categories": {}})
    for part, row, entry in rows:
        name, url = entry.get("file_name"), entry.get("coco_url")
        if part == "images" and (names is None or name in names):
            if not re.fullmatch(r"https?://[\w.:-]+/[^\s\\]*", url):
                raise FetchError(f"{instances}, images row {row}: coco_url {url!r:.80} is none.")
            found.setdefault(name, url)
        if len(found) == most:
            break
    if lost := sorted(set(names or ()) - found.keys()):
        raise FetchError(
            f"{instances}: POPE's image {lost[0]!r:.80} is not listed ({len(lost)} such images):"
            " give the instances of its split."
        )
    return list(found.items())


def _lacking(
    into: Path, instances: Path, rows: Sequence[tuple[str, str]], mirrors: Mapping[str, str]
) -> list[Wanted]:
    """The images that are not there yet, each to where photos.images_folder will look."""
    data, split = instances.parents[1], instances.stem.removeprefix("instances_")
    places = [place for place in (data / split, data / "images" / split) if place.is_dir()]
    home = places[0] if places else data / split
    return [
        _inside(into, Wanted(mirrored(url, mirrors), home / name, about=PER_IMAGE), open_image)
        for name, url in rows
        if not _is_there(home / name)
    ]


def _room(into: Path, n_bytes: int) -> None:
    place = next(path for path in (into, *into.resolve().parents) if path.exists())
    free, needed = shutil.disk_usage(place).free, int(n_bytes * MARGIN)
    if free < needed:
        raise FetchError(
            f"{into}: about {_bytes(needed)} are needed, {_bytes(free)} are free. Make room, choose"
            " another folder, or fewer --images."
        )


def _bytes(n_bytes: int) -> str:
    return f"{tqdm.format_sizeof(n_bytes)}B"


def _unpack(into: Path, archive: Path, members: Mapping[str, Path]) -> None:
    """Take the members, and no others, out of the archive, each whole or not at all."""
    if not members:
        return
    try:
        with zipfile.ZipFile(archive) as file:
            infos = {name: file.getinfo(name) for name in members}
            _room(into, sum(info.file_size for info in infos.values()))
            for name, info in infos.items():
                with file.open(info) as packed:
                    _write(packed, _inside(into, Wanted("", members[name])))
    # A name that is not in it, a checksum that fails, what cannot be unpacked
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FetchError(
            f"{archive}: cannot be unpacked ({error}). Remove it, and run it again."
        ) from error


def _write(packed, file: Wanted) -> None:
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with open(file.part, "wb") as out:
            shutil.copyfileobj(packed, out, 2**20)
        file.part.replace(file.path)
    except BaseException as error:
        file.part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FetchError(
                f"{file.path}: cannot be written ({error.strerror or error}). Make room there, or"
                " choose another folder, and run it again."
            ) from error
        raise


def spell(into: Path, plan: Plan, mirrors: Mapping[str, str], sources: Sequence[Source]) -> str:
    """The plan as lines: what, how large, where from, its licence; what is there already."""
    to_come, rows = {file.path for file in plan.files}, []
    for source in sources:
        path = plan.at[Path(source.path).name]
        size = "size unknown" if source.size is None else _bytes(source.size)
        state = size if path in to_come else "is there, or not needed"
        rows.append((source.what, state, source.licence, mirrored(source.url, mirrors)))
    for split, images in plan.images.items():
        n = images if isinstance(images, int) else len(images)
        what = f"COCO 2014: {plan.wanted[split]} {split} images"
        state = f"{n} to come, about {_bytes(n * PER_IMAGE)}" if n else "all there"
        rows.append((what, state, IMAGE_LICENCE, "each image's own address"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"about {_bytes(plan.n_bytes())} on the disk, into {into}"])


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _mirror(text: str) -> tuple[str, str]:
    host, sign, url = text.partition("=")
    if not sign or "/" in host:
        host, url = "", text
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL, and no HOST=URL")
    return host, url


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_subparsers(dest="data", required=True).add_parser("coco")
    data.add_argument("--into", required=True, type=Path, help="chapter 05's `data`")
    data.add_argument("--images", type=_count, default=IMAGES, help="training images, the first N")
    data.add_argument(
        "--mirror",
        type=_mirror,
        action="append",
        default=[],
        metavar="[HOST=]URL",
        help="a copy of the whole web as `wget --mirror` lays it out, or of one host",
    )
    data.add_argument("--threads", type=_count, default=Patience.threads, help="at once")
    data.add_argument("--dry-run", action="store_true", help="say what would come, from where")
    return parser


def main(
    arguments: Sequence[str] | None = None,
    name: str | None = None,
    sources: Sequence[Source] = SOURCES,
    patience: Patience = Patience(),
) -> int:
    """The command line; returns the exit code: 1 with one line on stderr for what failed, 130 for
    Ctrl-C.
    """
    given = _parser(name or "sare-min fetch").parse_args(arguments)
    mirrors = dict(given.mirror)
    try:
        if given.dry_run:
            plan = make_plan(given.into, given.images, mirrors, sources)
            print(spell(given.into, plan, mirrors, sources))
            return 0
        patience = replace(patience, threads=given.threads)
        found = fetch(given.into, given.images, mirrors, sources, patience)
    except KeyboardInterrupt:
        print("stopped; what came is kept: run the same again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # the second: a folder that cannot be made or read
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
