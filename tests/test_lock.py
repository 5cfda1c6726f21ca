"""``imgkit lock`` as a command, and what a build takes from its file: the files themselves, and no index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.keys import Keys
from fixtures.server import Site, serve
from imgkit import recipe
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages
from imgkit.planning.indexes import providers
from imgkit.planning.resolve import make_plan
from tests.commandline import Place, check_failure
from tests.mirrors import INDEX, LISTING, RECIPE, REPOSITORY, ROOTFS, TIME, Small, minimal, package


@pytest.fixture
def words(here: Place, small: Small, site: Site) -> list[str | Path]:
    here.recipe.write_text(RECIPE)
    return ["lock", here.recipe, "--mirror", site.url, "--release-key", small.release_key]


@pytest.mark.slow
def test_a_build_from_the_lock_asks_for_no_list(words: list[str | Path], here: Place, small: Small, site: Site) -> None:
    ran = here.run(*words)
    lock = here.base / "recipe.lock"
    assert (ran.status, ran.out, ran.err) == (0, f"{lock}\n", "")
    wanted = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
    plan = lockfile.read(lock, wanted, "amd64")
    site.requests.clear()
    cache = Cache(here.base / "another-cache")
    _, files = fetch_packages(plan, fetch_base(wanted, "amd64", cache, here.base / "spool", locked=plan), cache)
    assert set(site.requests) == {ROOTFS, f"{ROOTFS}.asc", f"{REPOSITORY}/hello-1.0-r0.apk"}
    assert INDEX not in site.requests
    assert LISTING not in site.requests
    assert files["hello"].read_bytes() == small.packages[0].blob


@pytest.mark.slow
def test_what_was_downloaded_to_lock_is_there_without_network(
    words: list[str | Path], here: Place, small: Small, site: Site
) -> None:
    assert here.run(*words).status == 0
    wanted = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
    plan = lockfile.read(here.base / "recipe.lock", wanted, "amd64")
    cache = Cache(here.cache, offline=True)
    base = fetch_base(wanted, "amd64", cache, here.base / "spool", locked=plan)
    plan, files = fetch_packages(plan, base, cache)
    assert files["hello"].read_bytes() == small.packages[0].blob
    locked = replace(plan, packages=tuple(replace(planned, sha256="0" * 64) for planned in plan.packages))
    with pytest.raises(InputError, match="not in the cache"):  # a file of that name that is not the locked one
        fetch_packages(locked, base, cache)


@pytest.mark.slow
def test_providers_are_known_where_the_index_is_still_there(
    words: list[str | Path], here: Place, small: Small, site: Site
) -> None:
    """What is advised about a missing library: a locked build has no index of its own, and fetches none for that."""
    others = [
        package("two", "1-r0", key=small.keys.signing, provides=["so:libx.so.1=1.2", "cmd:two=1-r0"]),
        package("one", "1-r0", key=small.keys.signing, provides=["so:libx.so.1=1.1"]),
    ]
    small.index(apk.record for apk in (*small.packages, *others))
    assert here.run(*words).status == 0
    wanted = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
    plan = lockfile.read(here.base / "recipe.lock", wanted, "amd64")
    base = fetch_base(wanted, "amd64", Cache(here.cache), here.base / "spool", locked=plan)
    site.requests.clear()
    providing = providers(plan, base, Cache(here.cache), ["so:libx.so.1", "so:liby.so.1"])
    assert providing == {"so:libx.so.1": ("one", "two"), "so:liby.so.1": ()}
    assert providers(plan, base, Cache(here.base / "empty"), ["so:libx.so.1"]) is None
    assert not site.requests


def test_what_the_recipe_adds_is_decided_before_the_minirootfs_world(here: Place, keys: Keys, tmp_path: Path) -> None:
    """As ``apk add w`` does it where v is in the world. In the order of their names v would bring package a as well."""
    packages = [
        package("a", "1-r0", key=keys.signing, provides=["v"], provider_priority=10),
        package("b", "1-r0", key=keys.signing, provides=["v", "w"], provider_priority=5),
        package("c", "1-r0", key=keys.signing, provides=["w"], provider_priority=1),
    ]
    tree = minimal(keys)
    tree.write("etc/apk/world", "v\n", mtime=TIME)
    small = Small(here.base / "mirror", keys, packages).write(tree)
    here.recipe.write_text(RECIPE + "packages = ['w']\n")
    with serve(small.root) as site:
        wanted = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
        cache = Cache(here.cache)
        plan = make_plan(wanted, "amd64", fetch_base(wanted, "amd64", cache, tmp_path / "spool"), cache)
    assert [planned.package.name for planned in plan.packages] == ["b"]
    assert plan.world == ("v", "w")


@pytest.mark.slow
def test_a_package_that_is_not_the_locked_one_is_refused(
    words: list[str | Path], here: Place, small: Small, site: Site
) -> None:
    assert here.run(*words).status == 0
    other = package("hello", "1.0-r0", key=small.keys.signing, pkgdesc="another build of the same version")
    small.file(f"{REPOSITORY}/hello-1.0-r0.apk").write_bytes(other.blob)
    wanted = recipe.load(here.recipe, {"mirror": site.url, "release_key": small.release_key})
    plan = lockfile.read(here.base / "recipe.lock", wanted, "amd64")
    cache = Cache(here.base / "another-cache")
    base = fetch_base(wanted, "amd64", cache, here.base / "spool", locked=plan)
    with pytest.raises(InputError, match=r"hello-1\.0-r0\.apk"):
        fetch_packages(plan, base, cache)


@pytest.mark.slow
def test_one_architecture_of_several(words: list[str | Path], here: Place) -> None:
    """The other's entry stays, by option and by variable; one that the recipe lost goes."""
    lock = here.base / "recipe.lock"
    here.recipe.write_text(RECIPE + 'architectures["arm64"] = {**architectures["amd64"], "alpine": "aarch64"}\n')
    ran = here.run(*words)
    check_failure(ran, here, 4, "aarch64")  # the mirror lacks it: all of the recipe's were asked for
    assert not lock.exists()
    lock.write_text(json.dumps({"lock": 1, "architectures": {"arm64": {"kept": True}, "riscv64": {}}}))
    for ran in (here.run(*words, "--arch", "amd64"), here.run(*words, env={"ARCHS": "amd64"})):
        assert ran.status == 0, ran.err
        entries = json.loads(lock.read_text())["architectures"]
        assert set(entries) == {"amd64", "arm64"}
        assert entries["arm64"] == {"kept": True}


@pytest.mark.slow
def test_a_damaged_lock_is_not_overwritten_in_part(words: list[str | Path], here: Place) -> None:
    lock = here.base / "recipe.lock"
    here.recipe.write_text(RECIPE + 'architectures["arm64"] = {**architectures["amd64"], "alpine": "aarch64"}\n')
    lock.write_text("<<<<<<< HEAD")
    check_failure(here.run(*words, "--arch", "amd64"), here, 4, "recipe.lock: not JSON", "imgkit lock")
    assert lock.read_text() == "<<<<<<< HEAD"
