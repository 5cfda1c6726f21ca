"""What the cache asks of its client, and where it keeps what came: with a client that serves bytes from memory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import filelock
import pytest

from imgkit.errors import HostError, InputError
from imgkit.fetch import cache as cache_module
from imgkit.fetch.cache import Cache, Wanted
from imgkit.fetch.checks import Expected
from imgkit.fetch.http import Download, Http, Validators

DATA = b"data"
SHA256 = hashlib.sha256(DATA).hexdigest()
PLAIN = Wanted(url="http://user:secret@m/plain", max_bytes=9)
HASHED = Wanted(url="http://m/hashed", max_bytes=9, size=4, sha256=SHA256.upper(), gzip=True)
KEYED = Wanted(url="http://m/keyed", max_bytes=9, key="Q1key", check=lambda path: None)
VALIDATORS = Validators("etag", "yesterday")


def named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Client(Http):
    """A client that remembers what it was asked, and has the same for everybody."""

    body: bytes | None = DATA
    asked: list[tuple[str, Expected, Validators | None]] = field(default_factory=list)
    cancelled: threading.Event | None = None
    during: Callable[[], object] = lambda: None

    def download(
        self,
        url: str,
        target: Path,
        expected: Expected,
        *,
        validators: Validators | None = None,
        on_bytes: Callable[[int], object] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Download | None:
        self.asked.append((url, expected, validators))
        self.cancelled = cancelled
        self.during()
        if self.body is None:
            return None
        target.write_bytes(self.body)
        assert on_bytes is not None
        on_bytes(len(self.body))
        return Download(len(self.body), hashlib.sha256(self.body).hexdigest(), VALIDATORS)


class Meter:
    """A progress bar that remembers."""

    said: list[object]

    def __init__(self, description: str) -> None:
        Meter.said = [description]

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.said.append("closed")

    def expect(self, size: int) -> None:
        self.said.append(f"{size} expected")

    def advance(self, size: int) -> None:
        self.said.append(f"{size} came")


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def cache(client: Client, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", client)


def files(cache: Cache) -> list[str]:
    paths = (path for path in cache.folder.rglob("*") if path.is_file() and path.parent.name != "locks")
    return sorted(path.relative_to(cache.folder).as_posix() for path in paths)


# ---- what is asked --------------------------------------------------------------------------------------------------


def test_the_client_is_told_everything_about_a_file(cache: Cache, client: Client) -> None:
    cache.fetch_all([HASHED, KEYED, PLAIN])
    assert sorted(client.asked, key=str) == [
        (HASHED.url, Expected(max_bytes=9, size=4, sha256=SHA256.upper(), gzip=True), None),
        (KEYED.url, Expected(max_bytes=9), None),
        (PLAIN.url, Expected(max_bytes=9), None),
    ]
    assert client.cancelled is not None
    assert not client.cancelled.is_set()


def test_the_bar_counts_what_is_expected_and_what_came(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "Meter", Meter)
    cache.fetch(HASHED, description="packages")
    assert Meter.said == ["packages", "4 expected", "4 came", "closed"]
    cache.fetch(PLAIN)
    assert Meter.said == ["downloading", "0 expected", "4 came", "closed"]
    cache.fetch_all([KEYED])
    assert Meter.said == ["downloading", "0 expected", "4 came", "closed"]


def test_four_files_come_at_a_time(cache: Cache, client: Client) -> None:
    barrier, lock, running, most = threading.Barrier(4), threading.Lock(), 0, 0

    def during() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(5)
        with lock:
            running -= 1

    client.during = during
    cache.fetch_all([replace(KEYED, key=f"key {number}", url=f"http://m/{number}") for number in range(8)])
    assert 4 <= most < 8


def test_a_file_that_changes_is_asked_for_by_what_was_said_of_the_last_one(cache: Cache, client: Client) -> None:
    path = cache.fetch(PLAIN)
    client.body = None
    assert cache.fetch(PLAIN) == path
    assert client.asked[-1] == (PLAIN.url, Expected(max_bytes=9), VALIDATORS)
    path.unlink()
    with pytest.raises(InputError, match=r"^http://m/plain: the server says 'not modified' to a first request$"):
        cache.fetch(PLAIN)
    assert client.asked[-1][2] is None, "there is nothing to compare it with"


# ---- where it is kept -----------------------------------------------------------------------------------------------


def test_where_files_are_kept(cache: Cache) -> None:
    """Other releases of imgkit use the same folder."""
    paths = cache.fetch_all([HASHED, KEYED, PLAIN])
    key, url = named("Q1key"), named(PLAIN.url)
    assert [path.relative_to(cache.folder).as_posix() for path in paths] == [
        f"sha256/{SHA256[:2]}/{SHA256}",
        f"keyed/{key[:2]}/{key}",
        f"sha256/{SHA256[:2]}/{SHA256}",
    ]
    record = f"urls/{url[:2]}/{url}.json"
    assert files(cache) == sorted({*(path.relative_to(cache.folder).as_posix() for path in paths), record})
    assert json.loads((cache.folder / record).read_text()) == {
        "url": "http://m/plain", "etag": "etag", "last_modified": "yesterday", "sha256": SHA256, "size": 4,
    }  # fmt: skip
    assert (cache.folder / record).read_text().splitlines()[:2] == ["{", ' "url": "http://m/plain",'], "for people, too"
    assert Cache(cache.folder, offline=True).fetch_all([PLAIN, KEYED, HASHED]) == [paths[2], paths[1], paths[0]]


def test_a_record_that_is_too_long_is_not_read(cache: Cache) -> None:
    cache.fetch(PLAIN)
    (path,) = cache.folder.glob("urls/*/*")
    record = json.loads(path.read_text())
    offline = Cache(cache.folder, offline=True)
    path.write_text(json.dumps(record).ljust(1 << 18))
    assert offline.fetch(PLAIN).read_bytes() == DATA
    path.write_text(json.dumps(record).ljust((1 << 18) + 1))
    with pytest.raises(InputError, match="not in the cache"):
        offline.fetch(PLAIN)


def test_offline_one_file_that_is_missing_is_named_with_the_cache(cache: Cache) -> None:
    cache.fetch(HASHED)
    with pytest.raises(InputError) as caught:
        Cache(cache.folder, offline=True).fetch_all([HASHED, PLAIN])
    assert caught.value.message == "offline, and 1 file is not in the cache: http://m/plain"
    assert caught.value.hint == f"build once without --offline (the cache is {cache.folder})"


# ---- several builds -------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_needs_neither_a_lock_nor_the_network(cache: Cache, client: Client) -> None:
    place = cache.folder / "sha256" / SHA256[:2] / SHA256
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    assert cache.fetch(HASHED) == place
    assert [path.name for path in (cache.folder / "locks").iterdir()] == ["in-use"]
    assert client.asked == []


def test_what_another_build_downloads_meanwhile_is_not_downloaded_again(
    cache: Cache, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache._locked

    @contextmanager
    def waiting(name: str) -> Iterator[None]:
        with real(name):
            place = cache.folder / "sha256" / SHA256[:2] / SHA256
            place.parent.mkdir(parents=True)
            place.write_bytes(DATA)
            yield

    monkeypatch.setattr(cache, "_locked", waiting)
    assert cache.fetch(HASHED).read_bytes() == DATA
    assert client.asked == []


def test_a_damaged_file_that_another_build_deletes_meanwhile(cache: Cache, client: Client) -> None:
    def check(path: Path) -> None:
        if path.parent.parent.name == "keyed":
            path.unlink()
            raise InputError("is damaged")

    path = cache.fetch(KEYED)
    assert cache.fetch(replace(KEYED, check=check)) == path
    assert path.read_bytes() == DATA
    assert len(client.asked) == 2


def test_locks_are_released(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[filelock.BaseFileLock] = []

    def make(path: Path) -> filelock.BaseFileLock:
        locks.append(lock := filelock.UnixFileLock(path))
        return lock

    monkeypatch.setattr("imgkit.fetch.cache.filelock.FileLock", make)
    cache.fetch_all([HASHED, KEYED])
    assert [lock.is_locked for lock in locks] == [False, False]


# ---- the host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "the cache cannot be written (Read-only file system)"),
    ],
)
def test_a_cache_without_room_and_one_that_is_read_only(cache: Cache, client: Client, number: int, reason: str) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    client.during = fail
    with pytest.raises(HostError) as caught:
        cache.fetch(PLAIN)
    assert caught.value.message == f"{cache.folder}: {reason}"
    assert caught.value.hint == "set IMGKIT_CACHE to a folder that can be written"
    assert list((cache.folder / "tmp").iterdir()) == []
