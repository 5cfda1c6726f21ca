"""Downloads from a real server on loopback that misbehaves in every way a mirror can."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.server import HTML, Fault, Site, serve
from imgkit.errors import HostError, InputError
from imgkit.fetch.checks import Expected, check_status, declared_length, looks_like_html, shown
from imgkit.fetch.http import Http, Validators
from tests.downloads import get
from tests.files import noise

DATA = gzip.compress(noise(200_000), 1, mtime=0)
SHA256 = hashlib.sha256(DATA).hexdigest()
ANY = Expected(max_bytes=1 << 20)
QUICK = Http(connect_timeout=2, stall_timeout=5, attempts=3, pause=0.01)
IMPATIENT = Http(connect_timeout=2, stall_timeout=0.5, attempts=3, pause=0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    (root / "empty").write_bytes(b"")
    with serve(root) as running:
        yield running


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "site")


def test_a_file_comes_whole_with_its_hash_and_validators(site: Site, tmp_path: Path) -> None:
    seen: list[int] = []
    target = tmp_path / "new" / "folder" / "file"
    expected = Expected(max_bytes=len(DATA), size=len(DATA), sha256=SHA256.upper(), gzip=True)
    download = QUICK.download(site.url + "file", target, expected, on_bytes=seen.append)
    assert download is not None
    assert (download.size, download.sha256) == (len(DATA), SHA256)
    assert target.read_bytes() == DATA
    assert sum(seen) == len(DATA)
    assert download.validators.etag
    assert download.validators.last_modified
    assert left(target.parent) == ["file"]


def test_small_files_come_into_memory(site: Site) -> None:
    assert get(QUICK, site.url + "file", ANY) == DATA
    assert get(QUICK, site.url + "empty", ANY) == b""


@pytest.mark.parametrize("which", ["etag", "last_modified"])
def test_what_did_not_change_does_not_come_again(which: str, site: Site, tmp_path: Path) -> None:
    first = QUICK.download(site.url + "file", tmp_path / "a", ANY)
    assert first is not None
    validators = Validators(**{which: getattr(first.validators, which)})
    assert QUICK.download(site.url + "file", tmp_path / "b", ANY, validators=validators) is None
    assert left(tmp_path) == ["a"]
    stamp = time.time() + 60
    (site.root / "file").write_bytes(b"newer")
    os.utime(site.root / "file", (stamp, stamp))
    newer = QUICK.download(site.url + "file", tmp_path / "b", ANY, validators=validators)
    assert newer is not None
    assert (tmp_path / "b").read_bytes() == b"newer"


FAULTS: dict[str, tuple[Fault, Expected, str]] = {
    "missing": (Fault(status=404), ANY, r"the mirror does not have it \(404\)"),
    "gone": (Fault(status=410), ANY, r"the mirror does not have it \(410\)"),
    "forbidden": (Fault(status=403), ANY, "the server answers 403"),
    "server error": (Fault(status=500), ANY, "the server answers 500"),
    "overloaded": (Fault(status=503), ANY, "the server answers 503"),
    "silent": (Fault(stall=0), ANY, "stalled: no answer within 0.5 s"),
    "stalling": (Fault(stall=1000), ANY, "stalled: fewer than 1024 bytes a second"),
    "trickling": (Fault(rate=40), ANY, "stalled: fewer than 1024 bytes a second"),
    "breaking off": (Fault(keep=1000), ANY, "the connection broke off"),
    "announcing more than comes": (Fault(claim=5), ANY, "the connection broke off"),
    "larger than allowed": (Fault(), Expected(max_bytes=1000), "is larger than the 1000 bytes that are allowed"),
    "longer than known": (
        Fault(),
        Expected(max_bytes=1 << 20, size=1000),
        "is longer than the 1000 bytes",
    ),
    "shorter than known": (Fault(body=b"x"), Expected(max_bytes=1 << 20, size=9), "has 1 bytes instead of 9"),
    "a web page": (HTML, Expected(max_bytes=1 << 20, gzip=True), "the server sent a web page instead of the file"),
    "no gzip": (Fault(body=b"hello"), Expected(max_bytes=1 << 20, gzip=True), "sent is not gzip data"),
    "another hash": (
        Fault(body=DATA[:-1] + b"?"),
        Expected(max_bytes=1 << 20, sha256=SHA256),
        f"wrong SHA-256: [0-9a-f]{{64}} instead of {SHA256}",
    ),
    "in circles": (Fault(status=302, location="/file"), ANY, "is redirected in circles"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_message_and_leaves_nothing(fault: str, site: Site, tmp_path: Path) -> None:
    site.faults["/file"], expected, message = FAULTS[fault]
    target = tmp_path / "file"
    target.write_bytes(b"old")
    start = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        (IMPATIENT if "stalled" in message else QUICK).download(site.url + "file", target, expected)
    assert time.monotonic() - start < 30
    assert caught.value.message.startswith(site.url + "file: ")
    assert target.read_bytes() == b"old"
    assert left(tmp_path) == ["file"]


def test_a_missing_package_says_what_to_do() -> None:
    with pytest.raises(InputError) as caught:
        check_status("http://mirror/a-1-r0.apk", 404)
    assert "superseded" in str(caught.value.hint)


@pytest.mark.parametrize("fault", [Fault(status=503, times=2), Fault(keep=1000, times=2), Fault(claim=1, times=2)])
def test_what_may_pass_is_tried_again(fault: Fault, site: Site, tmp_path: Path) -> None:
    site.faults["/file"] = fault
    seen: list[int] = []
    assert QUICK.download(site.url + "file", tmp_path / "file", ANY, on_bytes=seen.append)
    assert (tmp_path / "file").read_bytes() == DATA
    assert sum(seen) == len(DATA)
    assert site.requests["/file"] == 3


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(status=403), Fault(stall=10)])
def test_what_does_not_pass_is_not_tried_again(fault: Fault, site: Site, tmp_path: Path) -> None:
    site.faults["/file"] = fault
    with pytest.raises(InputError):
        IMPATIENT.download(site.url + "file", tmp_path / "file", ANY)
    assert site.requests["/file"] == 1


def test_a_redirect_is_followed(site: Site) -> None:
    site.faults["/old"] = Fault(status=302, location="/file")
    assert get(QUICK, site.url + "old", ANY) == DATA


def test_nothing_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/x"
    with pytest.raises(InputError, match=r"127\.0\.0\.1 refuses the connection") as caught:
        get(QUICK, url, ANY)
    assert "--mirror" in str(caught.value.hint)


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"the name mirror\.invalid is unknown"):
        get(QUICK, "http://mirror.invalid/x", ANY)


def test_nobody_accepts() -> None:
    """A listener whose queue is full and that never accepts: connecting times out."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(bound.getsockname())
        client = Http(connect_timeout=0.3, stall_timeout=0.3)
        with pytest.raises(InputError, match=r"does not answer within 0\.3 s|stalled"):
            get(client, f"http://127.0.0.1:{bound.getsockname()[1]}/x", ANY)
        for other in others:
            other.close()


@pytest.mark.parametrize("url", ["", "x", "ftp://a/b", "http://", "http://[::1", "http://a b/c", "file:///etc/passwd"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError, match="is not a URL that can be downloaded"):
        get(QUICK, url, ANY)


@pytest.mark.slow
def test_an_answer_that_is_no_http(tmp_path: Path) -> None:
    with _speaking(b"SSH-2.0-OpenSSH_9.2\r\n") as url, pytest.raises(InputError, match="the connection broke off"):
        QUICK.download(url, tmp_path / "x", ANY)


def test_a_body_without_length_is_capped_too(tmp_path: Path) -> None:
    body = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5000
    with _speaking(body) as url:
        with pytest.raises(InputError, match="is larger than the 4000 bytes"):
            QUICK.download(url, tmp_path / "x", Expected(max_bytes=4000))
        assert get(QUICK, url, Expected(max_bytes=5000)) == b"x" * 5000
    assert left(tmp_path) == []


def test_a_chunked_body_that_ends_early_is_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _speaking(head + b"3\r\nabc\r\n0\r\n\r\n") as url:
        assert get(QUICK, url, ANY) == b"abc"
    with _speaking(head + b"3\r\nabc\r\n9\r\nde") as url, pytest.raises(InputError, match="the connection broke off"):
        get(QUICK, url, ANY)


@contextmanager
def _speaking(answer: bytes) -> Iterator[str]:
    """Yield a server that says the same to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_all() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_proxy_is_used_and_named_when_it_refuses(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert get(QUICK, "http://mirror.invalid/file", ANY) == DATA  # the site plays the proxy
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{bound.getsockname()[1]}")
    with pytest.raises(InputError, match="the proxy does not let it through"):
        get(QUICK, "http://mirror.invalid/file", ANY)


def test_no_secure_connection(site: Site) -> None:
    with pytest.raises(InputError, match=r"no secure connection to 127\.0\.0\.1|broke off"):
        get(QUICK, site.url.replace("http:", "https:") + "file", ANY)


def test_a_cancelled_download_ends(site: Site, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InputError, match="was given up"):
        QUICK.download(site.url + "file", tmp_path / "x", ANY, cancelled=stop)
    assert left(tmp_path) == []


def test_a_full_disk_is_the_host_s_fault(site: Site, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(HostError, match="cannot be written"):
            QUICK.download(site.url + "file", tmp_path / "x", ANY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EIO, r"cannot be written \(Input/output error\)"),
    ],
)
def test_a_full_disk_and_a_broken_one(
    number: int, message: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file cannot even be made."""

    def mkstemp(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    with pytest.raises(HostError, match=f"^{tmp_path}: {message}$"):
        QUICK.download(site.url + "file", tmp_path / "x", ANY)


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="cannot be written"):
        QUICK.download(site.url + "file", tmp_path / "file" / "x", ANY)


def test_passwords_in_urls_are_not_shown() -> None:
    assert shown("http://user:secret@mirror:8080/a?b#c") == "http://mirror:8080/a?b#c"
    assert shown("http://mirror/a@b") == "http://mirror/a@b"
    assert shown("http://[::1") == "http://[::1"


@pytest.mark.parametrize(
    ("head", "page"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", True),
        (b"\t<?xml version='1.0'?>", True),
        (b"\r\n <html>", True),
        (b"garbage <HTML>", True),
        (b"x" * 1019 + b"<html>", True),
        (b"x" * 1020 + b"<html>", False),
        (b"x <!doctype", False),
        (b"\x1f\x8b<ht", False),
    ],
)
def test_web_pages_are_known_by_their_start(head: bytes, page: bool) -> None:
    assert looks_like_html(head) == page


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"Content-Length": "0"}, 0),
        ({"Content-Length": "9" * 19}, 10**19 - 1),
        ({"Content-Length": "9" * 20}, None),
        ({"Content-Length": "-1"}, None),
        ({"Content-Length": "\u0665"}, None),
        ({"Content-Length": "5, 5"}, None),
        ({"Content-Length": ""}, None),
        ({}, None),
    ],
)
def test_the_announced_length_is_a_plain_number_or_none(header: dict[str, str], length: int | None) -> None:
    assert declared_length(header) == length


@pytest.mark.slow
def test_memory_does_not_grow_with_the_download(tmp_path: Path) -> None:
    size = 64 << 20

    class Zeros(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            for _ in range(size >> 20):
                self.wfile.write(bytes(1 << 20))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Zeros) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Http().download(f"http://127.0.0.1:{server.server_port}/", tmp_path / "x", Expected(max_bytes=size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
