"""The exported microworld behind a web server on 127.0.0.1, laid out as the field's files are:
COCO's archive with the members it has, an address for each image, POPE's, EFUF's and CHAIR's files.
It answers ranges, keeps a list of what was asked, and fails as it is told.
"""

import hashlib
import io
import json
import re
import threading
import zipfile
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from lab.field.sources import SOURCES
from lab.metrics.chair import SYNONYMS

PADDING = 60_000  # bytes of keypoints in the archive, so that a break leaves something to resume


@dataclass
class Fault:
    """What one answer does wrong. kind: drop (after `at` bytes), status (with `at` as the code),
    refuse (no answer), plain (ranges are ignored), elsewhere (another range comes), short, long or
    garbled (whole, but wrong), hold (after `at` bytes, until `go` is set).
    """

    kind: str
    at: int = 0
    headers: dict = field(default_factory=dict)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class Asked:
    path: str
    span: str  # the Range header
    status: int = 0
    sent: int = 0  # bytes


class Web(ThreadingHTTPServer):
    """files: path -> bytes. faults: path -> what its next answers do wrong."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict] = defaultdict(dict)
        self.redirects: dict[str, tuple[str, dict]] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.log: list[Asked] = []
        self.held = threading.Event()

    def whole(self) -> list[str]:
        """The paths that were sent to their end, as often as they were."""
        ends = {path: len(body) for path, body in self.files.items()}
        return [a.path for a in self.log if a.status in (200, 206) and a.sent == ends[a.path]]

    def handle_error(self, request, address):
        """A client that hangs up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms a file, waiting for an acknowledgement
    server: Web

    def log_message(self, *_):
        pass

    def do_GET(self):
        web, path = self.server, urlsplit(self.path).path
        asked = Asked(path, self.headers.get("Range", ""))
        web.log.append(asked)
        fault = web.faults[path].popleft() if web.faults[path] else Fault("none")
        if fault.kind == "refuse":
            self.close_connection = True
        elif path in web.redirects:
            where, headers = web.redirects[path]
            self._answer(asked, 302, b"", {"Location": where} | headers)
        elif fault.kind == "status" or path not in web.files:
            self._answer(asked, fault.at or 404, b"no", fault.headers)
        else:
            self._file(asked, web.files[path], fault)

    def _file(self, asked, body, fault):
        wrong = {"short": body[: len(body) // 2], "long": body + b"x", "garbled": b"?" * len(body)}
        body, start = wrong.get(fault.kind, body), 0
        headers = dict(self.server.headers[asked.path])
        span = re.fullmatch(r"bytes=(\d+)-", asked.span)
        if span and fault.kind != "plain":
            start = int(span[1])
            if start >= len(body):
                headers["Content-Range"] = f"bytes */{len(body)}"
                return self._answer(asked, 416, b"", headers)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if span and fault.kind == "elsewhere":
            start, headers["Content-Range"] = 0, f"bytes 0-{len(body) - 1}/{len(body)}"
        status = 206 if span and fault.kind != "plain" else 200
        self._answer(asked, status, body[start:], headers, fault, start)

    def _answer(self, asked, status, body, headers, fault=None, start=0):
        self.send_response_only(status)  # and no Server of its own
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        asked.status, asked.sent = status, start
        cut = fault.at if fault and fault.kind in ("drop", "hold") else len(body)
        self.wfile.write(body[:cut])
        asked.sent += len(body[:cut])
        if fault and fault.kind == "drop":
            self.close_connection = True
        if fault and fault.kind == "hold":
            self.wfile.flush()
            self.server.held.set()
            fault.go.wait(20)
            self.wfile.write(body[cut:])
            asked.sent += len(body[cut:])


@contextmanager
def web():
    """A server, answering."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def as_coco(exported: Path, images_at: str) -> dict[str, bytes]:
    """The exported microworld as COCO's, POPE's, EFUF's and CHAIR's hosts have it: "/HOST/PATH" ->
    bytes, as a mirror of them all lays out. images_at: where the annotations say that images are.
    """
    named = re.compile(rb"COCO_(train|val)_")
    files, archive = {}, io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((exported / "annotations").iterdir()):
            split, document = path.stem.split("_")[1], json.loads(_renamed(path, named))
            for image in document["images"]:
                place = f"{split}2014/{image['file_name']}"
                image["coco_url"] = f"{images_at}/{place}"
                old = image["file_name"].replace("2014_", "_")
                files[f"/images.cocodataset.org/{place}"] = (exported / split / old).read_bytes()
            packed.writestr(f"annotations/{path.stem}2014.json", json.dumps(document))
        keypoints = hashlib.shake_128(b"").digest(PADDING)  # what nobody reads; it does not shrink
        packed.writestr("annotations/person_keypoints_val2014.json", keypoints)
    at = {Path(source.path).name: _path(source.url) for source in SOURCES}
    files[at["annotations_trainval2014.zip"]] = archive.getvalue()
    for path in [*(exported / "pope").iterdir(), *(exported / "efuf").iterdir()]:
        files[at[path.name]] = _renamed(path, named)
    files[at["synonyms.txt"]] = SYNONYMS.read_bytes()
    return files


def _renamed(path: Path, named: re.Pattern) -> bytes:
    return named.sub(rb"COCO_\g<1>2014_", path.read_bytes())


def _path(url: str) -> str:
    return f"/{urlsplit(url).netloc}{urlsplit(url).path}"


def sources(files: dict[str, bytes], at: str = ""):
    """The table for these files: their sizes and digests; addresses at a server, or the real ones.

    EFUF's stay without, as in the real one.
    """
    rows = []
    for source in SOURCES:
        body = files[_path(source.url)]
        kind = source.digest.partition(":")[0]
        known = kind and f"{kind}:{hashlib.new(kind, body).hexdigest()}"
        url = f"{at}{_path(source.url)}" if at else source.url
        size = len(body) if kind else None
        rows.append(replace(source, url=url, size=size, digest=known))
    return tuple(rows)
