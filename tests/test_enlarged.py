"""An image that ``qemu-img resize`` has enlarged, as people do it for a larger root: what every command says of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from imgkit.vm import VM
from tests.conftest import need_program
from tests.images import Builder, Image

pytestmark = pytest.mark.vm

GIB = 1 << 30


@pytest.fixture(scope="module")
def enlarged(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the image of 1 GiB with a disk of 2 GiB, beside its manifest."""
    folder = tmp_path_factory.mktemp("enlarged")
    for path in (image.disk, image.kernel, image.initramfs, image.disk.with_suffix(".manifest.json")):
        shutil.copy(path, folder)
    disk = folder / image.disk.name
    subprocess.run([need_program("qemu-img"), "resize", "-q", str(disk), "2G"], check=True)
    return disk


def test_inspect_describes_it_and_says_that_it_was_enlarged(enlarged: Path, builder: Builder) -> None:
    done = builder.run("inspect", enlarged, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["virtualSize"], found["partitionedSize"]) == (2 * GIB, GIB)
    assert [partition["name"] for partition in found["partitions"]] == ["bios-boot", "esp", "root"]
    assert "busybox" in [package["name"] for package in found["packages"]]
    lines = builder.run("inspect", enlarged).stdout.splitlines()
    assert (
        "enlarged   its partition table was made for 1024 MiB; the root of an image of imgkit grows at its next boot"
        in (lines)
    )


def test_verify_and_diff(enlarged: Path, image: Image, builder: Builder) -> None:
    """All bytes are as they were built, and the size is the only difference."""
    done = builder.run("verify", enlarged)
    assert done.returncode == 0, done.stderr
    assert "enlarged from 1024 MiB to 2048 MiB: what was added is empty" in done.stdout
    done = builder.run("diff", image.disk, enlarged, "--json")
    assert done.returncode == 1, done.stderr
    (pair,) = json.loads(done.stdout)["pairs"]
    assert pair["facts"] == [{"name": "virtualSize", "before": GIB, "after": 2 * GIB}]
    assert (pair["packagesChanged"], pair["files"]) == ([], [])
    assert pair["filesSame"] > 1000


def test_it_boots_and_its_root_grows(enlarged: Path) -> None:
    with VM.boot(enlarged, network="none") as vm:
        kibibytes = int(vm.run("df -k / | tail -1 | awk '{print $2}'").check().text)
    assert kibibytes > 1.7 * GIB / 1024
