"""Building from a lock file that somebody else may have written: the signatures of its packages are checked again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.apkbuild import Apk
from fixtures.keys import new_rsa
from fixtures.server import Site
from imgkit import recipe
from imgkit.cli.main import main
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, hash_file
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages
from imgkit.planning.vouchers import check_locked
from tests.commandline import Place, Ran, check_failure
from tests.mirrors import RECIPE, REPOSITORY, Small, package


class Locked:
    """A lock of the small mirror, made with the cache that ``here`` has."""

    def __init__(self, here: Place, small: Small, site: Site) -> None:
        self.here, self.small, self.site = here, small, site
        here.recipe.write_text(RECIPE)
        self.recipe = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
        self.path = here.base / "recipe.lock"

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        body = json.loads(self.path.read_text())
        change(body["architectures"]["amd64"])
        self.path.write_text(json.dumps(body))

    def put(self, other: Apk) -> None:
        """Let the mirror have another file of that name, and the lock name it, record and hash."""
        path = self.small.file(f"{REPOSITORY}/{other.filename}")
        path.write_bytes(other.blob)
        self.change(
            lambda entry: entry["install"][0].update(sha256=hash_file(path), record=other.record.strip().split("\n"))
        )

    def check(self, cache: Path | None = None) -> None:
        """What a build does until it has its packages."""
        kept = Cache(cache or self.here.cache)
        plan = lockfile.read(self.path, self.recipe, "amd64")
        (self.here.base / "spool").unlink(missing_ok=True)
        base = fetch_base(self.recipe, "amd64", kept, self.here.base / "spool", locked=plan)
        plan, files = fetch_packages(plan, base, kept, locked=True)
        check_locked(plan, base, kept, files)


@pytest.fixture
def locked(here: Place, small: Small, site: Site, monkeypatch: pytest.MonkeyPatch) -> Locked:
    made = Locked(here, small, site)
    with monkeypatch.context() as patch:
        for name, value in here.environment.items():
            patch.setenv(name, value)
        words = ["lock", here.recipe, "--mirror", site.url, "--release-key", small.release_key]
        assert main([str(word) for word in words]) == 0
    return made


def test_a_good_lock_says_nothing(locked: Locked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        locked.check()
        locked.check(locked.here.base / "another-cache")  # its index is not there: the package's own signature is
    assert caplog.messages == []


def test_a_package_that_the_locked_index_does_not_have(locked: Locked) -> None:
    """Lock and mirror agree on it, and nobody vouches for it."""
    locked.put(package("hello", key=new_rsa(), pkgdesc="hostile"))
    with pytest.raises(
        InputError, match=r"hello-1\.0-r0\.apk: is in none of the indexes that the lock names"
    ) as caught:
        locked.check()
    assert "lock file" in str(caught.value.hint)


@pytest.mark.parametrize("more", [-1, 1])
def test_the_minirootfs_has_the_size_that_the_lock_states(more: int, locked: Locked) -> None:
    """The size is known before the hash: a longer file is not read to its end."""
    locked.change(lambda entry: entry["minirootfs"].update(size=entry["minirootfs"]["size"] + more))
    with pytest.raises(InputError, match=r"alpine-minirootfs-.*\.tar\.gz: (has \d+ bytes instead of|is longer than)"):
        locked.check(locked.here.base / "another-cache")


def test_no_indexes_vouch_for_nothing(locked: Locked) -> None:
    locked.change(lambda entry: entry.update(indexes=[]))
    with pytest.raises(InputError, match="is in none of the indexes"):
        locked.check()


def test_without_the_index_a_package_signed_by_somebody_else_is_refused(locked: Locked) -> None:
    """An attacker who changes the lock can name an index that nobody has."""
    locked.put(package("hello", key=new_rsa(), pkgdesc="hostile"))
    locked.change(lambda entry: entry["indexes"][0].update(sha256="0" * 64))
    with pytest.raises(InputError, match=r"hello-1\.0-r0\.apk: no trusted key signed it") as caught:
        locked.check()
    assert "imgkit lock" in str(caught.value.hint)


@pytest.mark.slow
def test_the_index_of_the_lock_is_asked_for_again(locked: Locked) -> None:
    """The index vouches for a package that another key signed, as long as the mirror has that very index."""
    locked.put(package("hello", key=new_rsa()))
    other = package("hello", key=new_rsa())
    locked.put(other)
    locked.small.index([other.record])
    digest = hash_file(locked.small.file(f"{REPOSITORY}/APKINDEX.tar.gz"))
    locked.change(lambda entry: entry["indexes"][0].update(sha256=digest))
    locked.check(locked.here.base / "another-cache")
    locked.small.index([other.record], time=1)
    with pytest.raises(InputError, match="no trusted key signed it"):
        locked.check(locked.here.base / "a-third-cache")


def test_without_the_index_a_forged_signature_is_refused(locked: Locked) -> None:
    forged = replace(new_rsa(), name=locked.small.keys.signing.name)
    locked.put(package("hello", key=forged, pkgdesc="hostile"))
    with pytest.raises(InputError, match=r"hello-1\.0-r0\.apk: bad signature"):
        locked.check(locked.here.base / "another-cache")


def test_an_index_by_somebody_else_is_refused(locked: Locked) -> None:
    """The lock names an index that is in the cache, and whose signer nobody trusts."""
    path = locked.here.base / "index"
    locked.small.index([locked.small.packages[0].record], key=new_rsa())
    index = locked.small.file(f"{REPOSITORY}/APKINDEX.tar.gz").read_bytes()
    path.write_bytes(index)
    digest = hash_file(path)
    place = locked.here.cache / "sha256" / digest[:2] / digest
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(index)
    locked.change(lambda entry: entry["indexes"][0].update(sha256=digest))
    with pytest.raises(InputError, match=r"APKINDEX\.tar\.gz: signed by an unknown key"):
        locked.check()


def test_what_is_downloaded_has_a_hash_in_the_lock(locked: Locked) -> None:
    locked.change(lambda entry: entry["install"][0].update(sha256=""))
    with pytest.raises(
        InputError, match=r"hello-1\.0-r0\.apk: has to be downloaded, and the lock has no SHA-256 of it"
    ):
        locked.check()


@pytest.mark.parametrize("count", [5, 6])
def test_five_packages_are_named(count: int, locked: Locked) -> None:
    cache = Cache(locked.here.cache)
    plan = lockfile.read(locked.path, locked.recipe, "amd64")
    base = fetch_base(locked.recipe, "amd64", cache, locked.here.base / "spool", locked=plan)
    (hello,) = plan.packages
    strangers = [
        replace(hello, package=replace(hello.package, name=f"p{number}", identity=f"Q1{number}"), url=f"p{number}.apk")
        for number in range(count)
    ]
    everything = (hello, *strangers)
    files = {planned.package.name: Path("nowhere") for planned in everything}
    with pytest.raises(InputError) as caught:
        check_locked(replace(plan, packages=everything), base, cache, files)
    more = " …" if count > 5 else ""
    assert caught.value.message == (
        f"p0.apk, p1.apk, p2.apk, p3.apk, p4.apk{more}: is in none of the indexes that the lock names"
    )


def test_a_package_that_was_not_downloaded_needs_nobody_to_vouch_for_it(locked: Locked) -> None:
    """It is in the minirootfs, which is vouched for."""
    cache = Cache(locked.here.cache)
    plan = lockfile.read(locked.path, locked.recipe, "amd64")
    base = fetch_base(locked.recipe, "amd64", cache, locked.here.base / "spool", locked=plan)
    check_locked(replace(plan, indexes=()), base, cache, {})


@pytest.mark.slow
def test_the_command_checks_it(
    locked: Locked, small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked.put(package("hello", key=new_rsa(), pkgdesc="hostile"))
    for name, value in locked.here.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(locked.here.tmp))
    words = ["build", locked.here.recipe, "--locked", "--mirror", locked.site.url, "--arch", "all"]
    words += ["--release-key", small.release_key, "--out", locked.here.out]
    ran = Ran(main([str(word) for word in words]), *capsys.readouterr())
    check_failure(ran, locked.here, 4, "hello-1.0-r0.apk: is in none of the indexes that the lock names", "lock file")
