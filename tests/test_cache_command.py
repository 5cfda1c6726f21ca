"""``imgkit cache``: what is in the cache, how old it is, and what pruning removes, also while builds run."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.keys import Keys
from imgkit.api import cacheentries, cachepruning
from imgkit.api.cacheentries import CacheEntry, cache_entries
from imgkit.api.cachepruning import prune
from imgkit.cli.commands import cache as command
from imgkit.cli.main import main
from imgkit.errors import UsageError
from imgkit.fetch.cache import IN_USE, Cache, Wanted
from imgkit.host import locks
from tests.mirrors import package

DAY = 86400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a cache."""
    path = tmp_path / "cache"
    path.mkdir()
    monkeypatch.setenv("IMGKIT_CACHE", str(path))
    return path


Put = Callable[..., Path]


@pytest.fixture
def put(folder: Path) -> Put:
    """Return a function that puts a file into the cache: its path, its size, and the days since its last use."""

    def put(name: str, size: int = 4096, days: float = 0, text: str = "") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() or b"x" * size)
        used = time.time() - days * DAY
        for changed in (path, path.parent):
            os.utime(changed, (used, used))
        return path

    return put


def names(entries: list[CacheEntry]) -> list[str]:
    return [f"{entry.kind}: {entry.name}" for entry in entries]


def fill(put: Put, keys: Keys) -> None:
    """Put one of everything into the cache, the oldest first."""
    apk = package("hello", "1.0-r0", key=keys.signing)
    digest = "ab" * 32
    put("newest/aa/aaaa/1700000000", 1, 99)
    put("fixtures/mirror/x", 9000, 98)
    put("elsewhere.txt", 100, 97)
    put(f"sha256/ab/{digest}", 4096, 20)
    put("urls/cd/" + "cd" * 32 + ".json", 0, 19, json.dumps({"url": "http://m.test/APKINDEX.tar.gz", "sha256": digest}))
    put("vouched/ef/" + "ef" * 32 + ".json", 10, 18)
    path = put("keyed/12/" + "12" * 32, 1, 17)
    path.write_bytes(apk.blob)
    os.utime(path, (time.time() - 17 * DAY,) * 2)
    put("images/names/n.json", 0, 16, '{"name": "docker.io/library/alpine:3.22"}')
    put("images/blobs/sha256/" + "34" * 32, 8192, 15)
    put("layers/56/" + "56" * 32 + ".json", 10, 14)
    put("layers/56/" + "56" * 32 + ".blob", 4096, 14)
    put("clusters/5a/" + "5a" * 32, 4096, 13.6)
    put("clusters/5b/" + "5b" * 32, 8192, 13.6)
    put("unpacked/12/" + "12" * 32 + ".record", 0, 13.8, "x" * 32 + '{"name":"hello-1.0-r0","sha256":"…')
    put("unpacked/12/" + "12" * 32 + ".blob", 4096, 13.8)
    put("initramfs/34/" + "34" * 32 + ".record", 10, 13.5)
    put("machines/" + "7" * 32 + "/disk.raw", 4096, 13)
    put("appliance/ready-1-a-b/root", 4096, 12)
    put("appliance/lock", 1)
    put("npm/_cacache/x", 4096)
    put("probe/p.json", 10, 10)
    put("tmp/abc/part", 10, 9)
    put("locks/abcd", 1)
    for name, days in (("npm", 11), ("newest", 99), ("fixtures", 98)):
        os.utime(path.parents[2] / name, (time.time() - days * DAY,) * 2)


def test_everything_is_listed_by_the_time_of_its_last_use(folder: Path, put: Put, keys: Keys) -> None:
    fill(put, keys)
    entries = cache_entries(folder)
    assert names(entries) == [
        "kept: dates of the newest indexes that were seen",
        "kept: the offline mirror of a checkout (IMGKIT_FIXTURES)",
        "kept: elsewhere.txt, which is not imgkit's",
        "download: http://m.test/APKINDEX.tar.gz",
        "record: of a URL, cdcdcdcdcdcdcdcd",
        "record: of a signature, efefefefefefefef",
        "download: hello-1.0-r0",
        "image: docker.io/library/alpine:3.22",
        "image: sha256:3434343434343434",
        "layer: 5656565656565656",
        "unpacked: hello-1.0-r0",
        "clusters: 2 compressed chunks of disks",
        "result: initramfs, 3434343434343434",
        "machine: 7777777777777777",
        "appliance: ready-1-a-b",
        "npm: packages of payloads",
        "measurement: accelerator, p",
        "unfinished download: abc",
    ]
    layer = entries[9]
    assert [path.suffix for path in layer.paths] == [".json", ".blob"]
    assert layer.size == 8192
    assert not layer.path.is_absolute()
    assert cache_entries(folder / "none") == []


def test_what_a_download_is_if_nobody_knows(folder: Path, put: Put) -> None:
    for number, data in enumerate((b"", b"\x1f\x8b", b"\x1f\x8b\x08damaged" * 9, bytes(range(100)))):
        put(f"keyed/aa/{number}" + "a" * 20).write_bytes(data)
    assert {name[:18] for name in names(cache_entries(folder))} == {f"download: {number}aaaaaaa" for number in range(4)}


@pytest.mark.parametrize(("days", "left"), [(21, 18), (19.5, 17), (0, 3)])
def test_pruning_by_age(days: float, left: int, folder: Path, put: Put, keys: Keys) -> None:
    """The dates of indexes, the offline mirror and what is not ours stay at any age."""
    fill(put, keys)
    before = cache_entries(folder)
    would = prune(folder, older_than=days * DAY, dry_run=True)
    assert len(cache_entries(folder)) == 18
    removed = prune(folder, older_than=days * DAY)
    assert names(removed) == names(would) == names(before[3 : 21 - left])
    assert len(cache_entries(folder)) == left


def test_pruning_by_size_removes_the_oldest_first(folder: Path, put: Put) -> None:
    for number in range(5):
        put(f"sha256/aa/{number}", 4096, 10 - number)
    assert [entry.name for entry in prune(folder, max_size=5 * 4096)] == []
    assert [entry.name for entry in prune(folder, max_size=5 * 4096 - 1)] == ["0"]
    assert [entry.name for entry in prune(folder, max_size=8192, older_than=7.5 * DAY)] == ["1", "2"]
    assert [entry.name for entry in prune(folder, max_size=0)] == ["3", "4"]


def test_pruning_everything(folder: Path, put: Put, keys: Keys) -> None:
    fill(put, keys)
    assert len(prune(folder, everything=True)) == 15
    assert [entry.kind for entry in cache_entries(folder)] == ["kept"] * 3
    assert (folder / "newest/aa/aaaa/1700000000").exists()
    assert (folder / "appliance/lock").exists()


def test_while_a_build_uses_the_cache_what_was_used_today_stays(folder: Path, put: Put) -> None:
    put("sha256/aa/old", days=1.1)
    put("sha256/aa/new", days=0.9)
    (folder / IN_USE).parent.mkdir()
    held = locks.lock_file(folder / IN_USE, shared=True)
    assert [entry.name for entry in prune(folder, everything=True)] == ["old"]
    os.close(held)
    assert [entry.name for entry in prune(folder, everything=True)] == ["new"]


@pytest.mark.slow
def test_a_cache_object_holds_the_cache_as_long_as_it_lives(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("x")
    wanted = Wanted(url=source.as_uri(), max_bytes=9, sha256=hashlib.sha256(b"x").hexdigest())

    def is_held() -> bool:
        with (folder / IN_USE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    cache, other = Cache(folder), Cache(folder, offline=True)
    path = cache.fetch(wanted)
    assert other.fetch(wanted) == path
    assert is_held()
    del cache
    gc.collect()
    assert is_held()
    del other
    gc.collect()
    assert not is_held()


def test_using_a_file_makes_it_young(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("x")
    known = Wanted(url=source.as_uri(), max_bytes=9, sha256=hashlib.sha256(b"x").hexdigest())
    changing = Wanted(url="http://127.0.0.1:9/x", max_bytes=9)
    path = Cache(folder).fetch(known)
    record = Cache(folder)._record(changing)
    record.parent.mkdir(parents=True)
    body = {"etag": "", "last_modified": "", "size": 1, "sha256": known.sha256}
    record.write_text(json.dumps(body))
    for wanted, file in ((known, path), (changing, path), (changing, record)):
        os.utime(file, (1, 1))
        Cache(folder, offline=True).fetch(wanted)
        assert time.time() - file.stat().st_mtime < 60


def test_machines_and_appliances_in_use_stay(folder: Path, put: Put) -> None:
    machine = put("machines/m/disk.raw", days=9).parent
    (folder / "machines/m.lock").touch()
    ready = put("appliance/ready-1/root", days=9).parent
    put("appliance/base/root", days=9)
    own = put("appliance/.guestfs-0/appliance", days=9).parent
    os.utime(own, (time.time() - 0.9 * DAY,) * 2)
    descriptor = os.open(machine, os.O_RDONLY)
    locks.acquire(descriptor, shared=True)
    held = locks.lock_file(ready / "in-use", shared=True)
    os.utime(ready, (1, 1))
    assert names(prune(folder, everything=True)) == ["appliance: base"]
    making = locks.lock_file(folder / "appliance/lock")
    os.close(held)
    assert prune(folder, everything=True) == []
    os.close(making)
    os.close(descriptor)
    os.utime(own, (1, 1))
    assert sorted(names(prune(folder, everything=True))) == [
        "appliance: .guestfs-0",
        "appliance: ready-1",
        "machine: m",
    ]
    left = sorted(path.name for path in folder.rglob("*"))
    assert left == ["appliance", "in-use", "lock", "locks", "machines"]


# ---- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> list[str]:
    assert main(["cache", *words]) == status
    printed = capsys.readouterr()
    return (printed.err if status else printed.out).splitlines()


def test_the_text(folder: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("sha256/aa/1", 2_000_000, 3.5)
    put("sha256/aa/2", 4096, 0.2)
    assert run(capsys, "list") == [
        "       2.0 MB       3 d  download             1",
        "       0.0 MB       4 h  download             2",
        f"2 entries, 2 MB in {folder}",
    ]
    assert run(capsys, "size") == ["       2.0 MB       2  download", f"2 entries, 2 MB in {folder}"]
    line = "       2.0 MB       3 d  download             1"
    assert run(capsys, "prune", "--older-than", "2d", "--dry-run") == [
        line, f"1 entry, 2 MB would be removed from {folder}",
    ]  # fmt: skip
    assert run(capsys, "prune", "--max-size", "1M") == [line, f"1 entry, 2 MB removed from {folder}"]
    assert run(capsys, "prune", "--all")[-1].startswith("1 entry, ")
    assert run(capsys, "list") == [f"0 entries, 0 bytes in {folder}"]


def test_json(folder: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("sha256/aa/1", 4096, 2)
    printed = json.loads("\n".join(run(capsys, "list", "--json")))
    (entry,) = printed["entries"]
    assert (printed["folder"], printed["size"]) == (str(folder), 4096)
    assert abs(time.time() - 2 * DAY - entry.pop("used")) < 60
    assert entry == {"kind": "download", "name": "1", "path": "sha256/aa/1", "more": [], "size": 4096}
    assert json.loads("\n".join(run(capsys, "prune", "--all", "--json")))["entries"][0]["path"] == "sha256/aa/1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune",), "cache prune: nothing says what is to be removed"),
        (("prune", "--dry-run"), "cache prune: nothing says what is to be removed"),
        (("list", "--all"), "cache list: --older-than, --max-size, --all and --dry-run are for prune"),
        (("size", "--dry-run"), "cache size: --older-than, --max-size, --all and --dry-run are for prune"),
        (("prune", "--older-than", "30"), "--older-than 30: not an age such as 30d, 12h or 2w"),
        (("prune", "--older-than", "-1d"), "argument --older-than: expected one argument"),
        (("prune", "--max-size", "big"), "--max-size: 'big' is not a size such as 4G or 512M"),
        (("clean",), "argument action: invalid choice: 'clean'"),
    ],
)
def test_wrong_words(
    words: tuple[str, ...], message: str, folder: Path, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    put("sha256/aa/1", days=99)
    assert run(capsys, *words, status=2)[0].startswith(f"error: {message}")
    assert len(cache_entries(folder)) == 1


def test_ages() -> None:
    assert [command.parse_age(text) for text in ("5s", "2m", "3h", "30d", "2w")] == [5, 120, 10800, 30 * DAY, 14 * DAY]
    for text in ("", "d", "1y", "1.5d", "1 d", "9999999d"):
        with pytest.raises(UsageError, match="not an age"):
            command.parse_age(text)
    words = {0: "now", 119: "now", 120: "2 min", 7199: "119 min", 7200: "2 h", 2 * DAY - 1: "47 h", 2 * DAY: "2 d"}
    assert {seconds: command._age(seconds) for seconds in words} == words


def test_names_are_escaped(folder: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("images/names/n.json", 0, 16, json.dumps({"name": "a\x1b[2J\nb"}))
    text = "\n".join(run(capsys, "list"))
    assert "\x1b" not in text
    assert cachepruning.SAFE_AGE == DAY
    assert cacheentries._identity("pkgname = a\nx\n") == "a-?"
