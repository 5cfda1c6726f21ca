"""A container image as the base of a recipe: found, verified, planned with, locked, and built from again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.apkbuild import Apk, Entry
from fixtures.keys import Keys
from fixtures.server import Site, serve
from imgkit.apk.database import InstalledPackage, write_database
from imgkit.apk.index import parse_record
from imgkit.errors import InputError, RecipeError
from imgkit.fetch.cache import Cache
from imgkit.image.buildid import ImageIdentity
from imgkit.image.manifest import describe_root
from imgkit.oci import mediatypes
from imgkit.oci.archives import write_oci_archive
from imgkit.oci.descriptors import Descriptor, Platform, digest_of
from imgkit.oci.documents import ImageConfig
from imgkit.oci.layerchanges import changes
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.planning import lockfile
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.baseimage import _created
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.plan import ImageSource, Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, load
from imgkit.rootfs.binaries.examine import BinaryFindings
from imgkit.rootfs.install import ScriptReport, install, installed_in
from imgkit.tree import Symlink, Tree
from imgkit.tree.tarwriter import archive
from tests import ociimages
from tests.commandline import Place
from tests.mirrors import INDEX, LISTING, RECIPE, REPOSITORY, TIME, Small, minimal, package
from tests.ociimages import AMD64, ARM64, ImageMaker, hard, maker, tar

CREATED = "2026-01-15T12:34:56.123456789Z"
HELLO = Entry(name="hello", data=b"hello\n" * 100)
NO_PACKAGES = "\npackages = []\n"


def layer_of(tree: Tree) -> bytes:
    """Return a layer with everything in a tree."""
    return b"".join(archive(changes(None, tree).entries))


@dataclass
class Bases:
    """Images in a layout beside a recipe, and the mirror that Alpine's packages are from."""

    here: Place
    small: Small
    site: Site
    images: ImageMaker

    @property
    def lock(self) -> Path:
        return lockfile.path_of(self.here.recipe)

    def recipe(self, base: str = "oci:./bases", more: str = "") -> Recipe:
        self.here.recipe.write_text(f'{RECIPE}\nbase = "{base}"\n{more}')
        return load(self.here.recipe, {"mirror": self.site.url, "release_key": self.small.release_key})

    def alpine(self, release: str = "3.23.6", *installed: Apk, platform: Platform = AMD64) -> Descriptor:
        """Add an image of Alpine in which packages are installed."""
        tree = minimal(self.small.keys)
        tree.write("etc/alpine-release", f"{release}\n", mtime=TIME)
        older = [*installed, package("older", key=self.small.keys.signing)]
        records = [InstalledPackage(package=parse_record(apk.record.strip().split("\n"))) for apk in older]
        tree.write("lib/apk/db/installed", write_database(records).installed, mtime=TIME)
        tree.write("etc/apk/world", "older\n", mtime=TIME)
        return self.image(layer_of(tree), platform=platform)

    def image(self, *layers: bytes, platform: Platform = AMD64, **config: Any) -> Descriptor:
        config = {"created": CREATED, "config": {"Env": ["A=b"], "Cmd": ["sh"]}, **config}
        return replace(self.images, platform=platform, config=config).image(*layers)

    def index(self, *entries: Descriptor) -> None:
        self.images.layout.write_index(entries)

    def base(self, recipe: Recipe, *, cache: Cache | None = None, locked: Plan | None = None) -> Base:
        spool = self.here.base / "spool"
        spool.unlink(missing_ok=True)
        return fetch_base(recipe, "amd64", cache or Cache(self.here.cache), spool, locked=locked)

    def plan(self, recipe: Recipe, base: Base, **options: Any) -> Plan:
        return make_plan(recipe, "amd64", base, Cache(self.here.cache), **options)


@pytest.fixture
def bases(here: Place, keys: Keys) -> Iterator[Bases]:
    hello = package("hello", "1.0-r0", HELLO, key=keys.signing)
    small = Small(here.base / "mirror", keys, [hello, package("older", key=keys.signing)]).write()
    with serve(small.root) as site:
        yield Bases(here, small, site, maker(here.recipe.parent / "bases"))


def refusal(bases: Bases, recipe: Recipe, **options: Any) -> tuple[str, str | None]:
    with pytest.raises((InputError, RecipeError)) as caught:
        bases.plan(recipe, bases.base(recipe, **options))
    return caught.value.message, caught.value.hint


# ---- Alpine ---------------------------------------------------------------------------------------------------------


def test_packages_are_added_to_an_image_of_alpine(bases: Bases) -> None:
    manifest = bases.alpine()
    bases.index(manifest)
    recipe = bases.recipe()
    base = bases.base(recipe)
    plan = bases.plan(recipe, base)
    assert (base.version, plan.version, plan.branch) == ("3.23.6", "3.23.6", "v3.23")
    source = ImageSource(
        "bases", manifest.digest, manifest.digest, manifest.size, 1768480496, "the file or folder on this computer"
    )
    assert plan.base == base.artefact == source
    assert source.url == f"oci:bases@{manifest.digest}"
    assert plan.epoch == 1768480496, "the image is younger than its packages"
    assert plan.world == ("older", "hello")
    assert [planned.package.name for planned in plan.packages] == ["hello", "older"]
    assert not any(path.startswith(LISTING) for path in bases.site.requests), "no minirootfs is looked for"
    plan, files = fetch_packages(plan, base, Cache(bases.here.cache))
    opened = partial(open_planned, files, base, bases.here.base / "packages")
    packages = [planned.package for planned in plan.packages]
    install(base.tree, packages, opened, world=plan.world, arch="x86_64", epoch=plan.epoch)
    assert base.tree.read("hello") == b"hello\n" * 100
    assert {record.package.name for record in installed_in(base.tree)} == {"older", "hello"}
    assert base.image is not None
    assert "hello" not in base.image.tree, "what the layers have stays as it is, to be compared with"


def test_an_image_with_a_merged_usr(bases: Bases) -> None:
    """Images of apko have one: the database is where the link leads."""
    tree = minimal(bases.small.keys)
    for path in ("lib/apk/db", "lib/apk", "lib"):
        tree.remove(path)
    tree.write("etc/alpine-release", "3.23.6\n", mtime=TIME)
    older = package("older", key=bases.small.keys.signing)
    record = InstalledPackage(package=parse_record(older.record.strip().split("\n")))
    tree.write("usr/lib/apk/db/installed", write_database([record]).installed, mtime=TIME)
    tree.write("usr/lib/apk/db/scripts.tar", tar(), mtime=TIME)
    tree.symlink("lib", "usr/lib")
    bases.index(bases.image(layer_of(tree)))
    recipe = bases.recipe(more='packages = ["library"]\n')
    library = package("library", "1.0-r0", Entry(name="lib/library.so", data=b"x"), key=bases.small.keys.signing)
    bases.small.file(f"{REPOSITORY}/{library.filename}").write_bytes(library.blob)
    bases.small.index([library.record, older.record])
    base = bases.base(recipe)
    plan, files = fetch_packages(bases.plan(recipe, base), base, Cache(bases.here.cache))
    selection = [planned.package for planned in plan.packages]
    spool = bases.here.base / "packages"
    install(
        base.tree, selection, partial(open_planned, files, base, spool), world=plan.world, arch="x86_64", epoch=TIME
    )
    assert base.tree.read("usr/lib/library.so") == b"x"
    assert {record.package.name for record in installed_in(base.tree)} == {"library"}
    assert "usr/lib/apk/db/scripts.tar" not in base.tree
    assert isinstance(base.tree["lib"], Symlink)


def test_an_image_of_another_branch_is_refused(bases: Bases) -> None:
    bases.index(bases.alpine("3.20.3"))
    message, hint = refusal(bases, bases.recipe())
    assert message == "bases: is of branch v3.20, not of v3.23 ('3.20.3')"
    assert hint == (
        'write branch = "v3.20" in the recipe, or start from another image; --allow-stale-mirror accepts it anyway'
    )


def test_the_latest_branch_is_the_image_s(bases: Bases) -> None:
    bases.index(bases.alpine())
    recipe = bases.recipe(more='branch = "latest-stable"\n')
    assert bases.plan(recipe, bases.base(recipe)).branch == "latest-stable"
    assert INDEX in bases.site.requests


def test_the_image_s_keys_vouch_for_packages(bases: Bases) -> None:
    tree = minimal(bases.small.keys)
    tree.write("etc/alpine-release", "3.23.6\n")
    tree.remove(f"etc/apk/keys/{bases.small.keys.signing.name}")
    bases.index(bases.image(layer_of(tree)))
    message, _ = refusal(bases, bases.recipe())
    assert message == "packages: hello: the base bases has no package database, or no keys"


@pytest.mark.parametrize("path", ["etc/os-release", "usr/lib/os-release"])
def test_packages_cannot_be_added_to_anything_else(bases: Bases, path: str) -> None:
    release = b'NAME=x\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    bases.index(bases.image(tar(ociimages.Entry(path, release))))
    message, hint = refusal(bases, bases.recipe())
    assert message == (
        "packages: hello: the base bases is Debian GNU/Linux 12 (bookworm), where they cannot be installed"
    )
    assert hint == "start from an image of Alpine, or leave the recipe without packages"


# ---- without packages -----------------------------------------------------------------------------------------------


def test_an_image_without_packages_needs_no_mirror(bases: Bases) -> None:
    bases.index(bases.image(tar(ociimages.Entry("app", b"x"))))
    recipe = bases.recipe(more=NO_PACKAGES)
    base = bases.base(recipe)
    plan = bases.plan(recipe, base)
    assert (plan.version, plan.packages, plan.world, plan.indexes) == ("", (), (), ())
    assert base.tree.read("app") == b"x"
    assert not bases.site.requests


def test_an_image_of_alpine_without_packages_is_listed_as_it_is(bases: Bases) -> None:
    bases.index(bases.alpine("3.20.3"))
    recipe = bases.recipe(more=NO_PACKAGES)
    plan = bases.plan(recipe, bases.base(recipe))
    assert [(planned.url, planned.package.name) for planned in plan.packages] == [("/older-1.0-r0.apk", "older")]
    assert plan.world == ("older",)
    assert not bases.site.requests


# ---- what the image is for those who build on it --------------------------------------------------------------------


def test_layers_and_configuration_can_be_reused(bases: Bases, tmp_path: Path) -> None:
    layers = [tar(ociimages.Entry("a", b"x" * 5000)), tar("b")]
    bases.index(bases.image(*layers))
    image = bases.base(bases.recipe(more=NO_PACKAGES)).image
    assert image is not None
    blobs = [layer.blob for layer in image.layers if layer.blob is not None]
    assert [blob.diff_id for blob in blobs] == [digest_of(layer) for layer in layers]
    assert image.runtime.Env == ["A=b"]
    assert [layer.history.created_by for layer in image.layers] == ["layer 0", "layer 1"]
    target = OciLayout.create(tmp_path / "target")
    image.copy_layers(target)
    for blob in blobs:
        with target.verified(blob.descriptor) as copy:
            assert copy.read() == image.layout.path(blob.descriptor.digest).read_bytes()
    assert sorted(path.name for path in target.folder.iterdir()) == ["blobs", "oci-layout"]
    digest = blobs[0].descriptor.digest
    place = image.layout.path(digest)
    place.write_bytes(bytes(place.stat().st_size))
    image.copy_layers(target)  # it has them
    target.path(digest).unlink()
    with pytest.raises(InputError, match="the blob is damaged"):
        image.copy_layers(target)


def test_docker_s_media_types_become_those_of_oci(bases: Bases) -> None:
    data = tar("a")
    layer = replace(bases.images.layer(data), media_type=mediatypes.DOCKER_LAYER_GZIP)
    bases.index(bases.images.manifest_of([layer], [digest_of(data)]))
    image = bases.base(bases.recipe(more=NO_PACKAGES)).image
    assert image is not None
    assert [layer.blob and layer.blob.descriptor.media_type for layer in image.layers] == [mediatypes.LAYER_GZIP]


def test_entries_of_the_history_that_changed_nothing_stay(bases: Bases) -> None:
    bases.index(bases.image(tar("a"), history=[{"created_by": "x"}, {"created_by": "ENV", "empty_layer": True}]))
    image = bases.base(bases.recipe(more=NO_PACKAGES)).image
    assert image is not None
    assert [(layer.history.created_by, layer.blob is None) for layer in image.layers] == [("x", False), ("ENV", True)]


@pytest.mark.parametrize(
    ("setting", "mode", "words"), [("keep", 0o4755, "keep their rights"), ("drop", 0o755, "lose their rights")]
)
def test_set_user_id_programs(
    bases: Bases, setting: str, mode: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    su = ociimages.Entry("bin/su", b"su", mode=0o4755)
    devices = [ociimages.Entry(f"dev/{number}", kind=b"3", device=(1, number)) for number in range(6)]
    bases.index(bases.image(tar(su, hard("bin/sudo", "bin/su", 0o4755), *devices)))
    with caplog.at_level(logging.INFO, "imgkit"):
        base = bases.base(bases.recipe(more=f'{NO_PACKAGES}base_setuid = "{setting}"\n'))
    assert base.image is not None
    assert base.tree["bin/su"].mode == mode
    assert base.image.tree["bin/su"].mode == 0o4755, "the layers are as they are"
    assert base.image.privileged == ("bin/su", "bin/sudo")
    assert base.image.left_out == tuple(f"dev/{number}" for number in range(6))
    assert [record.message for record in caplog.records if "bases:" in record.message] == [
        "bases: device nodes and FIFOs of the base are left out: /dev/0, /dev/1, /dev/2, /dev/3, /dev/4 …",
        f"bases: set-user-id and similar programs of the base {words}: bin/su, bin/sudo",
    ]


def test_the_manifest_lists_what_is_special_about_a_base(bases: Bases) -> None:
    su = ociimages.Entry("bin/su", b"su", mode=0o4755)
    manifest = bases.image(tar(su, ociimages.Entry("dev/null", kind=b"3", device=(1, 3))))
    bases.index(manifest)
    recipe = bases.recipe(more=f'{NO_PACKAGES}base_setuid = "drop"\n')
    base = bases.base(recipe)
    scripts, binaries = ScriptReport((), (), ()), BinaryFindings()
    composition: Any = SimpleNamespace(scripts=scripts, binaries=binaries, tree=Tree())
    identity = ImageIdentity("b", {"recipe": {}, "epoch": 1}, {})
    described = describe_root(recipe, bases.plan(recipe, base), composition, identity, base.image)
    assert described["base"] == {
        "image": "bases",
        "digest": manifest.digest,
        "manifest": manifest.digest,
        "vouchedBy": "the file or folder on this computer",
        "privileged": {"kept": False, "paths": ["/bin/su"]},
        "leftOut": ["/dev/null"],
    }
    assert "minirootfs" not in described
    bases.index(bases.alpine())
    described = describe_root(recipe, bases.plan(recipe, bases.base(recipe)), composition, identity)
    assert [package["from"] for package in described["packages"]] == ["base"]
    assert "privileged" not in described["base"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01T01:00:10.5+01:00", 10),
        ("1970-01-01T00:00:10", 10),
        ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0),
        ("1970-01-01T00:00:10.x", 0),
    ],
)
def test_when_an_image_was_made(text: str | None, seconds: int) -> None:
    rootfs = {"type": "layers", "diff_ids": []}
    config = {"os": "linux", "architecture": "amd64", "rootfs": rootfs, "created": text}
    assert _created(ImageConfig.model_validate(config)) == seconds


# ---- which image ----------------------------------------------------------------------------------------------------


def named(entry: Descriptor, name: str) -> Descriptor:
    return replace(entry, annotations={"org.opencontainers.image.ref.name": name})


def test_a_tag_or_a_digest_chooses_an_image_of_a_layout(bases: Bases) -> None:
    one, two = bases.image(tar("one")), bases.image(tar("two"))
    bases.index(named(one, "1.0"), named(two, "2.0"))
    for reference, file, by in (
        (":1.0", "one", "the file or folder on this computer"), (f"@{two.digest}", "two", "the digest in the recipe"),
    ):  # fmt: skip
        base = bases.base(bases.recipe(f"oci:./bases{reference}", NO_PACKAGES))
        assert file in base.tree
        assert base.artefact.vouched_by == by
    message, hint = refusal(bases, bases.recipe(more=NO_PACKAGES))
    assert message == f"{bases.images.layout.folder}: has 2 images for linux/amd64"
    assert hint == "choose one of 1.0, 2.0"


def test_an_archive_of_a_layout(bases: Bases) -> None:
    """This is what ``docker save`` and ``--output oci-archive`` write."""
    bases.index(named(bases.image(tar("x")), "1"))
    archive = bases.here.recipe.parent / "bases.tar"
    write_oci_archive(bases.images.layout, archive)
    recipe = bases.recipe("oci:./bases.tar:1", NO_PACKAGES)
    base = bases.base(recipe)
    assert "x" in base.tree
    assert base.image is not None
    target = OciLayout.create(bases.here.base / "target")
    base.image.copy_layers(target)
    assert len(list((target.folder / "blobs/sha256").iterdir())) == 1
    shutil.rmtree(bases.here.base / "spool-layout")
    message, _ = refusal(bases, bases.recipe("oci:./bases.tar:2", NO_PACKAGES))
    assert message == f"{archive}: has no image 2"


def test_the_image_of_the_architecture_is_taken(bases: Bases) -> None:
    arm64, amd64 = bases.image(tar("arm"), platform=ARM64), bases.image(tar("amd"))
    listed = {"schemaVersion": 2, "manifests": [arm64.to_json(), amd64.to_json()]}
    index = bases.images.layout.add(mediatypes.INDEX, to_json(listed))
    bases.index(index)
    base = bases.base(bases.recipe(more=NO_PACKAGES))
    assert "amd" in base.tree
    assert isinstance(base.artefact, ImageSource)
    assert (base.artefact.digest, base.artefact.manifest) == (index.digest, amd64.digest)


def test_an_image_that_is_listed_for_another_platform_is_refused(bases: Bases) -> None:
    bases.index(replace(bases.image(tar("x"), platform=ARM64), platform=AMD64))
    message, _ = refusal(bases, bases.recipe(more=NO_PACKAGES))
    assert message == (
        "bases: the image that is listed for linux/amd64 says that it is for linux/arm64/v8"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("oci:Upper/case", "base: 'Upper/case'"),
        ("oci:./x@sha256:12", "base: "),
        ("docker:x", "base: "),
    ],
)
def test_references_that_are_none(bases: Bases, base: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        bases.recipe(base)
    assert problem in caught.value.message


def test_a_layout_that_is_missing(bases: Bases) -> None:
    message, _ = refusal(bases, bases.recipe("oci:./nowhere"))
    folder = bases.here.recipe.parent / "nowhere"
    assert message == f"{folder}: not an OCI image layout (it has no file oci-layout)"


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_a_lock_keeps_the_image(bases: Bases) -> None:
    first = bases.alpine()
    bases.index(named(first, "1"))
    recipe = bases.recipe("oci:./bases:1")
    base = bases.base(recipe)
    plan, _ = fetch_packages(bases.plan(recipe, base), base, Cache(bases.here.cache))
    lockfile.write(bases.lock, recipe, [plan])
    entry = json.loads(bases.lock.read_text())["architectures"]["amd64"]
    assert entry["base"] == "oci:./bases:1"
    assert entry["image"]["digest"] == first.digest
    assert "minirootfs" not in entry
    bases.index(named(bases.alpine("3.23.7"), "1"), first)
    locked = lockfile.read(bases.lock, recipe, "amd64")
    assert locked.base == plan.base
    again = bases.base(recipe, locked=locked)
    assert (again.artefact, again.version) == (plan.base, "3.23.6")
    _, files = fetch_packages(locked, again, Cache(bases.here.cache), locked=True)
    check_locked(locked, again, Cache(bases.here.cache), files)
    bases.index(named(bases.alpine("3.23.7"), "1"))
    with pytest.raises(InputError, match=f"has no image {first.digest}"):
        bases.base(recipe, locked=locked)


def test_a_lock_is_for_one_kind_of_base(bases: Bases) -> None:
    bases.index(bases.alpine())
    recipe = bases.recipe()
    lockfile.write(bases.lock, recipe, [bases.plan(recipe, bases.base(recipe))])
    without = recipe.model_copy(update={"base": None})
    for other in (without, recipe.model_copy(update={"base": "oci:registry.example/app"})):
        with pytest.raises(RecipeError, match=r"the recipe has changed since \(base\)"):
            lockfile.read(bases.lock, other, "amd64")
    locked = lockfile.read(bases.lock, recipe, "amd64")
    with pytest.raises(InputError, match=r"^bases: the lock has this image, but the recipe starts from"):
        bases.base(without, locked=locked)
    minirootfs = bases.plan(without, bases.base(without))
    lockfile.write(bases.lock, without, [minirootfs])
    assert "base" not in json.loads(bases.lock.read_text())["architectures"]["amd64"]
    with pytest.raises(RecipeError, match=r"the recipe has changed since \(base\)"):
        lockfile.read(bases.lock, recipe, "amd64")
    with pytest.raises(InputError, match=r"the lock has this minirootfs, but the recipe starts from an image$"):
        bases.base(recipe, locked=minirootfs)


def test_a_lock_and_its_layout_may_be_moved_together(bases: Bases, tmp_path: Path) -> None:
    bases.index(bases.image(tar("x")))
    recipe = bases.recipe(more=NO_PACKAGES)
    lockfile.write(bases.lock, recipe, [bases.plan(recipe, bases.base(recipe))])
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(bases.here.recipe.parent / "bases", elsewhere / "bases")
    for path in (bases.here.recipe, bases.lock):
        shutil.copy(path, elsewhere / path.name)
    moved = load(elsewhere / bases.here.recipe.name, {"mirror": bases.site.url})
    locked = lockfile.read(elsewhere / bases.lock.name, moved, "amd64")
    assert "x" in bases.base(moved, locked=locked).tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "it must have either minirootfs or image"),
        ({"minirootfs": {"path": "x", "size": 1, "sha256": "0" * 64, "vouchedBy": "x"}}, "either minirootfs or image"),
    ],
)
def test_a_lock_has_one_base(bases: Bases, change: dict[str, object], message: str) -> None:
    bases.index(bases.image(tar("x")))
    recipe = bases.recipe(more=NO_PACKAGES)
    lockfile.write(bases.lock, recipe, [bases.plan(recipe, bases.base(recipe))])
    body = json.loads(bases.lock.read_text())
    body["architectures"]["amd64"].update(change)
    bases.lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match=message):
        lockfile.read(bases.lock, recipe, "amd64")
