"""Mirrors that would block a build for ever: a single deadline ends every download, however slowly data is sent."""

from __future__ import annotations

import gzip
import http.server
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.server import Fault, Site, serve
from imgkit.errors import InputError
from imgkit.fetch.checks import Expected, UnreachableError
from imgkit.fetch.deadline import Deadline, ExpiredError, within
from imgkit.fetch.http import LEAST_RATE, Http
from tests.commandline import ROOT, Place
from tests.downloads import get
from tests.mirrors import RECIPE, ROOTFS, Small

pytestmark = pytest.mark.hostile

ANY = Expected(max_bytes=1 << 20)
LONG = 30.0  # far more than any test here takes, far less than the attacks would
HURRIED = Http(connect_timeout=5, stall_timeout=1.0, least_rate=10_000, pause=0.01)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    (root / "file").write_bytes(b"content")
    with serve(root) as running:
        yield running


NO_ANSWER = "stalled: no answer within 1 s"
TOO_SLOW = "stalled: fewer than 10000 bytes a second"
ATTACKS: dict[str, tuple[Fault, str]] = {
    "slow status line": (Fault(endless=(b"", b"H"), rate=20), NO_ANSWER),
    "slow header": (Fault(endless=(OK + b"X-Padding: ", b"x"), rate=20), NO_ANSWER),
    "100 Continue": (Fault(endless=(b"", b"HTTP/1.1 100 Continue\r\n\r\n")), NO_ANSWER),
    "slow 100 Continue": (Fault(endless=(b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"), rate=500), NO_ANSWER),
    "page of a redirect": (
        Fault(endless=(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 60000\r\n\r\n", b"x"), rate=20),
        NO_ANSWER,
    ),
    "slow body": (Fault(endless=(OK + b"Content-Length: 100000\r\n\r\n", b"x" * 15), rate=300), TOO_SLOW),
    "slow body without length": (Fault(endless=(OK + b"\r\n", b"x" * 15), rate=300), TOO_SLOW),
    "tiny chunks": (Fault(endless=(CHUNKED, b"1\r\nx\r\n"), rate=600), TOO_SLOW),
    "slow chunk header": (Fault(endless=(CHUNKED + b"5\r\nhello\r\n5;", b"x"), rate=20), TOO_SLOW),
    "trailers": (Fault(endless=(CHUNKED + b"5\r\nhello\r\n0\r\n", b"X: y\r\n"), rate=600), TOO_SLOW),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_answer_lasts_for_ever(attack: str, site: Site, tmp_path: Path) -> None:
    site.faults["/file"], message = ATTACKS[attack]
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=message) as caught:
        HURRIED.download(site.url + "file", tmp_path / "file", ANY)
    assert time.monotonic() - start < LONG
    assert "\n" not in caught.value.message
    assert "another mirror" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert site.requests["/file"] == 1, "what is too slow is not asked for again"


@pytest.mark.parametrize(
    "start",
    [
        OK + b"X: y\r\n" * 200,
        OK + b"X: " + b"y" * (1 << 17),
        CHUNKED + b"0" * (1 << 17),
        b"HTTP/1.1 200 " + b"y" * (1 << 17),
    ],
    ids=["many headers", "a long header", "a long chunk header", "a long status line"],
)
def test_bombs_of_headers_are_given_up(start: bytes, site: Site, tmp_path: Path) -> None:
    site.faults["/file"] = Fault(endless=(start, b"X: y\r\n"))
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"broke off|stalled"):
        HURRIED.download(site.url + "file", tmp_path / "file", ANY)
    assert time.monotonic() - begun < LONG


def test_the_page_of_a_redirect_is_not_read(site: Site) -> None:
    """It used to be read into memory completely."""
    head = b"HTTP/1.1 302 Found\r\nLocation: /file\r\nContent-Length: 100000000000\r\n\r\n"
    site.faults["/old"] = Fault(endless=(head, bytes(1 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert get(Http(), site.url + "old", ANY) == b"content"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_redirects_share_one_deadline(site: Site) -> None:
    """Each redirect is slow, but none by itself is too slow."""
    for number in range(100):
        head = f"HTTP/1.1 302 Found\r\nLocation: /hop{number + 1}\r\nContent-Length: 20\r\n\r\n".encode()
        site.faults[f"/hop{number}"] = Fault(endless=(head, b"x"), rate=50)
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=NO_ANSWER):
        get(HURRIED, site.url + "hop0", ANY)
    assert time.monotonic() - start < LONG


def test_redirects_end_at_ten(site: Site) -> None:
    for number in range(100):
        site.faults[f"/hop{number}"] = Fault(status=302, location=f"/hop{number + 1}")
    with pytest.raises(InputError, match="is redirected in circles"):
        get(Http(), site.url + "hop0", ANY)
    assert sum(site.requests.values()) == 11


def test_attempts_share_one_deadline(site: Site) -> None:
    """Every attempt fails late."""
    site.faults["/file"] = Fault(endless=(OK + b"X: ", b"x"), rate=20)
    client = Http(stall_timeout=1.0, attempts=1000, pause=0.2)
    site.faults["/busy"] = Fault(status=503)
    start = time.monotonic()
    with pytest.raises(InputError, match="stalled"):
        get(client, site.url + "busy", ANY)
    assert time.monotonic() - start < LONG


def test_dead_addresses_do_not_take_the_time_of_the_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name has four addresses that swallow whatever they get, before the right one."""
    real = socket.getaddrinfo
    with socket.create_server(("127.0.0.1", 0), backlog=0) as dead, ExitStack() as filling:
        for _ in range(3):
            connection = filling.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(dead.getsockname())

        def lookup(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
            if host != "mirror.invalid":
                return real(host, port, *rest, **more)
            ports = [dead.getsockname()[1]] * 4 + [port]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number)) for number in ports]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        client = Http(connect_timeout=0.3, stall_timeout=1.0)
        assert get(client, site.url.replace("127.0.0.1", "mirror.invalid") + "file", ANY) == b"content"


def test_time_for_connections_is_bounded() -> None:
    deadline = Deadline(timeout=0.1, rate=1, connect_allowance=0.2)
    with deadline.connecting():
        time.sleep(0.15)
        assert 0 < deadline.left() <= 0.1
    with deadline.connecting():
        time.sleep(0.2)
        assert deadline.left() < 0


def test_without_an_allowance_connections_take_the_time_of_the_answer() -> None:
    deadline = Deadline(timeout=0.1, rate=1)
    with deadline.connecting():
        time.sleep(0.15)
        assert deadline.left() < 0
    assert deadline.left() < 0


def test_what_was_said_before_the_time_was_up_is_named(site: Site) -> None:
    site.faults["/file"] = Fault(status=503)
    with pytest.raises(UnreachableError, match=r"no answer within 0\.5 s for \d+ attempts; the one before: .*503"):
        get(Http(stall_timeout=0.5, attempts=1000, pause=0.1), site.url + "file", ANY)


def test_a_slow_line_is_slow_but_not_refused(site: Site) -> None:
    """The whole takes three times the longest pause."""
    site.faults["/file"] = Fault(body=b"x" * 6000, rate=4000)
    assert len(get(Http(stall_timeout=0.5, least_rate=1000), site.url + "file", ANY)) == 6000


def test_a_quick_start_buys_no_endless_rest(site: Site) -> None:
    site.faults["/file"] = Fault(endless=(OK + b"Content-Length: 900000\r\n\r\n" + bytes(800_000), b"x"), rate=20)
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=TOO_SLOW):
        get(HURRIED, site.url + "file", ANY)
    assert time.monotonic() - start < LONG


def test_a_proxy_that_never_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to CONNECT comes before there is a connection that could be cut."""
    with speaking(b"HTTP/1.1 200 OK\r\nX: ", b"x") as url:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", url)
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=NO_ANSWER):
            get(HURRIED, "https://mirror.invalid/file", ANY)
        assert time.monotonic() - start < LONG


def test_a_handshake_that_never_finishes() -> None:
    with speaking(b"", b"") as url, pytest.raises(UnreachableError, match=NO_ANSWER):
        get(HURRIED, url.replace("http:", "https:"), ANY)


@contextmanager
def speaking(start: bytes, again: bytes) -> Iterator[str]:
    """Yield a server below HTTP: it says ``start``, then ``again`` every 50 ms, or nothing."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.sendall(start)
                    while not over.wait(0.05):
                        connection.sendall(again)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_cancelling_does_not_wait_for_the_mirror(site: Site) -> None:
    site.faults["/file"] = Fault(endless=(OK + b"X: ", b"x"), rate=20)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    with pytest.raises(InputError, match="was given up"):
        Http(stall_timeout=120).download(site.url + "file", site.root.parent / "x", ANY, cancelled=stop)
    assert time.monotonic() - start < LONG


def test_an_interrupt_does_not_wait_for_the_mirror(site: Site) -> None:
    """Ctrl-C is pressed while headers arrive slowly."""
    site.faults["/file"] = Fault(endless=(OK + b"X: ", b"x"), rate=20)
    code = (
        "import sys; from pathlib import Path\n"
        "from imgkit.fetch.checks import Expected; from imgkit.fetch.http import Http\n"
        "Http(stall_timeout=300).download(sys.argv[1], Path(sys.argv[2]), Expected(max_bytes=9))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, site.url + "file", str(site.root.parent / "x")], cwd=ROOT, stderr=subprocess.PIPE
    ) as child:
        while not site.requests["/file"]:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=LONG)
    assert b"KeyboardInterrupt" in errors


@pytest.mark.parametrize("attack", ["slow header", "100 Continue", "page of a redirect"])
def test_the_command_is_interrupted_at_once(attack: str, here: Place, small: Small) -> None:
    """Several downloads are under way, each held by the mirror."""
    here.recipe.write_text(RECIPE)
    with serve(small.root) as running:
        running.faults[ROOTFS] = running.faults[f"{ROOTFS}.asc"] = ATTACKS[attack][0]
        words = ("--mirror", running.url, "--release-key", small.release_key)
        with here.running("lock", here.recipe, *words) as child:
            while not running.requests[ROOTFS]:
                assert child.poll() is None, here.log()
                time.sleep(0.05)
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.wait(LONG) == 130, here.log()
            assert time.monotonic() - start < 15, "the downloads' own limit is 20 seconds"
    assert here.left_over() == []


def test_threads_of_downloads_end(site: Site) -> None:
    """Those whose connections are cut do not wait for the mirror either."""
    site.faults["/file"] = Fault(endless=(OK + b"X: ", b"x"), rate=20)
    for _ in range(3):
        with pytest.raises(UnreachableError):
            get(Http(stall_timeout=0.3), site.url + "file", ANY)
    assert [thread for thread in threading.enumerate() if thread.name == "imgkit-download"] == []


def test_connections_are_used_again(tmp_path: Path) -> None:
    """Also after a redirect whose page is short."""
    ports: set[int] = set()

    class Pages(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.add(self.client_address[1])
            self.send_response(302 if self.path == "/old" else 200)
            self.send_header("Location", "/new")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        client = Http()
        assert [get(client, f"http://127.0.0.1:{server.server_port}/old", ANY) for _ in range(5)] == [b"hello"] * 5
        server.shutdown()
    assert len(ports) == 1


def test_passwords_go_to_their_own_server_only() -> None:
    """A redirect to the same server keeps them, one to another host does not."""
    seen: list[tuple[str, str]] = []

    class Asking(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((f"{self.headers['Host'].partition(':')[0]}{self.path}", self.headers.get("Authorization", "")))
            target = {"/a": "/b", "/b": f"http://localhost:{self.server.server_port}/c"}.get(self.path)  # type: ignore[attr-defined]
            self.send_response(302 if target else 200)
            self.send_header("Location", target or "")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asking) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        get(Http(), f"http://user:secret@127.0.0.1:{server.server_port}/a", ANY)
        server.shutdown()
    assert [(path, bool(password)) for path, password in seen] == [
        ("127.0.0.1/a", True),
        ("127.0.0.1/b", True),
        ("localhost/c", False),
    ]


def test_a_deadline_moves_with_what_comes_but_not_far() -> None:
    deadline = Deadline(timeout=10, rate=100)
    assert 9 < deadline.left() <= 10
    deadline.received(10**9)
    assert 9 < deadline.left() <= 10, "never further away than the longest pause"
    slow = Deadline(timeout=0.05, rate=1)
    with pytest.raises(ExpiredError):
        within(slow, lambda: time.sleep(0.3), cancelled=threading.Event(), cut=lambda: None)
    assert slow.passed


def test_the_caller_waits_for_work_that_is_cut_to_end() -> None:
    """It may be writing to a file that the caller is about to remove."""
    cut, ended = threading.Event(), threading.Event()

    def work() -> None:
        cut.wait(LONG)
        time.sleep(0.1)
        ended.set()

    with pytest.raises(ExpiredError):
        within(Deadline(0.05, 1), work, cancelled=threading.Event(), cut=cut.set)
    assert ended.is_set()


def test_the_caller_does_not_wait_for_work_that_cannot_be_cut() -> None:
    """It waits for the name service, for example."""
    over = threading.Event()
    start = time.monotonic()
    with pytest.raises(ExpiredError):
        within(Deadline(0.05, 1), lambda: over.wait(LONG), cancelled=threading.Event(), cut=lambda: None)
    assert time.monotonic() - start < LONG / 2
    over.set()


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(Deadline(9, 9), work, cancelled=threading.Event(), cut=lambda: None)


WORDS = (
    b"HTTP/1.1 |200 OK|302 x|100 |\r\n|\r\n\r\n|Content-Length: |Transfer-Encoding: chunked|Location: |http://[|//\xff|-1|"
    b"99999999999999999999999999|0|5|\0|Content-Encoding: gzip|x"
)
PIECES = st.one_of(st.sampled_from(WORDS.split(b"|")), st.binary(max_size=8))


@settings(max_examples=150)
@given(pieces=st.lists(PIECES, max_size=20))
def test_any_answer_is_a_file_or_an_input_error(pieces: list[bytes]) -> None:
    with answering(b"".join(pieces)) as url, suppress(InputError):
        get(Http(stall_timeout=5, attempts=1), url, Expected(max_bytes=1 << 16))


def test_nothing_is_decompressed() -> None:
    """What is hashed and limited is what was sent: a bomb stays as small as it is."""
    bomb = gzip.compress(bytes(1 << 20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with answering(head + bomb) as url:
        assert get(Http(), url, Expected(max_bytes=len(bomb))) == bomb


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Yield a server that says one thing to one client and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)

        def serve_once() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)
                    listener.close()
            except OSError:
                return

        thread = threading.Thread(target=serve_once, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/file"
    thread.join(LONG)


def test_the_usual_rate_is_below_a_quarter_of_a_modem() -> None:
    assert LEAST_RATE * 4 < 56_000 / 8
