"""One download step by step: what is sent, how often it is tried, after which pauses, and what is written when."""

from __future__ import annotations

import io
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from fixtures.server import Fault, Site, serve
from imgkit.errors import HostError, InputError
from imgkit.fetch import http
from imgkit.fetch.checks import Expected, TransientError, UnreachableError
from imgkit.fetch.http import LEAST_RATE, Download, Http, Validators
from imgkit.fetch.session import Session
from tests.downloads import get

ANY = Expected(max_bytes=1 << 20)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    (root / "file").write_bytes(b"content")
    with serve(root) as running:
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validators", "conditions"),
    [
        (None, {}),
        (Validators(), {}),
        (Validators("e", "l"), {"If-None-Match": "e", "If-Modified-Since": "l"}),
        (Validators(last_modified="l"), {"If-Modified-Since": "l"}),
    ],
)
def test_what_a_request_says(
    validators: Validators | None, conditions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    class Remembering(Session):
        def get(self, url: str | bytes, **options: Any) -> requests.Response:
            sent.append({"url": url, **options})
            raise requests.exceptions.InvalidURL

    monkeypatch.setattr(http, "Session", Remembering)
    client = Http(connect_timeout=2, stall_timeout=7)
    with pytest.raises(InputError, match="is not a URL that can be downloaded"):
        client.download("http://m/x", tmp_path / "x", ANY, validators=validators)
    (request,) = sent
    assert request["url"] == "http://m/x"
    assert request["headers"] == {"Accept-Encoding": "identity", "User-Agent": "imgkit", **conditions}
    assert (request["stream"], request["timeout"]) == (True, (2, 7))


def test_ten_redirects_are_followed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server counts down, with a redirect for each number."""
    asked: list[str] = []

    class CountingDown(Session):
        def get(self, url: str | bytes, **options: Any) -> requests.Response:
            asked.append(str(url))
            number = int(str(url).rpartition("/")[2])
            response = requests.Response()
            response.request = requests.Request("GET", str(url)).prepare()
            response.url, response.raw, response.status_code = str(url), io.BytesIO(b"end"), 302 if number else 200
            response.headers["Location"] = f"/{number - 1}"
            return response

    monkeypatch.setattr(http, "Session", CountingDown)
    assert get(Http(), "http://m/10", ANY) == b"end"
    assert asked == [f"http://m/{number}" for number in range(10, -1, -1)]
    with pytest.raises(InputError, match=r"^http://m/11: is redirected in circles$"):
        get(Http(), "http://m/11", ANY)
    assert asked[11:] == [f"http://m/{number}" for number in range(11, 0, -1)]


def test_a_session_is_used_again_unless_it_was_cut(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Counted(Session):
        def __init__(self) -> None:
            super().__init__()
            made.append("made")

        def close(self) -> None:
            made.append("closed")
            super().close()

    monkeypatch.setattr(http, "Session", Counted)
    client = Http()
    for _ in range(3):
        assert get(client, site.url + "file", ANY) == b"content"
    assert made == ["made"]
    site.faults["/file"] = Fault(stall=3)
    cancelled = threading.Event()
    with pytest.raises(InputError, match=r"the download was given up$"):
        client.download(site.url + "file", tmp_path / "x", ANY, on_bytes=lambda _: cancelled.set(), cancelled=cancelled)
    del site.faults["/file"]
    assert get(client, site.url + "file", ANY) == b"content"
    assert made == ["made", "closed", "made"]


# ---- attempts -------------------------------------------------------------------------------------------------------


class Patient(threading.Event):
    """An event that is never waited for: it remembers how long it should have been."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        return False


class Failing(Http):
    """A client each of whose attempts ends with the next of some errors."""

    def __init__(self, *errors: Exception, **options: Any) -> None:
        super().__init__(**options)
        self.errors = list(errors)
        self.requests: list[Any] = []

    def _try(self, request: Any) -> Download | None:
        self.requests.append(request)
        raise self.errors.pop(0)


def busy(number: int) -> TransientError:
    return TransientError(InputError(f"u: busy {number}"))


def test_a_download_is_tried_three_times_with_pauses_that_double(tmp_path: Path) -> None:
    event, client = Patient(), Failing(*map(busy, range(1, 9)))
    with pytest.raises(InputError, match=r"^u: busy 3$"):
        client.download("u", tmp_path / "x", ANY, cancelled=event)
    assert event.pauses == [0.5, 1]


def test_no_pause_is_longer_than_what_is_left_of_the_time(tmp_path: Path) -> None:
    event, client = Patient(), Failing(*map(busy, range(1, 9)), attempts=6, pause=0.25, stall_timeout=1.5)
    with pytest.raises(InputError, match=r"^u: busy 6$"):
        client.download("u", tmp_path / "x", ANY, cancelled=event)
    assert event.pauses[:3] == [0.25, 0.5, 1]
    assert [pause is not None and 0 < pause < 1.5 for pause in event.pauses[3:]] == [True, True]


def test_what_is_no_longer_needed_is_not_tried_again(tmp_path: Path) -> None:
    class Cancelling(Failing):
        def _try(self, request: Any) -> Download | None:
            request.cancelled.set()
            return super()._try(request)

    client = Cancelling(*map(busy, range(1, 9)))
    with pytest.raises(InputError, match=r"^u: busy 1$"):
        client.download("u", tmp_path / "x", ANY)


def test_time_that_is_up_at_a_later_attempt_names_what_was_said_before(tmp_path: Path) -> None:
    client = Failing(busy(1), busy(2))
    client.errors.append(http._StalledError("u: stalled", hint="wait"))
    with pytest.raises(UnreachableError) as caught:
        client.download("u", tmp_path / "x", ANY, cancelled=Patient())
    assert caught.value.message == "u: stalled for 3 attempts; the one before: u: busy 2"
    assert caught.value.hint == "wait"


def test_time_that_is_up_at_once_is_all_there_is_to_say(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"^u: stalled$"):
        Failing(http._StalledError("u: stalled")).download("u", tmp_path / "x", ANY)


def test_a_download_has_a_deadline_of_its_own_by_the_client_s_times(tmp_path: Path) -> None:
    client = Failing(busy(1), busy(2), attempts=1, stall_timeout=9, connect_timeout=4)
    for _ in range(2):
        with pytest.raises(InputError, match="busy"):
            client.download("u", tmp_path / "x", ANY)
    first, second = (request.deadline for request in client.requests)
    assert first is not second
    assert (first.timeout, first.rate) == (9, LEAST_RATE)


# ---- what is written ------------------------------------------------------------------------------------------------


def test_a_download_in_progress_is_beside_its_target(site: Site, tmp_path: Path) -> None:
    seen: list[str] = []
    folder = tmp_path / "folder"
    target = folder / ("n" * 200)
    Http().download(site.url + "file", target, ANY, on_bytes=lambda _: seen.extend(names(folder)))
    (name,) = seen
    assert name.startswith(f".{'n' * 64}.")
    assert names(folder) == [target.name]


def test_a_disk_that_is_full_at_the_last_byte_leaves_the_old_file(site: Site, tmp_path: Path) -> None:
    """A small file is written when all of it is there. A limit on the size of files stands in for a full disk."""
    target = tmp_path / "x"
    target.write_bytes(b"old")
    (site.root / "file").write_bytes(b"x" * 2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(HostError, match=r"cannot be written \(File too large\)$"):
            Http().download(site.url + "file", target, ANY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["site", "x"]


def test_nothing_is_written_for_a_caller_who_no_longer_waits(site: Site, tmp_path: Path) -> None:
    class Late(Http):
        def _read(self, read: Any, size: int, request: Any) -> bytes:
            request.deadline.passed = True
            return super()._read(read, size, request)

    came: list[int] = []
    with pytest.raises(InputError, match=r"^http://.*/file: the download was given up$"):
        Late().download(site.url + "file", tmp_path / "x", ANY, on_bytes=came.append)
    assert came == []


def test_what_an_attempt_counted_is_taken_back(site: Site, tmp_path: Path) -> None:
    (site.root / "file").write_bytes(b"x" * 3000)
    site.faults["/file"] = Fault(keep=1000, times=1)
    came: list[int] = []
    Http(pause=0).download(site.url + "file", tmp_path / "x", ANY, on_bytes=came.append)
    back = came.index(-1000)
    assert sum(came[:back]) == 1000
    assert sum(came[back + 1 :]) == 3000
