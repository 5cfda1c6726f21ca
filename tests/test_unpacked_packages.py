"""Packages from the cache: the same as unpacked anew, whatever happens to what is kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.apkbuild import Entry
from fixtures.keys import Keys
from fixtures.server import serve
from imgkit.api.cacheentries import CacheEntry, cache_entries
from imgkit.apk.package import PackageFile
from imgkit.apk.signature import Keyring
from imgkit.errors import InputError
from imgkit.planning.base import Base
from imgkit.planning.download import fetch_packages
from imgkit.planning.plan import Plan
from imgkit.planning.unpackedpackages import UnpackedPackages
from imgkit.tree import Directory, File, HardLink, Symlink
from tests.commandline import Place
from tests.mirrors import REPOSITORY, Small, package
from tests.test_planning import FILE, Planner

ENTRIES = (
    Entry(name="usr", kind="directory", mode=0o750),
    Entry(name="usr/empty"),
    Entry(name="usr/large", data=bytes(range(256)) * 9000, mode=0o4755),
    Entry(name="usr/link", kind="symlink", target="large"),
    Entry(name="usr/\udce4\udcff", data=b"a name that is not UTF-8"),
    Entry(name="usr/same", kind="hardlink", target="usr/large"),
)


class Setup:
    """A mirror with ``hello``, and the plan for it."""

    def __init__(self, planner: Planner, folder: Path) -> None:
        self.planner = planner
        self.folder = folder
        self.base: Base = planner.base()
        self.plan: Plan = planner.plan(self.base)
        self.unpacked = UnpackedPackages(planner.cache.folder)
        self.opened = 0

    def open(self) -> PackageFile:
        """Open the package as a build does; ``opened`` counts how often its file was read."""
        kept = self.unpacked.take_all(self.plan.packages, self.base)
        known = {name: package.sha256 for name, package in kept.items()}
        plan, files = fetch_packages(self.plan, self.base, self.planner.cache, known=known)
        assert plan.packages[0].sha256 == hashlib.sha256(self.planner.hello.blob).hexdigest()
        self.opened += len(files)
        spool = self.folder / f"spool{len(list(self.folder.iterdir()))}"
        return self.unpacked.open_all(plan.packages, kept, files, self.base, spool)["hello"]

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.planner.cache.folder.glob(f"unpacked/*/*{suffix}"))


@pytest.fixture
def setup(here: Place, keys: Keys, tmp_path: Path) -> Iterator[Setup]:
    apk = package(
        "hello",
        "1.0-r0",
        *ENTRIES,
        key=keys.signing,
        scripts={"post-install": b"#!/bin/sh\n# \xff\n"},
        triggers="/usr/*",
        replaces=["other", "more<2"],
        replaces_priority=7,
        size=3 << 20,
    )
    small = Small(here.base / "mirror", keys, [apk]).write()
    (tmp_path / "spools").mkdir()
    with serve(small.root) as site:
        yield Setup(Planner(here, small, site), tmp_path / "spools")


def facts(file: PackageFile) -> object:
    """Return all that a package file says, with the bytes of its contents."""
    entries = [
        (replace(entry, node=replace(entry.node, content=None)), entry.node.content.read())  # type: ignore[arg-type]
        if isinstance(entry.node, File)
        else entry
        for entry in file.entries
    ]
    return entries, dict(file.scripts), file.triggers, file.replaces, file.replaces_priority


def test_a_package_is_unpacked_once(setup: Setup) -> None:
    cold = setup.open()
    assert setup.opened == 1
    kinds = [type(entry.node) for entry in cold.entries]
    assert kinds == [Directory, File, File, Symlink, File, HardLink]
    assert (cold.triggers, cold.replaces, cold.replaces_priority) == (("/usr/*",), ("other", "more<2"), 7)
    warm = setup.open()
    assert setup.opened == 1, "its file was not read"
    assert warm == cold, "also the places of its contents"
    assert facts(warm) == facts(cold)


def test_the_file_of_a_kept_package_need_not_be_there(setup: Setup) -> None:
    cold = setup.open()
    for path in setup.planner.cache.folder.glob("keyed/*/*"):
        path.unlink()
    setup.planner.small.file(f"{REPOSITORY}/hello-1.0-r0.apk").unlink()
    assert setup.open() == cold


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def resealed(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a function that changes a record, and gives it the SHA-256 that fits."""

    def write(path: Path) -> None:
        blob, record = path.read_bytes()[32:44], json.loads(path.read_bytes()[44:])
        change(record)
        data = blob + json.dumps(record).encode()
        path.write_bytes(hashlib.sha256(data).digest() + data)

    return write


def text(data: bytes) -> Callable[[Path], object]:
    """Return a function that replaces the data of a record, and gives it the SHA-256 that fits."""

    def write(path: Path) -> None:
        rest = path.read_bytes()[32:44] + data
        path.write_bytes(hashlib.sha256(rest).digest() + rest)

    return write


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".blob", flip),
        (".blob", lambda path: path.write_bytes(b"")),
        (".blob", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        (".blob", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        (".blob", Path.unlink),
        (".record", flip),
        (".record", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        (".record", Path.unlink),
        (".record", text(b"")),
        (".record", text(b"{}")),
        (".record", text(b"[]")),
        (".record", text(b"[" * 100_000)),
        (".record", resealed(lambda record: record.pop("sha256"))),
        (".record", resealed(lambda record: record.update(entries=7))),
        (".record", resealed(lambda record: record.update(entries=[["x"]]))),
        (".record", resealed(lambda record: record.update(scripts={"post-install": "\u20ac"}))),
    ],
)  # fmt: skip
def test_what_is_damaged_is_unpacked_anew(suffix: str, damage: Callable[[Path], object], setup: Setup) -> None:
    cold = setup.open()
    expected = facts(cold)
    (path,) = setup.files(suffix)
    damage(path)
    again = setup.open()
    assert setup.opened == 2
    assert again == cold
    assert facts(again) == expected
    assert setup.open() == cold
    assert setup.opened == 2, "the new one is kept"


def test_other_trusted_keys_do_not_share_what_is_kept(setup: Setup) -> None:
    """A signature that claims a key is checked where that key is trusted, and ignored elsewhere."""
    setup.open()
    stranger = replace(setup.base, keyring=Keyring())
    assert setup.unpacked.take_all(setup.plan.packages, stranger) == {}
    assert list(setup.unpacked.take_all(setup.plan.packages, setup.base)) == ["hello"]


def test_another_build_of_a_package_is_not_taken_for_it(setup: Setup) -> None:
    setup.open()
    (planned,) = setup.plan.packages
    identity = "Q1" + "A" * 27 + "="
    renamed = replace(planned, package=replace(planned.package, identity=identity))
    assert setup.unpacked.take_all([renamed], setup.base) == {}


def test_a_kept_package_may_not_exceed_what_the_index_states(setup: Setup) -> None:
    setup.open()
    (planned,) = setup.plan.packages
    small = replace(planned, package=replace(planned.package, installed_size=-(16 << 20) + 9000))
    assert setup.unpacked.take_all([small], setup.base) == {}


def test_where_the_cache_cannot_be_written_the_spool_takes_the_contents(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    (setup.planner.cache.folder).mkdir(exist_ok=True)
    (setup.planner.cache.folder / "unpacked").write_text("a file")
    first = setup.open()
    assert "hello-1.0-r0.apk is not kept for the next build: " in caplog.text
    assert facts(first) == facts(setup.open())
    assert setup.opened == 2


@pytest.mark.parametrize(
    "entry",
    [
        Entry(name="../outside", data=b"x"),
        Entry(name="/absolute", data=b"x"),
        Entry(name="x", data=b"x", checksum="00" * 20),
    ],
)
def test_nothing_is_kept_of_a_hostile_package(entry: Entry, setup: Setup, keys: Keys) -> None:
    bad = package("hello", "1.0-r0", FILE, entry, key=keys.signing, size=1 << 20)
    setup.planner.small.packages[:] = [bad]
    setup.planner.small.file(f"{REPOSITORY}/hello-1.0-r0.apk").write_bytes(bad.blob)
    setup.planner.small.index([bad.record])
    setup.plan = setup.planner.plan(setup.base)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^hello-1\.0-r0\.apk: "):
            setup.open()
    assert setup.files("") == []
    assert list(setup.planner.cache.folder.glob("tmp/*")) == []


def test_several_builds_keep_the_same_package_at_a_time(setup: Setup) -> None:
    results: list[PackageFile] = []
    plan, files = fetch_packages(setup.plan, setup.base, setup.planner.cache)

    def work(number: int) -> None:
        unpacked = UnpackedPackages(setup.planner.cache.folder)
        for turn in range(5):
            spool = setup.folder / f"{number}-{turn}"
            results.append(unpacked.open_all(plan.packages, {}, files, setup.base, spool)["hello"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 15
    assert all(file == results[0] for file in results)
    assert len(setup.files(".record")) == len(setup.files(".blob")) == 1
    assert facts(setup.open()) == facts(results[0])


def test_the_list_of_the_cache_names_the_packages(setup: Setup) -> None:
    def listed() -> CacheEntry:
        (entry,) = (one for one in cache_entries(setup.planner.cache.folder) if one.path.parts[0] == "unpacked")
        return entry

    setup.open()
    entry = listed()
    assert (entry.kind, entry.name) == ("unpacked", "hello-1.0-r0")
    assert [path.suffix for path in entry.paths] == [".record", ".blob"]
    (setup.planner.cache.folder / entry.path).write_bytes(b"damaged")
    assert listed().name == entry.path.stem[:16]
