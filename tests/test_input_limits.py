"""The bounds of what imgkit takes from mirrors and files, each with what is just inside and just outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fixtures.keys import Keys
from fixtures.server import Fault
from imgkit.apk.index import Package, format_record
from imgkit.errors import InputError
from imgkit.fetch.checks import (
    Expected,
    MissingFileError,
    TransientError,
    check_complete,
    check_declared,
    check_length,
    check_start,
    check_status,
)
from imgkit.fetch.http import CONNECT_ALLOWANCE, CONNECT_TIMEOUT, LEAST_RATE, STALL_TIMEOUT
from imgkit.fetch.releases import newest_minirootfs, parse_releases
from imgkit.image import bootrecord
from imgkit.image.manifest import MAX_SIZE, read_manifest
from imgkit.planning import lockfile
from imgkit.planning.download import fetch_packages
from imgkit.planning.schemas import LockedArchitecture, LockedPackage
from imgkit.recipe import load
from tests.commandline import Place
from tests.mirrors import INDEX, LISTING, RECIPE, ROOTFS
from tests.test_planning import PACKAGE, Planner, planning
from tests.test_releases import entry

URL = "http://mirror.test/x"


@pytest.fixture
def planner(here: Place, keys: Keys) -> Iterator[Planner]:
    with planning(here, keys) as made:
        yield made


# ---- what a mirror announces ----------------------------------------------------------------------------------------

ANNOUNCED = {
    "the list of releases": (LISTING, 1 << 18),
    "the signature of the minirootfs": (f"{ROOTFS}.asc", 1 << 16),
    "an index": (INDEX, 32 << 20),
}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_files_whose_size_is_not_known_have_a_limit(name: str, planner: Planner) -> None:
    """The announced length is one byte too many."""
    path, limit = ANNOUNCED[name]
    planner.site.faults[path] = Fault(claim=limit + 1 - planner.small.file(path).stat().st_size)
    with pytest.raises(InputError, match=f"{path}: is larger than the {limit} bytes that are allowed$"):
        planner.plan(planner.base())


def test_a_minirootfs_of_unknown_size_has_a_limit(planner: Planner) -> None:
    listing = planner.small.file(LISTING)
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(line for line in lines if "size:" not in line))
    planner.site.faults[ROOTFS] = Fault(claim=64 << 20)
    with pytest.raises(InputError, match=f"is larger than the {64 << 20} bytes that are allowed$"):
        planner.base()


def test_a_package_of_unknown_size_has_a_limit(planner: Planner) -> None:
    lines = planner.hello.record.split("\n")
    planner.small.index(["\n".join(line for line in lines if not line.startswith("S:"))])
    base = planner.base()
    plan = planner.plan(base)
    assert plan.packages[0].package.size == 0
    planner.site.faults[PACKAGE] = Fault(claim=2 << 30)
    with pytest.raises(InputError, match=f"is larger than the {2 << 30} bytes that are allowed$"):
        fetch_packages(plan, base, planner.cache)
    del planner.site.faults[PACKAGE]
    assert fetch_packages(plan, base, planner.cache)[1]["hello"].read_bytes() == planner.hello.blob


def test_a_certificate_has_a_limit(planner: Planner) -> None:
    data = planner.small.release_key.read_bytes()
    planner.small.release_key.write_bytes(data + b"\n" * ((1 << 20) - len(data)))
    planner.base()
    with planner.small.release_key.open("ab") as sink:
        sink.write(b"\n")
    with pytest.raises(InputError, match=f"is larger than the {1 << 20} bytes"):
        planner.base()


def test_how_long_a_mirror_may_take() -> None:
    """A change of one of these values changes how long every user waits."""
    assert (CONNECT_TIMEOUT, STALL_TIMEOUT, CONNECT_ALLOWANCE, LEAST_RATE) == (5, 20, 60, 1024)


# ---- checks of a response -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 304])
def test_good_statuses(status: int) -> None:
    check_status(URL, status)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, TransientError) for status in (429, 500, 502, 503, 504)),
        *((status, MissingFileError) for status in (404, 410)),
        *((status, InputError) for status in (201, 206, 301, 400, 401, 403, 428, 430, 501, 505)),
    ],
)
def test_bad_statuses(status: int, kind: type[Exception]) -> None:
    with pytest.raises((InputError, TransientError), match=f"{status}") as caught:
        check_status(URL, status)
    assert type(caught.value) is kind
    if isinstance(caught.value, MissingFileError):
        assert caught.value.url == URL


KNOWN, OPEN = Expected(max_bytes=10, size=5), Expected(max_bytes=10)


def test_lengths_at_their_bounds() -> None:
    check_length(URL, 5, KNOWN)
    check_length(URL, 10, OPEN)
    with pytest.raises(InputError, match="is longer than the 5 bytes that it must have"):
        check_length(URL, 6, KNOWN)
    with pytest.raises(InputError, match="is larger than the 10 bytes that are allowed"):
        check_length(URL, 11, OPEN)
    check_declared(URL, None, KNOWN)
    check_declared(URL, 5, KNOWN)
    check_declared(URL, 4, OPEN)
    with pytest.raises(InputError, match="has 4 bytes instead of 5"):
        check_declared(URL, 4, KNOWN)
    check_complete(URL, 5, "ab", Expected(max_bytes=10, size=5, sha256="AB"))
    check_complete(URL, 5, "ab", OPEN)
    with pytest.raises(InputError, match="has 4 bytes instead of 5"):
        check_complete(URL, 4, "ab", KNOWN)
    with pytest.raises(InputError, match="wrong SHA-256: ab instead of ac"):
        check_complete(URL, 5, "ab", Expected(max_bytes=10, sha256="AC"))


@pytest.mark.parametrize("piece", [b"\x1f", b"\x1f\x8b", b"\x1f\x8bx"])
def test_the_start_of_gzip_data_may_come_in_two_pieces(piece: bytes) -> None:
    check_start(URL, piece, Expected(max_bytes=9, gzip=True))


def test_other_starts_are_refused_where_gzip_data_is_needed() -> None:
    check_start(URL, b"x", Expected(max_bytes=9))
    for piece in (b"\x8b", b"\x1f\x8c", b"x"):
        with pytest.raises(InputError, match="what the server sent is not gzip data"):
            check_start(URL, piece, Expected(max_bytes=9, gzip=True))


# ---- the list of releases -------------------------------------------------------------------------------------------


def test_a_list_of_the_greatest_length_is_read() -> None:
    text = entry()
    longest = text + "#" * ((1 << 18) - len(text))
    assert len(parse_releases(longest)) == 1
    with pytest.raises(InputError, match=f"it has {(1 << 18) + 1} bytes"):
        parse_releases(longest + "#")


@pytest.mark.slow
def test_a_list_of_the_most_values_is_read() -> None:
    """The list itself is one, and each empty entry."""
    assert parse_releases("- {}\n" * 4999) == ()
    with pytest.raises(InputError, match="more than 5000 values"):
        parse_releases("- {}\n" * 5000)


def test_a_list_of_the_greatest_depth_is_read() -> None:
    """The list, its entry, and lists in that."""
    assert parse_releases("- a: [[[[[x]]]]]") == ()
    with pytest.raises(InputError, match="nested deeper than 8 levels"):
        parse_releases("- a: [[[[[[x]]]]]]")


@pytest.mark.parametrize(("digits", "size"), [(15, 10**15 - 1), (16, 0)])
def test_a_size_of_many_digits_is_not_known(digits: int, size: int) -> None:
    assert newest_minirootfs(entry(size="9" * digits), arch="x86_64").size == size


def test_a_hint_about_a_list_has_300_characters_of_it() -> None:
    text = "".join(entry(f"3.23.{number}", arch="armv7") for number in range(100))
    with pytest.raises(InputError) as caught:
        newest_minirootfs(text, arch="x86_64")
    assert len(str(caught.value.hint)) == len("it has: ") + 300


# ---- lock files -----------------------------------------------------------------------------------------------------

FILE: dict[str, Any] = {"path": "v3.23/x.tar.gz", "size": 5, "sha256": "ab" * 32, "vouchedBy": "somebody"}
BOUNDS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "the greatest size": ({"size": 1 << 40}, {"size": (1 << 40) + 1}),
    "the least size": ({"size": 0}, {"size": -1}),
    "the longest text": ({"vouchedBy": "x" * 300}, {"vouchedBy": "x" * 301}),
    "no control characters": ({"vouchedBy": " é€"}, {"vouchedBy": "\x1f"}),
    "nor this one": ({"vouchedBy": ""}, {"vouchedBy": "\x7f"}),
    "the longest path": ({"path": "x" * 500}, {"path": "x" * 501}),
    "parts of a path": ({"path": "/a/b-1.0_2+3~4@5:6"}, {"path": "a/.b"}),
    "no empty part": ({"path": "a/b"}, {"path": "a//b"}),
    "a hash of 64 digits": ({"sha256": "0f" * 32}, {"sha256": "0f" * 31 + "0"}),
    "in lower case": ({"sha256": "0a" * 32}, {"sha256": "0A" * 32}),
    "without a newline": ({"sha256": "00" * 32}, {"sha256": "00" * 32 + "\n"}),
    "no other type": ({"size": 5}, {"size": 5.0}),
}


def locked(**fields: Any) -> dict[str, Any]:
    package = Package(**{"name": "a", "version": "1-r0", "identity": "Q1" + "A" * 27 + "=", **fields})
    return {
        "path": "v3.23/main/x86_64/a-1-r0.apk",
        "sha256": "ab" * 32,
        "record": format_record(package).splitlines(),
    }


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"size": 1 << 40}, {"size": (1 << 40) + 1}),
        ({"installed_size": 1 << 40}, {"installed_size": (1 << 40) + 1}),
        ({"build_time": (1 << 33) - 1}, {"build_time": 1 << 33}),
    ],
)
def test_a_package_of_a_lock_at_its_bounds(good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert LockedPackage.model_validate(locked(**good)).package.name == "a"
    with pytest.raises(ValidationError, match="a-1-r0: has a time or a size that no package has"):
        LockedPackage.model_validate(locked(**bad))


def test_a_line_of_a_record_at_its_bounds() -> None:
    """It has no control characters but tabs."""
    for more, fits in (("T:" + "x" * ((1 << 20) - 2), True), ("T:" + "x" * ((1 << 20) - 1), False),
                       ("T:a\tb", True), ("T:a\x1fb", False), ("T:a\x7f", False), ("T:a\nb", False)):  # fmt: skip
        record = [line for line in locked()["record"] if not line.startswith("T:")]
        if fits:
            assert LockedPackage.model_validate({**locked(), "record": [*record, more]}).package.description
        else:
            with pytest.raises(ValidationError, match=r"record\.\d"):
                LockedPackage.model_validate({**locked(), "record": [*record, more]})


def test_a_package_of_a_lock_has_its_own_path_and_no_fault() -> None:
    with pytest.raises(ValidationError, match="the path is not that of a-1-r0"):
        LockedPackage.model_validate({**locked(), "path": "v3.23/main/x86_64/a-2-r0.apk"})
    with pytest.raises(ValidationError, match=r"Value error, a: .*>>"):
        LockedPackage.model_validate({**locked(), "record": [*locked()["record"], "D:b>>c!"]})


def test_an_entry_never_changes() -> None:
    entry = LockedArchitecture.model_validate(ENTRY)
    assert entry.minirootfs is not None
    for model in (entry, entry.minirootfs, entry.install[0]):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, next(iter(type(model).model_fields)), "x")


def test_only_a_downloaded_package_needs_an_identity() -> None:
    """One that the minirootfs has is not downloaded, and is in no repository."""
    bare = {**locked(identity=""), "sha256": "", "path": "/a-1-r0.apk"}
    assert LockedPackage.model_validate(bare).package.identity == ""
    with pytest.raises(ValidationError, match="is not the identity"):
        LockedPackage.model_validate({**bare, "sha256": "ab" * 32})


ENTRY: dict[str, Any] = {
    "branch": "v3.23",
    "version": "3.23.6",
    "repositories": ["main"],
    "packages": ["a"],
    "minirootfs": FILE,
    "indexes": [FILE],
    "world": ["a"],
    "install": [locked()],
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_file_of_a_lock_at_its_bounds(bound: str) -> None:
    good, bad = BOUNDS[bound]
    for place in ("minirootfs", "indexes"):
        LockedArchitecture.model_validate({**ENTRY, place: _one(place, {**FILE, **good})})
        with pytest.raises(ValidationError, match=f"{place}\\."):
            LockedArchitecture.model_validate({**ENTRY, place: _one(place, {**FILE, **bad})})


def _one(place: str, facts: Mapping[str, Any]) -> object:
    return [facts] if place == "indexes" else facts


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"indexes": [FILE] * 100}, {"indexes": [FILE] * 101}),
        ({"world": ["a"] * 100_000}, {"world": ["a"] * 100_001}),
        ({"world": ["a" * 300]}, {"world": ["a" * 301]}),
        ({"world": ["!a>=1"]}, {"world": ["a>>b c"]}),
        ({"install": [locked()]}, {"install": []}),
        ({"install": [locked()]}, {"install": [{**locked(), "sha256": None}]}),
        ({"install": [locked()]}, {"install": [{**locked(), "record": []}]}),
        ({"install": [{**locked(), "more": 1}]}, {"install": [locked(), locked()]}),
    ],
)
def test_the_entry_of_an_architecture_at_its_bounds(good: dict[str, Any], bad: dict[str, Any]) -> None:
    LockedArchitecture.model_validate({**ENTRY, **good})
    with pytest.raises(ValidationError):
        LockedArchitecture.model_validate({**ENTRY, **bad})


def test_a_lock_file_and_a_manifest_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    lock, manifest = tmp_path / "recipe.lock", tmp_path / "manifest.json"
    for path, limit in ((lock, 16 << 20), (manifest, MAX_SIZE)):
        with path.open("wb") as sink:
            sink.truncate(limit + 1)
    with pytest.raises(InputError, match=f"is larger than the {16 << 20} bytes"):
        lockfile.read(lock, load(tmp_path / "recipe.py"), "amd64")
    with pytest.raises(InputError, match=f"is larger than the {MAX_SIZE} bytes") as caught:
        read_manifest(manifest)
    assert caught.value.hint == "a build puts the manifest beside the image"
    assert MAX_SIZE == 32 << 20


# ---- boot records ---------------------------------------------------------------------------------------------------


def test_what_a_guest_reports_at_its_bounds() -> None:
    kept = {"a" * 200: 1, "b": "x" * 200, "c": (1 << 53) - 1, "d": 1 - (1 << 53), "e": True}
    assert bootrecord.guest_facts(kept) == kept
    dropped = {"a" * 201: 1, "c": 1 << 53, "d": -(1 << 53), "e": None, "f": [1]}
    assert bootrecord.guest_facts(dropped) == {}
    assert bootrecord.guest_facts({"b": "x" * 201}) == {"b": "x" * 200}


def test_a_record_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.boot.json"
    record = bootrecord.BootRecord("x.qcow2", "ab" * 32, 5, "amd64", {"bios": {}})
    text = record.text()
    path.write_text(text + " " * ((1 << 20) - len(text)))
    assert bootrecord.read(path) == record
    path.write_text(text + " " * ((1 << 20) - len(text) + 1))
    assert bootrecord.read(path) is None
