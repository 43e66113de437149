"""`make real`: what chapter 05 is asked for, what it may cost, what is refused before it runs."""

import json
import shutil
import subprocess

import pytest

from lab import files
from lab.field.fewer import fewer_questions
from lab.field.settings import SETTINGS, estimate, get_setting, parameters
from lab.shell import ended
from lab.tools import real

NAMES = ("instances_train2014.json", "instances_val2014.json", "coco_pope_random.json")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """What papermill would have been given."""
    given = []
    monkeypatch.setattr(real, "execute", lambda *words: given.append(words))
    return given


@pytest.mark.parametrize("name", SETTINGS)
def test_the_chapter_gets_its_row(folder, ran, capsys, name):
    """Fails if a setting does not reach the chapter, or its time is said as if it were measured."""
    real.main(["--preset", name, "--data", str(folder)])
    chapter, given, out = ran[0]
    assert (chapter, out) == ("05_real_thing", files.ROOT / f"build/real/{name}.ipynb")
    assert given == parameters(SETTINGS[name], str(folder)) and given["probed"] is True
    assert given["rows_at_once"] == SETTINGS[name].rows and given["data"] == str(folder)
    assert "Estimated, not measured" in capsys.readouterr().out


def test_another_checkpoint_and_four_bits(folder, ran):
    """Fails if CHECKPOINT or BITS is dropped, or 4 bits keep the rows of a large GPU."""
    words = ["--preset", "gpu", "--data", str(folder), "--checkpoint", "mine", "--bits", "4"]
    real.main(words)
    given = ran[0][1]
    assert (given["checkpoint"], given["bits"]) == ("mine", 4)
    assert given["rows_at_once"] < SETTINGS["gpu"].rows


@pytest.mark.parametrize(
    "words, said",
    [
        ({"preset": "full"}, "PRESET=full: the real settings are t4, gpu"),
        ({"bits": "8"}, "BITS=8: give 16, or 4"),
        ({"bits": "four"}, "BITS=four: give 16, or 4"),
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
    (folder / name).unlink()
    with pytest.raises(ValueError, match="no such file: put it there"):
        real.main(["--preset", "t4", "--data", str(folder)])
    with pytest.raises(SystemExit, match="^error: .*no such file"):
        ended(real.main, ["--preset", "t4", "--data", str(folder)])
    assert not ran


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
    words = ["PRESET=t4", "DATA=some/coco", "CHECKPOINT=x", "BITS=4"]
    said = subprocess.run(
        ["make", "-n", "real", *words], cwd=files.ROOT, capture_output=True, text=True
    ).stdout
    whole = f'--preset "t4" --data "{files.ROOT}/some/coco" --checkpoint "x" --bits "4"'
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
