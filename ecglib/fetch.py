"""Fetching PTB-XL from PhysioNet, driven by the server's own list of SHA-256 sums.

A file is written beside its place as `.partial` and takes its name only when its hash is right. So a killed
run goes on where it was, and asking again for what is there fetches nothing but the list.
"""

import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from ecglib.errors import EcglibError
from ecglib.progress import track
from ecglib.provenance import atomic_path, file_sha256

PTBXL_URL = "https://physionet.org/files/ptb-xl/1.0.3/"
SUMS = "SHA256SUMS.txt"
TABLES = ("ptbxl_database.csv", "scp_statements.csv")
_SUM_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]{64})\s+\*?(?P<name>\S.*)")
_AGAIN = "run the same command again: it goes on from here"
_CHUNK = 1 << 16  # bytes
_MAX_REDIRECTS = 5
_MAX_PAUSE_S = 60.0  # that a server may ask for
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """From where, what and how patiently. EcglibError for a value outside its range."""

    base_url: str = PTBXL_URL  # folder on the server that holds SHA256SUMS.txt
    sampling_rate: int = 100  # Hz: 100 takes the 100 Hz copy alone, 500 takes both
    connections: int = 4  # files fetched at the same time
    timeout_s: float = 30.0  # silence of the server after which an attempt has failed, s
    attempts: int = 5  # of each file
    pause_s: float = 1.0  # before the second attempt, s; twice as long before each further one

    def __post_init__(self) -> None:
        if urlsplit(self.base_url).scheme not in ("http", "https") or not urlsplit(self.base_url).hostname:
            raise EcglibError(f"base URL {self.base_url!r}: must begin with https:// or http:// and a host")
        if self.sampling_rate not in (100, 500):
            raise EcglibError(f"sampling_rate={self.sampling_rate}: PTB-XL has 100 and 500 Hz")
        for name in ("connections", "attempts"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.timeout_s <= 0 or self.pause_s < 0:
            raise EcglibError(f"timeout_s={self.timeout_s}, pause_s={self.pause_s}: must be above 0")

    def url(self, name: str) -> str:
        """Where a file of the list lies."""
        return urljoin(self.base_url.rstrip("/") + "/", quote(name))


def fetch_ptbxl(directory: Path, settings: FetchSettings | None = None) -> dict[str, int]:
    """Bring PTB-XL's tables and records into `directory`, laid out as on the server, every hash compared.

    Returns how many files were `fetched` and how many were `there` already. EcglibError, naming the file,
    where the server cannot be reached or lacks it, its hash stays wrong, or the disk is full.
    """
    settings = settings or FetchSettings()
    with _alone(directory):
        with closing(_Fetcher(directory, settings)) as fetcher:
            text = fetcher.text(SUMS)
        files = _wanted(read_sums(text, settings.url(SUMS)), settings)
        with atomic_path(directory / SUMS) as path:
            path.write_text(text, encoding="utf-8")
        fetched = _fetch_all(directory, settings, files)
    return {"fetched": fetched, "there": len(files) - fetched}


def read_sums(text: str, source: str) -> dict[str, str]:
    """Read lines "sha256 name" into name -> sha256; EcglibError for any other, or a name that leads away."""
    sums: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise EcglibError(f"{source}: {line[:80]!r} is no SHA-256 with a name; check the base URL")
        path = PurePosixPath(match["name"])
        if path.is_absolute() or ".." in path.parts or not path.parts or not match["name"].isprintable():
            raise EcglibError(f"{source}: {match['name'][:80]!r} leads out of the folder; nothing is fetched")
        sums[str(path)] = match["sha256"].lower()
    return sums


def _wanted(sums: Mapping[str, str], settings: FetchSettings) -> dict[str, str]:
    """The tables, which come first, the licence and the records of the chosen rates."""
    folders = {100: ("records100/",), 500: ("records100/", "records500/")}[settings.sampling_rate]
    found = {name for name in sums if name.startswith(folders)}
    for needed in (*TABLES, *folders):
        if needed not in sums and not any(name.startswith(needed) for name in found):
            raise EcglibError(f"{settings.url(SUMS)}: lists no {needed}; give the base URL of a PTB-XL")
    names = [*TABLES, *(name for name in ("LICENSE.txt",) if name in sums), *sorted(found)]
    return {name: sums[name] for name in names}


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process: two runs would write into the same files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EcglibError(
            f"{directory}: cannot be made or opened ({error.strerror}); take another"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise EcglibError(f"{directory}: another `ecglib fetch` is at work there; wait for it") from None
    finally:
        os.close(handle)


def _fetch_all(directory: Path, settings: FetchSettings, files: Mapping[str, str]) -> int:
    """Bring all files in; the first that fails ends the others. Returns how many were not there."""
    stop = threading.Event()
    idle = [_Fetcher(directory, settings, stop) for _ in range(settings.connections)]
    fetchers = list(idle)

    def bring(name: str) -> bool:
        fetcher = idle.pop()  # as many threads as fetchers: there is always one
        try:
            return fetcher.bring(name, files[name])
        finally:
            idle.append(fetcher)

    pool = ThreadPoolExecutor(settings.connections)
    try:
        brought = as_completed([pool.submit(bring, name) for name in files])
        return sum(done.result() for done in track(brought, "fetching PTB-XL", len(files), "file"))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        for fetcher in fetchers:
            fetcher.close()


class _Failed(Exception):
    """An attempt that failed and may be made again, not before `pause_s` seconds."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Fetcher:
    """Fetches one file after another over connections that are kept open: each thread has its own."""

    def __init__(self, directory: Path, settings: FetchSettings, stop: threading.Event | None = None) -> None:
        self.directory, self.settings = directory, settings
        self.stop = stop or threading.Event()  # set where another thread has failed
        self.connections: dict[tuple[str, str], HTTPConnection] = {}

    def text(self, name: str) -> str:
        """The text of a file that has no hash."""
        url = self.settings.url(name)
        content = self._patiently(url, lambda: b"".join(_body(self._get(url))))
        return content.decode("utf-8", "replace")

    def bring(self, name: str, sha256: str) -> bool:
        """Put a file in its place; False where it was there already."""
        path = self.directory / name
        partial, url = path.with_name(f"{path.name}.partial"), self.settings.url(name)

        def attempt() -> None:
            if not _has_hash(partial, sha256):  # a killed run may have left it whole
                self._receive(url, partial)
            if not _has_hash(partial, sha256):
                partial.unlink()
                raise _Failed("its SHA-256 is not the one that the server lists")

        try:
            if _has_hash(path, sha256):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            self._patiently(url, attempt)
            os.replace(partial, path)
        except OSError as error:  # of the disk: those of the network are attempts that failed
            raise EcglibError(
                f"{path}: cannot be written ({error.strerror}); mend that, then {_AGAIN}"
            ) from error
        return True

    def _patiently(self, url: str, attempt: Callable[[], T]) -> T:
        """Try again after a pause that doubles; the last failure is the user's to know."""
        pause_s = self.settings.pause_s
        for left in reversed(range(self.settings.attempts)):
            try:
                return attempt()
            except _Failed as error:
                self.close()
                if not left or self.stop.wait(max(pause_s, error.pause_s)):
                    raise EcglibError(
                        f"{url}: {error} ({self.settings.attempts} attempts); {_AGAIN}"
                    ) from error
                pause_s *= 2
        raise AssertionError("there is at least one attempt")

    def _receive(self, url: str, partial: Path) -> None:
        """Add to `partial` what it lacks, or write it anew where the server cannot go on within a file."""
        have = partial.stat().st_size if partial.exists() else 0
        response = self._get(url, have)
        if response.status == 416:  # more is here than the server has
            partial.unlink()
            raise _Failed("its size is not the server's")
        goes_on = response.status == 206 and _starts_at(response) == have
        if response.status == 206 and not goes_on:
            raise _Failed("the server sent another part than was asked for")
        with open(partial, "ab" if goes_on else "wb") as stream:
            for chunk in _body(response):
                stream.write(chunk)
            os.fsync(stream.fileno())

    def _get(self, url: str, start: int = 0) -> HTTPResponse:
        """The answer with the file's bytes from `start` on, or all of them; redirects are followed."""
        here = url
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._ask(here, start)
            if response.status not in (301, 302, 303, 307, 308):
                return _accepted(url, response)
            b"".join(_body(response))  # so that the connection can be used again
            target = urljoin(here, response.getheader("Location") or "")
            if urlsplit(target).scheme not in ("https", urlsplit(here).scheme):
                raise EcglibError(
                    f"{url}: redirected to {target[:80]}, which is not https; nothing is fetched"
                )
            here = target
        raise EcglibError(f"{url}: redirected more than {_MAX_REDIRECTS} times; check the base URL")

    def _ask(self, url: str, start: int) -> HTTPResponse:
        parts = urlsplit(url)
        place = parts.scheme, parts.netloc
        if place not in self.connections:
            self.connections[place] = _connect(parts.scheme, parts.netloc, self.settings.timeout_s)
        proxied = parts.scheme == "http" and _proxy(*place)  # such a proxy reads the whole address
        target = url if proxied else parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        headers = {"User-Agent": "ecglib", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        with _network():
            self.connections[place].request("GET", target, headers=headers)
            return self.connections[place].getresponse()

    def close(self) -> None:
        """Close the connections; the next request opens them again."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()


def _connect(scheme: str, netloc: str, timeout_s: float) -> HTTPConnection:
    """A connection, opened at the first request, through the proxy that the environment names if any."""
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    proxy = _proxy(scheme, netloc)
    connection = kind(proxy or netloc, timeout=timeout_s)
    if proxy and scheme == "https":
        connection.set_tunnel(netloc)
    return connection


def _proxy(scheme: str, netloc: str) -> str:
    """Host and port of the proxy for this address, "" without one."""
    address = getproxies().get(scheme, "")
    return "" if proxy_bypass(netloc) else urlsplit(address).netloc or address


def _accepted(url: str, response: HTTPResponse) -> HTTPResponse:
    """Refuse what another attempt cannot mend; let the rest be tried again."""
    if response.status in (200, 206, 416):
        return response
    said = f"the server answered {response.status} {response.reason}"
    if response.status in (408, 425, 429) or response.status >= 500:
        wait = response.getheader("Retry-After") or ""
        raise _Failed(said, min(float(wait), _MAX_PAUSE_S) if wait.isdecimal() else 0.0)
    raise EcglibError(f"{url}: {said}; check the base URL")


def _body(response: HTTPResponse) -> Iterator[bytes]:
    """The body in pieces; an end before the announced one is a failure."""
    left = response.length or 0  # None where it was not announced
    while True:
        with _network():
            chunk = response.read(_CHUNK)
        if not chunk:
            break
        left -= len(chunk)
        yield chunk
    if left > 0:
        raise _Failed(f"the connection ended {left} bytes too early")


def _starts_at(response: HTTPResponse) -> int:
    match = re.match(r"bytes (\d+)-", response.getheader("Content-Range") or "")
    return int(match[1]) if match else -1


@contextmanager
def _network() -> Iterator[None]:
    """Tell failures of the network, which another attempt may mend, from those of the disk."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise _Failed(f"no answer ({str(error) or type(error).__name__})") from error


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
