"""Names of images are read as Docker reads them, and what is no name is refused by one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.oci.imagename import ImageName, ImageNameError, is_tag

DIGEST = "sha256:" + "0123456789abcdef" * 4

NAMES = {
    "alpine": ("docker.io", "library/alpine", "", ""),
    "alpine:3.22": ("docker.io", "library/alpine", "3.22", ""),
    "team/app": ("docker.io", "team/app", "", ""),
    "docker.io/alpine": ("docker.io", "library/alpine", "", ""),
    "index.docker.io/alpine:edge": ("docker.io", "library/alpine", "edge", ""),
    "docker.io/team/app": ("docker.io", "team/app", "", ""),
    "localhost/app": ("localhost", "app", "", ""),
    "localhost:5000/app": ("localhost:5000", "app", "", ""),
    "registry:5000/app:V1": ("registry:5000", "app", "V1", ""),
    "registry.example/a/b/c:1.0": ("registry.example", "a/b/c", "1.0", ""),
    "Registry.Example/a": ("registry.example", "a", "", ""),
    "127.0.0.1:5000/a__b/c-d.e--f": ("127.0.0.1:5000", "a__b/c-d.e--f", "", ""),
    "[::1]:5000/a": ("[::1]:5000", "a", "", ""),
    "registry.example:65535/a": ("registry.example:65535", "a", "", ""),
    f"registry.example/a@{DIGEST}": ("registry.example", "a", "", DIGEST),
    f"registry.example/a:1@{DIGEST}": ("registry.example", "a", "1", DIGEST),
    f"alpine@{DIGEST}": ("docker.io", "library/alpine", "", DIGEST),
    "a:5000": ("docker.io", "library/a", "5000", ""),
    "registry.example/" + "a" * 255: ("registry.example", "a" * 255, "", ""),
    "a:" + "t" * 128: ("docker.io", "library/a", "t" * 128, ""),
    "a:_": ("docker.io", "library/a", "_", ""),
}


@pytest.mark.parametrize("text", NAMES)
def test_names_are_read_as_docker_reads_them(text: str) -> None:
    name = ImageName.parse(text)
    assert (name.registry, name.repository, name.tag, name.digest) == NAMES[text]
    assert ImageName.parse(str(name)) == name


WRONG = {
    "": "is not the name of an image",
    "a b": "is not the name of an image",
    "/a": "is not the name of an image",
    "a/": "is not the name of an image",
    "a//b": "is not the name of an image",
    "-a": "is not the name of an image",
    "a___b": "is not the name of an image",
    "a..b": "is not the name of an image",
    "../a": "'..' is not the name of a registry",
    "a\n": "is not the name of an image",
    "registry.example/": "is not the name of an image",
    "registry.example:x/a": "'registry.example:x' is not the name of a registry",
    "registry.example:65536/a": "'registry.example:65536' is not the name of a registry",
    "registry.example:123456/a": "is not the name of a registry",
    "-.example/a": "'-.example' is not the name of a registry",
    "user@host.example/a": "is not a digest",
    "a:": "'' is not a tag",
    "a:.x": "'.x' is not a tag",
    "a:-x": "'-x' is not a tag",
    "a:x y": "'x y' is not a tag",
    "a:" + "t" * 129: "is not a tag",
    "a@": "'' is not a digest",
    "a@sha256:12": "'sha256:12' is not a digest",
    f"a@{DIGEST.upper()}": "is not a digest",
    f"a@md5:{'0' * 32}": "is not a digest",
    "0" * 64: "is the digits of a digest",
    "https://registry.example/a": "has no scheme",
    "registry.example/" + "a" * 256: "the repository has more than 255 characters",
    "a" * 1025: "has 1025 characters",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        ImageName.parse(text)
    assert WRONG[text] in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "lower"),
    [
        ("Team/app:V1", "team/app:V1"),
        ("Alpine", "alpine"),
        ("registry.example/Team/App:V1", "registry.example/team/app:V1"),
        (f"Registry.example/Team/App@{DIGEST}", "registry.example/team/app"),
    ],
)
def test_capital_letters_are_refused_with_the_name_in_lower_case(text: str, lower: str) -> None:
    with pytest.raises(ImageNameError, match="capital letters") as caught:
        ImageName.parse(text)
    assert caught.value.hint == f"write it in lower case: {lower}"


def test_a_registry_is_asked_for_the_digest_the_tag_or_latest() -> None:
    name = ImageName.parse("registry.example/a")
    assert name.reference == "latest"
    assert name.with_tag("1.0").reference == "1.0"
    assert name.with_tag("1.0").with_digest(DIGEST) == ImageName("registry.example", "a", "1.0", DIGEST)
    assert name.with_tag("1.0").with_digest(DIGEST).reference == DIGEST
    assert name.with_digest(DIGEST).with_tag("2").digest == ""
    assert name.full_repository == "registry.example/a"
    with pytest.raises(ImageNameError, match="is not a tag"):
        name.with_tag("a b")
    with pytest.raises(ImageNameError, match="is not a digest"):
        name.with_digest("sha256:x")


@given(st.text(max_size=40) | st.text("aA0._-/:@[]", max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = ImageName.parse(text)
    except ImageNameError:
        return
    assert ImageName.parse(str(name)) == name
    assert name.tag == "" or is_tag(name.tag)
