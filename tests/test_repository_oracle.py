"""Folders of packages against the real apk: what it writes into an index, and what it makes of our image's files."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.keys import new_rsa, public_pem
from imgkit.apk.index import Package, Repository, parse_index
from imgkit.apk.packagerecord import read_package
from imgkit.apk.signature import Keyring
from imgkit.fetch.cache import Cache
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.resolve import make_plan
from imgkit.recipe import Recipe
from imgkit.rootfs import steps, systemfiles
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Tree
from tests.mirrors import REPOSITORY, TIME, package
from tests.test_further_repositories import COMPANY, Company, company, local
from tests.test_solver_oracle import Apk, machine

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

pytestmark = pytest.mark.mirror
__all__ = ["company", "machine"]

FOLDER = Repository(url="folder")


def index_by_apk(apk: Apk, folder: Path) -> list[Package]:
    """Return the records in the index that ``apk index`` writes of a folder of packages."""
    files = sorted(str(path) for path in folder.glob("*.apk"))
    ended = apk.run("index", "--output", str(folder / "APKINDEX.tar.gz"), *files)
    assert ended.returncode == 0, ended.stderr
    with tarfile.open(folder / "APKINDEX.tar.gz") as archive:
        member = archive.extractfile("APKINDEX")
        assert member is not None
        return sorted(parse_index(member.read().decode(), FOLDER), key=str)


def test_records_of_packages_are_those_of_apk_index(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    """All packages of the offline mirror, and one with every field of a record."""
    key = new_rsa()
    everything = package(
        "tool", "2.0-r0", key=key, arch=machine, size=7, origin="o", maintainer="M <m@example.com>", commit="c0ffee",
        provider_priority=5, depend=["a>1", "!b"], provides=["cmd:x=2", "y"], install_if=["a=1", "b"],
    )  # fmt: skip
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / everything.filename).write_bytes(everything.blob)
    for path in mirror.root.glob(f"v*/*/{machine}/*.apk"):
        shutil.copyfile(path, folder / path.name)
    apk = Apk(mirror, tmp_path, machine=machine, arch=platform.machine())
    apk.publish([])  # which makes its root
    keyring = Keyring.from_files({key.name: public_pem(key), mirror.rsa_key_name: mirror.rsa_public.read_bytes()})
    theirs = index_by_apk(apk, folder)
    ours = sorted((read_package(path, keyring, FOLDER) for path in folder.glob("*.apk")), key=str)
    assert len(ours) > 30
    assert ours == theirs


# ---- the image's own apk ---------------------------------------------------------------------------------------------


class GuestApk(Apk):
    """The real apk in the root filesystem of an image, with its repositories, its keys and its network."""

    def __init__(self, mirror: Mirror, scratch: Path, *, machine: str) -> None:
        super().__init__(mirror, scratch, machine=machine, arch=machine)
        self.root = scratch / "root"

    def unpack(self, tree: Tree) -> None:
        archive = self.scratch / "root.tar"
        with archive.open("wb") as sink:
            tree.write_tar(sink)
        self.root.mkdir()
        subprocess.run(["tar", "-C", self.root, "-xf", archive], check=True)

    def install(self, *words: str) -> subprocess.CompletedProcess[str]:
        image = self.scratch / "image"
        (linker,) = image.glob("lib/ld-musl-*")
        (program,) = (path for path in image.glob("**/apk") if path.is_file())
        options = ["--root", str(self.root), "--keys-dir", str(self.root / "etc/apk/keys"), "--no-cache"]
        return subprocess.run(
            [str(linker), "--library-path", f"{image}/usr/lib:{image}/lib", str(program), *options, "add", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def composed(company: Company, recipe: Recipe) -> Tree:
    """Return the root filesystem that a build of the recipe makes of the packages."""
    cache = Cache(company.here.cache)
    base = company.base(recipe, cache)
    plan, files = fetch_packages(make_plan(recipe, "amd64", base, cache), base, cache)
    opened = partial(open_planned, files, base, company.here.base / "spool")
    chosen = PackageSet(tuple(planned.package for planned in plan.packages), opened, plan.world)
    steps.install_packages(base.tree, chosen, recipe, "amd64", can_run=False, epoch=TIME)
    systemfiles.configure(base.tree, recipe, epoch=TIME)
    return base.tree


def guest_recipe(company: Company, *packages: str, **entry: object) -> Recipe:
    """Return the recipe of an image whose own apk uses the same server as the build."""
    return company.recipe(*packages, **entry).model_copy(update={"guest_mirror": company.site.url.rstrip("/")})


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the small mirror has packages for x86_64")
def test_the_images_own_apk_installs_from_the_repository(
    mirror: Mirror, machine: str, company: Company, tmp_path: Path
) -> None:
    """It knows the line, the tag and the key; without the key it would not trust the index."""
    company.publish(company.tool, package("more", "1.0-r0", key=COMPANY))
    tree = composed(company, guest_recipe(company, "tool@ours", tag="ours"))
    apk = GuestApk(mirror, tmp_path, machine=machine)
    apk.unpack(tree)
    assert (apk.root / "etc/apk/world").read_text() == "hello\ntool@ours\n"
    ended = apk.install("more@ours")
    assert ended.returncode == 0, ended.stderr
    assert "Installing more@ours (1.0-r0)" in ended.stdout
    assert (apk.root / "etc/apk/world").read_text() == "hello\nmore@ours\ntool@ours\n"
    (apk.root / "etc/apk/keys" / COMPANY.name).unlink()
    assert "UNTRUSTED signature" in apk.install("more@ours").stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the small mirror has packages for x86_64")
def test_the_images_own_apk_keeps_what_came_from_a_folder(
    mirror: Mirror, machine: str, company: Company, tmp_path: Path
) -> None:
    """The world has no tag for it, since apk does nothing with a tag that no repository has."""
    company.small.packages.append(package("more", "1.0-r0", key=company.small.keys.signing))
    company.small.file(f"{REPOSITORY}/more-1.0-r0.apk").write_bytes(company.small.packages[1].blob)
    company.small.index(apk.record for apk in company.small.packages)
    recipe = guest_recipe(company, "tool@ours", url=local(company, "bare"), tag="ours")
    apk = GuestApk(mirror, tmp_path, machine=machine)
    apk.unpack(composed(company, recipe))
    world = apk.root / "etc/apk/world"
    assert world.read_text() == "hello\ntool\n"
    ended = apk.install("more")
    assert ended.returncode == 0, ended.stderr
    installed = (apk.root / "lib/apk/db/installed").read_text()
    assert {line for line in installed.splitlines() if line.startswith("P:")} == {"P:hello", "P:tool", "P:more"}
    world.write_text("hello\nmore\ntool@ours\n")
    assert "'tool@ours' does not exist" in apk.install("more").stderr
