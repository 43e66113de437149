"""Pictures, captions and questions read from disk, hostile files among them; CLIP's scores and
their cache.
"""

import json
import os
import random
import struct
import zlib

import pytest
import torch
from PIL import Image
from torch import nn
from transformers.image_utils import load_image

from lab.field import judge, photos, score
from lab.field.images import open_image
from lab.field.judge import Window
from lab.llava.speech import generate
from lab.metrics import chair
from lab.world.curate import Thresholds
from lab.world.models import build_tokenizer, image_processor
from lab.world.scenes import OBJECTS, draw, question

ESCAPE = "../annotations/instances_val2014.json"
KEYS = {
    "images": [
        {"id": 7, "file_name": "a.png"},
        {"id": 8, "file_name": "b.png"},
        {"id": 9, "file_name": "c.png"},
    ],
    "annotations": [
        {"image_id": 8, "category_id": 47},
        {"image_id": 7, "category_id": 48},
        {"image_id": 7, "category_id": 47},
        {"image_id": 7, "category_id": 48},
    ],
    "categories": [{"id": 47, "name": "cup"}, {"id": 48, "name": "fork"}],
}


@pytest.fixture
def data(tmp_path):
    """A data folder as COCO unpacks, with three pictures of one colour each."""
    for place in ("annotations", "val2014"):
        (tmp_path / place).mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"val2014/{name}.png")
    write(tmp_path, KEYS)
    return tmp_path


def write(data, document):
    (data / "annotations/instances_val2014.json").write_text(json.dumps(document))


def read(data, **how):
    instances = photos.find(data, "instances_val*.json")
    return photos.read_images(instances, photos.images_folder(instances), **how)


def test_images_are_read_in_file_order(data):
    """Fails if objects land on another image, repeat, or are unordered; or limit and names choose
    others.
    """
    found = read(data)
    assert [(p.image_id, p.path.name) for p in found] == [(7, "a.png"), (8, "b.png"), (9, "c.png")]
    assert [p.objects for p in found] == [("cup", "fork"), ("cup",), ()]
    assert [p.image_id for p in read(data, limit=2)] == [7, 8]
    (data / "val2014/a.png").unlink()  # what is not asked for need not be there
    assert [p.image_id for p in read(data, names=["c.png", "b.png"])] == [8, 9]
    assert read(data, names=[]) == []
    with pytest.raises(ValueError, match="instances_val2014.json: no image 'd.png' is listed"):
        read(data, names=["c.png", "d.png"])


@pytest.mark.parametrize("layout", ["", "\n  ", "reversed"])
def test_any_layout_is_streamed(data, layout):
    """Fails if indents, unknown parts before, between and after, or annotations before the images
    they belong to, break the reader.
    """
    parts = {"info": {"images": [1]}, **KEYS, "licenses": [], "annotations_note": "]}"}
    if layout == "reversed":
        parts = dict(reversed(parts.items()))
    (data / "annotations/instances_val2014.json").write_text(
        json.dumps(parts, indent=layout if layout.isspace() else None) + "\n\n"
    )
    assert [p.objects for p in read(data)] == [("cup", "fork"), ("cup",), ()]
    write(data, KEYS | {"annotations": []})
    assert [p.objects for p in read(data)] == [(), (), ()]


def test_pictures_open_a_batch_at_a_time(data, monkeypatch):
    """Fails if all pictures are held in memory, or a slice gives others."""
    opened, stock = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **how: (opened.append(path.name), stock(path, **how))[1]
    )
    pictures = photos.Pictures(read(data))
    assert len(pictures) == 3 and opened == []
    assert [picture.getpixel((0, 0)) for picture in pictures[1:]] == [
        (0, 128, 0),
        (0, 0, 255),
    ] and opened == ["b.png", "c.png"]
    assert pictures[0].getpixel((0, 0)) == (255, 0, 0)


def broken(**parts):
    return KEYS | parts


@pytest.mark.parametrize(
    "document, says",
    [
        (
            broken(images=[*KEYS["images"], {"id": 10, "file_name": "d.png"}]),
            r"images row 4: the image .*d.png. is missing",
        ),
        (
            broken(images=[{"id": 7, "file_name": ESCAPE}], annotations=[]),
            "images row 1: .* leaves the folder",
        ),
        (
            broken(images=[{"id": 7, "file_name": "/etc/hostname"}], annotations=[]),
            "images row 1: file_name '/etc/hostname' leaves the folder",
        ),
        (
            broken(images=[{"id": 7, "file_name": "a.png\0.txt"}], annotations=[]),
            "images row 1: the image .* (cannot be opened|is missing)",
        ),
        (
            broken(images=[{"id": 7, "file_name": 999 * "a"}], annotations=[]),
            "images row 1: the image .* cannot be opened .*too long",
        ),
        (
            broken(images=[{"id": 7, "file_name": "../val2014"}], annotations=[]),
            "images row 1: the image .* is missing",
        ),
        (
            broken(images=[*KEYS["images"], KEYS["images"][0]]),
            "images row 4: id 7 stands there already",
        ),
        (broken(categories=KEYS["categories"] * 2), "categories row 3: id 47 stands there already"),
        (
            broken(annotations=[KEYS["annotations"][0], {"image_id": 70, "category_id": 47}]),
            "annotations row 2: image_id 70 is not in",
        ),
        (
            broken(annotations=[{"image_id": 7, "category_id": 1}]),
            "annotations row 1: category_id 1 is not in 'categories'",
        ),
        (
            broken(annotations=[{"image_id": "a", "category_id": 47}]),
            "annotations row 1: 'image_id' must be int, found 'a'",
        ),
        (broken(images=[{"id": True, "file_name": "a.png"}]), "images row 1: 'id' must be int"),
        (
            broken(images=[KEYS["images"][0], [1]]),
            "images row 2: expected an object with id, file_name, found \\[1\\]",
        ),
        (broken(images={"7": "a.png"}), "no list 'images'"),
        ({"images": KEYS["images"]}, "no list 'annotations'"),
        ([], "top level row 0: broken JSON \\(no {"),
    ],
)
def test_bad_instances_are_named(data, document, says):
    """Fails if a wrong id, a missing image or a path out of the folder passes, or the error does
    not name file and row.
    """
    write(data, document)
    with pytest.raises(ValueError, match=f"instances_val2014.json.*{says}"):
        read(data)


def test_a_cut_file_is_named_wherever_it_is_cut(data):
    """Fails if a truncated annotation file is read as a shorter one."""
    path = data / "annotations/instances_val2014.json"
    whole = path.read_text()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(
            ValueError, match="instances_val2014.json, .*row .*broken JSON.*cut off"
        ):
            read(data)
    path.write_text(
        whole[: whole.index('"image_id": 7, "category_id": 48')] + '"image_id": 7, oops'
    )
    with pytest.raises(ValueError, match="annotations row 2: broken JSON"):
        read(data)
    for wrong in ("{[1]: 2}", "{}", '{"images": ' + "[" * 99_999):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="instances_val2014.json, .*: broken JSON"):
            read(data)
    path.write_text(whole + whole)
    with pytest.raises(ValueError, match="broken JSON .more after the end"):
        read(data)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="instances_val2014.json: the file holds zero bytes"):
        read(data)


def test_a_link_out_of_the_folder_is_not_followed(data):
    """Fails if an archive that holds a link to a file elsewhere gets it read; the folder itself may
    be a link.
    """
    Image.new("RGB", (8, 8)).save(data / "private.png")
    os.rename(data / "val2014", data / "elsewhere")
    os.symlink(data / "elsewhere", data / "val2014")
    assert len(read(data)) == 3
    (data / "elsewhere/b.png").unlink()
    os.symlink(data / "private.png", data / "elsewhere/b.png")
    with pytest.raises(ValueError, match="images row 2: file_name 'b.png' leaves the folder"):
        read(data)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "images row 2: the image .*b.png. holds no bytes"),
        (b"\0" * 500, "images row 2: .*b.png: no usable image"),
        ("cut", "images row 2: .*b.png: no usable image .*truncated"),
        ("I;16", "images row 2: .*b.png: no usable image .*mode I;16 would be clipped"),
        ("TIFF", "images row 2: .*b.png: no usable image .*cannot identify"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            "images row 2: .*b.png: no usable image",
        ),  # else Ghostscript would run it
    ],
)
def test_bad_pictures_are_named(data, content, says):
    """Fails if an empty, broken, clipped or foreign picture passes, or the error does not name the
    row and the file.
    """
    path = data / "val2014/b.png"
    if content == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif isinstance(content, str):
        Image.new("RGB" if content == "TIFF" else content, (8, 8)).save(
            path, "TIFF" if content == "TIFF" else "PNG"
        )
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"instances_val2014.json, {says}.*"):
        photos.Pictures(read(data))[:]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_eight_bits_become_rgb(data, mode):
    """Fails if a grey picture, of which COCO has hundreds, is refused, or turns into anything but
    RGB.
    """
    jpeg = mode in ("CMYK", "YCbCr")
    Image.new("RGB", (8, 8), "white").convert(mode).save(
        data / "val2014/b.png", "JPEG" if jpeg else "PNG"
    )
    picture = photos.Pictures(read(data))[1]
    assert picture.mode == "RGB" and min(picture.getpixel((3, 3))) > 250


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n then nothing", "folder"])
def test_unreadable_images_are_named(tmp_path, content):
    """Fails if a missing, empty or broken file, or a folder, gives another error than a photo."""
    path = tmp_path / "picture.png"
    says = "holds no bytes" if content == b"" else "" if content else "no such file"
    if content == "folder":
        path.mkdir()
        says = "no such file"
    elif content is not None:
        path.write_bytes(content)
    refused(path, says)


def test_pictures_of_any_mode_open_as_rgb(tmp_path, scenes):
    """Fails if a mode of at most 8 bits a channel is refused."""
    for mode in ("L", "1", "LA", "RGBA", "P", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        draw(scenes[0]).convert(mode).save(path)
        assert open_both(path).mode == "RGB"


def open_both(path):
    """By open_image and as a photo; the two must agree."""
    picture, photo = open_image(path), photos.Photo(1, path, (), "row").open()
    assert picture.tobytes() == photo.tobytes() and picture.size == photo.size
    return picture


def refused(path, says=""):
    for open_, row in (
        (lambda: open_image(path), ""),
        (
            lambda: photos.Photo(1, path, (), "i.json, images row 1").open(),
            "i.json, images row 1: ",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{row}{path}: no usable image .*{says}"):
            open_()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_upright(tmp_path, kind, orientation):
    """Fails if a picture is turned otherwise than by transformers' load_image, or its metadata stay
    and the next reader turns it again.
    """
    picture, exif = Image.new("RGB", (6, 4)), Image.Exif()
    picture.paste("white", (0, 0, 3, 1))
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{kind}"
    picture.save(path, exif=exif, lossless=True)
    found = open_both(path)
    assert found.size == ((4, 6) if orientation in (5, 6, 7, 8) else (6, 4))
    assert found.tobytes() == load_image(str(path)).tobytes() == load_image(found).tobytes()


def test_broken_exif_counts_as_none(tmp_path):
    """Fails if EXIF that cannot be read, or be written again, stops a run."""
    exif, rng = Image.Exif(), random.Random(0)
    exif[0x0112], exif[0x010F] = 6, "a maker"
    whole = exif.tobytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] = rng.randrange(256)
        for data in (bytes(broken), whole[:at]):
            Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=data)
            assert sorted(open_both(tmp_path / "a.jpg").size) == [4, 6]
    # Orientation 6, and a tag on which Pillow's own exif_transpose fails; EXIF that is none
    odd = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    odd += b"i\x87\x08\0\x02\0\0\0\xf8\xf9~\x08\xf1"
    for data, size in ((odd, (4, 6)), (b"Exif\0\0none", (6, 4)), (b"Exif\0\0II*\0", (6, 4))):
        for kind in ("jpg", "png", "webp"):
            Image.new("RGB", (6, 4)).save(tmp_path / f"a.{kind}", exif=data)
            assert open_both(tmp_path / f"a.{kind}").size == size


def png(colour, channels, bits=16, chunks=b""):
    """A PNG of 4 x 4 pixels; Pillow writes no 16-bit colour."""
    row = b"\0" + b"\x12" * (4 * channels * bits // 8)
    head = struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(4 * row))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_sixteen_bits_are_refused_in_every_colour(tmp_path):
    """Fails if 16-bit grey is clipped to white, or the lower half of 16-bit colour is dropped
    without a word; the same in 8 bits opens.
    """
    path = tmp_path / "deep.png"
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        path.write_bytes(png(colour, channels))
        refused(path, "would be clipped to RGB's 8 bits a channel")
        path.write_bytes(png(colour, channels, bits=8))
        assert open_both(path).getpixel((0, 0)) == (0x12, 0x12, 0x12)


def test_bombs_are_named(tmp_path, monkeypatch):
    """Fails if a picture between one and two times Pillow's limit passes, or a bomb in pixels or in
    a text is not named.
    """
    Image.new("1", (30, 10)).save(tmp_path / "big.png")
    for limit in (299, 149):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(tmp_path / "big.png", "exceeds limit")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert open_both(tmp_path / "big.png").size == (30, 10)
    text = b"Comment\0\0" + zlib.compress(bytes(2**21))
    (tmp_path / "text.png").write_bytes(png(2, 3, 8, chunk(b"zTXt", text)))
    refused(tmp_path / "text.png", "Decompressed data too large")


def test_transparency_is_dropped_and_the_first_frame_read(tmp_path):
    """Fails if a background is laid under, a palette's transparency warns, or another frame is
    read than by the released pipelines.
    """
    clear, path = Image.new("RGBA", (4, 4), (200, 0, 0, 0)), tmp_path / "a.png"
    palette = Image.new("P", (4, 4))
    palette.putpalette([200, 0, 0, 0, 0, 9])
    for picture, how in ((clear, {}), (palette, {"transparency": b"\0\x80"})):
        picture.save(path, **how)
        assert open_both(path).getpixel((0, 0)) == (200, 0, 0)
    for name in ("b.png", "b.webp"):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert open_both(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)


def test_pictures_cut_or_changed_anywhere_are_refused_or_read(tmp_path):
    """Fails if bytes of any kind give another error than one that names the file."""
    rng, path, n_refused = random.Random(0), tmp_path / "a", 0
    for kind in ("JPEG", "PNG", "WEBP"):
        Image.effect_noise((16, 16), 50).save(path, kind)
        whole = path.read_bytes()
        for _ in range(150):
            bad = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            path.write_bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
            try:
                assert open_image(path).mode == "RGB"
            except ValueError as error:
                assert str(error).startswith(f"{path}: no usable image")
                n_refused += 1
    assert n_refused > 100


def test_files_are_found_or_named(data):
    """Fails if two splits' files are mixed up, or a missing file or folder is not named."""
    (data / "annotations/instances_val2017.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"instances_val\*.json: 2 such files, .*val2014.json and .*val2017.json"
    ):
        photos.find(data, "instances_val*.json")
    with pytest.raises(ValueError, match="sentences.json: no such file"):
        photos.find(data, "sentences.json")
    with pytest.raises(
        ValueError,
        match="instances_val2017.json: its images should lie in .*val2017 or .*images/val2017",
    ):
        photos.images_folder(data / "annotations/instances_val2017.json")
    (data / "images/val2017").mkdir(parents=True)
    assert (
        photos.images_folder(data / "annotations/instances_val2017.json")
        == (data / "images/val2017").resolve()
    )


def test_mentions_by_the_synonyms_table():
    """Fails if a plural, a synonym or a phrase of two words is lost, or "baby elephant" names a
    person.
    """
    text = (
        "Two buses, a mug and wine glasses; a baby elephant, mice, hot dogs, a toilet seat and a"
        " cell phone."
    )
    rules = chair.convention("efuf")
    assert (
        [noun for noun, _ in rules.find(text)]
        == rules.mentions(text)
        == [
            "bus",
            "cup",
            "wine glass",
            "elephant",
            "mouse",
            "hot dog",
            "toilet",
            "cell phone",
        ]
    )
    assert all(rules.node[noun] == noun for noun in OBJECTS)


def test_truth_is_instances_with_human_captions(data):
    """Fails if an object that people name but nobody annotated counts as invented."""
    rules, said = chair.convention("efuf"), [{"image_id": 8, "caption": "A man with his mugs"}]
    (data / "captions.json").write_text(json.dumps({"annotations": said}))
    with pytest.raises(ValueError, match=r"images row 1: image_id 7 has no caption in .*\(2 such"):
        photos.truths(read(data), data / "captions.json", rules)
    said += [{"image_id": photo.image_id, "caption": "a room"} for photo in read(data)]
    (data / "captions.json").write_text(json.dumps({"annotations": said}))
    assert photos.truths(read(data), data / "captions.json", rules) == [
        {"cup", "fork"},
        {"cup", "person"},
        set(),
    ]


@pytest.mark.parametrize("style", ["lines", "array", "pretty"])
def test_pope_questions_find_their_images(data, style):
    """Fails if a question is put to another image, or a variant of the file is not read."""
    rows = [
        {"question_id": i, "image": f"{name}.png", "text": "?", "label": "no"}
        for i, name in enumerate("cac", 1)
    ]
    lines = [json.dumps(row, indent=2 if style == "pretty" else None) for row in rows]
    (data / "pope.json").write_text(json.dumps(rows) if style == "array" else "\n".join(lines))
    questions, at = photos.read_pope(data / "pope.json", read(data))
    assert at == [2, 0, 2] and [q["question_id"] for q in questions] == [1, 2, 3]
    for image in ({"image": "z.png"}, {"image": ["a.png"]}, {}):
        (data / "pope.json").write_text(
            json.dumps(rows[0])
            + json.dumps({"question_id": 9, "text": "?", "label": "yes"} | image)
        )
        with pytest.raises(ValueError, match="pope.json, row 2: the image .* is none of the 3"):
            photos.read_pope(data / "pope.json", read(data))


def nested(data, *names):
    """An instances file whose images lie in folders of their own."""
    rows = [{"id": i, "file_name": name} for i, name in enumerate(names, 7)]
    for name in names:
        (data / "val2014" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(data / "val2014" / name)
    write(data, KEYS | {"images": rows, "annotations": []})


def ask(data, *images):
    rows = [
        {"question_id": i, "image": name, "text": "?", "label": "no"}
        for i, name in enumerate(images, 1)
    ]
    (data / "pope.json").write_text(json.dumps(rows))
    return photos.read_pope(data / "pope.json", read(data))[1]


def test_questions_find_the_one_image_that_they_may_mean(data):
    """Fails if a question about a base name that two images have is put to one of them, or a full
    name is not enough.
    """
    nested(data, "a/1.png", "b/1.png", "b/2.png", "3.png", "c/3.png")
    asked = ("a/1.png", "b/1.png", "2.png", "val2014/b/2.png", "2", "3.png")
    assert ask(data, *asked) == [0, 1, 2, 2, 2, 3]
    for name, first, second in (("1.png", 1, 2), ("1", 1, 2), ("3", 4, 5)):
        says = f"pope.json, row 2: .*'{name}' may be .*images row {first} or .*images row {second}:"
        with pytest.raises(ValueError, match=says):
            ask(data, "a/1.png", name)
        with pytest.raises(ValueError, match=f"val2014.json: '{name}' may be the image of"):
            read(data, names=[name])
    for name in ("c/1.png", "1.jpg", "", "png", "b/c/1.png"):
        with pytest.raises(ValueError, match="pope.json, row 1: .* is none of the 5 given"):
            ask(data, name)
    assert [p.image_id for p in read(data, names=["2.png"])] == [9]


@pytest.mark.parametrize("again", ["a.png", "./a.png", "sub/../a.png"])
def test_a_file_stands_for_one_image(data, again):
    """Fails if two images share one file: the answers about it would count for both."""
    write(data, KEYS | {"images": [*KEYS["images"], {"id": 10, "file_name": again}]})
    says = "images row 4: file_name .* stands already in .*images row 1: remove one"
    with pytest.raises(ValueError, match=says):
        read(data)


def test_efuf_files_spell_an_image_alike(tmp_path):
    """Fails if an image's captions are taken for two images', because one file names the folder;
    or of a caption's several rows the last alone decides whether it is kept.
    """
    (tmp_path / "p").write_text(json.dumps(ENTRY | {"image": "x.png"}))
    row = WHOLE | {"image": "x.png", "min": 30.0, "mean": 30.0}
    for names in (["x.png", "val/x.png"], ["y.png", "x"]):
        (tmp_path / "s").write_text(json.dumps([row | {"image": name} for name in names]))
        with pytest.raises(ValueError, match="/s, row 2: the image .* is 'x.png' in .*/p: spell"):
            photos.read_efuf(tmp_path / "p", tmp_path / "s")
    for rows, kept in (([row, row], True), ([row | {"min": 1.0}, row], False)):
        for given in (rows, rows[::-1]):
            (tmp_path / "s").write_text(json.dumps(given))
            found = photos.read_efuf(tmp_path / "p", tmp_path / "s")
            assert bool(found[-1].spans["sentence"]) == kept


def test_an_image_that_is_gone_is_named_by_the_judge(data, looks):
    """Fails if a picture that vanished after the files were read ends in a traceback."""
    found = read(data)
    (data / "val2014/b.png").unlink()
    with pytest.raises(ValueError, match="images row 2: .*b.png: no usable image"):
        judge.scores(BrightClip(), looks, found, TEXTS, data / "clip.db")


ENTRY = {"image": "a", "sentence": "a cup, a car", "position": 6, "score": 20.0}
WHOLE = {"image": "a", "sentence": "b", "mean": 1.0, "min": 1}


@pytest.mark.parametrize(
    "entry, whole, says",
    [
        (ENTRY | {"position": 12}, WHOLE, "pos_neg.json, row 2: position 12"),
        (ENTRY | {"position": -1}, WHOLE, "pos_neg.json, row 2: position -1"),
        (
            ENTRY | {"score": float("nan")},
            WHOLE,
            "pos_neg.json, row 2: 'score' must be float or int, .*found nan",
        ),
        (ENTRY | {"score": "20"}, WHOLE, "pos_neg.json, row 2: 'score' must be float or int"),
        ({"image": "a"}, WHOLE, "pos_neg.json, row 2: the field 'sentence' is missing"),
        (ENTRY, WHOLE | {"mean": None}, "sentences.json, row 1: 'mean' must be float or int"),
        (ENTRY, None, "sentences.json: the file has no rows"),
    ],
)
def test_bad_efuf_entries_are_named(tmp_path, entry, whole, says):
    """Fails if a bad entry passes, or the error does not name file and row."""
    (tmp_path / "pos_neg.json").write_text(json.dumps([ENTRY, entry]))
    (tmp_path / "sentences.json").write_text(json.dumps([whole] if whole else []))
    with pytest.raises(ValueError, match=says):
        photos.read_efuf(tmp_path / "pos_neg.json", tmp_path / "sentences.json")


def test_efuf_at_its_own_thresholds(tmp_path):
    """Fails if a released threshold is compared the wrong way round, captions of one image are
    mixed, or a short one goes to a longer one.

    "a cup" opens two captions of the image: it is the clause that ends there, not "a cup of tea".
    """
    entries = [
        ("a cup", 0, 33.0),
        ("a cup, a car", 6, 22.9),
        ("a cup of tea, a bus", 13, 23.0),
        ("a cup of tea, a bus", 13, 40.0),
        ("a dog, a cat", 6, 32.0),
        ("a dog, a cat; a bat", 13, 32.1),
    ]
    rows = [
        {"image": "i", "sentence": text, "position": at, "score": value}
        for text, at, value in entries
    ]
    whole = [
        ("a cup, a car.", 28.0, 22.9),
        ("a cup of tea, a bus.", 27.6, 23.1),
        ("a pen.", 27.5, 30.0),
        ("a cow.", 30.0, 23.0),
    ]
    (tmp_path / "p").write_text(json.dumps(rows, indent=2))
    (tmp_path / "s").write_text(
        json.dumps(
            [
                {"image": "i", "sentence": text, "mean": mean, "min": low}
                for text, mean, low in whole
            ]
        )
    )
    found = {row.caption: row.spans for row in photos.read_efuf(tmp_path / "p", tmp_path / "s")}
    assert found == {
        "a cup, a car.": {"forget": [(5, 12)], "retain": [(0, 5)], "sentence": []},
        "a cup of tea, a bus.": {
            "forget": [],
            "retain": [],
            "sentence": [(0, 20)],
        },  # two objects: one of them is between
        "a dog, a cat; a bat": {
            "forget": [],
            "retain": [(12, 19)],
            "sentence": [],
        },  # not in sentences.json
        "a pen.": {"forget": [], "retain": [], "sentence": []},
        "a cow.": {"forget": [], "retain": [], "sentence": []},
    }


class BrightClip(nn.Module):
    """A fake CLIP: an image's logit with the i-th text is i + 1 times its mean brightness, 0..100;
    it counts the images it saw.
    """

    device, n_seen = torch.device("cpu"), 0

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, input_ids, pixel_values, attention_mask=None):
        self.n_seen += len(pixel_values)
        # The processor maps 0..255 to -1..1
        bright = 100 * (pixel_values.mean((1, 2, 3)) / 2 + 0.5)
        self.logits_per_image = self.weight * bright[:, None] * torch.arange(1, len(input_ids) + 1)
        return self


@pytest.fixture(scope="module")
def looks():
    from transformers import CLIPProcessor

    return CLIPProcessor(image_processor(), build_tokenizer(for_clip=True))


TEXTS = [judge.prompt("cup"), judge.prompt("umbrella")]


def test_sliding_window_by_hand(looks):
    """Fails if a patch is not the mean of the windows that cover it, or the score not the mean of
    the best patches.

    3 x 4 patches of 10 pixels, windows of 2 x 2: 2 x 3 windows. Only the window in the upper left
    corner is white in part: the patch there.
    """
    image = Image.new("RGB", (40, 30))
    image.paste("white", (0, 0, 10, 10))
    # Window scores: 25 in the upper left, else 0. Patches: 25 (1 window), 12.5 twice (2 windows),
    # 6.25 (4 windows), else 0.
    for top, expected in ((1, 25.0), (2, 37.5 / 2), (4, 56.25 / 4), (100, 56.25 / 12)):
        clip = BrightClip()
        found = judge.window_scores(clip, looks, image, TEXTS, Window(patch=10, side=2, top=top))
        assert (
            found.tolist() == pytest.approx([expected, 2 * expected], abs=0.2) and clip.n_seen == 6
        )


def test_windows_at_the_edges(looks):
    """Fails if the cut patches at the right and lower edge are lost or padded with black, or a
    small image is left without a window.
    """
    white = Image.new("RGB", (45, 25), "white")  # 5 x 3 patches, of which the last are halves
    clip = BrightClip()
    assert judge.window_scores(
        clip, looks, white, TEXTS, Window(patch=10, side=2, top=4)
    ).tolist() == pytest.approx([100, 200], abs=0.2)
    assert clip.n_seen == 4 * 2
    white.paste("black", (0, 0, 40, 25))
    assert judge.window_scores(clip, looks, white, TEXTS, Window(10, 2, 1))[0] > 25
    small, clip = Image.new("RGB", (48, 48), "white"), BrightClip()
    small.paste("black", (0, 0, 24, 48))
    assert (
        judge.window_scores(clip, looks, small, TEXTS).tolist() == pytest.approx([50, 100], abs=1)
        and clip.n_seen == 1
    )


@pytest.mark.parametrize("window", [None, Window(patch=4, side=1, top=1)])
def test_scores_are_computed_once(data, looks, window):
    """Fails if a known score is computed again, or a changed picture, text, CLIP or window gets an
    old one.
    """
    clip, found, cache = BrightClip(), read(data), data / "scores/clip.db"
    each = 4 if window else 1

    def score(clip=clip, texts=TEXTS, how=window):
        return judge.scores(clip, looks, found, texts, cache, how, batch_size=2)

    first = score()
    assert first.shape == (3, 2) and clip.n_seen == 3 * each
    grey = [sum(picture.getpixel((0, 0))) / 3 / 2.55 for picture in photos.Pictures(found)[:]]
    assert first[:, 0].tolist() == pytest.approx(grey, abs=0.5) and torch.allclose(
        first[:, 1], 2 * first[:, 0]
    )
    assert (
        torch.equal(score(), first)
        and torch.equal(score(texts=TEXTS[::-1]), first.flip(1))
        and clip.n_seen == 3 * each
    )
    Image.new("RGB", (8, 8), "white").save(found[1].path)
    second = score()
    assert (
        clip.n_seen == 4 * each and second[1, 0] > 99 and torch.equal(second[[0, 2]], first[[0, 2]])
    )
    assert score(texts=[*TEXTS, judge.prompt("car")]).shape == (3, 3) and clip.n_seen == 7 * each
    assert torch.allclose(score(BrightClip(0.5)), second / 2) and torch.equal(score(), second)
    seen = clip.n_seen
    score(how=None if window else Window(patch=4, side=1, top=1))
    assert clip.n_seen > seen


def test_an_interrupted_run_goes_on(data, looks, monkeypatch):
    """Fails if what was scored before an interruption is lost, or half a batch is kept."""
    found, cache, stock = read(data), data / "clip.db", photos.Photo.open

    def stop(photo):
        if photo.image_id == 9:
            raise KeyboardInterrupt
        return stock(photo)

    monkeypatch.setattr(photos.Photo, "open", stop)
    clip = BrightClip()
    with pytest.raises(KeyboardInterrupt):
        judge.scores(clip, looks, found, TEXTS, cache, batch_size=2)
    monkeypatch.undo()
    assert clip.n_seen == 2
    table = judge.scores(clip, looks, found, TEXTS, cache, batch_size=2)
    assert clip.n_seen == 3 and torch.equal(
        table, judge.scores(BrightClip(), looks, found, TEXTS, data / "other.db")
    )


@pytest.mark.parametrize("content", [b"{}" * 600, "cut"])
def test_a_damaged_cache_is_named(data, looks, content):
    """Fails if a file that is no cache is overwritten, or a damaged one gives wrong scores."""
    cache = data / "clip.db"
    judge.scores(BrightClip(), looks, read(data), TEXTS, cache)
    content = cache.read_bytes()[:5000] if content == "cut" else content
    cache.write_bytes(content)
    with pytest.raises(
        ValueError, match="clip.db: no file of CLIP scores, or a damaged one .*Delete it"
    ):
        judge.scores(BrightClip(), looks, read(data), TEXTS, cache)
    assert cache.read_bytes() == content


def test_a_cache_whose_folder_cannot_be_made_is_named(data, looks):
    """Fails if a file in its folder's place ends in a bare error."""
    (data / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"clip.db: cannot be written \(.*\). Make room"):
        judge.scores(BrightClip(), looks, read(data), TEXTS, data / "taken/clip.db")


def test_clip_that_is_none_is_named(tmp_path, saved):
    """Fails if another checkpoint, or an empty folder, is taken for a CLIP."""
    for path in (tmp_path, saved):
        with pytest.raises(ValueError, match=f"{path}: no (whole )?CLIP checkpoint"):
            judge.load_clip(path)


def test_thresholds_at_quantiles():
    """Fails if another share than asked for lies below, or nonsense passes."""
    values = torch.arange(101.0).flip(0)
    assert judge.thresholds(values, (0.2, 0.5, 0.4)) == Thresholds(20.0, 50.0, 40.0)
    for quantiles in ((0.5, 0.2, 0.3), (-0.1, 0.5, 0.5), (0.1, 0.5, 1.5)):
        with pytest.raises(ValueError, match="quantiles .*: give shares in 0..1"):
            judge.thresholds(values, quantiles)
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(
            ValueError, match="thresholds of . scores: give one finite score per mention"
        ):
            judge.thresholds(wrong, (0.1, 0.5, 0.5))


def test_answers_are_long_enough_to_be_read(data, processor, monkeypatch):
    """Fails if a no that comes late in a sentence is cut off, and so reads as a yes."""
    full = "In the picture, as far as one can see, there is no dog."
    monkeypatch.setattr(
        photos,
        "generate",
        lambda *_, max_new_tokens, **__: [" ".join(full.split()[:max_new_tokens])],
    )
    question = {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "no"}
    (data / "q.json").write_text(json.dumps(question))
    asked = {"random": photos.read_pope(data / "q.json", read(data))}
    photos.speak(None, processor, torch.zeros(1, 2, 2), read(data, limit=1), asked, data / "said")
    found = score.score_pope(data / "q.json", data / "said/random.jsonl")
    assert (found["accuracy"], found["neither"]) == (1.0, 0.0)
    asked["random"][0].append(question | {"text": "<image>\nIs there a dog?"})
    with pytest.raises(ValueError, match="random: question 1 holds the special token '<image>'"):
        photos.speak(None, processor, torch.zeros(1, 2, 2), read(data, limit=1), asked, data / "x")


def test_speaking_writes_what_the_scorers_read(data, model, processor, scenes, features):
    """Fails if a caption or answer is another picture's, or the answers depend on the batch."""
    found = [photos.Photo(i, data, scene.objects, "") for i, scene in enumerate(scenes)]
    questions = [
        {"question_id": i, "text": question(noun), "label": "no"}
        for i, noun in enumerate(OBJECTS[:6])
    ]
    asked = {"random": (questions, [3, 3, 0, 7, 1, 2])}
    one, other = (
        photos.speak(model, processor, features, found, asked, data / f"said{size}", size, 8)
        for size in (1, 4)
    )

    for folder in (one, other):
        rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
        assert rows == [
            {"image_id": i, "caption": text}
            for i, text in enumerate(generate(model, processor, features, max_new_tokens=8))
        ]
        rows = [json.loads(line) for line in (folder / "random.jsonl").read_text().splitlines()]
        expected = generate(
            model,
            processor,
            features[asked["random"][1]],
            [q["text"] for q in questions],
            max_new_tokens=photos.ANSWER_TOKENS,
        )
        assert rows == [{"question_id": i, "answer": text} for i, text in enumerate(expected)]


def test_efuf_files_of_two_runs_are_named(tmp_path):
    """Fails if one file's verdict erases a clause that the other trains on as a whole caption."""
    text = "a cup, a fork"
    entry = {"image": "a.jpg", "sentence": text, "position": 7, "score": 20.5}
    whole = {"image": "a.jpg", "sentence": text, "mean": 28.0, "min": 30.0}
    (tmp_path / "pos_neg.json").write_text(json.dumps([entry]))
    (tmp_path / "sentences.json").write_text(json.dumps([whole]))
    with pytest.raises(ValueError, match=r"sentences.json: 'a cup, a fork' of a.jpg .* 20.5"):
        photos.read_efuf(tmp_path / "pos_neg.json", tmp_path / "sentences.json")
