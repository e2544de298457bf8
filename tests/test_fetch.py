"""Fetching PTB-XL, against a server on this machine that misbehaves in every way that servers do."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib.errors import EcglibError
from ecglib.fetch import SUMS, FetchSettings, fetch_ptbxl, read_sums

RECORD = "records100/00000/00001_lr.dat"
N_BYTES = 300_000  # more than the buffers between server and client hold, so that an end comes midway


class Server(ThreadingHTTPServer):
    """Serves `files` under /ptb-xl/; `faults` has, for a file, what goes wrong with its next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        rng = np.random.default_rng(0)
        names = ["ptbxl_database.csv", "scp_statements.csv", "LICENSE.txt", "RECORDS", RECORD]
        names += [f"records{rate}/00000/0000{k}_{kind}.hea" for rate, kind in ((100, "lr"), (500, "hr"))
                  for k in (1, 2)]  # fmt: skip
        self.files = {name: rng.bytes(N_BYTES if name == RECORD else 200) for name in names}
        self.sums = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.clients: set[tuple[str, int]] = set()
        self.resume = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/ptb-xl/"

    def content(self, name: str) -> bytes | None:
        if name == SUMS and SUMS not in self.files:
            return "".join(f"{sha256} {name}\n" for name, sha256 in self.sums.items()).encode()
        return self.files.get(name)

    def asked_for(self, name: str) -> list[str | None]:
        return [asked_range for asked, asked_range in self.asked if asked == name]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    """One file a request; keeps the connection."""

    protocol_version = "HTTP/1.1"

    @property
    def ours(self) -> Server:
        return cast(Server, self.server)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/moved").removeprefix("/ptb-xl/")
        self.ours.asked.append((name, self.headers["Range"]))
        self.ours.clients.add(self.client_address)
        fault = self.ours.faults[name].pop(0) if self.ours.faults.get(name) else ""
        content = self.ours.content(name)
        if fault.isdecimal() or content is None:
            self.answer(int(fault or 404), b"no", None, **({"Retry-After": "0"} if fault == "429" else {}))
        elif fault == "redirect":
            self.answer(302, b"", Location="/moved" + self.path)
        elif fault == "loop":
            self.ours.faults[name].append("loop")
            self.answer(302, b"", Location=self.path)
        elif fault == "corrupt":
            self.answer(200, bytes([content[0] ^ 1]) + content[1:])
        elif fault == "truncate":  # and say so: the length is that of what comes
            self.answer(200, content[: len(content) // 2])
        else:
            self.send_file(content, fault)

    def send_file(self, content: bytes, fault: str) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start > len(content):
            self.answer(416, b"")
            return
        headers = {}
        if self.headers["Range"] and fault != "no range":
            content = content[start:]
            headers = {"Content-Range": f"bytes {start}-{start + len(content) - 1}/{start + len(content)}"}
        cut = len(content) // 2 if fault in ("drop", "hang") else None
        self.answer(206 if headers else 200, content, cut, **headers)
        if fault == "hang":
            self.ours.resume.wait(20)

    def answer(self, status: int, content: bytes, cut: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        self.wfile.flush()
        self.close_connection = cut is not None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.resume.set()
        server.shutdown()
        thread.join()


def fetch(server: Server, folder: Path, **changes: Any) -> dict[str, int]:
    settings: dict[str, Any] = {"base_url": server.base_url, "pause_s": 0.01, "timeout_s": 5.0} | changes
    return fetch_ptbxl(folder, FetchSettings(**settings))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_whole(server: Server, folder: Path, rates: tuple[str, ...] = ("records100",)) -> None:
    """All that was wanted is there, byte by byte, and nothing else."""
    expected = {
        n: c for n, c in server.files.items() if n != "RECORDS" and ("/" not in n or n.startswith(rates))
    }
    found = files_in(folder)
    assert found.pop(SUMS) == server.content(SUMS)
    assert found == expected


def test_tables_and_the_100_hz_records_arrive_whole(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "new" / "folder") == {"fetched": 6, "there": 0}
    assert_whole(server, tmp_path / "new" / "folder")


def test_500_hz_brings_both_copies(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, sampling_rate=500) == {"fetched": 8, "there": 0}
    assert_whole(server, tmp_path, ("records100", "records500"))


def test_connections_are_kept_and_as_many_as_was_said(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path, connections=2)
    assert len(server.asked) == 7
    assert len(server.clients) <= 3, "one for the list, two for the files"


def test_a_second_run_asks_for_the_list_alone(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    server.asked.clear()
    assert fetch(server, tmp_path) == {"fetched": 0, "there": 6}
    assert server.asked == [(SUMS, None)]


def test_a_file_that_was_changed_or_lost_is_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / "scp_statements.csv").write_text("mine")
    (tmp_path / RECORD).unlink()
    assert fetch(server, tmp_path) == {"fetched": 2, "there": 4}
    assert_whole(server, tmp_path)


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["drop"], [None, f"bytes={N_BYTES // 2}-"]),  # what has come is kept, the rest is asked for
        (
            ["drop", "no range"],
            [None, f"bytes={N_BYTES // 2}-"],
        ),  # the whole comes again, and is written anew
        (["drop", "drop"], [None, f"bytes={N_BYTES // 2}-", f"bytes={N_BYTES * 3 // 4}-"]),
        (["truncate"], [None, None]),
        (["corrupt"], [None, None]),
        (["500", "503", "429"], [None] * 4),
        (["redirect"], [None, None]),
        (["redirect", "drop"], [None, None, f"bytes={N_BYTES // 2}-"]),
    ],
)
def test_what_goes_wrong_for_a_while_is_mended(
    server: Server, tmp_path: Path, faults: list[str], ranges: list[str | None]
) -> None:
    server.faults[RECORD] = list(faults)
    fetch(server, tmp_path)
    assert_whole(server, tmp_path)
    assert server.asked_for(RECORD) == ranges


def test_a_server_that_falls_silent_is_left(server: Server, tmp_path: Path) -> None:
    server.faults[RECORD] = ["hang"]
    fetch(server, tmp_path, timeout_s=0.3)
    assert_whole(server, tmp_path)


@pytest.mark.parametrize("left", [b"", b"x" * 10, b"x" * (2 * N_BYTES)])
def test_another_partial_file_is_replaced(server: Server, tmp_path: Path, left: bytes) -> None:
    partial = tmp_path / f"{RECORD}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    fetch(server, tmp_path)
    assert_whole(server, tmp_path)


def test_a_partial_file_that_is_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    partial = tmp_path / f"{RECORD}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(server.files[RECORD])
    fetch(server, tmp_path)
    assert server.asked_for(RECORD) == []
    assert_whole(server, tmp_path)


def ecglib_fetch(server: Server, folder: Path) -> subprocess.Popen:
    command = [
        Path(sys.executable).with_name("ecglib"),
        "fetch",
        "ptb-xl",
        folder,
        "--base-url",
        server.base_url,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_no_half_file_and_goes_on(server: Server, tmp_path: Path) -> None:
    server.faults[RECORD] = ["hang"]
    process = ecglib_fetch(server, tmp_path)
    partial, deadline = tmp_path / f"{RECORD}.partial", time.monotonic() + 60
    # Four of the pieces that are read at once: the fifth does not come before the kill.
    while not (partial.exists() and partial.stat().st_size >= 1 << 17) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(EcglibError, match="another `ecglib fetch` is at work"):
        fetch(server, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / RECORD).exists()
    for name, content in files_in(tmp_path).items():
        assert name.endswith(".partial") or content == server.content(name)
    have = partial.stat().st_size
    assert 1 << 17 <= have < N_BYTES

    process = ecglib_fetch(server, tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert "all are whole" in said
    assert_whole(server, tmp_path)
    assert server.asked_for(RECORD) == [None, f"bytes={have}-"]


def refused(server: Server, folder: Path, message: str, **changes: Any) -> None:
    with pytest.raises(EcglibError, match=message) as caught:
        fetch(server, folder, **changes)
    assert "\n" not in str(caught.value)
    for name, content in files_in(folder).items():
        assert name.endswith(".partial") or content == server.content(name)


def test_a_hash_that_stays_wrong_names_the_file(server: Server, tmp_path: Path) -> None:
    server.sums[RECORD] = "0" * 64
    refused(server, tmp_path, rf"{RECORD}: its SHA-256 is not the one .* \(3 attempts\)", attempts=3)
    assert len(server.asked_for(RECORD)) == 3
    assert not (tmp_path / RECORD).exists()


def test_a_file_that_the_server_lacks_is_named_at_once(server: Server, tmp_path: Path) -> None:
    del server.files[RECORD]
    refused(server, tmp_path, rf"{RECORD}: the server answered 404 Not Found; check the base URL")
    assert len(server.asked_for(RECORD)) == 1


def test_a_server_that_stays_broken_is_given_up(server: Server, tmp_path: Path) -> None:
    server.faults[RECORD] = ["500"] * 10
    refused(server, tmp_path, r"answered 500 .* \(3 attempts\); run the same command again", attempts=3)
    assert len(server.asked_for(RECORD)) == 3


def test_redirects_without_end_are_refused(server: Server, tmp_path: Path) -> None:
    server.faults[RECORD] = ["loop"]
    refused(server, tmp_path, "redirected more than 5 times")


def test_no_network_is_one_line_and_exit_code_2(server: Server, tmp_path: Path) -> None:
    refused(server, tmp_path, "no answer .*refused", base_url="http://127.0.0.1:1/", attempts=2)
    command = [Path(sys.executable).with_name("ecglib"), "fetch", "ptb-xl", tmp_path, "--base-url", "ftp://x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: base URL 'ftp://x'")


def test_a_full_disk_is_one_line(server: Server, tmp_path: Path) -> None:
    partial = tmp_path / f"{RECORD}.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")  # the kernel's own disk without space
    refused(server, tmp_path, rf"{RECORD}: cannot be written \(No space left on device\)")
    assert len(server.asked_for(RECORD)) == 1


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EcglibError, match=r"file/ptbxl: cannot be made or opened"):
        fetch(server, tmp_path / "file" / "ptbxl")
    (tmp_path / "file").unlink()
    (tmp_path / RECORD).mkdir(parents=True)
    refused(server, tmp_path, rf"{RECORD}: cannot be written")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "records100/../../evil", "records100/\x00evil", "a\x1b[31m", "records100/.."],
)
def test_names_that_lead_out_of_the_folder_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    server.sums[name] = "0" * 64
    refused(server, tmp_path / "in", "leads out of the folder; nothing is fetched")
    assert server.asked == [(SUMS, None)]
    assert files_in(tmp_path) == {}


@given(st.text(max_size=40))
def test_whatever_a_name_is_its_place_is_inside_the_folder(name: str) -> None:
    try:
        sums = read_sums(f"{'a' * 64}  {name}", "here")
    except EcglibError:
        return
    for place in sums:
        assert Path(os.path.normpath(Path("/folder") / place)).is_relative_to("/folder/")


def test_a_list_that_is_none_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[SUMS] = b"<html>Log in first</html>"
    refused(server, tmp_path, "is no SHA-256 with a name; check the base URL")
    del server.files[SUMS]
    del server.sums["ptbxl_database.csv"]
    refused(server, tmp_path, r"lists no ptbxl_database\.csv")


def test_both_of_the_usual_forms_of_a_list_are_read() -> None:
    text = f"{'A' * 64} *./records100/a b.hea\n\n{'b' * 64}  tables.csv\n"
    assert read_sums(text, "here") == {"records100/a b.hea": "a" * 64, "tables.csv": "b" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": 250},
        {"connections": 0},
        {"attempts": 0},
        {"timeout_s": 0.0},
        {"base_url": "file:///x"},
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EcglibError, match="base URL" if "base_url" in change else next(iter(change))):
        FetchSettings(**change)


def test_the_environments_proxy_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.base_url)
    monkeypatch.setenv("no_proxy", "")
    for name in list(server.files):
        server.files[f"http://nowhere.invalid/{name}"] = server.files[name]
    server.files[f"http://nowhere.invalid/{SUMS}"] = server.content(SUMS) or b""
    assert fetch(server, tmp_path, base_url="http://nowhere.invalid/")["fetched"] == 6
