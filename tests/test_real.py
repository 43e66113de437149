"""`make real`: what chapter 05 is asked for, what it may cost, what is refused before it runs."""

import json
import shutil
import subprocess

import pytest
from transformers import LlamaConfig

from lab import files
from lab.field.fewer import fewer_questions
from lab.field.settings import SETTINGS, estimate, get_setting, parameters
from lab.shell import ended
from lab.tools import real

NAMES = (
    "annotations/instances_train2014.json",
    "annotations/instances_val2014.json",
    "annotations/captions_train2014.json",
    "annotations/captions_val2014.json",
    "pope/coco_pope_random.json",
    "pope/coco_pope_popular.json",
    "pope/coco_pope_adversarial.json",
    "efuf/pos_neg.json",
    "efuf/sentences.json",
)


@pytest.fixture
def folder(tmp_path):
    for name in (*NAMES, "train2014/one.jpg", "val2014/two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What papermill would have been given. The checkpoints of the presets are a hub's."""
    given = []
    monkeypatch.setattr(real, "execute", lambda *words: given.append(words))
    monkeypatch.setattr(real, "check_checkpoint", lambda checkpoint: None)
    monkeypatch.setattr(real, "check_bits", lambda bits: None)
    monkeypatch.setattr(real.files, "figures_folder", lambda *_: tmp_path / "figures")
    (tmp_path / "figures").mkdir()
    for end in ("json", "png"):
        (tmp_path / f"figures/05_real_thing.{end}").write_text(end)
    return given


@pytest.mark.parametrize("name", SETTINGS)
def test_the_chapter_gets_its_row(folder, ran, capsys, name):
    """Fails if a setting does not reach the chapter, or its time is said as if it were measured."""
    out = folder / "kept"
    out.mkdir()
    real.main(["--preset", name, "--data", str(folder), "--out", str(out)])
    chapter, given, notebook = ran[0]
    assert (chapter, notebook) == ("05_real_thing", out / f"{name}.ipynb")
    own = parameters(SETTINGS[name], str(folder)) | {"into": str(out)}
    assert given == own and given["probed"] is True
    assert (out / f"{name}.json").read_text() == "json", "the figure lies beside the notebook"
    assert real.asked(["--preset", name, "--data", str(folder)]).out == files.ROOT / "build/real"
    assert given["rows_at_once"] == SETTINGS[name].rows and given["data"] == str(folder)
    assert "Estimated, not measured" in capsys.readouterr().out


def test_another_checkpoint_and_four_bits(folder, ran):
    """Fails if CHECKPOINT or BITS is dropped, or 4 bits keep the rows of a large GPU."""
    words = ["--preset", "gpu", "--data", str(folder), "--checkpoint", "mine", "--bits", "4"]
    real.main([*words, "--images", "90", "--tested", "9", "--out", str(folder)])
    given = ran[0][1]
    assert (given["checkpoint"], given["bits"]) == ("mine", 4)
    assert (given["images"], given["tested"]) == (90, 9)
    assert given["rows_at_once"] < SETTINGS["gpu"].rows


@pytest.mark.parametrize(
    "words, said",
    [
        ({"preset": ""}, "PRESET=: the real settings are t4, gpu"),
        ({"preset": "full"}, "PRESET=full: the real settings are t4, gpu"),
        ({"bits": "8"}, "BITS=8: give 16, or 4"),
        ({"bits": "3"}, "BITS=3: give 16, or 4"),
        ({"bits": "four"}, "BITS=four: give 16, or 4"),
        ({"images": "-1"}, "IMAGES=-1: give a number from 1"),
        ({"tested": "0"}, "TESTED=0: give a number from 1"),
        ({"data": ""}, "DATA=: no such folder.*sare-min fetch coco"),
        ({"data": "nowhere"}, "DATA=nowhere: no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(folder, ran, words, said):
    """Fails if the error comes from papermill, after minutes, or names no variable."""
    given = {"preset": "t4", "data": str(folder)} | words
    with pytest.raises(ValueError, match=said):
        real.main([word for key, value in given.items() for word in (f"--{key}", value)])
    assert not ran


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_lacks_a_file_is_refused(folder, ran, name):
    """Fails if one of the chapter's files is first missed by the chapter."""
    (folder / name).unlink()
    with pytest.raises(ValueError, match="no such file: put it there"):
        real.main(["--preset", "t4", "--data", str(folder)])
    with pytest.raises(SystemExit, match="^error: .*no such file"):
        ended(real.main, ["--preset", "t4", "--data", str(folder)])
    assert not ran


def test_a_folder_without_images_is_refused(folder, ran):
    """Fails if annotations without pictures are taken for data."""
    (folder / "val2014/two.jpg").unlink()
    with pytest.raises(ValueError, match="val2014 holds no image"):
        real.main(["--preset", "t4", "--data", str(folder)])
    (folder / "val2014").rmdir()
    with pytest.raises(ValueError, match="its images should lie in .*val2014"):
        real.main(["--preset", "t4", "--data", str(folder)])
    assert not ran


def test_what_is_no_llava_is_refused(saved, tmp_path):
    """Fails if a language model, or no model, is first missed when it is loaded."""
    real.check_checkpoint(str(saved))
    with pytest.raises(ValueError, match="^CHECKPOINT=.*nowhere.*: no checkpoint") as refused:
        real.check_checkpoint(str(tmp_path / "nowhere/at/all"))
    assert "\n" not in str(refused.value)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^CHECKPOINT=.*: a llama model, no LLaVA"):
        real.check_checkpoint(str(tmp_path))


def test_four_bits_that_cannot_be_had_are_refused(monkeypatch):
    """Fails if the package or the GPU is first missed by the chapter."""
    real.check_bits(16)
    monkeypatch.setattr(real, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^BITS=4 needs bitsandbytes"):
        real.check_bits(4)
    monkeypatch.setattr(real, "find_spec", lambda name: name)
    monkeypatch.setattr(real.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^BITS=4 needs a CUDA GPU"):
        real.check_bits(4)


def test_the_estimate_is_of_the_work():
    """Fails if more images, questions or weights are not dearer, or T4's row is not about the hour
    that it was cut down to.
    """
    t4, gpu = (estimate(SETTINGS[name]) for name in ("t4", "gpu"))
    assert sum(t4.values()) < 70 and all(gpu[part] > t4[part] > 1 for part in t4)
    assert estimate(get_setting("gpu", bits=4))["captions"] > gpu["captions"]  # fewer rows at once


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_hands_them_on():
    """Fails if a variable is lost between make and the command, or DATA is no whole path."""
    words = ["PRESET=t4", "DATA=some/coco", "CHECKPOINT=x", "BITS=4", "IMAGES=5", "OUT=drive"]
    said = subprocess.run(
        ["make", "-n", "real", *words], cwd=files.ROOT, capture_output=True, text=True
    ).stdout
    whole = f'--preset "t4" --data "{files.ROOT}/some/coco" --checkpoint "x" --bits "4"'
    whole += f' --images "5" --tested "" --out "{files.ROOT}/drive"'
    assert f"-m lab.tools.real {whole}" in said


def asks(path, *images):
    rows = [
        {"question_id": i, "image": image, "text": "Is there a cup?", "label": "no"}
        for i, image in enumerate(images)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_fewer_questions_are_about_the_same_images(tmp_path):
    """Fails if two files keep different images, rows change, or the originals are written over."""
    paths = {
        "random": asks(tmp_path / "coco_pope_random.json", "a.jpg", "b.jpg", "a.jpg", "c.jpg"),
        "popular": asks(tmp_path / "coco_pope_popular.json", "c.jpg", "b.jpg", "a.jpg"),
    }
    before = {kind: path.read_bytes() for kind, path in paths.items()}
    found = fewer_questions(paths, 2, tmp_path / "few/pope")
    rows = {
        kind: [json.loads(line) for line in path.read_text().splitlines()]
        for kind, path in found.items()
    }
    assert {path.name for path in found.values()} == {path.name for path in paths.values()}
    assert [row["question_id"] for row in rows["random"]] == [0, 1, 2]
    assert [row["image"] for row in rows["popular"]] == ["b.jpg", "a.jpg"]
    assert before == {kind: path.read_bytes() for kind, path in paths.items()}
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"3 images, not about the {n} wanted"):
            fewer_questions(paths, n, tmp_path / "few")
