"""Readers of the field's files, each row checked: COCO instances and captions, POPE questions,
answers and captions to score.

Every error is a ValueError that names the file, the row and the mend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def read_rows(path: str | Path, fields: dict[str, type | tuple[type, ...]]) -> list[dict]:
    """The objects in a JSON file, however they are written: one a line, pretty-printed one after
    the other, or in an array.

    fields: name -> type (or types) that every object must have. Raises ValueError naming the file
    and the row (1 is the first).
    """
    rows = []
    for row, found in enumerate(_objects(Path(path)), 1):
        if not isinstance(found, dict):
            raise ValueError(
                f"{path}, row {row}: expected an object with {', '.join(fields)}, found"
                f" {type(found).__name__}."
            )
        for name, kind in fields.items():
            if name not in found:
                raise ValueError(
                    f"{path}, row {row}: the field {name!r} is missing; this row has"
                    f" {', '.join(found) or 'none'}."
                )
            if not isinstance(found[name], kind) or isinstance(found[name], bool):
                raise ValueError(
                    f"{path}, row {row}: {name!r} must be {_spell(kind)}, found"
                    f" {found[name]!r:.60}."
                )
        rows.append(found)
    if not rows:
        raise ValueError(f"{path}: the file has no rows. Was it written to the end?")
    return rows


def _spell(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def _objects(path: Path) -> Iterator[object]:
    text = read_text(path)
    decoder, at, row = json.JSONDecoder(), 0, 1
    while (at := _skip_space(text, at)) < len(text):
        try:
            found, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, row {row} (line {text.count(chr(10), 0, error.pos) + 1}): broken JSON"
                f" ({error.msg}). The file may be cut off: fetch or write it again."
            ) from error
        yield from found if isinstance(found, list) else (found,)
        row += len(found) if isinstance(found, list) else 1


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def read_text(path: str | Path) -> str:
    """The file's text; raises ValueError naming the file if it is missing, is not UTF-8, or holds
    zero bytes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: the file could not be read as text ({error}). Check the path and what it"
            " holds."
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: the file holds zero bytes, so it is no text. Fetch it again.")
    return text


def read_document(
    path: str | Path, parts: dict[str, dict[str, type | tuple[type, ...]]]
) -> dict[str, list[dict]]:
    """A COCO JSON document: the named lists, each of whose objects has the given fields."""
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: broken JSON ({error.msg}). The file may be cut off:"
            " fetch it again."
        ) from error
    for part, fields in parts.items():
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise ValueError(f"{path}: no list {part!r}; a COCO file has {', '.join(parts)}.")
        for row, found in enumerate(document[part], 1):
            for name, kind in fields.items():
                if not isinstance(found, dict) or not isinstance(found.get(name), kind):
                    raise ValueError(
                        f"{path}, {part} row {row}: {name!r} must be {_spell(kind)}, found"
                        f" {str(found)[:60]}."
                    )
    return document


def read_instances(paths: Iterable[str | Path]) -> dict[int, set[str]]:
    """Image id -> the names of the categories annotated in it, over all given instances files (an
    image without any: an empty set).
    """
    shown: dict[int, set[str]] = {}
    for path in paths:
        document = read_document(
            path,
            {
                "categories": {"id": int, "name": str},
                "annotations": {"image_id": int, "category_id": int},
            },
        )
        names = {category["id"]: category["name"] for category in document["categories"]}
        for image in document.get("images", ()):
            shown.setdefault(image["id"], set())
        for row, annotation in enumerate(document["annotations"], 1):
            if annotation["category_id"] not in names:
                raise ValueError(
                    f"{path}, annotations row {row}: category {annotation['category_id']} is not in"
                    " 'categories'."
                )
            shown.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    return shown


def read_human_captions(paths: Iterable[str | Path]) -> dict[int, list[str]]:
    """Image id -> its human captions, over all given COCO captions files."""
    captions: dict[int, list[str]] = {}
    for path in paths:
        for annotation in read_document(path, {"annotations": {"image_id": int, "caption": str}})[
            "annotations"
        ]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def read_captions(path: str | Path) -> list[dict]:
    """Generated captions: objects of {"image_id", "caption"}; an image may have several."""
    return read_rows(path, {"image_id": int, "caption": str})


def read_questions(path: str | Path) -> list[dict]:
    """POPE questions: objects of {"question_id", "image", "text", "label"}; the ids differ, labels
    are yes or no.
    """
    rows = read_rows(path, {"question_id": int, "text": str, "label": str})
    for row, found in enumerate(rows, 1):
        if found["label"] not in ("yes", "no"):
            raise ValueError(
                f"{path}, row {row}: the label must be 'yes' or 'no', found {found['label']!r}."
            )
    _distinct(path, rows)
    return rows


def read_answers(path: str | Path, questions: Sequence[dict]) -> list[str]:
    """The answers in the questions' order, joined by id; raises ValueError on a missing, doubled or
    unknown id.
    """
    rows = read_rows(path, {"question_id": int, "answer": str})
    _distinct(path, rows)
    answers = {found["question_id"]: found["answer"] for found in rows}
    known = {q["question_id"] for q in questions}
    for row, found in enumerate(rows, 1):
        if found["question_id"] not in known:
            raise ValueError(
                f"{path}, row {row}: question_id {found['question_id']} is not among the"
                f" {len(known)} questions."
            )
    missing = [q["question_id"] for q in questions if q["question_id"] not in answers]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(known)} questions have no answer; the first is"
            f" question_id {missing[0]}."
        )
    return [answers[q["question_id"]] for q in questions]


def _distinct(path: str | Path, rows: Sequence[dict]) -> None:
    seen: dict[int, int] = {}
    for row, found in enumerate(rows, 1):
        first = seen.setdefault(found["question_id"], row)
        if first != row:
            raise ValueError(
                f"{path}, row {row}: question_id {found['question_id']} stands already in row"
                f" {first}: remove one of the two."
            )
