"""What an audit is measured on: the files of one folder in COCO's and POPE's formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..field import coco, photos
from ..field.photos import Photo
from ..metrics.chair import Convention, convention
from .settings import Settings

PATTERNS = {
    "val": "instances_val*.json",
    "train": "instances_train*.json",
    "human val": "captions_val*.json",
    "human train": "captions_train*.json",
} | {kind: f"coco_pope_{kind}.json" for kind in ("random", "popular", "adversarial")}
KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Material:
    """Images with what they show, and the questions about them.

    truth, train_truth: what each of test and train shows, by CHAIR's rule. told: a human caption of
    each test image. asked: kind of POPE -> (its questions, each one's place in test). fingerprint:
    of all of this, the images' bytes included.
    """

    test: Sequence[Photo]
    truth: Sequence[set[str]]
    told: Sequence[str]
    asked: Mapping[str, tuple[list[dict], list[int]]]
    train: Sequence[Photo]
    train_truth: Sequence[set[str]]
    rules: Convention
    fingerprint: str

    @property
    def n_questions(self) -> int:
        return sum(len(questions) for questions, _ in self.asked.values())


def read(folder: str | Path, settings: Settings) -> Material:
    """The folder's files as chapter 05 reads them; only the images that are used need be there.

    Test images are the first `settings.test` of those that POPE asks about, in the order of the
    instances file. Raises ValueError naming a file that is missing or the row that is wrong, or if
    fewer training images are there than asked for.
    """
    files = {name: photos.find(folder, like) for name, like in PATTERNS.items()}
    rules = convention(settings.convention, settings.synonyms)
    wanted = {q["image"] for kind in KINDS for q in coco.read_questions(files[kind])}
    homes = {split: photos.images_folder(files[split]) for split in ("val", "train")}
    known = photos.read_images(files["val"], homes["val"], names=wanted)
    test = known[: settings.test]
    limit = settings.skip + settings.train
    train = photos.read_images(files["train"], homes["train"], limit=limit)[settings.skip :]
    if len(train) < settings.train:
        raise ValueError(
            f"{files['train']}: {len(train)} images are left after {settings.skip}, and"
            f" {settings.train} were asked for: lower --train-images or --skip."
        )
    told = coco.read_human_captions([files["human val"]])
    truth = photos.truths(test, files["human val"], rules)
    train_truth = photos.truths(train, files["human train"], rules)
    asked = {kind: _first(*photos.read_pope(files[kind], known), len(test)) for kind in KINDS}
    first = [told[photo.image_id][0] for photo in test]
    print_of = fingerprint(test, truth, first, asked, train, train_truth)
    return Material(test, truth, first, asked, train, train_truth, rules, print_of)


def _first(questions: list[dict], at: list[int], n: int) -> tuple[list[dict], list[int]]:
    """The questions about the first n images."""
    kept = [(q, place) for q, place in zip(questions, at, strict=True) if place < n]
    return [q for q, _ in kept], [place for _, place in kept]


def fingerprint(test, truth, told, asked, train, train_truth) -> str:
    """A hash of what is measured on: every image's bytes, what it shows, what is asked about it."""
    digest = hashlib.sha256()
    for photo, shown in [*zip(test, truth, strict=True), *zip(train, train_truth, strict=True)]:
        digest.update(f"{photo.image_id} {sorted(shown)}".encode())
        digest.update(hashlib.sha256(photo.path.read_bytes()).digest())
    rows = [[(q["text"], q["label"]) for q in questions] for questions, _ in asked.values()]
    places = [at for _, at in asked.values()]
    digest.update(json.dumps([list(told), rows, places]).encode())
    return digest.hexdigest()[:16]
