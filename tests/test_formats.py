"""Builds in every format, and of the root filesystem alone: the same disk in each, read and booted by QEMU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from imgkit.recipe import parse_size
from imgkit.vm import VM, BootSpec
from tests.conftest import need_program
from tests.images import WITHOUT_NODE, Builder, quick_kernel

DRIVERS = {"vmdk": "vmdk", "vhdx": "vhdx", "vhd": "vpc", "raw": "raw"}
SMALL = ("--set", "size=512M", *WITHOUT_NODE)

pytestmark = pytest.mark.vm


def test_the_disk_is_the_same_in_every_format(builder: Builder, tmp_path: Path) -> None:
    qemu_img = need_program("qemu-img")
    out = tmp_path / "out"
    first = builder.build(out, "--engine", "native", "--arch", "amd64", *SMALL)["amd64"]
    for name, driver in DRIVERS.items():
        built = builder.build(out, "--engine", "native", "--arch", "amd64", "--format", name, *SMALL)
        image = built["amd64"]
        assert image.disk.name == f"linux-amd64.{name}"
        assert image.manifest["image"]["format"] == name
        assert (image.manifest["buildId"], image.manifest["map"]) == (first.manifest["buildId"], first.manifest["map"])
        assert (
            f"{first.disk}: is of an earlier build; linux-amd64.manifest.json is about {image.disk.name}"
            in built.errors
        )
        compare: list[str | Path] = [qemu_img, "compare", "-f", "qcow2", "-F", driver, first.disk, image.disk]
        subprocess.run(compare, check=True, capture_output=True)
    size = parse_size("512M")
    assert (out / "linux-amd64.raw").stat().st_size == size
    assert (out / "linux-amd64.vhd").stat().st_size == size + 512, "Azure wants exactly that"
    assert builder.run("verify", out / "linux-amd64.qcow2").returncode == 0
    refused = builder.run("verify", out / "linux-amd64.vmdk")
    assert (refused.returncode, "format vmdk is not supported" in refused.stderr) == (4, True)


@pytest.mark.parametrize("engine", ["native", "guestfs"])
def test_a_root_filesystem_starts_and_grows(engine: str, builder: Builder, tmp_path: Path) -> None:
    """QEMU's microvm is much like Firecracker's machine: the arguments are those of Firecracker's configuration."""
    need_program("qemu-system-x86_64")
    out = tmp_path / "out"
    words = ("--engine", engine, "--arch", "amd64", "--output", "rootfs", "--set", "size=1G", *quick_kernel())
    image = builder.build(out, *words)["amd64"]
    subprocess.run([need_program("e2fsck"), "-fn", image.disk], check=True, capture_output=True)
    done = builder.run("verify", image.disk)
    assert done.returncode == 0, done.stdout
    inspected = json.loads(builder.run("inspect", image.disk, "--json").stdout)
    assert [(part["start"], part["filesystem"]) for part in inspected["partitions"]] == [(0, "ext4")]
    os.truncate(image.disk, 2 << 30)
    config = json.loads((out / "linux-amd64.firecracker.json").read_text())
    assert {config["boot-source"]["kernel_image_path"], config["drives"][0]["path_on_host"]} == {
        image.kernel.name, image.disk.name,
    }  # fmt: skip
    spec = BootSpec(
        image.disk,
        machine="microvm",
        kernel=image.kernel,
        initrd=image.initramfs,
        command_line=config["boot-source"]["boot_args"],
        accelerator="tcg",
    )
    with VM.boot(spec, timeout=300) as vm:
        assert int(vm.run(["stat", "-f", "-c", "%b", "/"]).text) * 4096 > 1900 << 20
        assert vm.run(["cat", "/proc/cmdline"]).text.startswith(config["boot-source"]["boot_args"].split(" tsc=")[0])
