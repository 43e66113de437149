"""Files over HTTP: several at once, resumed where the line broke, whole under their name or not
there at all.

Each goes to NAME.part, is checked (size, digest, what it holds) and then renamed. What is here and
what is not:
    pooch checks digests and renames, but throws away what came before a break, fetches one file
    after the other, and waits without jitter;
    huggingface_hub resumes by ranges, in a function of its own that gives up at a 503.
So `requests` does connections, proxies, redirects and certificates; here is only what goes around
it. No torch.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError

BLOCK = 2**13  # bytes that are written at once, and lost where the line breaks
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be gone at the next try
A_STEP = 2**20  # bytes: a file that grew by as much since it was given up on has its tries back
TOO_MANY = 3  # files that all tries failed for: the line is down, so the others need not try
JITTER = random.Random()  # so that the threads of one run do not all come back at once


class FetchError(ValueError):
    """What could not be fetched: it names the URL, the status and the mend."""


class Missing(FetchError):
    """Some files could not be fetched; all others are there."""


class _Unreachable(FetchError):
    """All tries failed: so may those of the other files."""


class _Disk(FetchError):
    """The file could not be written: no other will."""


class _Passing(Exception):
    """A failure that another try may mend. after: seconds that the server asks to wait."""

    def __init__(self, what: str, after: float = 0.0):
        super().__init__(what)
        self.after = after


class _Spoiled(Exception):
    """What came is whole and wrong."""


class _Stopped(Exception):
    """Another file failed for good, or the user has had enough."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. size: bytes, if published. about: bytes, an estimate, for the progress bar.
    digest: "md5:..." or "sha256:...", if published. check: raises ValueError for what is no such
    file.
    """

    url: str
    path: Path
    size: int | None = None
    digest: str = ""
    check: Callable[[Path], object] | None = None
    about: int = 0

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.path.with_name(f"{self.path.name}.part")


@dataclass(frozen=True)
class Patience:
    """How long to go on. A file has `tries` of them; between two a random wait, from half of
    first_wait * 2**n to all of it, at most longest_wait.
    """

    tries: int = 6
    first_wait: float = 1.0  # seconds
    longest_wait: float = 30.0  # seconds
    timeout: tuple[float, float] = (10.0, 20.0)  # seconds to connect, and without a byte
    threads: int = 8


@dataclass
class _Run:
    """What the threads share."""

    patience: Patience
    bar: tqdm
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    own: threading.local = field(default_factory=threading.local)  # a session is not for two
    sessions: list[requests.Session] = field(default_factory=list)
    live: dict[Path, requests.Response] = field(default_factory=dict)
    sizes: dict[Path, int] = field(default_factory=dict)  # bytes, as the bar counts on them
    received: int = 0  # bytes

    def session(self) -> requests.Session:
        if not hasattr(self.own, "session"):
            self.own.session = requests.Session()
            with self.lock:
                self.sessions.append(self.own.session)
        return self.own.session

    def show(self, n_bytes: int, n_received: int = 0) -> None:
        """So many more bytes are there (fewer, if negative), of which so many came now."""
        with self.lock:
            self.bar.update(n_bytes)
            self.received += n_received

    def expect(self, file: Wanted, size: int) -> None:
        """The file's size, which may have been thought another."""
        with self.lock:
            self.bar.total += size - self.sizes.get(file.path, file.size or file.about)
            self.sizes[file.path] = size

    def halt(self) -> None:
        """Let the threads end, also those that wait for a byte (urllib3 can, from 2.3 on)."""
        self.stop.set()
        for response in list(self.live.values()):
            with suppress(Exception):
                response.raw.shutdown()

    def wait(self, tries: int, after: float) -> None:
        patience = self.patience
        longest = min(patience.longest_wait, patience.first_wait * 2 ** (tries - 1))
        wait = max(min(after, patience.longest_wait), JITTER.uniform(longest / 2, longest))
        if self.stop.wait(wait):
            raise _Stopped


def download(
    files: Sequence[Wanted], patience: Patience = Patience(), progress: bool = True, label: str = ""
) -> int:
    """Fetch the files, each into its path; returns the number of bytes that came.

    Nothing stands under a file's name before it is whole and checked. What came of a file whose
    line broke stays in its .part, where the next call goes on. A file that is not there (404), or
    is another than was expected, does not stop the others.
    Raises Missing for the first that failed, after the others: it names URL, status and mend, and
    says how many failed. Raises FetchError at once if the disk or the line fails. Raises
    KeyboardInterrupt after the threads have stopped.
    """
    failed: list[FetchError] = []
    with (
        _running(files, patience, progress, label) as run,
        ThreadPoolExecutor(patience.threads) as pool,
    ):
        jobs = [pool.submit(_fetch, file, run) for file in files]
        try:
            for job in as_completed(jobs):
                _note(job, failed)
        except BaseException:
            run.halt()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        more = f" ({len(failed)} of {len(files)} files failed.)" if len(failed) > 1 else ""
        raise Missing(f"{failed[0]}{more}")
    return run.received


def _note(job, failed: list[FetchError]) -> None:
    """Keep the error of a file that failed alone; raise one that ends the run."""
    try:
        job.result()
    except _Disk:
        raise
    except FetchError as error:
        failed.append(error)
        if sum(isinstance(error, _Unreachable) for error in failed) >= TOO_MANY:
            raise FetchError(
                f"{error} ({len(failed)} files failed, the rest was let be.)"
            ) from error


@contextmanager
def _running(
    files: Sequence[Wanted], patience: Patience, progress: bool, label: str
) -> Iterator[_Run]:
    how = {"unit": "B", "unit_scale": True, "desc": label or None, "disable": not progress}
    with tqdm(total=sum(file.size or file.about for file in files), **how) as bar:
        run = _Run(patience, bar)
        try:
            yield run
        finally:
            for session in run.sessions:
                session.close()


def _fetch(file: Wanted, run: _Run) -> None:
    """One file, with all its tries."""
    tries, spoiled, reached = 0, 0, _size(file.part)
    run.show(reached)
    while True:
        if run.stop.is_set():
            raise _Stopped
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            _verify(file, *_receive(file, run))
            file.part.replace(file.path)
            return
        except _Passing as error:
            if _size(file.part) >= reached + A_STEP:
                tries, reached = 0, _size(file.part)
            tries += 1
            if tries >= run.patience.tries:
                raise _Unreachable(
                    f"{file.url}: {error}, after {tries} tries. Check the network (requests takes a"
                    " proxy from HTTP_PROXY and HTTPS_PROXY), or give a --mirror, and run it again:"
                    " what came is kept."
                ) from error
            run.wait(tries, error.after)
        except _Spoiled as error:
            # The part that an earlier run left may be of another file; what came anew is not
            spoiled += 1
            run.show(-_size(file.part))
            file.part.unlink(missing_ok=True)
            if spoiled == 2:
                raise FetchError(
                    f"{file.url}: {error}, twice. Another file stands there now, or something"
                    " between answers in its place: try again later, or give a --mirror."
                ) from error
        except OSError as error:
            with suppress(OSError):
                file.part.unlink()
            raise _Disk(
                f"{file.path}: cannot be written ({error.strerror or error}); it comes from"
                f" {file.url}. Make room there, or choose another folder, and run it again."
            ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(file: Wanted, run: _Run) -> tuple[str, str]:
    """Bring the part to its end, from where it is; (status, the digest that the server says)."""
    at = _size(file.part)
    if at and at == file.size:
        return "no request was needed", ""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
    how = {"headers": headers, "stream": True, "timeout": run.patience.timeout}
    try:
        with run.session().get(file.url, **how) as response:
            status = f"HTTP status {response.status_code} ({response.reason})"
            start, total = _place(file, response, status, at)
            run.show(start - at)
            if total is not None:
                run.expect(file, total)
            if start != total:
                run.live[file.path] = response
                _write(file.part, start, response, run)
            published = _published(response)
    # The second: requests hands on some of what urllib3 raises while a body is read
    except (requests.RequestException, HTTPError) as error:
        if isinstance(error, ValueError):
            raise FetchError(f"{file.url}: no usable URL ({error}). Mend it.") from error
        raise _Passing(f"no status, the connection failed ({_reason(error)})") from error
    finally:
        run.live.pop(file.path, None)
    if total is not None and _size(file.part) < total:
        raise _Passing(f"{status}, but the connection ended at {_size(file.part)} of {total} bytes")
    if total is not None and _size(file.part) > total:
        raise _Spoiled(f"{status}, but more than its {total} bytes came")
    return status, published


def _reason(error: BaseException) -> str:
    """The innermost cause, in few words: requests wraps urllib3's, which wraps the system's."""
    inner = error
    while inner is not None:
        error, within = inner, (getattr(inner, "reason", None), *inner.args)
        inner = next((cause for cause in within if isinstance(cause, BaseException)), None)
    return f"{type(error).__name__}: {error}"[:200]


def _place(
    file: Wanted, response: requests.Response, status: str, at: int
) -> tuple[int, int | None]:
    """(the byte that the body begins at, the size of the whole file or None if nobody says)."""
    code, headers = response.status_code, response.headers
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    is_plain = headers.get("Content-Encoding", "identity") == "identity"
    if code in (206, 416):
        start = at if code == 416 else int(span[1]) if span and span[1] else -1
        total = int(span[2]) if span and span[2] != "*" else None
        if not at or start != at or (code == 416 and total != at) or not is_plain:
            # The part is longer than the file, or the server counts in its own way, as packed
            raise _Spoiled(f"{status}, but not from byte {at} on")
        if total is None and headers.get("Content-Length", "").isdigit():
            total = start + int(headers["Content-Length"])
    elif code == 200:
        length = headers.get("Content-Length", "") if is_plain else ""
        start, total = 0, int(length) if length.isdigit() else None
    elif code in PASSING:
        after = headers.get("Retry-After", "")
        raise _Passing(status, float(after) if after.isdigit() else 0.0)
    else:
        raise FetchError(
            f"{file.url}: {status}. It may have moved, or be closed to you: look at the address in"
            f" a browser, give a --mirror, or put the file to {file.path} yourself."
        )
    if file.size is not None and total is not None and total != file.size:
        raise _Spoiled(f"{status}, but it has {total} bytes, and {file.size} are expected")
    return start, total


def _write(part: Path, start: int, response: requests.Response, run: _Run) -> None:
    with open(part, "ab" if start else "wb") as out:
        for block in response.iter_content(BLOCK):
            if run.stop.is_set():
                raise _Stopped
            out.write(block)
            run.show(len(block), len(block))


def _published(response: requests.Response) -> str:
    """The digest of the file that the server's headers say, or "".

    Amazon S3, which serves COCO: the ETag is the MD5 of an object that was put there in one piece
    and is not encrypted by a key of its owner; else it has other than 32 hexadecimal digits, or
    the encryption is named (S3 API reference, Object). The hub of huggingface: X-Linked-ETag, on
    the redirect, is the SHA-256 of a large file (huggingface_hub/file_download.py).
    """
    headers, etag = response.headers, response.headers.get("ETag", "").strip('"')
    kept = headers.get("x-amz-server-side-encryption", "AES256")
    if headers.get("Server") == "AmazonS3" and kept == "AES256":
        customer = "x-amz-server-side-encryption-customer-algorithm" in headers
        return f"md5:{etag}" if re.fullmatch("[0-9a-f]{32}", etag) and not customer else ""
    for hop in response.history:
        linked = hop.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", linked):
            return f"sha256:{linked}"
    return ""


def digest(path: Path, kind: str) -> str:
    """A file's "KIND:hexadecimal digits"; kind: md5 or sha256."""
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return f"{kind}:{found.hexdigest()}"


def _verify(file: Wanted, status: str, published: str) -> None:
    """Raises _Spoiled unless the part is what was asked for."""
    if not _size(file.part):
        raise _Spoiled(f"{status}, but it holds no bytes")
    if file.size is not None and _size(file.part) != file.size:
        raise _Spoiled(f"{status}, but it has {_size(file.part)} bytes, not {file.size}")
    for expected in filter(None, (file.digest, published)):
        found = digest(file.part, expected.partition(":")[0])
        if found != expected:
            raise _Spoiled(f"{status}, but its digest is {found}, and {expected} is expected")
    try:
        if file.check:
            file.check(file.part)
    except ValueError as error:
        raise _Spoiled(f"{status}, but what came is not the file ({error})") from error
