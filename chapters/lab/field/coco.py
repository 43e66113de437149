"""Readers of the field's files, each row checked: COCO instances and captions, POPE questions,
answers and captions to score.

What a value may be is decided once, here (`ID`, `NAME`, ...), for every reader. Files are joined by
id; where rows carry more than the id, that must agree as well. Every error is a ValueError that
names the file, the row (1 is the first) and the mend. This module needs no torch.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files import read_text

IMAGES = ("image", "file_name", "image_file", "image_path")  # where rows put a file's name
QUESTIONS = ("question", "prompt", "text")  # where answers repeat the question
LARGEST_ID, LARGEST_EXACT = 2**63 - 1, 2**53  # of 64 bits; a double beyond the second skips numbers
DEEPEST = 32  # of a file that is kept whole: no settings file nests so deep


class Kind(NamedTuple):
    """What a field may hold. read: the value as it is used, or None if it is refused."""

    name: str
    read: Callable[[object], object]
    mend: str = ""


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_EXACT:
        return int(value)  # pandas writes 8.0 where another row of the column was empty
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _id(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value):
        value = int(value)  # "000000000008", as COCO's file names spell it
    found = _whole(value)
    return found if found is not None and 0 <= found <= LARGEST_ID else None


def _number(value: object) -> float | int | None:
    try:
        fits = not isinstance(value, bool) and isinstance(value, (int, float))
        return value if fits and math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and not re.search("[\ud800-\udfff]", value) else None


def _name(value: object) -> str | None:
    return value if _text(value) and value.strip() else None


ID = Kind("int", _id, "An id is a whole number from 0 to 2**63 - 1, or the text of its digits.")
WHOLE = Kind("int", _whole)
NUMBER = Kind("float or int, and finite", _number)
TEXT = Kind("str", _text, "Half of a surrogate pair is no text.")
NAME = Kind("str, and not empty", _name)
OBJECT = Kind("an object", lambda value: value if isinstance(value, dict) else None)
Fields = Mapping[str, Kind]

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {SHORT.repr(double)} stands twice in one object")
    return found


DECODER, SPACE = json.JSONDecoder(object_pairs_hook=_once), re.compile(r"[ \t\r\n]*")


class _Json:
    """A JSON text and how far it is read. All that is wrong with it is a JSONDecodeError."""

    def __init__(self, path: str | Path):
        self.text, self.at = read_text(path), 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        self.at = SPACE.match(self.text, self.at).end()
        return self.text[self.at : self.at + 1]

    def take(self, *wanted: str) -> str:
        mark = self.peek()
        if mark not in wanted:
            raise json.JSONDecodeError(f"no {' or '.join(wanted)}", self.text, self.at)
        self.at += 1
        return mark

    def value(self) -> object:
        self.peek()
        try:
            found, self.at = DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        # A doubled key, an integer of thousands of digits; lists in lists in lists
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), self.text, self.at) from error
        return found

    def key(self, seen: Collection[str]) -> str:
        """A key of an object, up to its colon; not one of those seen."""
        self.take('"')
        self.at -= 1
        found = self.value()
        if found in seen:
            raise json.JSONDecodeError(f"the key {found[:60]!r} stands twice", self.text, self.at)
        self.take(":")
        return found


def _checked(where: str, found: object, fields: Fields) -> dict:
    """The object with its fields as they are used; raises ValueError that begins with `where`."""
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}: expected an object with {', '.join(fields)}, found {SHORT.repr(found)}."
        )
    read = {}
    for name, kind in fields.items():
        if name not in found:
            raise ValueError(
                f"{where}: the field {name!r} is missing; this row has"
                f" {SHORT.repr(list(found)) if found else 'none'}. Rename one, or add it."
            )
        read[name] = kind.read(found[name])
        if read[name] is None:
            raise ValueError(
                f"{where}: {name!r} must be {kind.name}, found {SHORT.repr(found[name])}."
                f" {kind.mend}".rstrip()
            )
    return found | read


class Rows(list):
    """What was read. skipped: the error of each row that was left out, where on_bad="skip" asked
    for that; numbers: the row in the file (1 is the first) of each that was read, if it is known.
    """

    def __init__(self):
        super().__init__()
        self.skipped: list[str] = []
        self.numbers: list[int] = []

    def add(self, number: int, read: Callable[[], object], on_bad: str) -> None:
        """Append what read() gives, or skip the row if it raises ValueError and on_bad says so."""
        try:
            self.append(read())
            self.numbers.append(number)
        except ValueError as error:
            if on_bad != "skip":
                raise
            self.skipped.append(str(error))


def check_on_bad(on_bad: str) -> None:
    if on_bad not in ("error", "skip"):
        raise ValueError(f"on_bad={on_bad!r}: give 'error', or 'skip' to leave bad rows out.")


def read_rows(path: str | Path, fields: Fields, on_bad: str = "error") -> Rows:
    """The objects in a JSON file, however they are written: one a line, pretty-printed one after
    the other, or in an array.

    fields: name -> what every object must have there. on_bad: "skip" leaves out an object that
    lacks it, and the result's `skipped` says which and why; broken JSON stays an error, since
    nobody knows where the next row begins. Raises ValueError naming the file and the row (1 is the
    first).
    """
    check_on_bad(on_bad)
    rows = Rows()
    for row, found in enumerate(_objects(path), 1):
        rows.add(row, partial(_checked, f"{path}, row {row}", found, fields), on_bad)
    if not rows:
        bad = f" that can be used; the first: {rows.skipped[0]}" if rows.skipped else ""
        raise ValueError(f"{path}: the file has no rows{bad}. Was it written to the end?")
    return rows


def _objects(path: str | Path) -> Iterator[object]:
    text, row = _Json(path), 1
    while text.peek():
        try:
            found = text.value()
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, row {row} (line {error.lineno}): broken JSON ({error.msg}). The file may"
                " be cut off: fetch or write it again."
            ) from error
        yield from found if isinstance(found, list) else (found,)
        row += len(found) if isinstance(found, list) else 1


def read_object(path: str | Path, fields: Fields) -> dict:
    """The one object that a JSON file holds, such as a saved score, all of which is kept.

    Raises ValueError naming the file if it holds anything else, or more, or something that cannot
    be written again: a number that is not finite, half a surrogate pair, or what nests too deep.
    """
    text, found = _Json(path), list(_objects(path))
    if len(found) != 1 or text.peek() == "[":
        raise ValueError(
            f"{path}: expected one object, found {'a list' if text.peek() == '[' else len(found)}."
            " Give a file each."
        )
    whole = _checked(str(path), found[0], fields)
    for value in _lost(whole):
        raise ValueError(
            f"{path}: holds {SHORT.repr(value)}, which cannot be kept: write a finite number or a"
            f" text, and nest no deeper than {DEEPEST}."
        )
    return whole


def _lost(value: object, depth: int = 0) -> Iterator[object]:
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    if depth > DEEPEST:
        yield value
    elif isinstance(parts, list):
        for part in parts:
            yield from _lost(part, depth + 1)
    elif value not in (None, True, False) and _text(value) is None and _number(value) is None:
        yield value


def stream(
    path: str | Path,
    parts: Mapping[str, Fields],
    optional: Collection[str] = (),
    seen: list[str] | None = None,
) -> Iterator[tuple[str, int, dict]]:
    """(part, row, object) of the named lists of a COCO JSON document, in file order; each object
    has the given fields. Only the text is held: rows are decoded and let go one by one.

    optional: the parts that may be missing. seen: takes the document's keys. Raises ValueError
    naming file, part and row if the JSON is broken or cut off, a part is missing or no list, or a
    field is missing or mistyped.
    """
    text, seen, place = _Json(path), [] if seen is None else seen, "top level row 0"
    try:
        mark = text.take("{")
        while mark != "}":
            seen.append(part := text.key(seen))
            if part not in parts:
                place = f"{part[:60]} row 0"
                text.value()
            else:
                for row, place in enumerate(_places(path, text, part), 1):
                    found = text.value()
                    yield part, row, _checked(f"{path}, {place}", found, parts[part])
            mark = text.take(",", "}")
        if text.peek():
            raise json.JSONDecodeError("more after the end", text.text, text.at)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, {place}: broken JSON ({error}). The file may be cut off: fetch it again."
        ) from error
    if lost := [name for name in parts if name not in {*seen, *optional}]:
        raise ValueError(
            f"{path}: no list {lost[0]!r}; a COCO file of this kind has {', '.join(parts)}."
        )


def _places(path: str | Path, text: _Json, part: str) -> Iterator[str]:
    """Stop before each object of a list, and say where that is."""
    if text.peek() != "[":
        raise ValueError(
            f"{path}: no list {part!r}, found {SHORT.repr(text.value())}: write a list of objects."
        )
    text.take("[")
    row = 1
    mark = text.take("]") if text.peek() == "]" else ","
    while mark != "]":
        yield f"{part} row {row}"
        mark, row = text.take(",", "]"), row + 1


@dataclass(frozen=True)
class Annotated:
    """What COCO files say of images. listed: image id -> (its file_name or None, where it stands),
    of the files that list their images. about: image id -> category names, or human captions.
    """

    listed: dict[int, tuple[str | None, str]] = field(default_factory=dict)
    about: dict[int, list[str]] = field(default_factory=dict)


def read_annotated(path: str | Path, image: Fields | None = None) -> Annotated:
    """An instances file; an image without annotations is about nothing, [].

    image: what each of "images" must have; None: an id, and the file need not list its images.
    Raises ValueError naming the row of an image or category that is listed twice, and of an
    annotation whose image or category is not listed.
    """
    parts = {
        "images": image or {"id": ID},
        "annotations": {"image_id": ID, "category_id": ID},
        "categories": {"id": ID, "name": NAME},
    }
    found, categories, noted, seen = Annotated(), {}, {}, []
    for part, row, entry in stream(path, parts, () if image else ("images",), seen):
        if part == "annotations":
            noted.setdefault((entry["image_id"], entry["category_id"]), row)
        else:
            _list(path, part, row, entry, found.listed if part == "images" else categories)
    found.about.update((listed, []) for listed in found.listed)
    for (image_id, category), row in noted.items():
        if "images" in seen:
            _known(path, row, "image_id", image_id, found.listed)
        _known(path, row, "category_id", category, categories)
        found.about.setdefault(image_id, []).append(categories[category])
    return found


def _list(path: str | Path, part: str, row: int, entry: dict, known: dict) -> None:
    """Enter an image or a category by its id, which must be new."""
    if entry["id"] in known:
        raise ValueError(
            f"{path}, {part} row {row}: id {entry['id']} stands there already: remove one of the"
            " two."
        )
    name = _name(entry.get("file_name"))
    known[entry["id"]] = (name, f"{path}, images row {row}") if part == "images" else entry["name"]


def _known(path: str | Path, row: int, name: str, found: int, known: Mapping[int, object]) -> None:
    if found not in known:
        part = {"image_id": "images", "category_id": "categories"}[name]
        raise ValueError(
            f"{path}, annotations row {row}: {name} {found} is not in {part!r}: drop the row, or"
            " mend the id."
        )


def _read_told(path: str | Path) -> Annotated:
    """A human captions file; an image without a caption is not there."""
    parts = {"images": {"id": ID}, "annotations": {"image_id": ID, "caption": TEXT}}
    found, rows, seen = Annotated(), {}, []
    for part, row, entry in stream(path, parts, ("images",), seen):
        if part == "images":
            _list(path, part, row, entry, found.listed)
        else:
            rows.setdefault(entry["image_id"], row)
            found.about.setdefault(entry["image_id"], []).append(entry["caption"])
    for image_id, row in rows.items() if "images" in seen else ():
        _known(path, row, "image_id", image_id, found.listed)
    return found


def _together(paths: Iterable[str | Path], read: Callable[[str | Path], Annotated]) -> Annotated:
    """Several files as one; raises ValueError naming both if they describe the same image."""
    whole, source = Annotated(), {}
    for path in paths:
        found = read(path)
        if double := [image for image in found.about if image in source]:
            raise ValueError(
                f"{path}: image_id {double[0]} is described in {source[double[0]]} already"
                f" ({len(double)} such images): give files that share no image."
            )
        source |= dict.fromkeys(found.about, path)
        whole.listed.update(found.listed)
        whole.about.update(found.about)
    return whole


def read_instances(paths: Iterable[str | Path]) -> dict[int, set[str]]:
    """Image id -> the names of the categories annotated in it, over all given instances files (an
    image without any: an empty set). Raises ValueError as read_annotated, and if two files describe
    the same image.
    """
    return {image: set(names) for image, names in _together(paths, read_annotated).about.items()}


def read_human_captions(paths: Iterable[str | Path]) -> dict[int, list[str]]:
    """Image id -> its human captions, over all given COCO captions files. Raises ValueError if two
    files describe the same image, or a caption's image is not listed where images are.
    """
    return _together(paths, _read_told).about


def read_captions(path: str | Path, on_bad: str = "error") -> Rows:
    """Generated captions: objects of {"image_id", "caption"}; an image may have several. on_bad: as
    read_rows takes it.
    """
    return read_rows(path, {"image_id": ID, "caption": TEXT}, on_bad)


def read_chair(
    captions: str | Path,
    instances: Iterable[str | Path],
    human: Iterable[str | Path],
    on_bad: str = "error",
) -> tuple[Rows, dict[int, set[str]], dict[int, list[str]]]:
    """The captions to score, read_instances' and read_human_captions'. Every captioned image is in
    both: half of the truth makes what is there a hallucination, or hides one.

    on_bad: "skip" leaves out a caption that is bad or cannot be joined, and the captions' `skipped`
    says which and why; the other files are whole or an error. Raises ValueError naming the row of a
    caption whose image is not in both, or whose file name (in "image" or "file_name") is another
    than the one listed; and if the two files of an image disagree on its name.
    """
    read = read_captions(captions, on_bad)
    shown, told = _together(instances, read_annotated), _together(human, _read_told)

    def joined(where: str, found: dict) -> dict:
        image = found["image_id"]
        known = {"instances": shown.about, "human captions": told.about}
        if lacks := [what for what, about in known.items() if image not in about]:
            raise ValueError(
                f"{where}: image_id {image} is in none of the {' or '.join(lacks)} files: add those"
                " of its split."
            )
        places = [files.listed[image] for files in (shown, told) if image in files.listed]
        _same_image(where, found, [(name, place) for name, place in places if name])
        return found

    rows = Rows()
    for row, found in zip(read.numbers, read, strict=True):
        rows.add(row, partial(joined, f"{captions}, row {row}", found), on_bad)
    rows.skipped[:0] = read.skipped
    if not rows:
        raise ValueError(f"{captions}: no row can be used; the first: {rows.skipped[0]}")
    return rows, {image: set(names) for image, names in shown.about.items()}, told.about


def _same_image(where: str, found: dict, places: Sequence[tuple[str, str]]) -> None:
    """Every file name of a row is that of the image it joins, and the files agree on that."""
    for name, place in places:
        given = [(key, found[key]) for key in IMAGES if found.get(key) is not None]
        for key, value in [*given, (f"file_name of {places[0][1]}", places[0][0])]:
            if not same_file(value, name):
                raise ValueError(
                    f"{where}: {key} {SHORT.repr(value)} is not {name!r}, which {place} lists for"
                    f" image_id {found['image_id']}: give the files of one data set, or mend the"
                    " row."
                )


def same_file(one: object, other: object) -> bool:
    """Do two names mean one file? They do if one is the end of the other, folder by folder; one of
    them may lack the extension.
    """
    if not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    (*above, a), (*below, b) = _steps(one), _steps(other)
    if a != b and a != b.rpartition(".")[0] and b != a.rpartition(".")[0]:
        return False
    shared = min(len(above), len(below))
    return above[len(above) - shared :] == below[len(below) - shared :]


def _steps(name: str) -> tuple[str, ...]:
    return PurePosixPath(posixpath.normpath(name.replace("\\", "/"))).parts or ("",)


def read_questions(path: str | Path) -> list[dict]:
    """POPE questions: objects of {"question_id", "image", "text", "label"}; the ids differ, labels
    are yes or no, and a prompt or a second file name agrees with text and image.
    """
    rows = read_rows(path, {"question_id": ID, "text": NAME, "label": TEXT})
    for row, found in enumerate(rows, 1):
        if found["label"] not in ("yes", "no"):
            raise ValueError(
                f"{path}, row {row}: the label must be 'yes' or 'no', found {found['label']!r:.60}."
            )
        _agree(f"{path}, row {row}", found, found)
    _distinct(path, rows)
    return rows


def read_answers(path: str | Path, questions: Sequence[dict]) -> list[str]:
    """The answers in the questions' order, joined by id; raises ValueError on a missing, doubled or
    unknown id, and on a row whose other fields are not its question's.

    An image must be the same file (`same_file`). A question, prompt or text must contain the
    question's text whole: prompts add a line or an image token. Only "text" may be the answer once
    more, as LLaVA names it. Other fields that both have, the label among them, must be equal.
    """
    rows = read_rows(path, {"question_id": ID, "answer": TEXT})
    _distinct(path, rows)
    answers = {found["question_id"]: found["answer"] for found in rows}
    known = {q["question_id"]: q for q in questions}
    for row, found in enumerate(rows, 1):
        if found["question_id"] not in known:
            raise ValueError(
                f"{path}, row {row}: question_id {found['question_id']} is not among the"
                f" {len(known)} questions: give the answers to these questions."
            )
        _agree(f"{path}, row {row}", found, known[found["question_id"]])
    missing = [q["question_id"] for q in questions if q["question_id"] not in answers]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(known)} questions have no answer; the first is"
            f" question_id {missing[0]}."
        )
    return [answers[q["question_id"]] for q in questions]


def _agree(where: str, found: dict, question: dict) -> None:
    """What a row says beside its id and its answer is what the question says."""
    for name in found.keys() - {"question_id", "id", "answer"}:
        expected = _other(name, found, question)
        if expected is not None:
            raise ValueError(
                f"{where}: {name} {SHORT.repr(found[name])} is not that of question_id"
                f" {question['question_id']}, {SHORT.repr(expected)}: give the answers to these"
                " questions, or mend the row."
            )


def _other(name: str, found: dict, question: dict) -> object | None:
    """What the question has where the row has something else; None if they agree, and for a null,
    which says nothing.
    """
    value, expected = found[name], question.get(name)
    if value is None:
        return None
    if name in IMAGES:
        expected = next((question[key] for key in IMAGES if question.get(key) is not None), None)
        return None if same_file(value, expected) else expected
    if name in QUESTIONS:
        is_answer = name == "text" and value == found.get("answer")
        return None if is_answer or _holds(value, question["text"]) else question["text"]
    is_plain = [isinstance(found, (str, int, float)) for found in (value, expected)]
    if expected is None or not any(is_plain):
        return None
    is_same = value == expected or str(value).strip().lower() == str(expected).strip().lower()
    return None if all(is_plain) and is_same else expected


def _holds(whole: object, part: str) -> bool:
    """Does the text contain the part, with no word cut, white space aside?"""
    words = r"\s+".join(map(re.escape, part.split()))
    start = r"(?<!\w)" if re.match(r"\w", part.lstrip()) else ""
    end = r"(?!\w)" if re.search(r"\w\s*$", part) else ""
    return isinstance(whole, str) and bool(re.search(start + words + end, whole))


def _distinct(path: str | Path, rows: Sequence[dict]) -> None:
    seen: dict[int, int] = {}
    for row, found in enumerate(rows, 1):
        first = seen.setdefault(found["question_id"], row)
        if first != row:
            raise ValueError(
                f"{path}, row {row}: question_id {found['question_id']} stands already in row"
                f" {first}: remove one of the two."
            )
