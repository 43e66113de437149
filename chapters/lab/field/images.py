"""Image files from anywhere, opened as RGB or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow opens many more, some by starting other programs
# At most 8 bits a channel: become RGB without clipping
MODES = ("RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF's tag


def open_image(path: str | Path, row: str = "") -> Image.Image:
    """The picture as RGB, upright by its EXIF orientation, as transformers' load_image gives it,
    and without its metadata.

    Transparency is dropped: a transparent pixel shows the colour that is stored under it (no
    background is laid under). An animated file gives its first frame. EXIF that cannot be read
    counts as none. LLaVA's and POPE's released pipelines, Image.open(path).convert("RGB"), do the
    same but for the orientation: they see a phone's picture lying on its side. row: where the file
    is listed, for errors.

    Raises ValueError naming row and file if it is missing, empty, broken, cut off, no JPEG, PNG or
    WEBP, larger than Pillow's Image.MAX_IMAGE_PIXELS, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            # Odd metadata is no matter; twice as many pixels as Pillow's limit are, like once
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _open(Path(path))
    except Exception as error:  # each format's decoder has its own; all mean the same to the reader
        raise ValueError(
            f"{row}{': ' * bool(row)}{path}: no usable image ({error}). Replace the file or drop"
            " its row."
        ) from error


def _open(path: Path) -> Image.Image:
    if not path.is_file():  # a folder; a pipe would be waited for
        raise ValueError("no such file")
    if not path.stat().st_size:
        raise ValueError("it holds no bytes")
    with Image.open(path, formats=FORMATS) as file:
        # Of 16-bit colour Pillow keeps the upper byte, and only the decoder's name tells
        deep = [str(tile[3]) for tile in file.tile if ";16" in str(tile[3])]
        if file.mode not in MODES or deep:
            mode = deep[0] if file.mode in MODES else file.mode
            raise ValueError(f"mode {mode} would be clipped to RGB's 8 bits a channel")
        picture, orientation = file.convert("RGB"), _orientation(file)
        if file.format != "PNG":  # whose parts have checksums
            _refuse_zeros(path.read_bytes(), file.format == "WEBP")
    # Of the metadata only the orientation: Pillow turns the picture by it and takes it out, which
    # fails where the rest is broken
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture.info = {"exif": exif.tobytes()}
    return ImageOps.exif_transpose(picture)


def _refuse_zeros(data: bytes, is_webp: bool) -> None:
    """Raise ValueError for a file whose room was reserved and not filled: Pillow shows zeros as
    grey. A changed byte in the middle has no mark: neither format has checksums.
    """
    # A WEBP has no mark at its end; of one colour alone, a twentieth of it is zeros
    n_zeros = len(data) - len(data.rstrip(b"\0"))
    if n_zeros > max(64, len(data) // 10) if is_webp else not _has_end(data):
        raise ValueError("it is cut off: its end was never written")


def _has_end(data: bytes) -> bool:
    """Does a JPEG's picture come to its end mark? Each part is FF, its kind, and, but for the marks
    that stand alone, its length; after a scan's header follow its bytes, in which FF is FF 00.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        kind = data[at + 1]
        if kind == 0xD9:
            return True
        alone = kind == 0 or 0xD0 <= kind <= 0xD8
        at += (
            1 if kind == 0xFF else 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        )
    return False


def _orientation(file: Image.Image) -> int:
    """1, upright, to 8; 1 as well if EXIF says nothing that can be read."""
    try:
        found = file.getexif().get(ORIENTATION)
        return int(found) if found in range(1, 9) else 1
    except Exception:  # EXIF is written by every camera and editor in its own way
        return 1
