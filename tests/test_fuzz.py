"""A thousand corrupted inputs, drawn from seeds: each gives an error that names its file, or what a
reader of its own finds in it.

Two kinds of harm. To the file: cut, flipped, filled with zeros, of another encoding, replaced by a
folder or a broken link, unreadable. To what it says: values of a wrong type, huge, not finite, rows
doubled, keys lost, added or renamed.
"""

import csv
import json
import os
import random
import shutil
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import files
from lab.evidence import figures, ledger, observations, plan, quotes, report
from lab.field import coco, judge, photos, score
from lab.field.images import open_image
from lab.llava.checkpoints import load, save
from lab.metrics import chair
from lab.world.models import build_clip, build_tokenizer, image_processor
from sare_min.llava import set_trainable

NOBODY = 65534
ODD = [None, True, -1, 0, 7.5, 10**30, 1e300, float("nan"), float("-inf"), "", " ", "x", "7", "007"]
ODD += ["\ud800", "\0", "../x", "/etc/passwd", "x" * 300, [], {}, [[]], {"id": 7}]
JUNK = [b"\xff\xfe", b"\0\0\0\0", b"}", b"[" * 99_999, b"9" * 5000, b'"', b"\n\n", b"\xe9", b"NaN"]
JUNK += [b"<<<<<<< ours\n", b"\xef\xbb\xbf", b"\\ud800", b"Infinity,", b",", b"\r", b"#", b"'''"]


def harmed(rng: random.Random, whole: bytes) -> bytes:
    """The file's bytes after one accident on its way here."""
    at, other = rng.randrange(len(whole)), rng.randrange(len(whole))
    a, b = sorted((at, other))
    flipped = bytes([whole[at] ^ 1 << rng.randrange(8)])
    text = whole.decode("utf-8", "replace")
    kinds = [
        whole[:at],
        whole[:at] + flipped + whole[at + 1 :],
        whole[:at] + bytes(len(whole) - at),
        whole[:a] + whole[b:],
        whole[:b] + whole[a:],
        whole[:at] + rng.choice(JUNK) + whole[at:],
        b"\xef\xbb\xbf" + whole,
        whole.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        text.encode("utf-16"),
        text.encode("cp500", "replace"),
        rng.choice([b"", b"\n", b"\0" * 99, b"[]", b"{}", b"null", b"<html>not found</html>"]),
        whole + whole,
    ]
    return rng.choice(kinds)


def misspoken(rng: random.Random, content):
    """The document with one thing in it changed to something else."""
    content = json.loads(json.dumps(content))
    holder, inner = content, content
    while isinstance(inner, (dict, list)) and inner and (holder is content or rng.random() < 0.8):
        holder = inner
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
    what = rng.randrange(5)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder)), inner)
    elif what == 2 and isinstance(holder, dict):
        holder[rng.choice(["a key more", key.upper()])] = holder.pop(key)
    else:
        holder[key] = rng.choice(ODD)
    return content


@contextmanager
def unreadable():
    """As a user who may not read the file; where tests are run by root, which may read all."""
    if os.name != "posix" or os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def misplaced(rng: random.Random, path: Path) -> None:
    """Put something else where the file was."""
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)  # in a circle
    elif kind == 2:
        path.symlink_to("/nowhere/at/all")
    # else it is gone


def restored(path: Path, whole: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


def attacked(
    path: Path, n: int, seed: int, read, content=None, says=None, where=None
) -> tuple[int, int]:
    """Harm the file n times and read it; returns how often it was (refused, read).

    where: what the error must name, the file if None: the folder, where files of one folder are
    joined.
    read(): what the project makes of the folder. content: the document, if it is JSON. says(path):
    what a reader of its own finds in the file, to hold a success against.
    """
    rng, whole, count = random.Random(seed), path.read_bytes(), [0, 0]
    for turn in range(n):
        restored(path, whole)
        if turn % 12 == 0:
            misplaced(rng, path)
        elif content is not None and turn % 2:
            path.write_text(json.dumps(misspoken(rng, content)))
        else:
            path.write_bytes(harmed(rng, whole))
        try:
            found = read()
        except (ValueError, OSError) as error:
            assert type(error) in (ValueError, OSError) and str(where or path) in str(error), repr(
                error
            )
            assert str(error).encode() and "Traceback" not in str(error)
            count[0] += 1
        else:
            assert says is None or found == says(path), (seed, turn)
            count[1] += 1
    restored(path, whole)
    return count[0], count[1]


def rows_of(path: Path) -> list:
    """The rows of a JSON file in any of the three layouts, by Python's own reader."""
    text, found, at = path.read_text(encoding="utf-8-sig").strip(), [], 0
    while at < len(text):
        row, end = json.JSONDecoder().raw_decode(text, at)
        found += row if isinstance(row, list) else [row]
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


PICTURES = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
FIELDS = {
    "instances.json": {
        "info": {"year": 2014},
        "images": PICTURES,
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 0, 1, 1.5]},
            {"id": 2, "image_id": 8, "category_id": 47, "bbox": [0, 0, 1, 1.5]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 47, "name": "cup"}],
    },
    "human.json": {
        "images": PICTURES,
        "annotations": [{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "a café"}],
    },
    "said.jsonl": [
        {"image_id": 7, "caption": "a dog and a cup"},
        {"image_id": 8, "caption": "un café"},
    ],
    "questions.json": [
        {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"},
        {"question_id": 2, "image": "b.png", "text": "Is there a cup?", "label": "no"},
    ],
    "answers.jsonl": [
        {"question_id": 1, "answer": "yes"},
        {"question_id": 2, "answer": "no, a café"},
    ],
    "pos_neg.json": [
        {"image": "a.png", "sentence": "a dog", "position": 0, "score": 35.5},
        {"image": "a.png", "sentence": "a dog, a cup", "position": 6, "score": 20.5},
    ],
    "sentences.json": [
        {"image": "a.png", "sentence": "a dog, a cup.", "mean": 25.0, "min": 20},
        {"image": "b.png", "sentence": "a café.", "mean": 30.0, "min": 30.0},
    ],
}


@pytest.fixture
def folder(tmp_path):
    """The field's files in one folder, with two pictures."""
    for name, content in FIELDS.items():
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        text = lines if name.endswith("jsonl") else json.dumps(content, ensure_ascii=False)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for picture, colour in zip(PICTURES, ("red", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / picture["file_name"])
    return tmp_path


def said_of(path):
    return [(int(row["image_id"]), row["caption"]) for row in rows_of(path)]


def instances_of(path):
    found = json.loads(path.read_text(encoding="utf-8-sig"))
    names = {int(row["id"]): row["name"] for row in found["categories"]}
    shown = {int(row["id"]): set() for row in found.get("images", [])}
    for row in found["annotations"]:
        shown.setdefault(int(row["image_id"]), set()).add(names[int(row["category_id"])])
    return shown


def human_of(path):
    told = {}
    for row in json.loads(path.read_text(encoding="utf-8-sig"))["annotations"]:
        told.setdefault(int(row["image_id"]), []).append(row["caption"])
    return told


def questions_of(path):
    return [(int(q["question_id"]), q["text"], q["label"]) for q in rows_of(path)]


def answers_of(path):
    found = {int(row["question_id"]): row["answer"] for row in rows_of(path)}
    return [found[1], found[2]]


def sentences_of(name):
    """Every (image, sentence) of one of EFUF's files."""
    return lambda path: {(row["image"], row["sentence"]) for row in rows_of(path)}


def curated(folder, name):
    """The (image, sentence) of one file's rows, if each is the beginning of a curated caption."""
    found = photos.read_efuf(folder / "pos_neg.json", folder / "sentences.json")
    rows = coco.read_rows(folder / name, {"image": coco.NAME, "sentence": coco.TEXT})
    for row in rows:
        homes = [c for c in found if c.image == row["image"]]
        assert any(c.caption.startswith(row["sentence"]) for c in homes)
    assert all(0 <= a < b <= len(c.caption) for c in found for k in c.spans.values() for a, b in k)
    return {(row["image"], row["sentence"]) for row in rows}


READERS = {
    "instances.json": (lambda at: coco.read_instances([at / "instances.json"]), instances_of),
    "human.json": (lambda at: coco.read_human_captions([at / "human.json"]), human_of),
    "said.jsonl": (
        lambda at: [(r["image_id"], r["caption"]) for r in coco.read_captions(at / "said.jsonl")],
        said_of,
    ),
    "questions.json": (
        lambda at: [
            (q["question_id"], q["text"], q["label"])
            for q in coco.read_questions(at / "questions.json")
        ],
        questions_of,
    ),
    "answers.jsonl": (
        lambda at: coco.read_answers(at / "answers.jsonl", FIELDS["questions.json"]),
        answers_of,
    ),
    "pos_neg.json": (lambda at: curated(at, "pos_neg.json"), sentences_of("pos_neg.json")),
    "sentences.json": (lambda at: curated(at, "sentences.json"), sentences_of("sentences.json")),
}


@pytest.mark.parametrize("name", READERS)
def test_the_fields_files(folder, name):
    """Fails if a corrupted file of COCO, POPE or EFUF gives a bare error, or loses or changes a row
    without a word (50 times each).
    """
    read, says = READERS[name]
    refused, right = attacked(folder / name, 50, 0, lambda: read(folder), FIELDS[name], says)
    assert refused > 20 and right > 2


@pytest.mark.parametrize("name", ["instances.json", "human.json", "said.jsonl"])
def test_scores_of_corrupted_files(folder, name):
    """Fails if a score is computed from half of a file, or the command ends in a traceback."""
    paths = [str(folder / n) for n in ("said.jsonl", "instances.json", "human.json")]

    def read():
        found = score.score_chair(paths[0], [paths[1]], [paths[2]])
        assert found["n"] == len(rows_of(Path(paths[0])))
        json.dumps(found, allow_nan=False)

    assert attacked(folder / name, 30, 1, read, FIELDS[name], where=folder)[0] > 10


def test_pictures_in_their_folder(folder):
    """Fails if a file name of an instances file leads out of the folder, by dots, by a link or by a
    root, or is skipped (50 names).
    """
    rng, path = random.Random(0), folder / "instances.json"
    (folder / "in").mkdir()
    (folder / "in/a.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "in/out.png").symlink_to(folder / "a.png")
    (folder / "in/up").symlink_to(folder)
    (folder / "in/ring.png").symlink_to("ring.png")
    os.mkfifo(folder / "in/pipe.png")
    steps = ["..", ".", "in", "up", "a.png", "/", "//", "a.png/", "out.png", "ring.png", "\0", "é"]
    steps += ["~", "pipe.png", "a" * 300, "C:\\a.png", "..\\a.png", "%2e%2e", "\u202e"]
    for _ in range(50):
        name = "/".join(rng.choices(steps, k=rng.randrange(1, 4)))
        document = FIELDS["instances.json"] | {"images": [{"id": 7, "file_name": name}]}
        path.write_text(json.dumps(document | {"annotations": []}))
        try:
            found = photos.Pictures(photos.read_images(path, folder / "in"))
            assert found[0].size == (8, 8) and len(found) == 1
            assert found.photos[0].path.resolve().parent == (folder / "in").resolve(), name
        except ValueError as error:
            assert str(error).startswith(f"{path}, images row 1: "), name


def picture(rng, path, kind):
    """A picture as the world has them: of any mode, size, orientation, one frame or several."""
    size = rng.randrange(1, 40), rng.randrange(1, 40)
    noise = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    modes = {"JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    mode = rng.choice(modes.get(kind, ["RGB", "L", "1", "P", "LA", "RGBA"]))
    exif, how = Image.Exif(), {}
    exif[0x0112] = rng.randrange(1, 9)
    if kind != "JPEG" and rng.random() < 0.3:
        how = {"save_all": True, "append_images": [noise.convert(mode)]}
    if mode == "P" and rng.random() < 0.5:
        how["transparency"] = 0
    if kind == "WEBP":
        how["lossless"] = rng.random() < 0.5
    noise.convert(mode).save(path, kind, exif=exif, **how)


def by_pillow(path):
    """The picture by Pillow alone."""
    from PIL import ImageOps

    with Image.open(path) as file:
        return ImageOps.exif_transpose(file.convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures(tmp_path, kind):
    """Fails if a picture of any mode is read otherwise than by Pillow, a harmed one (50 of each
    kind) gives a bare error, or one that is cut or filled with zeros passes with pixels lost.
    """
    rng, path, cut = random.Random(0), tmp_path / "a.img", 0
    for turn in range(50):
        picture(rng, path, kind)
        whole, right = path.read_bytes(), by_pillow(path)
        assert open_image(path).tobytes() == right.tobytes()
        at = rng.randrange(len(whole))
        harms = [whole[:at], whole[:at] + bytes(len(whole) - at), harmed(rng, whole)]
        path.write_bytes(harms[turn % 3])
        try:
            found = open_image(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: no usable image"), error
            cut += turn % 3 < 2
        else:
            assert found.mode == "RGB" and found.size
            if turn % 3 < 2 and (kind == "JPEG" or turn % 3 == 0):
                assert found.tobytes() == right.tobytes(), (turn, at, len(whole))
    assert cut > 20


def toml_of(path):
    found = plan.tomllib.loads(path.read_text(encoding="utf-8-sig"))
    return list(found["row"]), tuple(found["run"]["seeds"]), found["run"]["level"]


def test_plans(tmp_path):
    """Fails if a corrupted plan gives a bare error, or one that is read loses a row (80)."""
    path = tmp_path / "claims.toml"
    shutil.copy(plan.PATH, path)

    def read():
        found = plan.load(path)
        return list(found.rows), found.seeds, found.level

    refused, right = attacked(path, 80, 0, read, says=toml_of)
    assert refused > 30 and right > 5


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A figures folder with a few of the plan's rows."""
    found, rng = {}, random.Random(0)
    known = plan.load()
    for id in known.primaries:
        level = known.rows[id].level
        level = level if isinstance(level, float) else 8.0
        arms = [
            [observations.Observation(s, 0, 0, rng.random(), level, True) for s in known.seeds[:3]]
            for _ in observations.ARMS
        ]
        found[id] = (arms[0], arms[1])
    observations.write(tmp_path / "rows.csv", found, known)
    ledger.rebuild(tmp_path)
    machine = report.machine("full", known.seeds[:3], known.hash)
    files.write_json(tmp_path / "run.json", machine)
    monkeypatch.setattr(files, "figures_folder", lambda *_: tmp_path)
    dots = {"EFUF": [1.0, 2.5, 2.0], "SARE": [1.0, 1.5, 3.0]}
    figures.publish("fig_dots", "04_x", dots, "full", [1, 2, 3], "Dots.", xlabel="CHAIR_s")
    figures.plt.close("all")
    return tmp_path


def csv_of(path):
    lines = path.read_text(encoding="utf-8-sig").splitlines()[2:]
    return sorted((c[0], c[1], int(c[2]), float(c[5])) for c in csv.reader(lines))


def test_rows(book):
    """Fails if a corrupted rows.csv gives a bare error, or a row is lost or doubled (80)."""
    path, known = book / "rows.csv", plan.load()

    def read():
        found = observations.read(path, known)
        arms = [(i, n, arm) for i, pair in found.items() for n, arm in zip(observations.ARMS, pair)]
        return sorted((i, n, o.seed, o.value) for i, n, arm in arms for o in arm)

    assert attacked(path, 80, 0, read, says=csv_of)[0] > 30


@pytest.mark.parametrize("by", ["ledger", "report", "quotes"])
def test_claims(book, by):
    """Fails if a corrupted claims.json gives a bare error in the ledger, the report or where prose
    quotes it (40 times each).
    """
    path, known = book / "claims.json", plan.load()
    readers = {
        "ledger": lambda: ledger.page(book) and None,
        "report": lambda: report.text(report.read(book), report.read(book)) and None,
        "quotes": lambda: quotes.fill("<!-- C6a.diff --><!-- / -->", book) and None,
    }
    content = ledger.read(path, known)
    assert attacked(path, 40, 2, readers[by], content, where="claims.json")[0] > 20


def test_figures(book):
    """Fails if a corrupted figure's JSON gives a bare error when it is drawn or quoted (40)."""
    path = book / "04_x.json"
    content = json.loads(path.read_text())
    quote = "<!-- fig:04_x:results.SARE:.1f --><!-- / -->"
    attacked(path, 32, 3, lambda: quotes.fill(quote, book) and None, content)

    def draw():
        figures.redraw(book)
        if not path.is_file():  # which is no figure then, and no error
            raise ValueError(path)

    attacked(path, 8, 4, draw, content)
    figures.plt.close("all")


def test_a_runs_machine(book):
    """Fails if a corrupted run.json gives a bare error (30)."""
    content = json.loads((book / "run.json").read_text())
    assert attacked(book / "run.json", 30, 5, lambda: report.read(book) and None, content)[0] > 15


def test_synonyms(folder):
    """Fails if a corrupted list of synonyms gives a bare error (20)."""
    path = folder / "synonyms.txt"
    shutil.copy(chair.SYNONYMS, path)
    given = [folder / name for name in ("said.jsonl", "instances.json", "human.json")]

    def read():
        try:
            score.score_chair(str(given[0]), [given[1]], [given[2]], path)
        except ValueError as error:
            # What the list lost, the instances file misses
            raise ValueError(
                f"{path}" * ("not in the synonyms" in str(error)) + f"{error}"
            ) from error

    attacked(path, 20, 6, read)


def test_clip_scores(folder):
    """Fails if a corrupted file of CLIP's scores gives a bare error, or no scores (20)."""
    clip = build_clip().eval()

    class Processor:
        image_processor, tokenizer = image_processor(), build_tokenizer(for_clip=True)

    shown = photos.read_images(folder / "instances.json", folder)
    path = folder / "scores.sqlite"

    def read():
        found = judge.scores(clip, Processor, shown, ["a cup", "a dog"], path)
        assert found.shape == (2, 2) and found.isfinite().all()

    read()
    with closing(sqlite3.connect(path)) as cache:
        assert cache.execute("SELECT count(*) FROM score").fetchone() == (4,)
    attacked(path, 20, 7, read)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, saved):
    """A LoRA adapter of the saved checkpoint."""
    model, processor = load(saved, device="cpu")
    return save(
        set_trainable(model, "lora"), processor, tmp_path_factory.mktemp("adapter") / "lora"
    )


@pytest.mark.parametrize("kind, vital", [("saved", "mcpt"), ("adapter", "ab")])
def test_checkpoints(request, tmp_path, kind, vital):
    """Fails if a checkpoint or an adapter with one file harmed (12 of each) gives a bare error, or
    weights that are not finite.
    """
    path = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / kind))
    names = [p.name for p in sorted(path.iterdir()) if p.name[0] in vital and p.suffix != ".jinja"]
    rng = random.Random(0)
    for turn in range(12):
        file = path / names[turn % len(names)]
        whole = file.read_bytes()
        file.write_bytes(harmed(rng, whole))
        try:
            model, _ = load(path, device="cpu")
            assert all(p.isfinite().all() for p in model.parameters())
        except ValueError as error:  # of several files that are one thing: it names the folder
            assert str(error).startswith(str(path)) and str(error).encode(), error
        file.write_bytes(whole)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root alone can be nobody else")
def test_files_that_may_not_be_read(folder):
    """Fails if a file without leave to read it gives a bare error."""
    folder.chmod(0o755)
    for parent in folder.parents:  # pytest's own are closed to others; a worker has one more
        if parent.name.startswith(("pytest", "popen")):
            parent.chmod(0o711)
    for name, (read, _) in READERS.items():
        (folder / name).chmod(0)
        with unreadable(), pytest.raises(ValueError, match=f"{name}.*Permission denied"):
            read(folder)
        (folder / name).chmod(0o644)
    (folder / "a.png").chmod(0)
    with unreadable(), pytest.raises(ValueError, match="a.png: no usable image"):
        open_image(folder / "a.png")


def test_pixels_of_sixteen_bits(tmp_path):
    """Fails if 16-bit grey is clipped to white without a word."""
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png: no usable image .*clipped"):
        open_image(tmp_path / "deep.png")


def test_what_is_skipped_is_counted_and_listed(folder):
    """Fails if on_bad="skip" drops a row without a word, drops a good one, names another row, or
    becomes the default.
    """
    said = folder / "said.jsonl"
    rows = [{"image_id": 7, "caption": 3}, *FIELDS["said.jsonl"], {"image_id": 9, "caption": "a"}]
    said.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="row 1: 'caption' must be str"):
        coco.read_captions(said)
    found = coco.read_captions(said, on_bad="skip")
    assert found == rows[1:] and found.numbers == [2, 3, 4] and len(found.skipped) == 1
    given = str(said), [folder / "instances.json"], [folder / "human.json"]
    scored = score.score_chair(*given, on_bad="skip")
    assert scored["n"] == 2 and scored["card"]["n_skipped"] == len(scored["skipped"]) == 2
    first, second = scored["skipped"]
    assert f"{said}, row 1: 'caption'" in first and f"{said}, row 4: image_id 9" in second
    said.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="no rows that can be used; the first: .*row 1"):
        coco.read_captions(said, on_bad="skip")
    with pytest.raises(ValueError, match="on_bad='ignore': give 'error', or 'skip'"):
        coco.read_captions(said, on_bad="ignore")


def test_pictures_that_are_skipped_are_counted_and_listed(folder):
    """Fails if a picture that cannot be opened is dropped without a word, or shortens a limit."""
    path = folder / "instances.json"
    names = ["gone.png", "a.png", "cut.png", "../b.png", "b.png"]
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:40])
    images = [{"id": i, "file_name": name} for i, name in enumerate(names, 1)]
    path.write_text(json.dumps(FIELDS["instances.json"] | {"images": images, "annotations": []}))
    with pytest.raises(ValueError, match="images row 1: .*gone.png.*is missing"):
        photos.read_images(path, folder)
    found = photos.read_images(path, folder, on_bad="skip")
    assert [photo.name for photo in found] == ["a.png", "b.png"] and found.numbers == [2, 5]
    for row, says in zip((1, 3, 4), found.skipped, strict=True):
        assert says.startswith(f"{path}, images row {row}: ")
    assert len(photos.read_images(path, folder, limit=2, on_bad="skip")) == 2


@pytest.mark.parametrize("name", READERS)
def test_another_systems_text_is_read_as_it_is(folder, name):
    """Fails if a byte order mark or Windows' line ends, which change nothing, are refused."""
    read, path = READERS[name][0], folder / name
    right, whole = read(folder), path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))
    assert read(folder) == right
