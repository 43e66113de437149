"""The microworld on disk, in the formats of the released data, so that what reads COCO, POPE and
EFUF's files (photos.py) reads it too.

FOLDER/
    annotations/instances_SPLIT.json, captions_SPLIT.json
        COCO's, with COCO's category ids; SPLIT is train or val
    SPLIT/COCO_SPLIT_000000000123.png
        the pictures
    pope/coco_pope_KIND.json
        POPE's questions about val, an object a line
    efuf/pos_neg.json, sentences.json
        EFUF's curated captions of train, all scores, thresholds not applied
    llava/, clip/
        checkpoints, each with its processor
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import CLIPModel, CLIPProcessor

from .. import files, jobs
from ..experiments.quality import POPE_KINDS, SOURCES, pope_questions
from ..llava.checkpoints import load, save
from ..metrics import chair
from ..world import bases
from ..world.curate import clip_scores
from ..world.kit import RULES
from ..world.models import build_tokenizer, image_processor
from ..world.scenes import GRID, OBJECTS, PLACES, SIDE, Scene, caption, draw, split_scenes
from .judge import prompt
from .photos import SEPARATORS

SOURCES = (
    *SOURCES,
    "chapters/lab/field/coco",
    "chapters/lab/field/export",
    "chapters/lab/field/judge",
    "chapters/lab/field/photos",
    "chapters/lab/field/images",
)
jobs.remember(SOURCES)
MARK = "microworld.json"  # says that a folder was written here, so that it may be written again
# COCO names 80 of its 90 ids, in the order of the synonyms table
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = dict(
    zip(
        dict.fromkeys(chair.read_synonyms().values()),
        (i for i in range(1, 91) if i not in UNUSED_IDS),
    )
)


def export(
    folder: str | Path,
    scenes: Mapping[str, Sequence[Scene]],
    clip: CLIPModel,
    model,
    processor,
    captions: Sequence[str],
    seed: int = 0,
) -> Path:
    """Write scenes {"train": [...], "val": [...]} with their files, a LLaVA (model, processor) and
    a CLIP; return the folder.

    captions: what was said about each train scene, for EFUF's files. seed: of POPE's random
    questions.
    It is written whole or not at all. Raises ValueError if the folder holds anything that was not
    exported, or captions are missing.
    """
    folder, part, old = (Path(f"{folder}{end}") for end in ("", ".part", ".old"))
    if set(scenes) != {"train", "val"} or len(captions) != len(scenes["train"]):
        raise ValueError(
            f"export: {len(captions)} captions, scenes for {', '.join(scenes)}: give train and val,"
            " a caption a train scene."
        )
    for place in (folder, part, old):
        if place.exists() and any(place.iterdir()) and not (place / MARK).exists():
            raise ValueError(
                f"{place}: holds something that was not exported (no {MARK}): choose another"
                " folder, or empty it."
            )
    if not folder.exists() and (old / MARK).exists():  # one died between its two renames
        old.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
    _write(
        part / MARK, {"scenes": {split: len(row) for split, row in scenes.items()}, "seed": seed}
    )
    ids = iter(range(1, 1 + sum(map(len, scenes.values()))))
    images = {
        split: [_image(split, scene, next(ids), part / split) for scene in row]
        for split, row in scenes.items()
    }
    for split, row in scenes.items():
        _write(part / f"annotations/instances_{split}.json", instances(row, images[split]))
        told = [
            {"id": image["id"], "image_id": image["id"], "caption": caption(s)}
            for s, image in zip(row, images[split])
        ]
        _write(
            part / f"annotations/captions_{split}.json",
            {"images": images[split], "annotations": told},
        )
    for kind in POPE_KINDS:
        asked = pope_questions([scene.objects for scene in scenes["val"]], OBJECTS, kind, seed=seed)
        lines = [
            json.dumps(row | {"image": images["val"][row["image"]]["file_name"]}) for row in asked
        ]
        _write(part / f"pope/coco_pope_{kind}.json", "\n".join(lines) + "\n")
    for name, rows in zip(
        ("pos_neg", "sentences"),
        efuf(captions, score_scenes(clip, scenes["train"]), images["train"]),
    ):
        _write(part / f"efuf/{name}.json", rows)
    save(model, processor, part / "llava")
    clip.save_pretrained(part / "clip")
    CLIPProcessor(image_processor(), build_tokenizer(for_clip=True)).save_pretrained(part / "clip")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _image(split: str, scene: Scene, number: int, folder: Path) -> dict:
    """Draw a scene into the folder; its entry in COCO's "images"."""
    name = f"COCO_{split}_{number:012d}.png"
    folder.mkdir(parents=True, exist_ok=True)
    draw(scene).save(folder / name)
    return {"id": number, "file_name": name, "width": SIDE, "height": SIDE}


def instances(scenes: Sequence[Scene], images: Sequence[dict]) -> dict:
    """A COCO instances document: an annotation an object, its bbox [x, y, width, height] the grid
    cell, in pixels.
    """
    shown = [
        (image["id"], noun, SIDE // GRID * (cell % GRID), SIDE // GRID * (cell // GRID))
        for scene, image in zip(scenes, images, strict=True)
        for noun, cell in zip(scene.objects, scene.cells, strict=True)
    ]
    size = SIDE // GRID
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": IDS[noun],
            "bbox": [x, y, size, size],
            "area": size**2,
            "iscrowd": 0,
            "segmentation": [[x, y, x + size, y, x + size, y + size, x, y + size]],
        }
        for number, (image, noun, x, y) in enumerate(shown, images[0]["id"] * (GRID**2))
    ]
    categories = [
        {"id": IDS[noun], "name": noun, "supercategory": place}
        for place, names in PLACES.items()
        for noun in names
    ]
    return {
        "images": list(images),
        "annotations": annotations,
        "categories": sorted(categories, key=lambda row: row["id"]),
    }


def score_scenes(clip: CLIPModel, scenes: Sequence[Scene]) -> list[dict[str, float]]:
    """Per scene, object -> CLIP's whole-image score of it."""
    table = clip_scores(
        clip,
        image_processor(),
        build_tokenizer(for_clip=True),
        [draw(scene) for scene in scenes],
        [prompt(noun) for noun in OBJECTS],
    )
    return [dict(zip(OBJECTS, row, strict=True)) for row in table.tolist()]


def efuf(
    captions: Sequence[str], scores: Sequence[Mapping[str, float]], images: Sequence[dict]
) -> tuple[list[dict], list[dict]]:
    """EFUF's pos_neg and sentences of captions with their objects' scores; a caption that names no
    object has no entry.

    An entry a mention, not an object, and its own clause, not the first that contains its letters:
    the released files have the latter. Source of the fields: starreeze/efuf
    finetune/format_data.py.
    """
    pos_neg, sentences = [], []
    for text, score_of, image in zip(captions, scores, images, strict=True):
        found = RULES.find(text)
        for noun, (at, _) in found:
            start = max(text.rfind(mark, 0, at) for mark in SEPARATORS) + 1
            end = re.compile(f"[{SEPARATORS}]|$").search(text, at).start()
            pos_neg.append(
                {
                    "image": image["file_name"],
                    "sentence": text[:end],
                    "position": start,
                    "score": score_of[noun],
                }
            )
        if found:
            values = [score_of[noun] for noun, _ in found]
            sentences.append(
                {
                    "image": image["file_name"],
                    "sentence": text,
                    "mean": math.fsum(values) / len(values),
                    "min": min(values),
                }
            )
    return pos_neg, sentences


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    files.write_text(path, text)


def book(seed: int) -> Path:
    """The world of one of the book's seeds, exported once into the cache: train is its erasure and
    attack scenes, val its test scenes.
    """

    def build(path: Path) -> None:
        scenes = split_scenes(seed, **bases.SIZES)
        said = json.loads((bases.said_folder(seed) / "said.json").read_text())
        clip = CLIPModel.from_pretrained(bases.judge_folder()).eval()
        model, processor = load(bases.base_folder(seed), device="cpu")
        export(
            path,
            {"train": scenes["erase"] + scenes["attack"], "val": scenes["test"]},
            clip,
            model,
            processor,
            said["erase"] + said["attack"],
            seed,
        )

    return jobs.folder("export", (seed, bases.SIZES), SOURCES, build)
