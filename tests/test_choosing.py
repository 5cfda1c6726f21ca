"""Choosing the image of a platform: what BuildKit, umoci, skopeo and imgkit list, and what nobody should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import InputError
from imgkit.oci import mediatypes
from imgkit.oci.choosing import choose_image, layout_entries, same_platform
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.ocilayout import OciLayout, to_json
from tests.ociimages import AMD64, ARM64, ImageMaker, maker, tar

UNKNOWN = Platform("unknown", "unknown")


@pytest.fixture
def images(tmp_path: Path) -> ImageMaker:
    return maker(tmp_path / "layout")


def image(images: ImageMaker, platform: Platform, name: str = "file") -> Descriptor:
    return replace(images, platform=platform).image(tar(name))


def index(images: ImageMaker, *entries: Descriptor, media_type: str = mediatypes.INDEX) -> Descriptor:
    listed = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry.to_json() for entry in entries]}
    return images.layout.add(media_type, to_json(listed))


def named(entry: Descriptor, name: str, key: str = "org.opencontainers.image.ref.name") -> Descriptor:
    return replace(entry, annotations={key: name})


def chosen(images: ImageMaker, *entries: Descriptor, platform: Platform = AMD64) -> str:
    return choose_image(images.layout, entries, platform, "the base").digest


def refusal(images: ImageMaker, *entries: Descriptor, platform: Platform = AMD64) -> tuple[str, str | None]:
    with pytest.raises(InputError) as caught:
        chosen(images, *entries, platform=platform)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("arm64", ""), ("arm64", "v8"), True),
        (("arm64", "v9"), ("arm64", "v8"), False),
        (("amd64", "v1"), ("amd64", ""), True),
        (("amd64", "v3"), ("amd64", ""), False),
        (("arm", "v7"), ("arm", ""), True),
        (("arm", "v8"), ("arm", ""), False),
        (("amd64", ""), ("arm64", ""), False),
    ],
)
def test_variants(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    assert same_platform(Platform("linux", *one), Platform("linux", *other)) is same
    assert same_platform(Platform("linux", *other), Platform("linux", *one)) is same
    assert not same_platform(Platform("linux", *one), Platform("windows", *one))


def test_what_buildkit_writes(images: ImageMaker) -> None:
    """An index in the layout's index, with an attestation for each image."""
    amd64, arm64 = image(images, AMD64), image(images, ARM64)
    note = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd64.digest}
    attestation = replace(image(images, UNKNOWN, "note"), annotations=note)
    top = index(images, attestation, amd64, arm64, replace(attestation, platform=AMD64))
    for platform, expected in ((AMD64, amd64), (ARM64, arm64), (Platform("linux", "arm64"), arm64)):
        assert chosen(images, top, platform=platform) == expected.digest
    message, hint = refusal(images, top, platform=Platform("linux", "s390x"))
    assert (message, hint) == ("the base: has no image for linux/s390x, but linux/amd64, linux/arm64/v8", None)


def test_docker_s_manifest_list(images: ImageMaker) -> None:
    amd64 = replace(image(images, AMD64), media_type=mediatypes.DOCKER_MANIFEST)
    assert chosen(images, index(images, amd64, media_type=mediatypes.DOCKER_INDEX)) == amd64.digest


def test_an_image_by_itself(images: ImageMaker) -> None:
    assert chosen(images, image(images, AMD64)) == image(images, AMD64).digest


def test_images_of_other_platforms_need_not_be_there(images: ImageMaker) -> None:
    """Only what is needed of an index is downloaded."""
    amd64, arm64 = image(images, AMD64), image(images, ARM64)
    images.layout.path(arm64.digest).unlink()
    assert chosen(images, index(images, arm64, amd64)) == amd64.digest
    message, _ = refusal(images, arm64)
    assert message == "the base: has no image for linux/amd64, but linux/arm64/v8"


@pytest.mark.parametrize("stated", [None, Platform("", "")])
def test_the_configuration_has_the_platform_where_the_index_has_none(
    images: ImageMaker, stated: Platform | None
) -> None:
    """This is what umoci, skopeo and buildah write."""
    amd64, arm64 = (replace(image(images, platform), platform=stated) for platform in (AMD64, ARM64))
    found = choose_image(images.layout, [amd64, arm64], Platform("linux", "arm64"), "the base")
    assert (found.digest, found.platform) == (arm64.digest, ARM64)


def test_the_first_of_an_index_is_taken(images: ImageMaker) -> None:
    first, second = image(images, AMD64, "a"), image(images, AMD64, "b")
    assert chosen(images, index(images, second, first)) == second.digest


def test_several_entries_of_a_layout_have_to_be_told_apart(images: ImageMaker) -> None:
    first, second = named(image(images, AMD64, "a"), "one"), image(images, AMD64, "b")
    assert refusal(images, first, second) == (
        "the base: has 2 images for linux/amd64", f"choose one of one, {second.digest}",
    )  # fmt: skip
    assert chosen(images, first, named(first, "also called")) == first.digest


def test_artifacts_are_passed_over(images: ImageMaker) -> None:
    manifest = {"config": images.layout.add(mediatypes.EMPTY, b"{}").to_json(), "artifactType": "text/x"}
    bare = replace(replace(images, manifest=manifest).image(tar()), platform=None)
    typed = replace(image(images, AMD64, "sbom"), artifact_type="application/spdx+json")
    assert refusal(images, bare, typed, images.layout.add("text/html", b"")) == (
        "the base: has no image for linux/amd64, but no image at all", None,
    )  # fmt: skip
    assert chosen(images, bare, typed, image(images, AMD64)) == image(images, AMD64).digest


def nested(images: ImageMaker, depth: int) -> Descriptor:
    entry = image(images, AMD64)
    for _ in range(depth):
        entry = index(images, entry)
    return entry


def test_nested_indexes(images: ImageMaker) -> None:
    assert chosen(images, nested(images, 4)) == image(images, AMD64).digest
    message, _ = refusal(images, nested(images, 5))
    assert message == f"{nested(images, 1).digest}: more than 4 indexes in one another"


def test_an_index_that_names_itself_is_no_endless_loop(images: ImageMaker) -> None:
    """Its digest cannot be right: the blob is refused when it is read the first time."""
    digest = "sha256:" + "1" * 64
    inner = Descriptor(mediatypes.INDEX, digest, 0)
    data = to_json({"schemaVersion": 2, "manifests": [replace(inner, size=159).to_json()]})
    images.layout.path(digest).write_bytes(data)
    message, _ = refusal(images, replace(inner, size=len(data)))
    assert "has the digest sha256:" in message


def test_a_search_ends(images: ImageMaker) -> None:
    """A small index that is listed many times, at every level, takes no more than its share."""
    entry = index(images)
    for _ in range(3):
        entry = index(images, *[entry] * 100)
    message, _ = refusal(images, entry)
    assert message.endswith(": more than 200 documents to search for one image")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schemaVersion": 1, "manifests": []}, "is of schema version 1, not 2"),
        ({"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "manifests": []}, "has the media type 'application/v"),
        ({"schemaVersion": 2}, "is not an image index: manifests: Field required"),
        ({"schemaVersion": 2, "manifests": [{}] * 1001}, "at most 1000 items"),
        ({"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "md5:1", "size": 1}]}, "is not a digest"),
        ({"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:" + "1" * 64, "size": -1}]}, "size"),
    ],
)
def test_indexes_that_are_none(images: ImageMaker, document: Mapping[str, Any], message: str) -> None:
    found, _ = refusal(images, images.layout.add(mediatypes.INDEX, to_json(document)))
    assert message in found


# ---- references -----------------------------------------------------------------------------------------------------


def test_references(images: ImageMaker) -> None:
    first, second = named(image(images, AMD64, "a"), "1.0"), image(images, AMD64, "b")
    full = named(second, "registry.example/app:2.0", "io.containerd.image.name")
    top = named(index(images, image(images, ARM64)), "registry.example/app:3")
    images.layout.write_index([first, full, top])
    assert layout_entries(images.layout) == (first, full, top)
    for reference, expected in (("1.0", first), ("2.0", full), ("3", top), (second.digest, full), (top.digest, top)):
        assert layout_entries(images.layout, reference) == (expected,)
    inner = image(images, ARM64).digest
    assert [entry.digest for entry in layout_entries(images.layout, inner)] == [inner]


@pytest.mark.parametrize("reference", ["0", "app:1.0", "sha256:" + "0" * 64])
def test_references_to_nothing(images: ImageMaker, reference: str) -> None:
    images.layout.write_index([named(image(images, AMD64), "1.0")])
    with pytest.raises(InputError) as caught:
        layout_entries(images.layout, reference)
    assert caught.value.message == f"{images.layout.folder}: has no image {reference}"
    assert caught.value.hint == "it has 1.0"


@pytest.mark.parametrize("index", [b'{"schemaVersion":2,"manifests":[]}', b'{"schemaVersion":2,"manifests":null}'])
def test_an_empty_layout(images: ImageMaker, index: bytes) -> None:
    """The second one is what umoci init writes."""
    (images.layout.folder / "index.json").write_bytes(index)
    with pytest.raises(InputError) as caught:
        layout_entries(OciLayout.open(images.layout.folder))
    assert (caught.value.message, caught.value.hint) == (f"{images.layout.folder}: has no image", None)
