"""The field ``base`` of recipes: what is a name in a registry, and what is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgkit.errors import UsageError
from imgkit.recipe.basereference import BaseReference, absolute, relative

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "name", "digest"),
    [
        ("oci:alpine", "docker.io/library/alpine", ""),
        ("oci:alpine:3.22", "docker.io/library/alpine:3.22", ""),
        ("oci:folder/image", "docker.io/folder/image", ""),
        (f"oci:registry.example:5000/a/b@{DIGEST}", f"registry.example:5000/a/b@{DIGEST}", DIGEST),
    ],
)
def test_names_in_registries(text: str, name: str, digest: str) -> None:
    reference = BaseReference.parse(text)
    assert (str(reference.image), reference.place, reference.digest) == (name, None, digest)


@pytest.mark.parametrize(
    ("text", "place", "reference"),
    [
        ("oci:./image", "image", ""),
        ("oci:../image.oci.tar:1.0", "../image.oci.tar", "1.0"),
        ("oci:/srv/a:b@c/image:1", "/srv/a:b@c/image", "1"),
        (f"oci:/srv/a@b:c/image@{DIGEST}", "/srv/a@b:c/image", DIGEST),
    ],
)
def test_paths(text: str, place: str, reference: str) -> None:
    parsed = BaseReference.parse(text)
    assert (parsed.image, parsed.place, parsed.reference) == (None, Path(place), reference)
    assert parsed.digest == (reference if reference == DIGEST else "")


def test_what_follows_an_at_sign_is_a_digest() -> None:
    with pytest.raises(UsageError) as caught:
        BaseReference.parse("oci:./image@1.0")
    assert caught.value.message == "'oci:./image@1.0': '1.0' is not a digest"
    assert caught.value.hint == "write sha256: and 64 digits"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("oci:./image:1", "oci:/recipes/image:1"),
        ("oci:../other/image", "oci:/other/image"),
        (f"oci:./a/image@{DIGEST}", f"oci:/recipes/a/image@{DIGEST}"),
    ],
)
def test_paths_are_relative_to_the_recipe_and_its_lock(text: str, made: str) -> None:
    assert absolute(text, Path("/recipes")) == made
    assert relative(made, Path("/recipes")) == text


@pytest.mark.parametrize("text", ["oci:alpine:3.22", "oci:registry.example/a/b"])
def test_names_stay_as_they_are(text: str) -> None:
    assert absolute(text, Path("/recipes")) == relative(text, Path("/recipes")) == text
