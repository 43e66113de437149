"""Fetching what chapter 05 reads, from a server that fails in every way that one can."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, disk_of, tiny_llava
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Fault, as_coco, sources, web

from lab.field import coco, download, export, fetch, photos
from lab.field.download import FetchError, Patience
from lab.metrics import chair
from lab.tools import cli
from lab.world.models import build_clip
from lab.world.scenes import draw

HASTE = Patience(tries=3, first_wait=0.001, longest_wait=0.002, timeout=(5, 5), threads=4)
COCO, N_TRAIN, N_VAL = "/images.cocodataset.org", 3, 3
ARCHIVE = f"{COCO}/annotations/annotations_trainval2014.zip"


@pytest.fixture(scope="module")
def world(scenes):
    return {"train": scenes[:5], "val": scenes[5:]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, processor, world, texts):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = build_clip().eval()
    folder = tmp_path_factory.mktemp("data") / "micro"
    return export.export(folder, world, clip, tiny_llava(), processor, texts[:5])


@pytest.fixture(scope="module")
def server(exported):
    with web() as running, mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1"}):
        running.files = as_coco(exported, f"{running.url}{COCO}")
        yield running


@pytest.fixture(scope="module")
def right(server, tmp_path_factory):
    """What a fetch without a fault leaves: path -> bytes."""
    folder = tmp_path_factory.mktemp("right")
    get(server, folder)
    return tree(folder)


@pytest.fixture(autouse=True)
def calm(server):
    """No fault and nothing asked before a test. COCO's host is S3, which says each file's MD5."""
    for kept in (server.faults, server.headers, server.redirects, server.log):
        kept.clear()
    for path in filter(re.compile(COCO).match, server.files):
        server.headers[path] = {"Server": "AmazonS3", "ETag": f'"{md5(server.files[path])}"'}
    server.held.clear()


def get(server, folder, images=N_TRAIN, **how):
    how = {"patience": HASTE, "progress": False, "sources": sources(server.files, server.url)} | how
    return fetch.fetch(folder, images, **how)


def tree(folder: Path) -> dict[str, bytes]:
    """The files in the folder but for the lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != ".fetch.lock"}


def image(server, split="train", at=0) -> str:
    """The address of an image that is fetched."""
    return sorted(p for p in server.files if p.startswith(f"{COCO}/{split}2014/"))[at]


def test_chapter_05_reads_what_was_fetched(server, world, tmp_path):
    """Fails if a file that chapter 05 looks for is missing, stands twice or is another, if a wrong
    image came, or one that nobody reads.
    """
    said = get(server, tmp_path)
    source = (ROOT / "chapters/05_real_thing.py").read_text()
    likes = re.findall(r'": "((?:instances|captions)_.*?|pos_neg.json|sentences.json)"', source)
    assert len(likes) == 6 and f"images = {fetch.IMAGES} " in source
    kinds = ("random", "popular", "adversarial")
    files = {like: photos.find(tmp_path, like) for like in likes}
    asked = {kind: photos.find(tmp_path, f"coco_pope_{kind}.json") for kind in kinds}
    names = {row["image"] for path in asked.values() for row in coco.read_questions(path)}
    shown = {}
    for split, how in (("val", {"names": names}), ("train", {"limit": N_TRAIN})):
        instances = files[f"instances_{split}*.json"]
        shown[split] = photos.read_images(instances, photos.images_folder(instances), **how)
        assert len(shown[split]) == said["images"][split] == 3
        for photo, scene in zip(shown[split], world[split]):
            assert photo.objects == tuple(sorted(scene.objects))
            assert np.array_equal(np.asarray(photo.open()), np.asarray(draw(scene)))
    for path in asked.values():
        assert len(photos.read_pope(path, shown["val"])[0]) > 0
    assert photos.read_efuf(files["pos_neg.json"], files["sentences.json"])
    photos.truths(shown["train"], files["captions_train*.json"], chair.convention("efuf"))
    assert chair.read_synonyms(said["synonyms"]) == chair.read_synonyms()
    fetched = {p for p in server.files if p.startswith(COCO)} - {ARCHIVE}
    assert len(fetched) == 8 and {a.path for a in server.log if "2014/" in a.path} == {
        *(image(server, at=at) for at in range(N_TRAIN)),
        *(image(server, "val", at=at) for at in range(N_VAL)),
    }


def test_a_second_run_asks_nothing(server, right, tmp_path):
    """Fails if what is there is asked for again, or what was removed is not."""
    first = get(server, tmp_path)
    server.log.clear()
    assert get(server, tmp_path)["fetched"] == 0 and server.log == [] and first["fetched"] == 13
    (tmp_path / "annotations_trainval2014.zip").unlink()  # unpacked, so needed no more
    get(server, tmp_path)
    assert server.log == []
    lost = tmp_path / "val2014" / Path(image(server, "val")).name
    lost.write_bytes(b"")
    get(server, tmp_path)
    assert [asked.path for asked in server.log] == [image(server, "val")]
    server.log.clear()
    get(server, tmp_path, images=4)
    assert [asked.path for asked in server.log] == [image(server, at=3)]


@pytest.mark.parametrize("at", [1, 9_000, 50_000])
@pytest.mark.parametrize("kind", ["drop", "plain", "elsewhere"])
def test_a_broken_line_is_resumed_by_a_range(server, right, tmp_path, at, kind):
    """Fails if the archive starts anew after a break although the server knows ranges, or is wrong
    where it does not, or sends another range, or a block that came is asked for again.
    """
    server.faults[ARCHIVE].extend([Fault("drop", at), Fault(kind, 5_000)])
    get(server, tmp_path)
    assert tree(tmp_path) == right
    spans = [asked.span for asked in server.log if asked.path == ARCHIVE]
    is_short = kind == "plain" or (kind, at) == ("elsewhere", 1)  # of one byte nothing is kept
    assert len(spans) == (2 if is_short else 3) and spans[0] == ""
    resumed = int(spans[1].removeprefix("bytes=").rstrip("-") or 0)
    assert at - download.BLOCK < resumed <= at


def test_a_long_file_on_a_bad_line(server, tmp_path, monkeypatch):
    """Fails if tries are counted over a whole file: a line that breaks often, but brings something
    each time, would never end.
    """
    monkeypatch.setattr(download, "A_STEP", 8192)
    server.faults[ARCHIVE].extend(Fault("drop", 9_000) for _ in range(5))
    get(server, tmp_path)
    assert sum(asked.path == ARCHIVE for asked in server.log) == 6 > HASTE.tries


def test_a_503_that_recovers(server, right, tmp_path):
    """Fails if a passing status ends the run, or the server's Retry-After is not waited for."""
    slow = Patience(tries=3, first_wait=0.001, longest_wait=1.5)
    server.faults[image(server)].extend([Fault("status", 503, {"Retry-After": "1"})])
    server.faults[image(server, "val")].extend([Fault("refuse"), Fault("status", 500)])
    began = time.monotonic()
    get(server, tmp_path, patience=slow)
    assert tree(tmp_path) == right and time.monotonic() - began >= 1


def test_what_is_not_there_is_named_and_the_rest_comes(server, right, tmp_path):
    """Fails if a 404 stops the other files or leaves something, or URL, status and mend are unsaid.

    EFUF's files come before the images, which need none of them.
    """
    efuf = next(path for path in server.files if path.endswith("pos_neg.json"))
    for path, name in ((image(server), "train2014"), (efuf, "efuf")):
        server.faults[path].append(Fault("status", 404))
        folder = tmp_path / name
        with pytest.raises(FetchError) as caught:
            get(server, folder)
        assert f"{server.url}{path}: HTTP status 404" in str(caught.value)
        assert "--mirror" in str(caught.value)
        place = f"{name}/{Path(path).name}"
        assert right.items() - tree(folder).items() == {(place, right[place])}
        get(server, folder)
        assert tree(folder) == right


@pytest.mark.parametrize("kind", ["short", "long", "garbled"])
@pytest.mark.parametrize("name", ["archive", "image", "pos_neg.json", "synonyms.txt"])
def test_another_file_than_expected(server, right, tmp_path, kind, name):
    """Fails if a file of a wrong size, digest or content keeps its name, or is not asked for once
    more.
    """
    path = {"archive": ARCHIVE, "image": image(server)}.get(name) or next(
        path for path in server.files if path.endswith(name)
    )
    server.faults[path].append(Fault(kind))
    get(server, tmp_path / "once")
    assert tree(tmp_path / "once") == right
    server.faults[path].extend(Fault(kind) for _ in range(2))
    with pytest.raises(FetchError, match="twice") as caught:
        get(server, tmp_path / "ever")
    assert f"{server.url}{path}: HTTP status 200 (OK), but" in str(caught.value)
    assert tree(tmp_path / "ever").items() <= right.items()


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def test_digests_that_servers_publish(server, tmp_path):
    """Fails if S3's ETag or the hub's is not held against what came, or an ETag that is no digest
    is.
    """
    path, target = image(server), "/cdn/pos_neg"
    for etag, more, is_right in (
        (md5(b"another"), {}, False),
        (md5(b"another"), {"x-amz-server-side-encryption": "aws:kms"}, True),
        (f"{md5(b'')}-2", {}, True),
        (md5(server.files[path]), {}, True),
    ):
        server.headers[path] = {"Server": "AmazonS3", "ETag": f'"{etag}"'} | more
        file = download.Wanted(server.url + path, tmp_path / f"{etag}{len(more)}.png")
        assert succeeds(file) == is_right
    server.headers[path] = {"Server": "another", "ETag": f'"{md5(b"another")}"'}
    assert succeeds(download.Wanted(server.url + path, tmp_path / "other.png"))
    server.files[target] = b"[]"
    for body, is_right in ((b"[]", True), (b"{}", False)):
        sha = hashlib.sha256(body).hexdigest()
        server.redirects["/hub"] = (f"{server.url}{target}", {"X-Linked-ETag": f'"{sha}"'})
        assert succeeds(download.Wanted(f"{server.url}/hub", tmp_path / sha)) == is_right
    del server.files[target]


def succeeds(file) -> bool:
    try:
        download.download([file], HASTE, progress=False)
    except FetchError as error:
        assert "digest" in str(error) and not file.path.exists() and not file.part.exists()
        return False
    return file.path.exists()


def test_a_line_that_is_down(tmp_path):
    """Fails if a dead server is asked for every file in turn, or the error is a bare traceback."""
    with web() as gone:
        url = gone.url
    files = [download.Wanted(f"{url}/{i}", tmp_path / str(i)) for i in range(200)]
    with pytest.raises(
        FetchError, match=rf"{url}/\d+: no status.*refused.*after 3 tries"
    ) as caught:
        download.download(files, HASTE, progress=False)
    assert "the rest was let be" in str(caught.value) and not list(tmp_path.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["archive", "member"])
def test_a_full_disk(server, right, tmp_path, monkeypatch, what):
    """Fails if a disk that fills up leaves half a file, or the error does not say so."""
    with monkeypatch.context() as patch:
        if what == "archive":
            patch.setattr(download, "_write", lambda part, *_: full(part.write_bytes(b"half")))
        else:
            patch.setattr(fetch.shutil, "copyfileobj", full)
        with pytest.raises(FetchError, match="cannot be written .No space left on device"):
            get(server, tmp_path)
    assert {n for n, _ in tree(tmp_path).items() - right.items()} <= {f"{n}.part" for n in right}
    assert not (tmp_path / "annotations_trainval2014.zip.part").exists()
    get(server, tmp_path)
    assert tree(tmp_path) == right


@pytest.fixture
def small_disk(tmp_path):
    with disk_of("200k", tmp_path / "disk") as at:
        yield at


def test_a_disk_that_is_full_indeed(server, right, small_disk, monkeypatch):
    """Fails as above, on a file system of 200 kB with 60 of them taken."""
    monkeypatch.setattr(fetch, "_room", lambda *_: None)
    (small_disk / "taken").write_bytes(bytes(140_000))
    with pytest.raises(FetchError, match="cannot be written .No space left on device"):
        get(server, small_disk)
    left = {name: body for name, body in tree(small_disk).items() if not name.endswith(".part")}
    assert left.pop("taken") and left.items() <= right.items()
    assert not (small_disk / "annotations_trainval2014.zip.part").exists()


def test_too_little_room_is_said_before(server, tmp_path, monkeypatch):
    """Fails if a fetch begins that cannot end, or the estimate is unsaid."""
    usage = shutil._ntuple_diskusage(10**10, 10**10, 10**8)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"about 7\d\dMB are needed, 100MB are free"):
        get(server, tmp_path)
    assert server.log == [] and tree(tmp_path) == {}


CHILD = """
import json, signal, sys
from lab.field import fetch
from lab.field.sources import Source
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
rows = [Source(**row) for row in json.loads(sys.argv[2])]
sys.exit(fetch.main(["coco", "--into", sys.argv[1], "--images", "3"], sources=rows))
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_and_run_again(server, right, tmp_path, kill):
    """Fails if a run that is stopped leaves half a file under its name, or the next one asks for a
    file that came, or for the whole of one that came in part.
    """
    held = Fault("hold", 40_000)
    server.faults[ARCHIVE].append(held)
    rows = json.dumps([vars(row) for row in sources(server.files, server.url)])
    env = os.environ | {"PYTHONPATH": str(ROOT / "chapters")}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), rows],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.held.wait(30)
    part = tmp_path / "annotations_trainval2014.zip.part"
    others = [tmp_path / row.path for row in sources(server.files) if row.path != part.stem]
    while not (part.exists() and part.stat().st_size > 30_000 and all(map(Path.exists, others))):
        time.sleep(0.01)
    child.send_signal(kill)
    _, said = child.communicate(timeout=15)  # it waits for no byte that the server holds back
    held.go.set()
    assert child.returncode == (130 if kill == signal.SIGINT else -kill), said
    assert "Traceback" not in said and ("what came is kept" in said or kill != signal.SIGINT)
    left = tree(tmp_path)
    assert left.pop(part.name) and left.items() <= right.items() and len(left) == 6
    get(server, tmp_path)
    assert tree(tmp_path) == right
    asked = [asked for asked in server.log if asked.path == ARCHIVE]
    assert [a.span != "" for a in asked] == [False, True]
    others = [a.path for a in server.log if a.path != ARCHIVE]
    assert len(others) == len(set(others))


def test_a_second_fetch_waits_outside(server, tmp_path):
    """Fails if two fetches write the same parts."""
    with fetch._alone(tmp_path), pytest.raises(FetchError, match="another fetch is at work"):
        get(server, tmp_path)


@pytest.mark.parametrize("name", ["pope/coco_pope_random.json", "annotations_trainval2014.zip"])
def test_a_users_own_file_is_left_alone(server, tmp_path, name):
    """Fails if a file of the same name that is another is written over."""
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(FetchError, match="holds another file than http.*move it out"):
        get(server, tmp_path)
    assert tree(tmp_path) == {name: b"mine"} and server.log == []


def test_files_that_lie_elsewhere_below_are_found(server, right, tmp_path):
    """Fails if a reader who unpacked COCO and POPE already has to fetch them again, or is left with
    two of a kind.
    """
    get(server, tmp_path / "all")
    (tmp_path / "all/pope").rename(tmp_path / "all/POPE")
    (tmp_path / "all/zips").mkdir()
    archive = tmp_path / "all/annotations_trainval2014.zip"
    archive.rename(tmp_path / "all/zips" / archive.name)
    (tmp_path / "all/annotations/captions_val2014.json").unlink()  # to be unpacked once more
    (tmp_path / "all/images").mkdir()
    for split in ("train2014", "val2014"):
        (tmp_path / "all" / split).rename(tmp_path / "all/images" / split)
    server.log.clear()
    assert get(server, tmp_path / "all")["fetched"] == 0 == len(server.log)
    assert (tmp_path / "all/annotations/captions_val2014.json").exists()
    shutil.copy(tmp_path / "all/POPE/coco_pope_random.json", tmp_path / "all")
    with pytest.raises(FetchError, match="keep one of them"):
        get(server, tmp_path / "all")


def packed(server, change) -> bytes:
    """The archive with other members: change takes {name: bytes}."""
    with zipfile.ZipFile(io.BytesIO(server.files[ARCHIVE])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return body.getvalue()


@pytest.mark.parametrize("evil", ["out", "lost", "broken", "address", "name", "unlisted"])
def test_archives_made_to_harm(server, tmp_path, monkeypatch, evil):
    """Fails if an archive or what is in it writes outside of the folder, or half of it is taken
    for all.
    """
    instances = "annotations/instances_train2014.json"

    def change(members):
        document = json.loads(members[instances])
        if evil == "out":
            members["../evil.json"] = members["/evil.json"] = b"{}"
        if evil == "lost":
            del members["annotations/captions_val2014.json"]
        if evil == "address":
            document["images"][0]["coco_url"] = "file:///etc/passwd"
        if evil == "name":
            document["images"][0]["file_name"] = "../../evil.png"
        if evil == "unlisted":
            val = json.loads(members["annotations/instances_val2014.json"])
            del val["images"][0]
            members["annotations/instances_val2014.json"] = json.dumps(val).encode()
        members[instances] = json.dumps(document).encode()

    body = packed(server, change)
    if evil == "broken":
        at = body.index(b'"images"')
        body = body[:at] + b"?" + body[at + 1 :]
    monkeypatch.setitem(server.files, ARCHIVE, body)
    del server.headers[ARCHIVE]
    place = tmp_path / "a" / "b"
    says = {"lost": "cannot be unpacked", "broken": "Bad CRC-32", "address": "coco_url"}
    says |= {"name": "leads out of", "unlisted": "is not listed"}
    if evil == "out":
        get(server, place)
    else:
        with pytest.raises(FetchError, match=says[evil]):
            get(server, place)
    assert not [path for path in tmp_path.rglob("*evil*")]
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.*")} == {("a", "b")}


def test_a_link_leads_nobody_out(server, tmp_path):
    """Fails if a folder, or a part, that is a link is followed out of the folder."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/pope").symlink_to(tmp_path / "outside")
    with pytest.raises(FetchError, match="pope.*leads out of"):
        get(server, tmp_path / "in")
    (tmp_path / "in/pope").unlink()
    (tmp_path / "in/annotations_trainval2014.zip.part").symlink_to(tmp_path / "outside/x")
    with pytest.raises(FetchError, match="leads out of"):
        get(server, tmp_path / "in")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("how", ["of all", "of each host"])
def test_a_mirror(server, right, tmp_path, monkeypatch, capsys, exported, how):
    """Fails if --mirror does not take the place of every address, the images' own as well."""
    files = as_coco(exported, "http://images.cocodataset.org")
    monkeypatch.setattr(server, "files", files)
    server.headers.clear()
    given = [f"--mirror={server.url}"]
    if how == "of each host":
        hosts = {path.split("/")[1] for path in files}
        given = [f"--mirror={host}={server.url}/{host}/" for host in hosts]
    arguments = ["coco", "--into", str(tmp_path), "--images", "3", *given]
    assert fetch.main(arguments, sources=sources(files), patience=HASTE) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"val": 3, "train": 3}
    pictures = {name: body for name, body in tree(tmp_path).items() if name.endswith(".png")}
    assert pictures.items() == {i for i in right.items() if i[0].endswith(".png")}


def test_the_command_says_what_would_come(server, tmp_path, capsys):
    """Fails if --dry-run asks the net or writes, or a source, its licence or a size is unsaid."""
    assert cli.main(["fetch", "coco", "--into", str(tmp_path / "new"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "new").exists() and server.log == []
    for source in fetch.SOURCES:
        assert source.url in said and source.licence in said
    assert "500 val images" in said and "2224 train images" in said and "1.30GB on the disk" in said


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--images", "0"], "whole number from 1 on"),
        (["--images", "many"], "whole number from 1 on"),
        (["--mirror", "mirror.org"], "is no URL"),
        (["--threads", "-1"], "whole number from 1 on"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, says):
    """Fails if a bad argument is not one line that names it."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fetch", "coco", "--into", str(tmp_path / "new"), *arguments])
    assert says in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_no_torch_is_loaded():
    """Fails if whoever fetches waits for torch first."""
    code = "import sys, lab.field.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "chapters").returncode == 0


def test_a_folder_that_is_none(tmp_path, capsys):
    """Fails if a file in the place of the folder is a traceback."""
    (tmp_path / "file").write_text("")
    assert cli.main(["fetch", "coco", "--into", str(tmp_path / "file")]) == 1
    assert "error:" in capsys.readouterr().err


FAULTS = ("drop", "drop", "refuse", "plain", "elsewhere", "short", "long", "garbled", "status")
FAULTY = st.builds(
    lambda place, kind, at, code: (place, Fault(kind, code if kind == "status" else at)),
    st.integers(0, 12),
    st.sampled_from(FAULTS),
    st.integers(0, 70_000),
    st.sampled_from([503, 503, 429, 404, 416, 403]),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(FAULTY, max_size=12),
    full_at=st.sampled_from([None] * 9 + [0, 5, 20]),
    there=st.lists(st.booleans(), min_size=17, max_size=17),
)
def test_any_faults_in_any_order(server, right, tmp_path_factory, faults, full_at, there):
    """Fails if some faults, from some files on, end in something else than the right files, or one
    error that names what failed and no wrong file; or if the run after that asks for a file that
    had come.
    """
    server.log.clear()
    server.faults.clear()
    paths = [path for path in server.files if "2014/" not in path or path in used(server)]
    for place, fault in faults:
        server.faults[paths[place]].append(fault)
    folder, writes, write = tmp_path_factory.mktemp("any"), [], download._write
    names = {name for name, is_there in zip(right, there, strict=True) if is_there}
    if names.issuperset(fetch.MEMBERS):  # what is unpacked needs no archive
        names.add("annotations_trainval2014.zip")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(right[name])

    def written(*given):
        writes.append(1)
        return full() if full_at is not None and len(writes) > full_at else write(*given)

    try:
        with mock.patch.object(download, "_write", written):
            get(server, folder)
    except FetchError as error:
        assert re.search(rf"{server.url}/\S+|{folder}/\S+: cannot be written", str(error))
        assert re.search(r"status|cannot be written", str(error))
        finished = {n: b for n, b in tree(folder).items() if not n.endswith(".part")}
        assert finished.items() <= right.items()
        came = {path for path in paths if Path(path).name in {Path(n).name for n in finished}}
        server.faults.clear()
        server.log.clear()
        get(server, folder)
        assert not came & {asked.path for asked in server.log}
    assert tree(folder) == right
    shutil.rmtree(folder)


def used(server) -> set[str]:
    return {image(server, split, at) for split in ("train", "val") for at in range(3)}
