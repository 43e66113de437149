"""Every JSON value in every place of the field's files: a named error, or the right reading."""

import json

import pytest
from PIL import Image

from lab.field import coco, photos, score

IMAGES = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png", "width": 8}]
FILES = {
    "instances": {
        "info": {"year": 2014},
        "images": IMAGES,
        "annotations": [{"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 0, 1, 1.5]}],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    },
    "human": {
        "images": IMAGES,
        "annotations": [{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "a room"}],
    },
    "said": [
        {"image_id": 7, "caption": "a dog and a cup", "image": "a.png"},
        {"image_id": 8, "caption": "a room", "file_name": "val/b.png"},
    ],
    "questions": [
        {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"},
        {"question_id": 2, "image": "b.png", "text": "Is there a cup?", "label": "no"},
    ],
    "answers": [
        {"question_id": 1, "prompt": "<image>\nIs there a dog?\nOne word.", "answer": "yes"},
        {"question_id": 2, "image": "val/b.png", "text": "no", "label": "no", "answer": "no"}
        | {"question": "Is there a cup?"},
    ],
    "made": {"num_beams": 1, "stop": ["a", {"b": 1.5}], "sampling": {"top_p": 0.9, "on": True}},
    "pos_neg": [{"image": "a.png", "sentence": "a dog, a cup", "position": 6, "score": 20.5}],
    "sentences": [{"image": "a.png", "sentence": "a dog, a cup.", "mean": 25.0, "min": 20}],
}
RAW = ["null", "[]", "{}", '""', '" "', '"x"', "true", "NaN", "-Infinity", "1e999", "-1", "0"]
RAW += ["7", "7.0", "7.5", '"7"', '"007"', "9" * 30, "9" * 400, "7" * 5000, "[[1]]", "[null]"]
RAW += [r'"\ud800"', r'"\u0000"', '{"id": 7}', '{"id": 7, "id": 7}', r'{"\udfff": 1}', '"7" 7']
RAW += ["[" * 40 + "1" + "]" * 40, "[" * 99_999, '{"a":' * 500 + "1" + "}" * 500, "", "'a'"]
# Where another value of the right kind is another document, not a wrong one
FREE = {"caption": coco.TEXT, "answer": coco.TEXT, "sentence": coco.TEXT, "score": coco.NUMBER}
FREE |= {"mean": coco.NUMBER, "min": coco.NUMBER, "position": coco.WHOLE, "label": coco.NAME}
FREE |= {"name": coco.NAME}


def read(folder, name):
    """What the readers of this file make of all files."""
    path = {file: folder / file for file in [*FILES, "one", "other"]}
    if name == "saved":
        return score.compare(path["one"], path["other"])
    if name in ("pos_neg", "sentences"):
        return photos.read_efuf(path["pos_neg"], path["sentences"])
    if name in ("questions", "answers", "made"):
        found = score.score_pope(path["questions"], path["answers"], generation=path["made"])
    else:
        found = score.score_chair(path["said"], [path["instances"]], [path["human"]])
    pictures = photos.read_images(path["instances"], folder) if name == "instances" else None
    asked = photos.read_pope(path["questions"], photos_of(folder)) if name == "questions" else None
    return found, pictures, asked and asked[1]


def photos_of(folder):
    return [photos.Photo(i["id"], folder / i["file_name"], (), "row") for i in IMAGES]


@pytest.fixture
def folder(tmp_path):
    for image in IMAGES:
        Image.new("RGB", (8, 8)).save(tmp_path / image["file_name"])
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("one", "other"):
        found = score.score_pope(
            tmp_path / "questions", tmp_path / "answers", generation=tmp_path / "made"
        )
        (tmp_path / name).write_text(json.dumps(found))
    return tmp_path


def places(value, above=()):
    yield above
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield from places(value[key], (*above, key))


def replaced(value, place, raw):
    """The document's text with other JSON in that place."""
    if not place:
        return raw
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(k)}: {replaced(v, place[1:], raw) if k == place[0] else json.dumps(v)}"
            for k, v in value.items()
        ]
        return "{" + ", ".join(parts) + "}"
    parts = [
        replaced(v, place[1:], raw) if i == place[0] else json.dumps(v) for i, v in enumerate(value)
    ]
    return "[" + ", ".join(parts) + "]"


def without(value, place):
    """The document with the entry left out."""
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    return json.dumps(copy)


def is_free(name, place, raw):
    """Is it another document, not a wrong one: another caption, a row less?"""
    if raw in (None, "") or (place, raw) == (("annotations",), "[]"):
        return place == ("annotations",) or isinstance(place[-1], int)
    free = FREE | ({"image": coco.NAME} if name in ("pos_neg", "sentences") else {})
    kind = next((free[key] for key in place[::-1] if key in free), None)
    return kind is not None and kind.read(json.loads(raw)) is not None


@pytest.mark.parametrize("name", [*FILES, "saved"])
def test_no_json_value_is_a_traceback_or_a_silent_error(folder, name):
    """Fails if a value in any place raises anything but a ValueError that begins with a file's
    path, or changes the result where it is no legitimate other value.
    """
    file = folder / ("other" if name == "saved" else name)
    whole, n_refused = json.loads(file.read_text()), 0
    right = read(folder, name)
    for place in places(whole):
        variants = [(raw, replaced(whole, place, raw)) for raw in RAW]
        variants += [(None, without(whole, place))] if place else []
        for raw, text in variants:
            file.write_text(text)
            try:
                found = read(folder, name)
            except ValueError as error:
                assert str(error).startswith(str(folder)), (place, raw, error)
                json.dumps(str(error)).encode(), str(error).encode()
                n_refused += 1
            else:
                json.dumps(found, default=str, allow_nan=False)
                if name not in ("made", "saved"):
                    assert found == right or is_free(name, place, raw), (place, raw, found)
    assert n_refused > 30
