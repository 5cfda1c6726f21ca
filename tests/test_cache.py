"""The download cache: a file that it has is not fetched, a damaged one is fetched again, offline nothing is fetched."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.server import Fault, Site, serve
from imgkit.apk.index import Package, Repository, parse_index
from imgkit.apk.package import check_package
from imgkit.apk.signature import Keyring, verify_index
from imgkit.errors import HostError, InputError
from imgkit.fetch import cache as cache_module
from imgkit.fetch.cache import Cache, Wanted, default_folder, hash_file
from imgkit.fetch.http import Http
from imgkit.fetch.openpgp import read_certificate, verify_detached
from imgkit.fetch.pool import in_parallel
from imgkit.fetch.releases import newest_minirootfs

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

ONE, TWO = b"one" * 1000, b"two" * 1000
LIMIT = 1 << 20
QUICK = Http(connect_timeout=2, stall_timeout=5, attempts=2, pause=0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    (root / "one").write_bytes(ONE)
    (root / "two").write_bytes(TWO)
    with serve(root) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def hashed(site: Site, name: str, data: bytes) -> Wanted:
    return Wanted(url=site.url + name, max_bytes=LIMIT, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def keyed(site: Site, name: str, data: bytes) -> Wanted:
    def check(path: Path) -> None:
        if path.read_bytes() != data:
            raise InputError(f"{path.name}: is not what the key says")

    return Wanted(url=site.url + name, max_bytes=LIMIT, key="Q1/../../" + name, check=check)


def by_url(site: Site, name: str) -> Wanted:
    return Wanted(url=site.url + name, max_bytes=LIMIT)


def files(folder: Path) -> list[str]:
    """Everything in a cache but its locks."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith("locks/"))


@pytest.mark.parametrize("kind", [hashed, keyed])
def test_a_known_file_is_downloaded_once(kind: object, site: Site, folder: Path) -> None:
    wanted = kind(site, "one", ONE)  # type: ignore[operator]
    first = Cache(folder, QUICK).fetch(wanted)
    assert first.read_bytes() == ONE
    assert Cache(folder, QUICK).fetch(wanted) == first
    assert Cache(folder, offline=True).fetch(wanted) == first
    assert site.requests["/one"] == 1
    assert files(folder) == [str(first.relative_to(folder))]


@pytest.mark.parametrize("kind", [hashed, keyed])
def test_a_damaged_file_is_fetched_again(kind: object, site: Site, folder: Path) -> None:
    wanted = kind(site, "one", ONE)  # type: ignore[operator]
    path = Cache(folder, QUICK).fetch(wanted)
    path.write_bytes(ONE[:-1] + b"?")
    with pytest.raises(InputError, match="offline, and 1 file is not in the cache"):
        Cache(folder, offline=True).fetch(wanted)
    assert not path.exists()
    assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE
    assert site.requests["/one"] == 2


def test_a_key_cannot_leave_the_cache(site: Site, folder: Path) -> None:
    path = Cache(folder, QUICK).fetch(keyed(site, "one", ONE))
    assert path.resolve().is_relative_to(folder.resolve() / "keyed")


@pytest.mark.parametrize("kind", [hashed, keyed])
def test_a_wrong_file_is_not_kept(kind: object, site: Site, folder: Path) -> None:
    wanted = kind(site, "one", ONE)  # type: ignore[operator]
    site.faults["/one"] = Fault(body=TWO)
    with pytest.raises(InputError, match=r"wrong SHA-256|is not what the key says"):
        Cache(folder, QUICK).fetch(wanted)
    assert files(folder) == []


def test_many_files_come_in_order_over_several_connections(site: Site, folder: Path) -> None:
    wanted = []
    for number in range(20):
        data = b"%d" % number * 1000
        (site.root / f"f{number}").write_bytes(data)
        wanted.append(hashed(site, f"f{number}", data))
    paths = Cache(folder, QUICK).fetch_all([*wanted, wanted[3]])
    assert [hash_file(path) for path in paths] == [file.sha256 for file in [*wanted, wanted[3]]]
    assert Cache(folder, QUICK).fetch_all([]) == []


def test_one_failure_gives_up_the_others(site: Site, folder: Path) -> None:
    site.faults["/two"] = Fault(status=404)
    site.faults["/one"] = Fault(rate=50)
    client = Http(stall_timeout=5)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"the mirror does not have it \(404\)"):
        Cache(folder, client).fetch_all([by_url(site, "one"), hashed(site, "two", TWO)])
    assert time.monotonic() - start < 20, "it was not waited for, which would take a minute"
    time.sleep(0.3)
    assert files(folder) == []


# ---- files that only their URL tells --------------------------------------------------------------------------------


def test_an_index_is_asked_for_again_and_comes_again_only_when_it_changed(site: Site, folder: Path) -> None:
    wanted = by_url(site, "one")
    first = Cache(folder, QUICK).fetch(wanted)
    assert Cache(folder, QUICK).fetch(wanted) == first
    assert site.requests["/one"] == 2
    (site.root / "one").write_bytes(TWO)
    os.utime(site.root / "one", (time.time() + 60,) * 2)
    second = Cache(folder, QUICK).fetch(wanted)
    assert (first.read_bytes(), second.read_bytes()) == (ONE, TWO)
    assert Cache(folder, offline=True).fetch(wanted) == second
    assert site.requests["/one"] == 3


def test_a_damaged_index_is_fetched_whole(site: Site, folder: Path) -> None:
    wanted = by_url(site, "one")
    path = Cache(folder, QUICK).fetch(wanted)
    path.write_bytes(b"damaged")
    assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"etag": 1, "last_modified": 2, "size": "x", "sha256": "y"}'])
def test_a_broken_record_of_an_index_is_as_good_as_none(record: str, site: Site, folder: Path) -> None:
    wanted = by_url(site, "one")
    Cache(folder, QUICK).fetch(wanted)
    (place,) = folder.glob("urls/*/*.json")
    assert json.loads(place.read_text())["url"] == wanted.url
    place.write_text(record)
    with pytest.raises(InputError, match="offline"):
        Cache(folder, offline=True).fetch(wanted)
    assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE


def test_a_record_cannot_point_out_of_the_cache(site: Site, folder: Path, tmp_path: Path) -> None:
    wanted = by_url(site, "one")
    Cache(folder, QUICK).fetch(wanted)
    (place,) = folder.glob("urls/*/*.json")
    record = json.loads(place.read_text())
    (tmp_path / "secret").write_bytes(b"x")
    place.write_text(json.dumps({**record, "sha256": "../secret"}))
    assert (folder / "sha256/../../secret").is_file(), "where such a record leads to"
    assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE
    assert (tmp_path / "secret").exists()


def test_a_server_that_says_not_modified_to_a_first_request(site: Site, folder: Path) -> None:
    site.faults["/one"] = Fault(status=304)
    with pytest.raises(InputError, match="says 'not modified' to a first request"):
        Cache(folder, QUICK).fetch(by_url(site, "one"))


def test_a_file_known_by_its_url_is_checked_too_if_there_is_a_check(site: Site, folder: Path) -> None:
    def refuse(path: Path) -> None:
        raise InputError("is not what it should be")

    with pytest.raises(InputError, match="is not what it should be"):
        Cache(folder, QUICK).fetch(replace(by_url(site, "one"), check=refuse))
    assert files(folder) == []
    Cache(folder, QUICK).fetch(by_url(site, "one"))
    with pytest.raises(InputError, match="offline"):
        Cache(folder, offline=True).fetch(replace(by_url(site, "one"), check=refuse))


# ---- offline --------------------------------------------------------------------------------------------------------


def test_offline_names_everything_that_is_missing_and_asks_nobody(site: Site, folder: Path) -> None:
    Cache(folder, QUICK).fetch(hashed(site, "one", ONE))
    wanted = [hashed(site, "one", ONE), hashed(site, "two", TWO), by_url(site, "index")]
    with pytest.raises(InputError) as caught:
        Cache(folder, QUICK, offline=True).fetch_all(wanted)
    message = caught.value.message
    assert message == f"offline, and 2 files are not in the cache: {site.url}two, {site.url}index"
    assert sum(site.requests.values()) == 1


# ---- several builds -------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from imgkit.fetch.cache import Cache, Wanted
url, folder, sha256 = sys.argv[1:]
wanted = Wanted(url=url, max_bytes=1 << 20, sha256=sha256)
print(Cache(Path(folder)).fetch(wanted).stat().st_size)
"""


@pytest.mark.slow
def test_two_builds_at_once_share_one_download(site: Site, folder: Path) -> None:
    site.faults["/one"] = Fault(rate=3000)
    wanted = hashed(site, "one", ONE)
    argv = [sys.executable, "-c", PROGRAM, wanted.url, str(folder), str(wanted.sha256)]
    root = Path(cache_module.__file__).parents[2]
    builds = [subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=root) for _ in range(3)]
    assert [build.communicate(timeout=60)[0] for build in builds] == [b"3000\n"] * 3
    assert site.requests["/one"] == 1
    assert len(files(folder)) == 1


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_hurts(site: Site, folder: Path) -> None:
    site.faults["/one"] = Fault(stall=1000)
    wanted = hashed(site, "one", ONE)
    argv = [sys.executable, "-c", PROGRAM, wanted.url, str(folder), str(wanted.sha256)]
    build = subprocess.Popen(argv, cwd=Path(cache_module.__file__).parents[2])
    deadline = time.monotonic() + 30
    while not list(folder.glob("tmp/*/.*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.kill()
    build.wait()
    del site.faults["/one"]
    assert len(list(folder.glob("tmp/*"))) == 1
    assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE
    assert not list(folder.glob("tmp/*"))


def test_a_lock_that_is_never_released_costs_time_only(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_LOCK_TIMEOUT", 0.1)
    wanted = hashed(site, "one", ONE)
    other = Cache(folder, QUICK)
    with other._locked(str(wanted.sha256)):
        assert Cache(folder, QUICK).fetch(wanted).read_bytes() == ONE


# ---- the whole chain ------------------------------------------------------------------------------------------------


@pytest.mark.mirror
def test_from_a_mirror_and_its_keys_to_verified_packages(mirror: Mirror, folder: Path, tmp_path: Path) -> None:
    """Release list → signed minirootfs → signed index → packages by identity; then again without the network."""
    certificate = read_certificate(mirror.release_key.read_bytes(), name="release key")
    keys = Keyring.from_files({mirror.rsa_key_name: mirror.rsa_public.read_bytes()})
    with serve(mirror.root) as site:
        for offline in (False, False, True):
            before = sum(site.requests.values())
            cache = Cache(folder, offline=offline)
            releases = site.url + "v3.23/releases/aarch64/"
            listed = cache.fetch(Wanted(url=releases + "latest-releases.yaml", max_bytes=LIMIT)).read_bytes()
            release = newest_minirootfs(listed, arch="aarch64")
            rootfs = releases + release.file
            archive = cache.fetch(Wanted(url=rootfs, max_bytes=64 << 20, sha256=release.sha256, gzip=True))
            voucher = cache.fetch(Wanted(url=rootfs + ".asc", max_bytes=LIMIT)).read_bytes()
            assert verify_detached(archive, voucher, certificate) == certificate.fingerprint
            base = site.url + "v3.23/main/aarch64/"
            index = cache.fetch(Wanted(url=base + "APKINDEX.tar.gz", max_bytes=64 << 20, gzip=True))
            records = parse_index(verify_index(index.read_bytes(), keys, name="index").text, Repository(url=base))
            small = [record for record in records if record.size < LIMIT]
            paths = cache.fetch_all([_package(base, record) for record in small])
            assert [path.stat().st_size for path in paths] == [record.size for record in small]
            assert len(small) > 40
            asked = sum(site.requests.values()) - before
            assert asked == (0 if offline else 3 if before else 4 + len(small))


def _package(base: str, record: Package) -> Wanted:
    def check(path: Path) -> None:
        check_package(path, record.identity, name=str(record))

    url = f"{base}{record}.apk"
    return Wanted(url=url, max_bytes=record.size, size=record.size, key=record.identity, check=check, gzip=True)


# ---- the host -------------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="the cache cannot be written") as caught:
        Cache(tmp_path / "file", QUICK).fetch(hashed(site, "one", ONE))
    assert "IMGKIT_CACHE" in str(caught.value.hint)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMGKIT_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("IMGKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder().name == "imgkit"


# ---- the pool -------------------------------------------------------------------------------------------------------


def test_jobs_run_side_by_side_and_answer_in_order() -> None:
    barrier = threading.Barrier(3)

    def job(number: int) -> int:
        barrier.wait(5)
        return number

    jobs = [lambda stop, number=number: job(number) for number in range(3)]
    assert in_parallel(jobs, workers=3) == [0, 1, 2]


def test_an_interrupt_sets_the_event_of_the_others() -> None:
    seen = threading.Event()

    def waits(stop: threading.Event) -> None:
        if stop.wait(5):
            seen.set()

    def interrupts(stop: threading.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parallel([waits, interrupts], workers=2)
    assert seen.wait(5)


def test_a_failure_waits_for_jobs_that_end_soon_and_for_no_others() -> None:
    """What they still do must not touch a folder that the caller is about to remove."""
    ended, over = threading.Event(), threading.Event()

    def soon(stop: threading.Event) -> None:
        stop.wait(5)
        time.sleep(0.1)
        ended.set()

    def never(stop: threading.Event) -> None:
        over.wait(30)

    def fails(stop: threading.Event) -> None:
        raise InputError("x")

    start = time.monotonic()
    with pytest.raises(InputError, match="x"):
        in_parallel([soon, never, fails], workers=3)
    assert ended.is_set()
    assert time.monotonic() - start < 15
    over.set()


def test_no_more_jobs_run_at_once_than_there_are_workers() -> None:
    running = most = 0
    lock = threading.Lock()

    def job(stop: threading.Event) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1

    assert in_parallel([job] * 6, workers=2) == [None] * 6
    assert most == 2
