"""CLIP as the judge of photographs: scores of objects in whole images or by EFUF's sliding window,
kept on disk; thresholds by share.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoProcessor, CLIPModel

from ..files import named
from ..world.curate import Thresholds, clip_scores
from ..world.scenes import a
from .photos import Photo

CLIP = "openai/clip-vit-base-patch32"


def clip_path(data: str | Path) -> Path | str:
    """The CLIP that judges: DATA/clip where the data bring their own, else
    openai/clip-vit-base-patch32, EFUF's.
    """
    return Path(data, "clip") if Path(data, "clip").is_dir() else CLIP


def load_clip(path: str | Path = CLIP):
    """(CLIP, its processor) from a folder or the hub, on CUDA where there is one; raises ValueError
    naming the path.
    """
    try:
        clip, info = CLIPModel.from_pretrained(path, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path}: no CLIP checkpoint ({error}). Give a folder with model and processor, or a"
            " hub name."
        ) from error
    if lost := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path}: no whole CLIP checkpoint: {lost[0]} and maybe more is missing. Fetch it"
            " again."
        )
    return clip.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def prompt(noun: str) -> str:
    """The text by which CLIP scores an object: EFUF's, with an article, which the microworld's CLIP
    needs.
    """
    return f"A photo containing {a(noun)}."


@dataclass(frozen=True)
class Window:
    """EFUF's sliding window: a square of side x side patches that moves by one patch
    (starreeze/efuf insight/clip.py).
    """

    patch: int = 48  # pixels
    side: int = 4  # patches
    top: int = 4  # an object's score is the mean of its so many best patches


def window_scores(
    clip, processor, image: Image.Image, texts: Sequence[str], window: Window = Window()
) -> Tensor:
    """(n texts,): the mean of the image's `top` best patches, where a patch scores the mean of the
    windows that cover it.

    The image's edge may cut the last patches. An image smaller than a window is one window (EFUF's
    code leaves it out).
    """
    counts = [-(-pixels // window.patch) for pixels in (image.height, image.width)]
    rows, columns = (range(max(1, count - window.side + 1)) for count in counts)
    corners, size = (
        [(row, column) for row in rows for column in columns],
        window.side * window.patch,
    )
    boxes = [
        (x * window.patch, y * window.patch, x * window.patch + size, y * window.patch + size)
        for y, x in corners
    ]
    crops = [
        image.crop((x, y, min(right, image.width), min(bottom, image.height)))
        for x, y, right, bottom in boxes
    ]
    total, covered = torch.zeros(*counts, len(texts)), torch.zeros(*counts, 1)
    for (y, x), logits in zip(
        corners,
        clip_scores(clip, processor.image_processor, processor.tokenizer, crops, texts),
        strict=True,
    ):
        total[y : y + window.side, x : x + window.side] += logits
        covered[y : y + window.side, x : x + window.side] += 1
    patches = (total / covered).flatten(0, 1)
    return patches.topk(min(window.top, len(patches)), dim=0).values.mean(0)


def scores(
    clip,
    processor,
    photos: Sequence[Photo],
    texts: Sequence[str],
    cache_file: str | Path,
    window: Window | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """CLIP's logits of each image with each text, (n photos, n texts): of the whole image, or by a
    sliding window.

    cache_file (SQLite) keeps them by the image file's bytes, the text, CLIP's weights and the
    window: what is there is not computed again, and a run that breaks off loses at most a batch.
    Raises ValueError if that file is something else, or damaged; and naming an image that cannot be
    read. OSError naming it if its folder cannot be made.
    """
    # "upright": scores of pictures that lay on their side, before EXIF was followed, do not count
    judge, keys = (
        f"{_weights(clip)} {window} upright",
        [hashlib.sha256(_bytes(photo)).hexdigest() for photo in photos],
    )
    with named(cache_file):
        Path(cache_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(cache_file)) as cache:
            cache.execute(
                "CREATE TABLE IF NOT EXISTS score (judge, image, text, value REAL, PRIMARY KEY"
                " (judge, image, text))"
            )
            known = {
                row[:2]: row[2]
                for row in cache.execute(
                    "SELECT image, text, value FROM score WHERE judge = ?", (judge,)
                )
            }
            lacking = [
                i for i, key in enumerate(keys) if any((key, text) not in known for text in texts)
            ]
            for start in tqdm(
                range(0, len(lacking), batch_size), desc="CLIP scores", disable=not progress
            ):
                batch = lacking[start : start + batch_size]
                table = _table(
                    clip, processor, [photos[i].open() for i in batch], texts, window
                ).tolist()
                found = {
                    (keys[i], text): value
                    for i, line in zip(batch, table, strict=True)
                    for text, value in zip(texts, line)
                }
                with cache:  # a transaction: all of the batch or nothing
                    cache.executemany(
                        "INSERT OR REPLACE INTO score VALUES (?, ?, ?, ?)",
                        [(judge, *k, v) for k, v in found.items()],
                    )
                known |= found
    except sqlite3.Error as error:
        raise ValueError(
            f"{cache_file}: no file of CLIP scores, or a damaged one ({error}). Is the disk full?"
            " Make room. If not: Delete it, and it is made anew."
        ) from error
    return torch.tensor([[known[key, text] for text in texts] for key in keys])


def _table(
    clip, processor, images: Sequence[Image.Image], texts: Sequence[str], window: Window | None
) -> Tensor:
    if window:
        return torch.stack(
            [window_scores(clip, processor, image, texts, window) for image in images]
        )
    return clip_scores(
        clip, processor.image_processor, processor.tokenizer, images, texts, len(images)
    )


def _bytes(photo: Photo) -> bytes:
    try:
        return photo.path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{photo.row}: {photo.path}: no usable image ({error}). Replace the file or drop its"
            " row."
        ) from error


def _weights(clip) -> str:
    digest = hashlib.sha256()
    for weight in clip.parameters():
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def thresholds(
    found: Sequence[float] | Tensor, quantiles: tuple[float, float, float]
) -> Thresholds:
    """Thresholds (forget below, retain above, sentence above) at these quantiles of the scores of
    all mentioned objects.

    Absolute values belong to one CLIP and one window; a quantile says what share of the mentions is
    held to be wrong. Raises ValueError if there is no score or one is not finite, or if the
    quantiles leave 0..1 or retain what they forget.
    """
    values = torch.as_tensor(found, dtype=torch.float64).flatten()
    if not len(values) or not values.isfinite().all():
        raise ValueError(f"thresholds of {len(values)} scores: give one finite score per mention.")
    if not all(0 <= q <= 1 for q in quantiles) or quantiles[0] > quantiles[1]:
        raise ValueError(
            f"quantiles {quantiles}: give shares in 0..1 for forget below, retain above, sentence"
            " above, the first the least."
        )
    return Thresholds(*values.quantile(torch.tensor(quantiles, dtype=torch.float64)).tolist())
