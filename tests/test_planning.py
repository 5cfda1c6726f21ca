"""From a mirror to a plan and its files: what is downloaded, what is refused, and what is remembered of an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.apkbuild import Apk, Entry
from fixtures.keys import Keys, new_rsa
from fixtures.server import Site, serve
from imgkit.apk.database import InstalledPackage, write_database
from imgkit.apk.index import parse_record
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, hash_file
from imgkit.fetch.openpgp import ALPINE_FINGERPRINT
from imgkit.planning.base import Base, certificate_of, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.indexes import providers
from imgkit.planning.plan import Artefact, Plan, latest_build
from imgkit.planning.resolve import make_plan
from imgkit.recipe import Recipe, load
from tests.commandline import Place
from tests.mirrors import INDEX, LISTING, RECIPE, REPOSITORY, ROOTFS, TIME, Small, another, minimal, package

FILE = Entry(name="hello", data=b"hello\n" * 100)
PACKAGE = f"{REPOSITORY}/hello-1.0-r0.apk"


class Planner:
    """Plans from a small mirror with the one package ``hello``, in this process."""

    def __init__(self, here: Place, small: Small, site: Site) -> None:
        self.here, self.small, self.site = here, small, site
        self.cache = Cache(here.cache)
        here.recipe.write_text(RECIPE)

    @property
    def recipe(self) -> Recipe:
        return load(self.here.recipe, {"mirror": self.site.url, "release_key": self.small.release_key})

    @property
    def hello(self) -> Apk:
        return self.small.packages[0]

    def has(self, *installed: Apk) -> None:
        """Let the mirror have a minirootfs in which these packages are installed."""
        records = [InstalledPackage(package=parse_record(apk.record.strip().split("\n"))) for apk in installed]
        tree = minimal(self.small.keys)
        tree.write("lib/apk/db/installed", write_database(records).installed, mtime=TIME)
        releases = self.small.file(ROOTFS).parent
        for path in releases.iterdir():
            path.unlink()
        releases.rmdir()
        self.small.release(tree)

    def base(self) -> Base:
        spool = self.here.base / "spool"
        spool.unlink(missing_ok=True)
        return fetch_base(self.recipe, "amd64", self.cache, spool)

    def plan(self, base: Base) -> Plan:
        return make_plan(self.recipe, "amd64", base, self.cache)


@contextmanager
def planning(here: Place, keys: Keys) -> Iterator[Planner]:
    """Yield a planner and its mirror, which is served during the block."""
    small = Small(here.base / "mirror", keys, [package("hello", "1.0-r0", FILE, key=keys.signing)]).write()
    with serve(small.root) as site:
        yield Planner(here, small, site)


@pytest.fixture
def planner(here: Place, keys: Keys) -> Iterator[Planner]:
    with planning(here, keys) as made:
        yield made


def test_a_plan_names_every_file_and_who_vouches_for_it(planner: Planner) -> None:
    base = planner.base()
    plan = planner.plan(base)
    index = planner.small.file(INDEX)
    assert (plan.arch, plan.branch, plan.version) == ("amd64", "v3.23", "3.23.6")
    assert plan.base == base.artefact
    assert plan.base.url == f"{planner.site.url}{ROOTFS.lstrip('/')}"
    assert plan.base.vouched_by.startswith("OpenPGP ")
    assert plan.base.sha256 == hash_file(planner.small.file(ROOTFS))
    (artefact,) = plan.indexes
    assert artefact.url == f"{planner.site.url}{INDEX.lstrip('/')}"
    assert (artefact.size, artefact.sha256) == (index.stat().st_size, hash_file(index))
    assert artefact.vouched_by == planner.small.keys.signing.name
    (planned,) = plan.packages
    assert (planned.url, planned.sha256) == (f"{planner.site.url}{PACKAGE.lstrip('/')}", "")
    assert plan.world == ("hello",)
    fetched, files = fetch_packages(plan, base, planner.cache)
    assert fetched.packages[0].sha256 == hash_file(planner.small.file(PACKAGE)) == hash_file(files["hello"])
    assert fetched == replace(plan, packages=fetched.packages)


def test_the_epoch_is_when_the_youngest_package_was_built(planner: Planner) -> None:
    plan = planner.plan(planner.base())
    (planned,) = plan.packages
    younger = replace(planned, package=replace(planned.package, build_time=TIME + 5))
    assert plan.epoch == TIME
    assert replace(plan, packages=(planned, younger, planned)).epoch == TIME + 5
    assert latest_build([]) == 0


def test_the_digest_depends_on_what_is_installed_and_on_nothing_else(planner: Planner) -> None:
    plan = planner.plan(planner.base())
    (planned,) = plan.packages
    other = replace(planned, package=replace(planned.package, identity="Q1other"))
    moved = replace(planned, url="http://elsewhere.test/hello-1.0-r0.apk", sha256="ab" * 32)
    same = replace(plan, branch="edge", version="4", indexes=(), world=(), packages=(moved,))
    assert same.digest == plan.digest
    different = [
        replace(plan, arch="arm64"),
        replace(plan, base=Artefact("http://elsewhere.test/x", 1, "ab" * 32, "key")),
        replace(plan, packages=(other,)),
        replace(plan, packages=(planned, other)),
        replace(plan, packages=(other, planned)),
    ]
    assert len({plan.digest, *(changed.digest for changed in different)}) == 6


# ---- packages -------------------------------------------------------------------------------------------------------


def test_a_package_that_the_minirootfs_has_is_not_downloaded(planner: Planner) -> None:
    planner.has(planner.hello)
    base = planner.base()
    plan, files = fetch_packages(planner.plan(base), base, planner.cache, locked=True)
    assert files == {}
    assert [(str(planned.package), planned.sha256) for planned in plan.packages] == [("hello-1.0-r0", "")]
    assert planner.site.requests[PACKAGE] == 0


def test_another_build_of_a_package_in_the_minirootfs_is_downloaded(planner: Planner) -> None:
    """Its name and version are the same, as may be when a lock file meets a newer minirootfs; its contents need not."""
    planned = planner.plan(planner.base())
    planner.has(another(planner.hello, FILE, key=planner.small.keys.signing))
    plan, files = fetch_packages(planned, planner.base(), planner.cache)
    assert files["hello"].read_bytes() == planner.hello.blob
    assert plan.packages[0].package.identity == planner.hello.identity
    assert plan.packages[0].sha256 == hash_file(files["hello"])


def test_another_package_is_not_kept_in_the_cache(planner: Planner) -> None:
    base = planner.base()
    plan = planner.plan(base)
    other = another(planner.hello, FILE, key=planner.small.keys.signing)
    planner.small.file(PACKAGE).write_bytes(other.blob)
    with pytest.raises(InputError, match=r"^hello-1\.0-r0\.apk: is not the package that the index names \(Q1"):
        fetch_packages(plan, base, planner.cache)
    assert [*planner.here.cache.glob("keyed/*/*")] == []


def test_a_package_that_is_not_the_planned_one_is_not_opened(planner: Planner) -> None:
    """This holds for any content of the cache, even if it was changed since the download."""
    base = planner.base()
    plan, files = fetch_packages(planner.plan(base), base, planner.cache)
    spool = planner.here.base / "packages"
    open_planned(files, base, spool, plan.packages[0].package)
    files["hello"].write_bytes(another(planner.hello, FILE, key=planner.small.keys.signing).blob)
    before = spool.stat().st_size
    with pytest.raises(InputError, match=r"^hello-1\.0-r0\.apk: is not the package that the index names \(Q1"):
        open_planned(files, base, spool, plan.packages[0].package)
    assert spool.stat().st_size == before


@pytest.mark.parametrize("slack", [0, 1])
def test_the_contents_of_a_package_may_exceed_what_the_index_states_by_16_mib(slack: int, planner: Planner) -> None:
    size = (16 << 20) + 100 + slack
    apk = package("hello", "1.0-r0", Entry(name="x", data=bytes(size)), key=planner.small.keys.signing, size=100)
    path = planner.here.base / "hello.apk"
    path.write_bytes(apk.blob)
    stated = parse_record(apk.record.strip().split("\n"))
    assert stated.installed_size == 100
    base, spool = planner.base(), planner.here.base / "packages"
    if slack:
        with pytest.raises(InputError, match=f"more than the {size - 1} bytes|{size - 1}"):
            open_planned({"hello": path}, base, spool, stated)
    else:
        assert len(open_planned({"hello": path}, base, spool, stated).entries) == 1


# ---- the minirootfs -------------------------------------------------------------------------------------------------


def test_a_minirootfs_without_keys_is_refused(planner: Planner) -> None:
    tree = minimal(planner.small.keys)
    name = planner.small.keys.signing.name
    tree.remove(f"etc/apk/keys/{name}")
    tree.write("etc/apk/keys/readme", "no key")
    tree.mkdir("etc/apk/keys/folder.pub")
    releases = planner.small.file(ROOTFS).parent
    for path in releases.iterdir():
        path.unlink()
    releases.rmdir()
    planner.small.release(tree)
    with pytest.raises(InputError) as caught:
        planner.base()
    rootfs = ROOTFS.rpartition("/")[2]
    assert caught.value.message == f"{rootfs}: has no keys in /etc/apk/keys, so nothing can vouch for packages"


def test_a_recipe_without_a_key_of_its_own_trusts_alpine(planner: Planner) -> None:
    assert certificate_of(planner.recipe).data == planner.small.release_key.read_bytes()
    assert certificate_of(load(planner.here.recipe)).fingerprint == ALPINE_FINGERPRINT


def test_the_keys_of_the_minirootfs_are_those_that_are_trusted(planner: Planner) -> None:
    assert list(planner.base().keyring.keys) == [planner.small.keys.signing.name]


def test_a_pinned_version_is_asked_for_even_if_the_list_has_forgotten_it(planner: Planner) -> None:
    """An old release stays on the mirror when the list has only the newest one."""
    old = ROOTFS.replace("3.23.6", "3.23.5")
    for suffix in ("", ".asc"):
        planner.small.file(ROOTFS + suffix).rename(planner.small.file(old + suffix))
    recipe = planner.recipe.model_copy(update={"version": "3.23.5"})
    base = fetch_base(recipe, "amd64", planner.cache, planner.here.base / "spool")
    assert (base.version, base.artefact.url) == ("3.23.5", f"{planner.site.url}{old.lstrip('/')}")
    planner.small.file(LISTING).write_text("hello")
    for asked in (recipe, planner.recipe):
        with pytest.raises(InputError, match=f"^{planner.site.url}{LISTING[1:]}: is not a list of releases$"):
            fetch_base(asked, "amd64", planner.cache, planner.here.base / "spool2")


def test_a_certificate_that_is_none_is_named(planner: Planner) -> None:
    planner.small.release_key.write_text("hello")
    with pytest.raises(InputError, match=f"^{planner.small.release_key}: is not an OpenPGP certificate"):
        certificate_of(planner.recipe)


def test_a_plan_of_an_older_index_is_made_only_if_that_is_allowed(planner: Planner) -> None:
    base = planner.base()
    planner.small.index([planner.hello.record], time=TIME + 1000)
    planner.plan(base)
    planner.small.index([planner.hello.record], time=TIME)
    with pytest.raises(InputError, match="was seen before"):
        planner.plan(base)
    plan = make_plan(planner.recipe, "amd64", base, planner.cache, allow_stale=True)
    assert [str(planned.package) for planned in plan.packages] == ["hello-1.0-r0"]


# ---- indexes --------------------------------------------------------------------------------------------------------


def test_the_date_of_an_index_from_which_nothing_is_taken_is_not_remembered(planner: Planner) -> None:
    """What the plan needs is in the minirootfs, and the mirror shows the index of another repository."""
    planner.has(planner.hello)
    planner.small.index([package("other", key=planner.small.keys.signing).record], time=TIME + 1000)
    assert [str(planned.package) for planned in planner.plan(planner.base()).packages] == ["hello-1.0-r0"]
    planner.small.index([planner.hello.record], time=TIME)
    assert [str(planned.package) for planned in planner.plan(planner.base()).packages] == ["hello-1.0-r0"]


def test_an_index_that_nobody_signed_provides_nothing(planner: Planner) -> None:
    """A lock file names it, and it is in the cache: what it says is not repeated to the user."""
    base = planner.base()
    plan = planner.plan(base)
    assert providers(plan, base, planner.cache, ["hello"]) == {"hello": ()}
    planner.small.index([planner.hello.record], key=new_rsa())
    data = planner.small.file(INDEX).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    place = planner.here.cache / "sha256" / digest[:2] / digest
    place.parent.mkdir(parents=True, exist_ok=True)  # another file of the cache may have the same first two digits
    place.write_bytes(data)
    forged = replace(plan, indexes=(replace(plan.indexes[0], sha256=digest),))
    assert providers(forged, base, planner.cache, ["hello"]) is None


def test_who_provides_what_is_looked_up_without_the_mirror(planner: Planner) -> None:
    base = planner.base()
    plan = planner.plan(base)
    before = planner.site.requests[INDEX]
    assert providers(plan, base, Cache(planner.here.base / "another-cache"), ["hello"]) is None
    assert planner.site.requests[INDEX] == before


def test_who_provides_a_name_is_sorted_and_without_versions(planner: Planner) -> None:
    """A package that provides another name only is not among them."""
    key = planner.small.keys.signing
    made = [
        package("zlib", key=key, provides=["so:libz.so.1=1.3", "cmd:z"]),
        package("alt", key=key, provides=["so:libz.so.1"]),
        package("so:libz.so.1", key=key, provides=["other=1"]),
    ]
    planner.small.index([planner.hello.record, *(apk.record for apk in made)])
    base = planner.base()
    plan = planner.plan(base)
    assert providers(plan, base, planner.cache, ["so:libz.so.1", "none"]) == {
        "so:libz.so.1": ("alt", "zlib"),
        "none": (),
    }


def test_what_a_build_without_a_lock_has_downloaded_serves_a_build_with_one(planner: Planner) -> None:
    base = planner.base()
    plan, _ = fetch_packages(planner.plan(base), base, planner.cache)
    assert plan.packages[0].sha256
    planner.small.file(PACKAGE).unlink()
    again, files = fetch_packages(plan, base, Cache(planner.here.cache, offline=True), locked=True)
    assert again == plan
    assert files["hello"].read_bytes() == planner.hello.blob


def test_a_package_has_the_sha_256_of_the_lock(planner: Planner) -> None:
    """Its identity does not cover its signature, nor how it is compressed."""
    base = planner.base()
    plan = planner.plan(base)
    actual = hash_file(planner.small.file(PACKAGE))
    other = replace(plan, packages=(replace(plan.packages[0], sha256="0" * 64),))
    with pytest.raises(InputError, match=f"{PACKAGE}: .*wrong SHA-256: {actual} instead of {'0' * 64}"):
        fetch_packages(other, base, planner.cache, locked=True)


class Losing(Cache):
    """A cache that is wrong: it returns one file less than it was asked for."""

    def fetch_all(self, *arguments: Any, **options: Any) -> list[Path]:
        return super().fetch_all(*arguments, **options)[:-1]


def test_files_that_get_lost_on_the_way_are_not_left_out_silently(planner: Planner) -> None:
    base = planner.base()
    plan = planner.plan(base)
    with pytest.raises(ValueError, match="zip"):
        fetch_packages(plan, base, Losing(planner.here.cache))
    with pytest.raises(ValueError, match="zip"):
        make_plan(planner.recipe, "amd64", base, Losing(planner.here.cache))


@pytest.mark.parametrize("path", [INDEX, ROOTFS, PACKAGE])
def test_a_web_page_in_the_place_of_a_file_is_named_at_once(path: str, planner: Planner) -> None:
    listing = planner.small.file(LISTING)
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(line for line in lines if not any(word in line for word in ("size:", "sha256:"))))
    record = [line for line in planner.hello.record.split("\n") if not line.startswith("S:")]
    planner.small.index(["\n".join(record)])
    planner.small.file(path).write_text("<!DOCTYPE html><html>")
    with pytest.raises(InputError, match=f"{path}: the server sent a web page instead of the file$"):
        fetch_packages(planner.plan(planner.base()), planner.base(), planner.cache)


def test_the_minirootfs_has_the_sha_512_of_the_list(planner: Planner) -> None:
    listing = planner.small.file(LISTING)
    actual = hashlib.sha512(planner.small.file(ROOTFS).read_bytes()).hexdigest()
    assert actual in listing.read_text()
    listing.write_text(listing.read_text().replace(actual, "0" * 128))
    with pytest.raises(InputError, match=f"{ROOTFS}: .*wrong SHA-512: {actual} instead of {'0' * 128}"):
        planner.base()


def test_packages_come_from_the_repository_that_has_them(planner: Planner) -> None:
    """The indexes are in the recipe's order, and each package's URL is in its own repository."""
    planner.here.recipe.write_text(RECIPE + "repositories = ['main', 'community']\npackages = ['hello', 'world']\n")
    world = package("world", key=planner.small.keys.signing)
    community = planner.small.file(INDEX.replace("main", "community"))
    community.parent.mkdir(parents=True)
    planner.small.index([world.record])
    planner.small.file(INDEX).rename(community)
    planner.small.index([planner.hello.record])
    plan = planner.plan(planner.base())
    assert [index.url.split("/")[-3] for index in plan.indexes] == ["main", "community"]
    assert {str(planned.package): planned.url.split("/")[-3] for planned in plan.packages} == {
        "hello-1.0-r0": "main",
        "world-1.0-r0": "community",
    }


@pytest.mark.parametrize("names", [["main", "community"], ["community", "main"]])
def test_a_package_that_two_repositories_have_comes_from_the_first(names: list[str], planner: Planner) -> None:
    planner.here.recipe.write_text(RECIPE + f"repositories = {names}\n")
    community = planner.small.file(INDEX.replace("main", "community"))
    community.parent.mkdir(parents=True)
    community.write_bytes(planner.small.file(INDEX).read_bytes())
    (planned,) = planner.plan(planner.base()).packages
    assert planned.url.split("/")[-3] == names[0]
