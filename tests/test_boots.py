"""Finished images boot: on every firmware, and on machines that are small, old, large or differently wired."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgkit.vm import VM
from imgkit.vm.qemu.hostclock import tsc_khz
from imgkit.vm.qemu.virtiobus import MAX_MMIO_SHARES
from tests import rootport
from tests.conftest import need_program
from tests.early import EarlyLook
from tests.guest import until_it_says
from tests.images import Builder, Image, Images
from tests.rootport import RootedVM
from tests.vmspecs import host_app, scsi, writable

pytestmark = pytest.mark.vm

QEMU = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
TIMEOUT = 240.0  # the machine that runs the tests may be busy


def boot_and_look(image: Image, folder: Path, look: Callable[[VM], None] = lambda _: None, **options: Any) -> VM:
    """Boot, compare the heartbeat with the manifest, and check the kernel's settings that the earliest request saw.

    ``look`` may check more. The machine is switched off when this returns.
    """
    need_program(QEMU[image.arch])
    early = EarlyLook(folder / "ipc")
    chosen = {
        "arch": image.arch,
        "accelerator": "tcg",
        "timeout": TIMEOUT,
        "shares": {"ipc": folder / "ipc"},
        **options,
    }
    with VM.boot(image.disk, **chosen) as vm:
        beat = vm.heartbeat()
        assert beat is not None
        assert beat.extra["buildId"] == image.manifest["buildId"]
        assert vm.run(["uname", "-m"]).text.strip() == {"amd64": "x86_64", "arm64": "aarch64"}[image.arch]
        look(vm)
    early.check()
    return vm


def direct(image: Image) -> dict[str, Any]:
    return {"firmware": "direct", "kernel": image.kernel, "initrd": image.initramfs}


# ---- the five boots ------------------------------------------------------------------------------------------------


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Images:
    """Return the images that an engine made, which a test names as the parameter of this fixture."""
    fixture: Images = request.getfixturevalue({"guestfs": "images", "native": "native_images"}[request.param])
    return fixture


@pytest.mark.parametrize("made", ["guestfs", "native"], indirect=True)
@pytest.mark.parametrize(("arch", "firmware"), [("amd64", "bios"), ("amd64", "uefi"), ("arm64", "uefi")])
def test_the_command_boots_it(builder: Builder, made: Images, arch: str, firmware: str, tmp_path: Path) -> None:
    """``imgkit boot`` takes the architecture from the image's name and finds the files of the firmware.

    The firmware and GRUB read the disk here, so the disks of both engines are booted.
    """
    need_program(QEMU[arch])
    early = EarlyLook(tmp_path / "ipc")
    words = ("--firmware", firmware, "--accel", "tcg", "--cpus", "1", "--timeout", str(TIMEOUT))
    done = builder.run("boot", made[arch].disk, "--json", *words, "--share", f"ipc={tmp_path}/ipc")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["buildId"] == made[arch].manifest["buildId"]
    assert 0 < report["secondsToReady"] < TIMEOUT
    assert report["poweredOffCleanly"] is True
    assert {"boot_loader", "init", "agent"} <= set(report["stages"])
    assert "power off" not in done.stderr
    early.check()


def test_amd64_boots_directly(builder: Builder, native_images: Images, tmp_path: Path) -> None:
    """The kernel and the initramfs are the ones beside the image."""
    early = EarlyLook(tmp_path / "ipc")
    words = ["--firmware", "direct", "--accel", "tcg", "--cpus", "1", "--timeout", str(TIMEOUT), "--json"]
    words += ["--share", f"ipc={tmp_path}/ipc"]
    done = builder.run("boot", native_images["amd64"].disk, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["buildId"] == native_images["amd64"].manifest["buildId"]
    early.check()


def test_amd64_boots_as_a_microvm(builder: Builder, native_images: Images, tmp_path: Path) -> None:
    """Everything that a machine can have fits into it: the disk, the config drive, the network, and all its shares.

    Its clock is the processor's counter, which is right however busy the host is. If the host has none that can be
    measured, it is what is left.
    """
    early = EarlyLook(tmp_path / "ipc")
    shares = [word for number in range(MAX_MMIO_SHARES - 2) for word in ("--share", f"s{number}={tmp_path}/work")]
    words = ["--machine", "microvm", "--accel", "tcg", "--cpus", "1", "--timeout", str(TIMEOUT), "--env", "A=b"]
    words += ["--share", f"ipc={tmp_path}/ipc", "--work", str(tmp_path / "work"), *shares]
    (tmp_path / "work").mkdir()
    look = "echo $A; grep -c 9p /proc/mounts; ls /sys/bus/pci/devices 2>/dev/null | wc -l"
    look += "; cut -d- -f1 /sys/devices/system/clocksource/clocksource0/current_clocksource; exit 7"
    done = builder.run("run", native_images["amd64"].disk, *words, "--", "sh", "-c", look)
    clock = "refined" if tsc_khz() is None else "tsc"  # "refined-jiffies"; "tsc-early" in the first seconds
    assert (done.returncode, done.stdout.split()) == (7, ["b", str(MAX_MMIO_SHARES), "0", clock]), done.stderr
    early.check()


def test_arm64_boots_directly_as_the_host_application_does_it(native_images: Images, tmp_path: Path) -> None:
    """The arguments are exactly those of the contract: root=/dev/vda2, no UUID, the image behind ``if=virtio``."""
    image = native_images["arm64"]
    vm = boot_and_look(image, tmp_path, adapt=host_app, **direct(image))
    assert "root=/dev/vda2 rootfstype=ext4 rw console=ttyAMA0,115200 init=/sbin/init quiet" in vm.argv


def test_amd64_boots_as_the_host_application_does_it(images: Images, tmp_path: Path) -> None:
    vm = boot_and_look(images["amd64"], tmp_path, adapt=host_app)
    assert not any(word in vm.argv for word in ("-machine", "-bios", "-kernel"))


def test_no_firmware_no_boot(builder: Builder, images: Images, tmp_path: Path) -> None:
    env = {**builder.env, "IMGKIT_FIRMWARE_ROOT": str(tmp_path)}
    done = Builder(builder.words, env).run("boot", images["arm64"].disk)
    assert done.returncode == 5
    assert "qemu-efi-aarch64" in done.stderr


# ---- other machines ------------------------------------------------------------------------------------------------


def test_a_small_old_pc(images: Images, tmp_path: Path) -> None:
    boot_and_look(images["amd64"], tmp_path, cpu="qemu64", cpus=1, memory_mib=256)


def test_a_raw_disk_on_a_scsi_bus_and_four_cpus(native_images: Images, tmp_path: Path) -> None:
    """The disk is larger than the image, and the root has grown before agentd starts."""
    built, raw = native_images["amd64"], tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.disk, raw], check=True)
    os.truncate(raw, GROWN)
    image = Image("amd64", raw, built.kernel, built.initramfs, built.manifest)

    def look(vm: VM) -> None:
        check_growth(Sizes.parsed(vm.run(SIZES).text), image, GROWN)
        assert "Growing the root file system" in vm.console()

    vm = boot_and_look(image, tmp_path, look, adapt=scsi, cpus=4)
    assert any(word.startswith("scsi-hd") for word in vm.argv)


def test_an_old_arm_with_little_memory(images: Images, tmp_path: Path) -> None:
    boot_and_look(images["arm64"], tmp_path, cpu="cortex-a57", cpus=1, memory_mib=256, **direct(images["arm64"]))


# ---- the disk grows ------------------------------------------------------------------------------------------------

GROWN = 6 << 30
SIZES = "cat /sys/class/block/[sv]da2/size; df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2"


@dataclass(frozen=True)
class Sizes:
    """The bytes of the root partition and of its filesystem."""

    partition: int
    filesystem: int

    @classmethod
    def parsed(cls, text: str) -> Sizes:
        """Return what the command :data:`SIZES` printed."""
        sectors, kib = text.split()
        return cls(int(sectors) * 512, int(kib) * 1024)


def check_growth(sizes: Sizes, image: Image, disk: int) -> None:
    """Check that partition and filesystem fill a disk of that many bytes."""
    root = next(part for part in image.manifest["disk"]["partitions"] if part["kind"] == "root")
    assert disk - (2 << 20) < root["start"] + sizes.partition < disk
    assert sizes.filesystem > disk * 9 // 10


def test_a_growth_that_is_interrupted(rooted_images: Images, tmp_path: Path) -> None:
    """The machine is killed while its root grows. The next boot completes that, the one after it finds nothing to do,
    and the filesystem is sound.
    """
    image = rooted_images["amd64"]
    copy = tmp_path / "grown.qcow2"
    shutil.copyfile(image.disk, copy)
    subprocess.run(["qemu-img", "resize", "-q", copy, str(GROWN)], check=True)
    options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "timeout": TIMEOUT, "adapt": writable}
    options["cpus"] = 1  # the boot that is not waited for would not be repeated if the emulation failed
    with rootport.booted(copy, wait=False, **options) as vm:
        until_it_says(vm, "Growing the root file system", TIMEOUT)
        os.kill(vm.pid, signal.SIGKILL)
    with rootport.booted(copy, **options) as vm:
        grown = Sizes.parsed(vm.root(SIZES).text)
        off(vm)
    check_growth(grown, image, GROWN)
    with rootport.booted(copy, **options) as vm:
        assert Sizes.parsed(vm.root(SIZES).text) == grown
        assert "Growing" not in vm.console()
        off(vm)
    check_disk(copy, tmp_path)


def off(vm: RootedVM) -> None:
    """Flush the disk and switch off at once: the grown filesystem must survive that, and a shutdown takes longer."""
    assert vm.root("sync").status == 0
    vm.kill()


def check_disk(image: Path, folder: Path) -> None:
    """Check the grown disk with programs of the host."""
    raw, root = folder / "grown.raw", folder / "root"
    subprocess.run([need_program("qemu-img"), "convert", "-O", "raw", image, raw], check=True)
    said = subprocess.run([need_program("sgdisk"), "-v", "-i", "2", raw], capture_output=True, text=True).stdout
    assert "No problems found" in said
    first = re.search(r"First sector: (\d+)", said)
    assert first is not None
    words = ["bs=1M", "conv=sparse", "status=none", f"skip={int(first[1]) // 2048}"]
    subprocess.run(["dd", f"if={raw}", f"of={root}", *words], check=True)
    assert subprocess.run([need_program("e2fsck"), "-fn", root], capture_output=True).returncode == 0
