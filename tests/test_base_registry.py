"""Bases from a real registry: a tag is resolved once, what was fetched is used again, offline and from a lock."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.fetch.cache import Cache
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.imagename import ImageName
from imgkit.planning.baseimage import BaseImage, open_base
from imgkit.planning.imagestore import FoundImage, find_image
from imgkit.planning.plan import ImageSource
from imgkit.recipe.basereference import BaseReference
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pushing import push, push_targets
from tests.ociimages import AMD64, ARM64, maker, tar
from tests.registries import DockerRegistry, access, docker_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Yield a registry on plain http."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


class Bases:
    """Images in a repository of their own, and a cache."""

    def __init__(self, registry: DockerRegistry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.repository = f"team/{folder.name.lower().strip('_')}"
        self.cache = Cache(folder / "cache")

    def name(self, reference: str) -> ImageName:
        return self.registry.name(f"{self.repository}{reference}")

    def pushed(self, tag: str, *files: str) -> tuple[str, Descriptor]:
        """Push an index of two images with these files; return its digest, and the manifest for amd64."""
        folder = self.folder / "pushed"
        shutil.rmtree(folder, ignore_errors=True)
        images = maker(folder)
        amd64 = images.image(*(tar(file) for file in files))
        arm64 = replace(images, platform=ARM64).image(tar("arm64"))
        images.layout.write_index([arm64, amd64])
        parts = read_parts(images.layout)
        push(images.layout, parts, push_targets([self.name(f":{tag}")], parts.root), access=access())
        return parts.root.digest, amd64

    def find(self, reference: str, *, offline: bool = False, locked: ImageSource | None = None) -> FoundImage:
        parsed = BaseReference.parse(f"oci:{self.name(reference)}")
        cache = Cache(self.cache.folder, offline=offline)
        return find_image(parsed, AMD64, cache, self.folder / "unpacked", locked=locked, access=access())

    def opened(self, found: FoundImage) -> BaseImage:
        spool = self.folder / "spool"
        spool.unlink(missing_ok=True)
        return open_base(found, AMD64, spool)


@pytest.fixture
def bases(registry: DockerRegistry, tmp_path: Path) -> Bases:
    return Bases(registry, tmp_path)


@pytest.mark.slow
def test_a_tag_is_resolved_once(bases: Bases) -> None:
    digest, manifest = bases.pushed("1", "first")
    found = bases.find(":1")
    assert (found.digest, found.manifest.digest) == (digest, manifest.digest)
    assert found.name == f"{bases.registry.host}/{bases.repository}:1"
    assert found.vouched_by == "the tag as it was first seen"
    image = bases.opened(found)
    assert "first" in image.tree
    moved, _ = bases.pushed("1", "second")
    assert "first" in bases.opened(bases.find(":1", locked=image.source)).tree
    assert "second" in bases.opened(bases.find(":1")).tree
    assert bases.find(":1").digest == moved


@pytest.mark.slow
def test_a_digest_in_the_recipe_vouches(bases: Bases) -> None:
    digest, manifest = bases.pushed("1", "first")
    for reference in (f"@{digest}", f":other@{digest}", f"@{manifest.digest}"):
        found = bases.find(reference)
        assert found.manifest.digest == manifest.digest
        assert found.vouched_by == "the digest in the recipe"
    assert bases.find(f":other@{digest}").name.endswith(":other")


@pytest.mark.slow
def test_offline_the_cache_has_what_was_fetched(bases: Bases) -> None:
    digest, manifest = bases.pushed("1", "first")
    with pytest.raises(InputError) as caught:
        bases.find(":1", offline=True)
    assert caught.value.message == f"offline, and the image {bases.name(':1')} is not in the cache"
    assert caught.value.hint == f"build once without --offline (the cache is {bases.cache.folder})"
    source = bases.opened(bases.find(":1")).source
    bases.pushed("1", "second")
    for reference, locked in ((":1", None), (f"@{digest}", None), (f":x@{digest}", None), (":1", source)):
        found = bases.find(reference, offline=True, locked=locked)
        assert (found.digest, found.manifest.digest) == (digest, manifest.digest)
        assert "first" in bases.opened(found).tree
    with pytest.raises(InputError, match=r"^offline, and the image .*:2 is not in the cache$"):
        bases.find(":2", offline=True)


@pytest.mark.slow
def test_only_what_is_new_is_downloaded(bases: Bases) -> None:
    bases.pushed("1", "shared", "first")
    bases.find(":1")
    bases.pushed("2", "shared", "second")
    before = len(bases.registry.requests("GET", f"/{bases.repository}/blobs/"))
    bases.find(":2")
    assert len(bases.registry.requests("GET", f"/{bases.repository}/blobs/")) - before == 2, "a layer, a configuration"
    bases.find(":2")
    assert len(bases.registry.requests("GET", f"/{bases.repository}/blobs/")) - before == 2


@pytest.mark.slow
def test_a_damaged_blob_of_the_cache_is_noticed(bases: Bases) -> None:
    bases.pushed("1", "first")
    found = bases.find(":1")
    (layer,) = bases.opened(found).layers
    assert layer.blob is not None
    place = found.layout.path(layer.blob.descriptor.digest)
    place.write_bytes(bytes(place.stat().st_size))
    with pytest.raises(InputError, match="the blob is damaged"):
        bases.opened(bases.find(":1", offline=True))
    assert "first" in bases.opened(bases.find(":1")).tree, "it is downloaded again"


@pytest.mark.slow
def test_a_lock_that_names_another_image_of_the_index(bases: Bases) -> None:
    bases.pushed("1", "first")
    source = bases.opened(bases.find(":1")).source
    wrong = replace(source, manifest="sha256:" + "0" * 64)
    with pytest.raises(InputError) as caught:
        bases.find(":1", locked=wrong)
    assert caught.value.message == (
        f"{source.name}: the image for linux/amd64 is {source.manifest}, not the lock's {wrong.manifest}"
    )
    assert caught.value.hint == "imgkit lock writes a lock of the image as it is now"
