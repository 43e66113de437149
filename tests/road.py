"""The whole road as a reader walks it, in commands: COCO's layout behind a web server,
`sare-min fetch`, `sare-min audit`, and a report that says what chapter 04 says.

`make road` runs it, and `make test` last: what it audits are the trained models of the fast
preset's first seed, which the chapters have left in the cache by then. Without them it trains them.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from served import as_coco, sources, web
from test_audit import text_of

from lab.audit import page, readings
from lab.experiments import attacks, erasures, presets
from lab.field import export
from lab.files import rounded
from lab.llava.checkpoints import save
from lab.world.bases import SIZES
from lab.world.kit import get_kit

FAST = presets.get_preset("fast")
SEED, METHODS = FAST.seeds[0], ("EFUF", "SARE")
N_TRAIN = 900  # enough hallucinated captions for 512 relearning samples
N_IMAGES = SIZES["erase"] + N_TRAIN  # the attacker's come after those that the erasure saw
COCO = "/images.cocodataset.org"
# The command as it is installed, but for the table: other files have other sizes and digests
SARE_MIN = """
import json, sys
from lab.field import sources
sources.SOURCES = tuple(sources.Source(**row) for row in json.loads(sys.argv[1]))
from lab.tools import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def start(table, *words) -> subprocess.Popen:
    """`sare-min WORDS`, begun."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'chapters'}"}
    words = [sys.executable, "-c", SARE_MIN, json.dumps([vars(row) for row in table]), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, words)), env=env, **pipes)


def ended(process: subprocess.Popen) -> str:
    """What it said, once it has ended well."""
    said, complained = process.communicate(timeout=600)
    assert process.returncode == 0, complained
    return said


@pytest.fixture(scope="module")
def world():
    """The exported microworld, as COCO's, POPE's and EFUF's authors would have it."""
    return export.book(SEED)


@pytest.fixture(scope="module")
def fetched(world, tmp_path_factory):
    """(the folder that was fetched, what was served): `sare-min fetch coco`."""
    folder = tmp_path_factory.mktemp("fetched")
    with web() as server:
        server.files = as_coco(world, f"http:/{COCO}")
        words = ("--into", folder, "--images", N_IMAGES, "--mirror", server.url)
        said = json.loads(ended(start(sources(server.files), "fetch", "coco", *words)))
        assert said["images"] == {"val": SIZES["test"], "train": N_IMAGES}
        return folder, server.files


@pytest.fixture(scope="module")
def audited(world, fetched, tmp_path_factory):
    """Method -> (what the command said, audit.json, report.html), side by side."""
    home, running = tmp_path_factory.mktemp("audited"), {}
    for name in METHODS:
        model = erasures.erased(presets.book_run(name, SEED))
        erased = save(model, get_kit(SEED).processor, home / name / "erased")
        words = ["--base", world / "llava", "--erased", erased, "--data", fetched[0]]
        words += ["--out", home / name, "--skip", SIZES["erase"], "--train-images", N_TRAIN]
        words += ["--attacks", "relearn,prefill", "--lrs", "2e-4,1e-3", "--seeds", "1"]
        running[name] = start((), "audit", *words)
    said = {name: ended(process) for name, process in running.items()}
    return {
        name: (
            said[name],
            json.loads((home / name / "audit.json").read_text()),
            (home / name / "report.html").read_text(),
        )
        for name in METHODS
    }


@pytest.fixture(scope="module")
def chapter():
    """Method -> kind of attack -> its curve, as chapter 04 measured it here."""
    met = presets.other_attacks(FAST, *METHODS)
    own = presets.book_attacks(FAST, "base", *METHODS)
    curves = {name: {"relearn": attacks.attack(own[name][0])["curve"]} for name in own}
    for name in METHODS:
        curves[name]["prefill"] = attacks.attack(met["prefilled", name][0])["curve"]
    return curves


def test_every_image_came_whole(fetched):
    """Fails if an image lacks, is another's, or one came that nobody reads."""
    folder, files = fetched
    for split, n in (("train", N_IMAGES), ("val", SIZES["test"])):
        came = sorted((folder / f"{split}2014").iterdir())
        assert len(came) == n
        for path in came:
            assert path.read_bytes() == files[f"{COCO}/{split}2014/{path.name}"]


@pytest.mark.parametrize("name", METHODS)
def test_before_and_without_training_it_says_the_chapters_numbers(audited, chapter, name):
    """Fails if fetching, files or the field's scorers change a number: the same models, pictures
    and words put in must give chapter 04's CHAIR_s and recall, to the digit.
    """
    found = audited[name][1]
    points = {"base": chapter["base"], "erased": chapter[name]}
    for which, curves in points.items():
        first = curves["relearn"][0]
        for key in ("chair_s", "recall"):
            assert found["before"][which][key] == rounded(first[key]), (which, key)
    (row,) = found["attacks"]["prefill"]["rows"]
    own = {point["at"]: point["chair_s"] for point in chapter[name]["prefill"]}
    assert {point["at"]: point["chair_s"] for point in row["curve"]} == {
        at: rounded(own[at]) for at in (1, 2, 3)
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_report_says_what_chapter_04_says(audited, chapter, name):
    """Fails if the report's answer is not what its rule makes of chapter 04's own curve: that
    relearning brings the hallucinations back after EFUF and after SARE, with recall kept.
    """
    said, found, html = audited[name]
    before, base = (curves["relearn"][0] for curves in (chapter[name], chapter["base"]))
    row = {"lr": 2e-4, "seed": 0, "curve": chapter[name]["relearn"]}
    own = readings.of_attack("relearn", [row], before, base)
    assert own["verdict"] == found["attacks"]["relearn"]["verdict"] == readings.BREAKS
    assert found["answer"]["lasts"] is False
    assert (
        found["answer"]["says"].startswith("It does not last.") and found["answer"]["says"] in said
    )
    shown = text_of(html)
    assert found["answer"]["says"] in shown
    assert page.sentence("relearn", found["attacks"]["relearn"])[3:-4] in html


def test_no_order_is_claimed(audited):
    """Fails if a report on one erasure lets a reader think that it ranks methods, or that one order
    of attack has a spread: which of two erasures relapses first another order may turn round.
    """
    for name, (_, found, html) in audited.items():
        shown, other = text_of(html), "SARE" if name == "EFUF" else "EFUF"
        assert "Two reports compare two checkpoints, not two methods." in shown
        assert "One seed: no spread is known." in shown
        assert "Its seeds are the attacker's (1 order of his captions" in shown
        assert other not in shown and found["data"]["hallucinated"] >= 512 + 32
