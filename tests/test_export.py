"""The microworld on disk: what is written is COCO's, POPE's and EFUF's format, and comes back as it
was.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIND, tiny_llava
from PIL import Image
from transformers import AutoProcessor

from lab.field import coco, judge, photos, score
from lab.field.export import IDS, MARK, efuf, export, score_scenes
from lab.llava.checkpoints import load
from lab.llava.speech import generate
from lab.world.curate import Thresholds, curate, sub_sentences
from lab.world.models import build_clip
from lab.world.scenes import GROUND, OBJECTS, absent, caption, draw
from sare_min.llava import embed_images

PAPER = "a kitchen with a cup, a fork; a cup and a bowl! a fork."


@pytest.fixture(scope="module")
def clip():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_clip().eval()


@pytest.fixture(scope="module")
def world(scenes):
    return {"train": scenes[:5], "val": scenes[5:]}


@pytest.fixture(scope="module")
def said(texts):
    """What was said about the train scenes; the last names nothing."""
    return [*texts[:4], "a kitchen with a."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip, processor, world, said):
    return export(
        tmp_path_factory.mktemp("data") / "micro", world, clip, tiny_llava(), processor, said
    )


def read(folder, split, **how):
    instances = photos.find(folder, f"instances_{split}*.json")
    return photos.read_images(instances, photos.images_folder(instances), **how)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_and_objects_come_back(folder, world, split):
    """Fails if a picture, its id or its objects are another scene's after a round trip, or the two
    readers disagree.
    """
    found = read(folder, split)
    shown = coco.read_instances([photos.find(folder, f"instances_{split}.json")])
    assert len(found) == len(world[split])
    for photo, scene in zip(found, world[split], strict=True):
        assert (
            photo.objects == tuple(sorted(scene.objects))
            and set(photo.objects) == shown[photo.image_id]
        )
        assert np.array_equal(np.asarray(photo.open()), np.asarray(draw(scene)))
        assert photo.path.name == f"COCO_{split}_{photo.image_id:012d}.png"


def test_boxes_hold_their_objects(folder, world):
    """Fails if a bbox is another cell (rows and columns swapped): outside the boxes there is
    ground, but for the icons' soft edges.
    """
    document = json.loads((folder / "annotations/instances_val.json").read_text())
    for image, scene in zip(document["images"], world["val"], strict=True):
        picture = np.asarray(Image.open(folder / "val" / image["file_name"]))
        painted = (picture != np.asarray(Image.new("RGB", (1, 1), GROUND[scene.place]))[0, 0]).any(
            -1
        )
        rows = [row for row in document["annotations"] if row["image_id"] == image["id"]]
        assert painted.shape == (image["height"], image["width"]) and len(rows) == len(
            scene.objects
        )
        for row in rows:
            x, y, width, height = row["bbox"]
            assert (
                painted[y : y + height, x : x + width].mean() > 0.1
                and row["area"] == width * height == 256
            )
            painted[y : y + height, x : x + width] = False
        assert painted.mean() < 0.03


def test_categories_are_cocos(folder):
    """Fails if a name has another id than in COCO, or an annotation's id stands twice over both
    splits.
    """
    known = {
        "bicycle": 2,
        "car": 3,
        "bench": 15,
        "bird": 16,
        "umbrella": 28,
        "kite": 38,
        "surfboard": 42,
        "bottle": 44,
        "cup": 47,
        "fork": 48,
        "laptop": 73,
        "mouse": 74,
        "keyboard": 76,
        "book": 84,
        "clock": 85,
    }
    assert (
        len(IDS) == 80
        and IDS["person"] == 1
        and IDS["toothbrush"] == 90
        and known.items() <= IDS.items()
    )
    documents = [
        json.loads((folder / f"annotations/instances_{split}.json").read_text())
        for split in ("train", "val")
    ]
    assert {row["name"]: row["id"] for row in documents[0]["categories"]} == {
        noun: IDS[noun] for noun in OBJECTS
    }
    for part in ("images", "annotations"):
        ids = [row["id"] for document in documents for row in document[part]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["official", "efuf"])
def test_chair_scores_the_files(folder, world, tmp_path, name):
    """Fails if the official scorer cannot read the annotations, or finds a hallucination in a true
    caption and none in a false one.
    """
    shown = [
        (photo, scene)
        for split in world
        for photo, scene in zip(read(folder, split), world[split], strict=True)
    ]
    if name == "official":  # its singular turns "bus" into "bu", which names nothing
        shown = [(photo, scene) for photo, scene in shown if "bus" not in scene.objects]
    files = [
        [folder / f"annotations/{kind}_{split}.json" for split in world]
        for kind in ("instances", "captions")
    ]
    for n_extra, expected in ((0, 0.0), (1, 1.0)):
        extra = [[noun for noun in absent(scene) if noun != "bus"][:n_extra] for _, scene in shown]
        rows = [
            {"image_id": photo.image_id, "caption": caption(scene, more)}
            for (photo, scene), more in zip(shown, extra, strict=True)
        ]
        (tmp_path / "said").write_text("\n".join(map(json.dumps, rows)))
        found = score.score_chair(tmp_path / "said", *files, name=name)
        assert (found["chair_s"], found["recall"]) == (expected, 1.0) and found["n"] == len(
            shown
        ) >= 4


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_pope_asks_about_the_pictures(folder, tmp_path, kind):
    """Fails if a question's image or label is not the truth of the instances file, or true answers
    do not score 1.
    """
    found = read(folder, "val")
    path = photos.find(folder, f"coco_pope_{kind}.json")
    questions, at = photos.read_pope(path, found)
    assert len(questions) == 4 * len(found) and {photo.path.name for photo in found} == {
        q["image"] for q in questions
    }
    for question, i in zip(questions, at, strict=True):
        noun = question["text"].removesuffix(" in the image?").split()[-1]
        assert found[i].path.name == question["image"] and question["label"] == (
            "yes" if noun in found[i].objects else "no"
        )
    (tmp_path / "a").write_text(
        "\n".join(
            json.dumps({"question_id": q["question_id"], "answer": q["label"]}) for q in questions
        )
    )
    assert score.score_pope(path, tmp_path / "a")["accuracy"] == 1


def test_efuf_entries_are_efufs(scenes):
    """Fails if an entry is not cut at the END of its clause, or starts elsewhere than after the
    separator; worked by hand.
    """
    scored = {noun: float(i) for i, noun in enumerate(OBJECTS)}  # fork 0, cup 1, bowl 2
    pos_neg, sentences = efuf([PAPER], [scored], [{"file_name": "x.png"}])
    cut = [
        (row["sentence"][: row["position"]], row["sentence"][row["position"] :], row["score"])
        for row in pos_neg
    ]
    assert cut == [
        ("", "a kitchen with a cup", 1.0),
        ("a kitchen with a cup,", " a fork", 0.0),
        ("a kitchen with a cup, a fork;", " a cup and a bowl", 1.0),
        ("a kitchen with a cup, a fork;", " a cup and a bowl", 2.0),
        ("a kitchen with a cup, a fork; a cup and a bowl!", " a fork", 0.0),
    ]
    assert sentences == [{"image": "x.png", "sentence": PAPER, "mean": 0.8, "min": 0.0}]
    assert all(PAPER.startswith(row["sentence"]) for row in pos_neg)


@pytest.mark.parametrize("quantiles", [(0.2, 0.5, 0.5), (0.0, 0.0, 0.0), (0.5, 0.5, 1.0)])
def test_efuf_entries_pack_back_into_curations_spans(folder, clip, world, said, quantiles):
    """Fails if entries read back from the files give other captions, images or spans than curate
    gives at once.
    """
    # The last caption names nothing and has no entry
    scores = score_scenes(clip, world["train"])[:-1]
    limits = judge.thresholds([value for row in scores for value in row.values()], quantiles)
    found = photos.read_efuf(folder / "efuf/pos_neg.json", folder / "efuf/sentences.json", limits)
    assert [row.spans for row in found] == curate(said[:-1], scores, FIND, limits)
    assert [row.caption for row in found] == said[:-1]
    assert [row.image for row in found] == [photo.path.name for photo in read(folder, "train")][:-1]


def test_packing_survives_repeats_and_clauses_of_two_objects(tmp_path):
    """Fails if a clause that stands twice, or two objects in a clause, loses its span; also where
    sentences.json lacks the caption.
    """
    scored = {noun: float(i) for i, noun in enumerate(OBJECTS)}
    for limits in (
        Thresholds(1.5, 1.5, 1.5),
        Thresholds(0.5, 0.5, 0.5),
        Thresholds(0.5, 1.5, 0.5),
        Thresholds(-1.0, 0.5, 0.5),
    ):
        expected = curate([PAPER], [scored], FIND, limits)[0]
        pos_neg, sentences = efuf([PAPER], [scored], [{"file_name": "x.png"}])
        other = {"image": "y.png", "sentence": "a car", "mean": 9.0, "min": 9.0}
        for whole in ([*sentences, other], [other]):
            (tmp_path / "p").write_text(json.dumps(pos_neg))
            (tmp_path / "s").write_text(json.dumps(whole))
            first, last = photos.read_efuf(tmp_path / "p", tmp_path / "s", limits)
            assert first.spans == (expected if len(whole) == 2 else expected | {"sentence": []})
            assert first.caption == (PAPER if len(whole) == 2 else PAPER[:-1])
            assert last == photos.Curated(
                "y.png", "a car", {"forget": [], "retain": [], "sentence": [(0, 5)]}
            )
    assert {
        span
        for kind in ("forget", "retain")
        for span in curate([PAPER], [scored], FIND, Thresholds(1.5, 1.5, 9))[0][kind]
    } <= set(sub_sentences(PAPER))


def test_checkpoints_load(folder, clip, processor, world):
    """Fails if the exported LLaVA or CLIP, loaded from disk, says or scores otherwise; CLIP's
    processor comes from AutoProcessor.
    """
    model, again = load(folder / "llava", device="cpu")
    features = embed_images(model, again, photos.Pictures(read(folder, "val")))
    expected = embed_images(tiny_llava(), processor, [draw(scene) for scene in world["val"]])
    assert torch.equal(features, expected)
    assert generate(model, again, features, max_new_tokens=4) == generate(
        tiny_llava(), processor, expected, max_new_tokens=4
    )
    loaded, clip_processor = judge.load_clip(judge.clip_path(folder))
    assert judge.clip_path(folder / "pope") == judge.CLIP == "openai/clip-vit-base-patch32"
    assert type(AutoProcessor.from_pretrained(folder / "clip")).__name__ == "CLIPProcessor"
    words = [judge.prompt(noun) for noun in OBJECTS]
    table = judge.scores(
        loaded, clip_processor, read(folder, "train"), words, folder.parent / "cache.db"
    )
    assert torch.allclose(
        table,
        torch.tensor([list(row.values()) for row in score_scenes(clip, world["train"])]),
        atol=1e-4,
    )


def test_an_export_is_replaced_and_nothing_else_is(
    tmp_path, clip, processor, world, said, monkeypatch
):
    """Fails if foreign files are deleted, a broken-off export leaves half a folder, or a second
    export is refused.
    """
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("months of work")
    with pytest.raises(ValueError, match=f"thesis: holds something that was not exported .*{MARK}"):
        export(tmp_path / "thesis", world, clip, tiny_llava(), processor, said)
    assert (tmp_path / "thesis/chapter.txt").exists()
    (tmp_path / "empty").mkdir()
    first = export(tmp_path / "empty", world, clip, tiny_llava(), processor, said)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(
            first,
            {"train": world["val"], "val": world["train"]},
            clip,
            tiny_llava(),
            processor,
            said[:3],
        )
    assert len(read(first, "train")) == 5, "the old export must stand until the new one is whole"
    monkeypatch.undo()
    export(
        first,
        {"train": world["val"], "val": world["train"]},
        clip,
        tiny_llava(),
        processor,
        said[:3],
    )
    assert len(read(first, "train")) == 3 and sorted(p.name for p in tmp_path.iterdir()) == [
        "empty",
        "thesis",
    ]


def test_captions_are_counted(tmp_path, clip, processor, world, said):
    """Fails if a caption is put to another scene in silence."""
    with pytest.raises(ValueError, match="4 captions"):
        export(tmp_path / "x", world, clip, tiny_llava(), processor, said[:4])
    with pytest.raises(ValueError, match="scenes for train: give train and val"):
        export(tmp_path / "x", {"train": world["train"]}, clip, tiny_llava(), processor, said)
