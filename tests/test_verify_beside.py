"""The files beside an image: whether they are as they were built."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import InputError
from imgkit.verification.beside import boot_files, compare_boot_files, is_as_built, manifest_of
from imgkit.verification.statement import Statement
from tests.verifying import write_stated


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return the place of an image, in a folder of its own."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "linux-amd64.qcow2"


def statement_of(image: Path, **changes: Any) -> Statement:
    """Write an image with a kernel and an initramfs, and return what their manifest states."""
    boot = {
        "kernel": write_stated(image.parent / "vmlinuz-virt-amd64", b"kernel"),
        "initramfs": write_stated(image.parent / "initramfs-virt-amd64", b"initramfs"),
    }
    stated = replace(write_stated(image, b"image"), name="")
    return replace(Statement("amd64", stated, boot, {"/": {}}, None), **changes)


def write_manifest(image: Path, stated: Statement) -> None:
    boot = {role: vars(file) for role, file in stated.boot.items()}
    manifest_of(image).write_text(json.dumps({"arch": stated.arch, "boot": boot, "files": {}}))


def test_files_are_known_by_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    stated = write_stated(path, b"abc")
    assert is_as_built(path, stated)
    for data in (b"abd", b"ab", b"abcd"):
        path.write_bytes(data)
        assert not is_as_built(path, stated)
    path.unlink()
    with pytest.raises(InputError) as caught:
        is_as_built(path, stated)
    assert caught.value.message == f"{path}: No such file or directory"
    os.mkfifo(path)
    assert not is_as_built(path, replace(stated, size=0)), "a pipe is not opened"


def test_a_file_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    stated = write_stated(path, b"abc")
    path.write_bytes(b"abcd")
    monkeypatch.setattr("imgkit.verification.beside.hash_file", lambda path: pytest.fail(f"{path} was read"))
    assert not is_as_built(path, stated)


def test_the_files_of_a_direct_boot(image: Path) -> None:
    assert boot_files(image, "amd64") == {}
    stated = statement_of(image)
    kernel, initramfs = (image.parent / file.name for file in stated.boot.values())
    assert boot_files(image, "amd64") == {"kernel": kernel, "initramfs": initramfs}
    (image.parent / "vmlinuz-zzz-amd64").touch()
    (image.parent / "vmlinuz-zzzz-arm64").touch()
    assert boot_files(image, "amd64")["kernel"].name == "vmlinuz-zzz-amd64", "the last name of this architecture"
    assert boot_files(image, "*") == {}, "which is no architecture"
    initramfs.unlink()
    write_manifest(image, stated)
    assert boot_files(image, "amd64") == {"kernel": kernel, "initramfs": initramfs}, "as the manifest says"
    assert list(boot_files(image, "arm64")) == ["kernel", "initramfs"]


def test_a_manifest_that_leads_nowhere_is_one(image: Path) -> None:
    manifest_of(image).symlink_to("nowhere")
    with pytest.raises(InputError):
        boot_files(image, "amd64")


def test_files_beside_the_image_are_as_built_changed_or_missing(image: Path) -> None:
    stated = statement_of(image)
    kernel, initramfs = (image.parent / file.name for file in stated.boot.values())
    assert compare_boot_files(image, stated) == ([kernel.name, initramfs.name], [])
    kernel.write_bytes(b"other!")
    assert compare_boot_files(image, stated) == (
        [initramfs.name],
        ["vmlinuz-virt-amd64: is not the kernel that was built"],
    )
    kernel.unlink()
    assert compare_boot_files(image, stated) == ([initramfs.name], [])
    kernel.symlink_to("nowhere")
    initramfs.write_bytes(b"x")
    assert compare_boot_files(image, stated)[1] == [
        "vmlinuz-virt-amd64: is not the kernel that was built",
        "initramfs-virt-amd64: is not the initramfs that was built",
    ]


def test_what_a_direct_boot_would_take_instead_is_named(image: Path) -> None:
    stated = statement_of(image)
    (image.parent / "vmlinuz-zzz-amd64").touch()
    taken = "vmlinuz-zzz-amd64: not in the manifest, and taken for the kernel by a direct boot"
    assert compare_boot_files(image, stated)[1] == [taken]
    other = write_stated(image.parent / "other", b"other")
    write_manifest(image, replace(stated, boot={**stated.boot, "kernel": other}))
    by_manifest = "other: not in the manifest, and taken for the kernel by a direct boot"
    assert compare_boot_files(image, stated)[1] == [by_manifest, taken]
    (image.parent / "other").unlink()
    assert compare_boot_files(image, stated)[1] == [taken], "what is not there is not taken"
    manifest_of(image).write_text("damaged")
    assert compare_boot_files(image, stated)[1] == [taken], "nothing is booted with a damaged manifest"
