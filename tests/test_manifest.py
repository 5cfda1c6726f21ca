"""The manifest of an image: what it says, its text, and what is not one."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.disk.grub import grub_cfg
from imgkit.disk.layout import make_layout, sized_partitions
from imgkit.disk.regions import DiskMap, regions_of
from imgkit.errors import InputError
from imgkit.image.buildid import ImageIdentity
from imgkit.image.manifest import Outputs, describe, describe_file, read_manifest, write_manifest
from imgkit.image.outputfiles import output_files
from imgkit.recipe import load
from imgkit.rootfs.binaries.examine import BinaryFindings, DoubtfulBinary, ForeignBinary, MissingLibrary
from imgkit.rootfs.compose import Composition
from imgkit.rootfs.install import ScriptReport
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.test_lockfile import plan_of

IDENTITY = ImageIdentity(
    "b", {"recipe": {"size": "4G"}, "epoch": 7}, {"/": {"type": "directory"}}, {"/bin/sh": "busybox", "/x": "other"}
)


def booting(*arguments: str) -> Tree:
    tree = Tree()
    tree.write("boot/grub/grub.cfg", grub_cfg("uuid", arguments))
    return tree


FINDINGS = BinaryFindings(
    (ForeignBinary("opt/a.exe", 5, "Windows"), ForeignBinary("opt/b", 7, "aarch64")),
    (MissingLibrary("opt/c.node", "libstdc++.so.6"),),
    (DoubtfulBinary("opt/d", "is odd"),),
)


@pytest.mark.parametrize("policy", ["warn", "prune"])
@pytest.mark.parametrize("findings", [FINDINGS, BinaryFindings()], ids=["some", "none"])
def test_all_findings_are_in_the_manifest(findings: BinaryFindings, policy: str, tmp_path: Path) -> None:
    recipe = load(ROOT / "recipes/core.py", {"mirror": "http://mirror.test/", "payload_binaries": policy})
    layout = make_layout(sized_partitions(recipe.architecture("amd64")), 1 << 30, uuid.UUID(int=1))
    kernel: Any = SimpleNamespace(release="6")
    composition = cast(
        "Composition",
        SimpleNamespace(kernel=kernel, tree=booting(), scripts=ScriptReport((), (), ()), binaries=findings),
    )
    file = tmp_path / "file"
    file.touch()
    disk = DiskMap(regions_of(layout), {0: "0" * 64})
    names = output_files(recipe, "amd64")
    outputs = Outputs(names, "qcow2", "guestfs", disk, {"EFI/BOOT/BOOTX64.EFI": b"x"}, file, file, file)
    manifest = describe(recipe, plan_of(recipe, "amd64"), composition, IDENTITY, layout, outputs)
    empty: dict[str, Any] = {"policy": policy, "otherPlatforms": [], "missingLibraries": [], "doubtful": []}
    listed = {
        "otherPlatforms": [
            {"path": "/opt/a.exe", "size": 5, "platform": "Windows"},
            {"path": "/opt/b", "size": 7, "platform": "aarch64"},
        ],
        "missingLibraries": [{"path": "/opt/c.node", "library": "libstdc++.so.6"}],
        "doubtful": [{"path": "/opt/d", "problem": "is odd"}],
    }
    assert manifest["payload"] == ({**empty, **listed} if findings is FINDINGS else empty)


def test_everything_that_a_manifest_says(tmp_path: Path) -> None:
    recipe = load(ROOT / "recipes/core.py", {"mirror": "http://mirror.test/", "format": "vhd"})
    plan = plan_of(recipe, "arm64")
    layout = make_layout(sized_partitions(recipe.architecture("arm64")), 1 << 30, uuid.UUID(int=1))
    ran: Any = SimpleNamespace(package="busybox", kind="post-install", outcome=SimpleNamespace(status=3))
    pending: Any = SimpleNamespace(package="musl", kind="trigger")
    composition = cast(
        "Composition",
        SimpleNamespace(
            kernel=SimpleNamespace(release="6.18-virt"),
            tree=booting("root=UUID=1", "quiet"),
            scripts=ScriptReport((ran,), (pending,), ("alpine.pre-install",)),
            binaries=BinaryFindings(),
        ),
    )
    files = {name: tmp_path / name for name in ("image", "kernel", "initramfs")}
    for name, path in files.items():
        path.write_text(name)
    disk = DiskMap(regions_of(layout), {0: "0" * 64})
    outputs = Outputs(output_files(recipe, "arm64"), "vhd", "native", disk, {"EFI/x": b"efi"}, **files)
    manifest = describe(recipe, plan, composition, IDENTITY, layout, outputs) | describe_file(outputs, layout)

    def stated(name: str) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(name.encode()).hexdigest(), "size": len(name)}

    partitions = manifest["disk"].pop("partitions")
    packages = manifest.pop("packages")
    assert manifest == {
        "manifest": 1,
        "imgkit": "0.1.0",
        "name": "linux",
        "arch": "arm64",
        "agent": {"payload": False, "command": None},
        "buildId": "b",
        "recipe": {"size": "4G"},
        "epoch": 7,
        "image": {"name": "linux-arm64.vhd", "format": "vhd", **stated("image"), "virtualSize": 1 << 30},
        "engine": "native",
        "boot": {
            "kernel": {"name": "vmlinuz-virt-arm64", **stated("kernel")},
            "initramfs": {"name": "initramfs-virt-arm64", **stated("initramfs")},
        },
        "alpine": {"branch": recipe.branch, "version": "3.23.6"},
        "minirootfs": {
            "url": "http://mirror.test/alpine/v3.23/releases/x.tar.gz",
            "size": 9,
            "sha256": "ab" * 32,
            "vouchedBy": "OpenPGP 1234",
        },
        "indexes": [
            {"url": plan.indexes[0].url, "size": 7, "sha256": "cd" * 32, "vouchedBy": "key.rsa.pub"},
        ],
        "world": ["busybox"],
        "scripts": {
            "computed": [{"script": "busybox.post-install", "status": 3}],
            "inAppliance": ["musl.trigger"],
            "skipped": ["alpine.pre-install"],
        },
        "payload": {"policy": "warn", "otherPlatforms": [], "missingLibraries": [], "doubtful": []},
        "kernel": "6.18-virt",
        "kernelArguments": ["root=UUID=1", "quiet"],
        "disk": {"guid": layout.disk_guid},
        "esp": {"EFI/x": stated("efi")},
        "map": disk.to_json(),
        "files": {"/": {"type": "directory"}},
    }
    assert partitions[1] == {
        "number": 2,
        "kind": "root",
        "uuid": layout.root.uuid,
        "start": layout.root.start,
        "size": layout.root.size,
        "filesystem": "ext4",
        "fsUuid": layout.root.fs_uuid,
    }
    assert packages[0] == {
        "name": "busybox",
        "version": "1.37-r0",
        "identity": "Q1" + "A" * 27 + "=",
        "license": "",
        "origin": "",
        "url": plan.packages[0].url,
        "sha256": "ef" * 32,
        "paths": ["/bin/sh"],
    }
    assert packages[1]["paths"] == []
    assert packages[1]["from"] == "minirootfs"
    assert "sha256" not in packages[1]


def test_the_text_of_a_manifest_is_the_same_for_the_same_build(tmp_path: Path) -> None:
    """Sorted keys, a line each, names as they are; bytes that are not UTF-8 become escapes."""
    path = tmp_path / "m.json"
    write_manifest({"b": 1, "a": {"/ä\udcff": []}}, path)
    assert path.read_bytes() == '{\n "a": {\n  "/ä\\udcff": []\n },\n "b": 1\n}\n'.encode()


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    manifest = {"manifest": 1, "files": {"/\udcff": {"type": "file"}}, "other": [1]}
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "not a manifest of imgkit"), ('{"files": []}', "not a manifest of imgkit"), ("{", "not JSON")],
)
def test_what_is_no_manifest(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_manifest(path)
    assert caught.value.message.startswith(f"{path}: ")


def test_a_manifest_that_is_missing_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert caught.value.hint == "a build puts the manifest beside the image"
    with path.open("wb") as file:
        file.write(b'{"files": {}}')
        file.truncate((32 << 20) + 1)
    with pytest.raises(InputError, match="is larger than the 33554432 bytes that are read"):
        read_manifest(path)
