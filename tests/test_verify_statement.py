"""What a manifest states about an image, and manifests that state something wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgkit.disk.regions import DiskMap, Region
from imgkit.errors import InputError
from imgkit.verification.statement import StatedFile, Statement, parse

MIB = 1 << 20


HASH = "ab" * 32
WHERE = Path("out/linux-amd64.manifest.json")


def manifest(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "arch": "amd64",
        "image": {"sha256": HASH, "size": 5},
        "boot": {"kernel": {"name": "vmlinuz", "sha256": HASH, "size": 6}},
        "files": {"/": {"type": "directory"}},
        "map": {"chunk": MIB, "regions": [{"name": "a", "start": 0, "size": 512}], "sha256": {}},
        "esp": {"EFI/BOOT/X.EFI": {"sha256": HASH, "size": 7}},
    }
    return {key: value for key, value in {**body, **changes}.items() if value is not ...}


def test_the_statements_of_a_manifest() -> None:
    assert parse(manifest(), WHERE) == Statement(
        arch="amd64",
        image=StatedFile("", HASH, 5),
        boot={"kernel": StatedFile("vmlinuz", HASH, 6)},
        files={"/": {"type": "directory"}},
        disk=DiskMap((Region("a", 0, 512),), {}),
        esp={"EFI/BOOT/X.EFI": StatedFile("EFI/BOOT/X.EFI", HASH, 7)},
    )
    both = {role: {"name": role, "sha256": HASH, "size": 6} for role in ("initramfs", "kernel", "other")}
    assert list(parse(manifest(boot=both), WHERE).boot) == ["kernel", "initramfs"]


def test_the_name_of_the_image() -> None:
    stated = parse(manifest(image={"name": "linux-amd64.raw", "format": "raw", "sha256": HASH, "size": 5}), WHERE)
    assert (stated.image, stated.image_name) == (StatedFile("", HASH, 5), "linux-amd64.raw")


def test_manifests_of_earlier_versions_state_less() -> None:
    stated = parse(manifest(image=..., boot=..., map=..., esp=...), WHERE)
    assert (stated.image, stated.boot, stated.disk, stated.esp) == (None, {}, None, {})


FILE = "a file in it has no SHA-256 or no size"
NAME = "a file beside the image has no valid name"
FILES = "its list of files is missing or not valid"
TABLE = "a table in it is not valid"


def kernel(**changes: Any) -> dict[str, Any]:
    return {"boot": {"kernel": {"name": "vmlinuz", "sha256": HASH, "size": 6, **changes}}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"files": ...}, FILES),
        ({"files": []}, FILES),
        ({"files": {"/": {}, "/a": "x"}}, FILES),
        ({"map": {}}, "its map of the disk is not made of chunks of 1048576 bytes"),
        ({"map": None}, "its map of the disk is not made of chunks of 1048576 bytes"),
        ({"boot": []}, TABLE),
        ({"boot": None}, TABLE),
        ({"esp": []}, TABLE),
        ({"boot": {"kernel": "vmlinuz"}}, NAME),
        ({"boot": {"initramfs": {"sha256": HASH, "size": 6}}}, NAME),
        (kernel(name=5), NAME),
        (kernel(name=""), NAME),
        (kernel(name="../x"), NAME),
        (kernel(name=".x"), NAME),
        (kernel(name="x\n"), NAME),
        (kernel(name="x" * 252), NAME),
        ({"image": {"name": "../x", "sha256": HASH, "size": 5}}, "the image has no valid name"),
        ({"image": {"name": 5, "sha256": HASH, "size": 5}}, "the image has no valid name"),
        (kernel(sha256=5), FILE),
        (kernel(sha256=HASH + "0"), FILE),
        (kernel(sha256=HASH.upper()), FILE),
        (kernel(size="6"), FILE),
        (kernel(size=True), FILE),
        ({"image": []}, FILE),
        ({"image": {"size": 5}}, FILE),
        ({"image": {"sha256": HASH}}, FILE),
        ({"esp": {"x": {}}}, FILE),
    ],
)
def test_what_is_wrong_with_a_manifest(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(manifest(**changes), WHERE)
    assert caught.value.message == f"{WHERE}: not a manifest of imgkit: {fault}"
    assert caught.value.hint == "a build makes it, beside the image"


def test_the_longest_name_beside_an_image() -> None:
    assert parse(manifest(**kernel(name="x" * 251)), WHERE).boot["kernel"].name == "x" * 251
