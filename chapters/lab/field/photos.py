"""Pictures from disk: COCO's instances with their image files, EFUF's curated captions, POPE's
questions; and CLIP's scores, kept on disk.

The released data and the microworld's export (export.py) go through the same functions. Every error
is a ValueError that names the file, the row (1 is the first) and the mend.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from sare_min.captions import refuse_special

from .. import files
from ..llava.speech import generate
from ..metrics.chair import Convention, Span
from ..world.curate import Thresholds
from . import coco
from .images import open_image

# As released, for ViT-B/32's sliding-window scores
EFUF = Thresholds(forget_below=23.0, retain_above=32.0, sentence_above=27.5)
SEPARATORS = ",.;!?:"
# To read a yes or a no: a sentence that says no late ("In the picture, there is no ...") takes some
# ten to twenty. Generation stops at the end of an answer, so a short one costs no more.
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Photo:
    """An image file. objects: the categories annotated in it, sorted. row: where it is listed, for
    errors. name: its file_name there, with folders.
    """

    image_id: int
    path: Path
    objects: tuple[str, ...]
    row: str
    name: str = ""

    def open(self) -> Image.Image:
        """The picture as pictures.open_image gives it; the error names the row as well."""
        return open_image(self.path, self.row)

    @property
    def file_name(self) -> str:
        """As the instances file has it, or the file's own."""
        return self.name or self.path.name


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


class Names:
    """Finds an image by its file name: the whole one (with folders) wins; else those that mean the
    same file, see coco.same_file.
    """

    def __init__(self, names: Mapping):
        """names: any key -> file name."""
        self.whole, self.alike = {}, defaultdict(list)
        for key, name in names.items():
            self.whole.setdefault(name, []).append(key)
            for end in {posixpath.basename(name), posixpath.basename(name).rpartition(".")[0]}:
                self.alike[end].append((key, name))

    def find(self, name: object) -> list:
        """The keys of the images that it may mean: none, one or several."""
        if not isinstance(name, str):
            return []
        if name in self.whole:
            return self.whole[name]
        end = posixpath.basename(name)
        near = [*self.alike.get(end, ()), *self.alike.get(end.rpartition(".")[0], ())]
        return list(dict.fromkeys(key for key, known in near if coco.same_file(name, known)))


def read_images(
    instances: str | Path,
    folder: str | Path,
    limit: int | None = None,
    names: Collection[str] | None = None,
    on_bad: str = "error",
) -> coco.Rows:
    """The images of a COCO instances file in file order, as Photos: the first `limit`, or those
    with the given file names; only they need be there.

    on_bad: "skip" opens each picture, leaves out those that are no usable image, counts on to
    `limit` without them, and the result's `skipped` says which and why.

    Raises ValueError naming the row of an image that is missing, empty or outside the folder, or
    listed twice (its id, or its file), and of an annotation whose image or category is not listed;
    and a name that is none of the images', or may be several.
    """
    coco.check_on_bad(on_bad)
    found = coco.read_annotated(instances, {"id": coco.ID, "file_name": coco.NAME})
    _distinct_files(found.listed)
    chosen = found.listed if names is None else _chosen(instances, found.listed, names)

    def photo(image: int) -> Photo:
        name, place = found.listed[image]
        path, objects = _inside(Path(folder), name, place), tuple(sorted(set(found.about[image])))
        one = Photo(image, path, objects, place, name)
        if on_bad == "skip":
            one.open()
        return one

    photos = coco.Rows()
    for row, image in enumerate(found.listed, 1):
        if limit is not None and len(photos) >= limit:
            break
        if image in chosen:
            photos.add(row, partial(photo, image), on_bad)
    return photos


def _distinct_files(listed: Mapping[int, tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for name, place in listed.values():
        file = posixpath.normpath(name)
        if file in first:
            raise ValueError(
                f"{place}: file_name {name!r} stands already in {first[file]}: remove one of the"
                " two."
            )
        first[file] = place


def _chosen(
    instances: str | Path, listed: Mapping[int, tuple[str, str]], names: Collection[str]
) -> set[int]:
    known = Names({image: name for image, (name, _) in listed.items()})
    found = {name: known.find(name) for name in names}
    if lost := sorted((name for name in found if not found[name]), key=str):
        raise ValueError(
            f"{instances}: no image {lost[0]!r} is listed ({len(lost)} such names): give the"
            " instances of their split."
        )
    for name, images in found.items():
        _only_one(f"{instances}: {name!r}", [listed[image][1] for image in images])
    return {image for images in found.values() for image in images}


def _only_one(where: str, places: Sequence[str]) -> None:
    if len(places) > 1:
        raise ValueError(
            f"{where} may be the image of {places[0]} or of {places[1]}: write its folder, too."
        )


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

    Raises ValueError naming the row of a picture without any: half of the truth is none.
    """
    told = coco.read_human_captions([human])
    if lost := [photo for photo in photos if photo.image_id not in told]:
        raise ValueError(
            f"{lost[0].row}: image_id {lost[0].image_id} has no caption in {human} ({len(lost)}"
            " such images): give the captions of the same split."
        )
    return [rules.truth(photo.objects, told[photo.image_id]) for photo in photos]


def read_pope(path: str | Path, photos: Sequence[Photo]) -> tuple[list[dict], list[int]]:
    """POPE's questions (lines, an array or pretty-printed) and, for each, the place of its image in
    `photos`: the one of that file name with its folders, or the only one that it may mean.
    """
    questions = coco.read_questions(path)
    known, at = Names({i: photo.file_name for i, photo in enumerate(photos)}), []
    for row, question in enumerate(questions, 1):
        found = known.find(question.get("image"))
        if not found:
            raise ValueError(
                f"{path}, row {row}: the image {question.get('image')!r:.80} is none of the"
                f" {len(photos)} given: read it too."
            )
        where = f"{path}, row {row}: the image {question['image']!r}"
        _only_one(where, [photos[i].row for i in found])
        at.append(found[0])
    return questions, at


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
    is kept whole (if it has several rows: by all of them). EFUF trains on every entry by itself.
    Raises ValueError naming file and row of a bad entry, and of an image that the two files spell
    in two ways.
    Source: starreeze/efuf finetune/format_data.py, finetune/data.py.
    """
    entries = coco.read_rows(
        pos_neg,
        {
            "image": coco.NAME,
            "sentence": coco.TEXT,
            "position": coco.WHOLE,
            "score": coco.NUMBER,
        },
    )
    whole = coco.read_rows(
        sentences,
        {"image": coco.NAME, "sentence": coco.TEXT, "mean": coco.NUMBER, "min": coco.NUMBER},
    )
    _spelled_alike(sentences, whole, pos_neg, {row["image"] for row in entries})
    texts: dict[str, list[str]] = defaultdict(list)  # an image's captions, longest first
    for row in sorted([*entries, *whole], key=lambda row: -len(row["sentence"])):
        if not any(text.startswith(row["sentence"]) for text in texts[row["image"]]):
            texts[row["image"]].append(row["sentence"])
    worst: dict[tuple[str, str], dict[Span, float]] = {}
    for number, row in enumerate(entries, 1):
        start, end = row["position"], len(row["sentence"])
        if not 0 <= start < end:
            raise ValueError(
                f"{pos_neg}, row {number}: position {start} does not fit {row['sentence']!r:.60}:"
                " give where its last clause starts."
            )
        span = (start - (start > 0 and row["sentence"][start - 1] in SEPARATORS), end)
        found = worst.setdefault((row["image"], _home(row["sentence"], texts[row["image"]])), {})
        found[span] = min(row["score"], found.get(span, math.inf))
    kept: dict[tuple[str, str], bool] = {}
    for row in whole:
        is_kept = row["min"] > thresholds.forget_below and row["mean"] > thresholds.sentence_above
        key = row["image"], row["sentence"]
        kept[key] = is_kept and kept.get(key, True)
    for (image, text), is_kept in kept.items():
        lowest = min(worst.get((image, text), {}).values(), default=math.inf)
        if is_kept and lowest < thresholds.forget_below:
            raise ValueError(
                f"{sentences}: {text!r:.60} of {image} has nothing to forget, yet {pos_neg} scores"
                f" one of its clauses {lowest}: the two files are not of one run; fetch both again."
            )
    rows = dict.fromkeys([*worst, *((image, _home(text, texts[image])) for image, text in kept)])
    return [
        Curated(
            *row,
            _spans(worst.get(row, {}), kept.get(row, False) and [(0, len(row[1]))], thresholds),
        )
        for row in rows
    ]


def _spelled_alike(
    sentences: str | Path, rows: Sequence[dict], pos_neg: str | Path, names: Collection[str]
) -> None:
    known = Names({name: name for name in names})
    for number, row in enumerate(rows, 1):
        found = known.find(row["image"])
        if found and row["image"] not in found:
            raise ValueError(
                f"{sentences}, row {number}: the image {row['image']!r:.80} is {found[0]!r:.80} in"
                f" {pos_neg}: spell it alike in both."
            )


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

    features: (n photos, N, D) of embed_images. An answer has ANSWER_TOKENS at most; one that was
    cut before it came to a yes or a no counts as "neither" in lab.score, so no row says that it was
    cut. Returns the folder. Raises ValueError naming a question that holds a special token, before
    anything is asked.
    """
    for name, (questions, _) in asked.items():
        refuse_special(processor, **{f"{name}: question": [q["text"] for q in questions]})
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
                max_new_tokens=ANSWER_TOKENS,
            )
        ]
        rows[name] = [
            {"question_id": q["question_id"], "answer": text}
            for q, text in zip(questions, answers, strict=True)
        ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(Path(folder, f"{name}.jsonl"), text)
    return Path(folder)
