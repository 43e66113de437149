"""Pictures from disk: COCO's instances with their image files, EFUF's curated captions, POPE's
questions; and CLIP's scores, kept on disk.

The released data and the microworld's export (export.py) go through the same functions. Every error
is a ValueError that names the file, the row (1 is the first) and the mend. Of an instances file
only the text is held in memory: its rows are decoded and let go one by one.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from sare_min.llava import generate

from . import coco
from .chair import Convention, Span
from .curate import Thresholds

# As released, for ViT-B/32's sliding-window scores
EFUF = Thresholds(forget_below=23.0, retain_above=32.0, sentence_above=27.5)
DECODER, SPACE, SEPARATORS = json.JSONDecoder(), re.compile(r"[ \t\r\n]*"), ",.;!?:"
FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow opens many more, some by starting other programs
# At most 8 bits a channel: become RGB without clipping
MODES = ("RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")
PARTS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Photo:
    """An image file. objects: the categories annotated in it, sorted. row: where it is listed, for
    errors.
    """

    image_id: int
    path: Path
    objects: tuple[str, ...]
    row: str

    def open(self) -> Image.Image:
        """The picture as RGB; grey, palette and transparent ones (COCO has some) are converted as
        transformers' processors convert them.

        Raises ValueError naming row and file if it is broken, no JPEG, PNG or WEBP, or has more
        than 8 bits a channel.
        """
        try:
            with Image.open(self.path, formats=FORMATS) as file:
                if file.mode not in MODES:
                    raise ValueError(f"mode {file.mode} would be clipped to RGB's 8 bits a channel")
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self.row}: {self.path}: no usable image ({error}). Replace the file or drop its"
                " row."
            ) from error


class Pictures(Sequence[Image.Image]):
    """Photos that are opened when they are asked for: embed_images and clip_scores ask for a batch
    at a time.
    """

    def __init__(self, photos: Sequence[Photo]):
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, at):
        return (
            [photo.open() for photo in self.photos[at]]
            if isinstance(at, slice)
            else self.photos[at].open()
        )


def find(folder: str | Path, pattern: str) -> Path:
    """The one file of that name (a glob pattern) in the folder or below; raises ValueError if there
    is none, or more than one.
    """
    found = sorted(Path(folder).rglob(pattern))
    if len(found) != 1:
        what = (
            f"{len(found)} such files, {found[0]} and {found[1]}: keep one of them there"
            if found
            else "no such file: put it there"
        )
        raise ValueError(f"{folder}, {pattern}: {what}.")
    return found[0]


def images_folder(instances: str | Path) -> Path:
    """Where the images of DATA/annotations/instances_SPLIT.json lie: DATA/SPLIT, as COCO unpacks,
    or DATA/images/SPLIT.
    """
    data, split = (
        Path(instances).resolve().parents[1],
        Path(instances).stem.removeprefix("instances_"),
    )
    places = [place for place in (data / split, data / "images" / split) if place.is_dir()]
    if not places:
        raise ValueError(
            f"{instances}: its images should lie in {data / split} or {data / 'images' / split}:"
            " unpack them there."
        )
    return places[0]


def stream(
    path: str | Path, parts: Mapping[str, Mapping[str, type]] = PARTS
) -> Iterator[tuple[str, int, dict]]:
    """(part, row, object) of the named lists of a COCO JSON document, in file order; each object
    has the given fields.

    Raises ValueError naming file, part and row if the JSON is broken or cut off, a list is missing,
    or a field is missing or mistyped.
    """
    text, seen, part, row = coco.read_text(path), set(), "top level", 0

    def peek(at: int) -> tuple[str, int]:
        at = SPACE.match(text, at).end()
        return text[at : at + 1], at

    def take(at: int, wanted: str) -> tuple[str, int]:
        mark, at = peek(at)
        if mark not in [*wanted]:
            raise json.JSONDecodeError(f"no {' or '.join(wanted)}", text, at)
        return mark, at + 1

    try:
        mark, at = take(0, "{")
        while mark != "}":
            part, at = DECODER.raw_decode(text, take(at, '"')[1] - 1)
            mark, at = peek(take(at, ":")[1])
            if part not in parts or mark != "[":
                _, at = DECODER.raw_decode(text, at)
            else:
                seen.add(part)
                mark, at = take(at + 1, "]") if peek(at + 1)[0] == "]" else ("[", at + 1)
                while mark != "]":
                    row += 1
                    found, at = DECODER.raw_decode(text, peek(at)[1])
                    yield part, row, _checked(f"{path}, {part} row {row}", found, parts[part])
                    mark, at = take(at, ",]")
                row = 0
            mark, at = take(at, ",}")
        if peek(at)[0]:
            raise json.JSONDecodeError("more after the end", text, at)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}, {part} row {row}: broken JSON ({error}). The file may be cut off: fetch it"
            " again."
        ) from error
    if lost := [name for name in parts if name not in seen]:
        raise ValueError(
            f"{path}: no list {lost[0]!r}; a COCO file of this kind has {', '.join(parts)}."
        )


def _checked(where: str, found: object, fields: Mapping[str, type]) -> dict:
    for name, kind in fields.items():
        if (
            not isinstance(found, dict)
            or not isinstance(found.get(name), kind)
            or isinstance(found[name], bool)
        ):
            raise ValueError(f"{where}: {name!r} must be {kind.__name__}, found {str(found)[:60]}.")
    return found


def read_images(
    instances: str | Path,
    folder: str | Path,
    limit: int | None = None,
    names: Collection[str] | None = None,
) -> list[Photo]:
    """The images of a COCO instances file in file order: the first `limit`, or those with the given
    file names; only they need be there.

    Raises ValueError naming the row of an image that is missing, empty or outside the folder, or
    listed twice, and of an annotation whose image or category is not listed.
    """
    images, categories, shown = {}, {}, defaultdict(dict)
    for part, row, found in stream(instances):
        if part == "annotations":
            shown[found["image_id"]].setdefault(found["category_id"], row)
        elif found["id"] in (known := images if part == "images" else categories):
            raise ValueError(
                f"{instances}, {part} row {row}: id {found['id']} stands there already: remove one"
                " of the two."
            )
        else:
            known[found["id"]] = (found["file_name"], row) if part == "images" else found["name"]
    for image, noted in shown.items():
        for category, row in noted.items():
            if image not in images or category not in categories:
                wrong = (
                    f"image_id {image} is not in 'images'"
                    if image not in images
                    else f"category_id {category} is not in 'categories'"
                )
                raise ValueError(
                    f"{instances}, annotations row {row}: {wrong}: drop the row, or mend the id."
                )
    if lost := sorted(set(names or ()) - {name for name, _ in images.values()}):
        raise ValueError(
            f"{instances}: no image {lost[0]!r} is listed ({len(lost)} such names): give the"
            " instances of their split."
        )
    return [
        Photo(
            image,
            _inside(Path(folder), name, f"{instances}, images row {row}"),
            tuple(sorted(categories[c] for c in shown.get(image, ()))),
            f"{instances}, images row {row}",
        )
        for image, (name, row) in [
            (i, at) for i, at in images.items() if names is None or at[0] in names
        ][:limit]
    ]


def _inside(folder: Path, name: str, row: str) -> Path:
    path = folder / name
    # What raises: a zero byte in the name, too long a name, links in a circle
    try:
        # Resolved: a link may lead out as well
        is_inside = path.resolve().is_relative_to(folder.resolve())
        what = (
            ""
            if path.is_file() and path.stat().st_size
            else "holds no bytes"
            if path.is_file()
            else "is missing"
        )
    except (OSError, ValueError, RuntimeError) as error:
        is_inside, what = True, f"cannot be opened ({error})"
    if not is_inside:
        raise ValueError(
            f"{row}: file_name {name!r} leaves the folder {folder}, so it is not read: put the file"
            " there and name it so."
        )
    if what:
        raise ValueError(
            f"{row}: the image {str(path)[:200]!r} {what}. Fetch it again, or drop its row."
        )
    return path


def truths(photos: Sequence[Photo], human: str | Path, rules: Convention) -> list[set[str]]:
    """What each picture shows by CHAIR's rule, as lab.score takes it: the annotated objects and
    those that its human captions (a COCO captions file) mention.
    """
    told = coco.read_human_captions([human])
    return [rules.truth(photo.objects, told.get(photo.image_id, ())) for photo in photos]


def read_pope(path: str | Path, photos: Sequence[Photo]) -> tuple[list[dict], list[int]]:
    """POPE's questions (lines, an array or pretty-printed) and, for each, the place of its image in
    `photos`.
    """
    questions, at = (
        coco.read_questions(path),
        {photo.path.name: i for i, photo in enumerate(photos)},
    )
    for row, question in enumerate(questions, 1):
        if not isinstance(question.get("image"), str) or question["image"] not in at:
            raise ValueError(
                f"{path}, row {row}: the image {question.get('image')!r} is none of the"
                f" {len(photos)} given: read it too."
            )
    return questions, [at[question["image"]] for question in questions]


@dataclass(frozen=True)
class Curated:
    """A caption of an image (a file name) and its spans, as sare_min.captions.encode takes them."""

    image: str
    caption: str
    spans: dict[str, list[Span]]


def read_efuf(
    pos_neg: str | Path, sentences: str | Path, thresholds: Thresholds = EFUF
) -> list[Curated]:
    """EFUF's pos_neg.json and sentences.json, a row a caption, in the order in which pos_neg meets
    them, then the rest of sentences.

    pos_neg has an entry an object: {image, sentence: the caption up to the END of the object's
    clause, position: where the clause starts, score}. An image's entries are packed into the
    longest text that they begin. As in curate.py, a span starts at the separator before the clause
    (EFUF: after it), is forgotten if one of its scores is below and retained if all are
    above; a caption with min above forget_below (nothing to forget) and mean above sentence_above
    is kept whole. EFUF trains on every entry by itself. Raises ValueError naming file and row of a
    bad entry. Source: starreeze/efuf finetune/format_data.py, finetune/data.py.
    """
    entries = coco.read_rows(
        pos_neg, {"image": str, "sentence": str, "position": int, "score": (float, int)}
    )
    whole = coco.read_rows(
        sentences, {"image": str, "sentence": str, "mean": (float, int), "min": (float, int)}
    )
    texts: dict[str, list[str]] = defaultdict(list)  # an image's captions, longest first
    for row in sorted([*entries, *whole], key=lambda row: -len(row["sentence"])):
        if not any(text.startswith(row["sentence"]) for text in texts[row["image"]]):
            texts[row["image"]].append(row["sentence"])
    worst: dict[tuple[str, str], dict[Span, float]] = {}
    for number, row in enumerate(entries, 1):
        start, end = row["position"], len(row["sentence"])
        if not 0 <= start < end or not math.isfinite(row["score"]):
            raise ValueError(
                f"{pos_neg}, row {number}: position {start}, score {row['score']} do not fit"
                f" {row['sentence']!r:.60}."
            )
        span = (start - (start > 0 and row["sentence"][start - 1] in SEPARATORS), end)
        found = worst.setdefault((row["image"], _home(row["sentence"], texts[row["image"]])), {})
        found[span] = min(row["score"], found.get(span, math.inf))
    kept = {
        (row["image"], row["sentence"]): (
            row["min"] > thresholds.forget_below and row["mean"] > thresholds.sentence_above
        )
        for row in whole
    }
    rows = dict.fromkeys([*worst, *((image, _home(text, texts[image])) for image, text in kept)])
    return [
        Curated(
            *row,
            _spans(worst.get(row, {}), kept.get(row, False) and [(0, len(row[1]))], thresholds),
        )
        for row in rows
    ]


def _home(sentence: str, texts: Sequence[str]) -> str:
    """The caption that a sentence was cut from: the longest where the cut ends a clause, else the
    longest that begins so.
    """
    begun = [text for text in texts if text.startswith(sentence)]
    return next(
        (text for text in begun if text[len(sentence) :][:1] in ("", *SEPARATORS)), begun[0]
    )


def _spans(
    worst: Mapping[Span, float], whole: list[Span] | bool, thresholds: Thresholds
) -> dict[str, list[Span]]:
    forget = sorted(span for span, value in worst.items() if value < thresholds.forget_below)
    retain = sorted(span for span, value in worst.items() if value > thresholds.retain_above)
    return {"forget": forget, "retain": retain, "sentence": whole or []}


def speak(
    model,
    processor,
    features: Tensor,
    photos: Sequence[Photo],
    asked: Mapping[str, tuple[list[dict], list[int]]],
    folder: str | Path,
    batch_size: int = 32,
    max_new_tokens: int = 64,
) -> Path:
    """Write what a model says as lab.score reads it: captions.jsonl (greedy), and NAME.jsonl for
    each of `asked` {NAME: read_pope's}.

    features: (n photos, N, D) of embed_images. Returns the folder.
    """
    said = generate(
        model, processor, features, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    rows = {
        "captions": [
            {"image_id": photo.image_id, "caption": text}
            for photo, text in zip(photos, said, strict=True)
        ]
    }
    for name, (questions, at) in asked.items():
        # A copy of the features each
        parts = [slice(start, start + batch_size) for start in range(0, len(questions), batch_size)]
        answers = [
            text
            for part in parts
            for text in generate(
                model,
                processor,
                features[at[part]],
                [q["text"] for q in questions[part]],
                max_new_tokens=4,
            )
        ]
        rows[name] = [
            {"question_id": q["question_id"], "answer": text}
            for q, text in zip(questions, answers, strict=True)
        ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Path(folder)
