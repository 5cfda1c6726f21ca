"""QEMU's arguments, and that QEMU itself accepts them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import UsageError
from imgkit.host import process
from imgkit.recipe import load
from imgkit.vm.qemu import argv
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.qemu.machines import MACHINES, guess_arch, host_arch, machine
from imgkit.vm.qemu.virtiobus import MAX_MMIO_SHARES, MAX_SHARES
from tests.conftest import need_program
from tests.vmspecs import STYLES, host_app, scsi

DISK = Disk(Path("/images/a,b.qcow2"))
AMD64 = VmSpec(arch="amd64", disk=DISK, console=Path("/run/console.log"))
ARM64 = replace(AMD64, arch="arm64", firmware="direct", kernel=Path("/k"), initrd=Path("/i"), cpu="cortex-a57")


def pairs(words: tuple[str, ...], option: str) -> list[str]:
    """Return the values of every ``option`` in ``words``."""
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def shares(count: int) -> tuple[Share, ...]:
    return tuple(Share(f"t{number}", Path("/tmp")) for number in range(count))


SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
MICROVM = replace(AMD64, machine="microvm", firmware="direct", kernel=Path("/k"), initrd=Path("/i"))
TRUST = "tsc=reliable initcall_blacklist=sched_clock_init_late"
LINE = 'quiet  a="b  c" tsc=unstable'
RANDOM = ("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0")


def test_a_machine_of_everything() -> None:
    """No VGA card and no network boot ROM, which take seconds under emulation; the image is not written to."""
    share = Share("data", Path("/a,b"), read_only=True)
    spec = replace(AMD64, sandbox=True, config=Path("/c,d.iso"), shares=(share,), ports=(("ipc.0", 7),), qmp=9)
    assert argv.arguments(replace(spec, sets=((3,), (4, 5)), extra=("-S",))) == (
        "qemu-system-x86_64",
        *("-machine", "q35,graphics=off", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max"),
        *("-smp", "2", "-m", "4096"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SECCOMP),
        *("-chardev", "file,id=console,path=/run/console.log,append=on", "-serial", "chardev:console"),
        *("-drive", "if=none,id=disk0,format=qcow2,snapshot=on,discard=unmap,file=/images/a,,b.qcow2"),
        *("-device", "virtio-blk-pci,drive=disk0,bootindex=0", "-boot", "menu=off,strict=on"),
        *("-drive", "if=none,id=config0,format=raw,readonly=on,file=/c,,d.iso"),
        *("-device", "virtio-blk-pci,drive=config0"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="),
        *RANDOM,
        *("-fsdev", "local,id=share0,path=/a,,b,security_model=none,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=share0,mount_tag=data,addr=0x10.0"),
        *("-add-fd", "fd=3,set=0", "-add-fd", "fd=4,set=1", "-add-fd", "fd=5,set=1"),
        *("-device", "virtio-serial-pci,id=serial0", "-chardev", "socket,id=port0,fd=7"),
        *("-device", "virtserialport,bus=serial0.0,chardev=port0,name=ipc.0"),
        *("-chardev", "socket,id=qmp,fd=9", "-mon", "chardev=qmp,mode=control"),
        "-S",
    )


def test_a_machine_of_almost_nothing() -> None:
    spec = VmSpec("arm64", None, Path("/c"), firmware="direct", kernel=Path("/k"), network=False, accelerator="kvm")
    assert argv.arguments(replace(spec, cpu="host", cpus=1, memory_mib=1, command_line="quiet")) == (
        "qemu-system-aarch64",
        *("-machine", "virt", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "1"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", "/k", "-append", "quiet"),
        *("-chardev", "file,id=console,path=/c,append=on", "-serial", "chardev:console"),
        *RANDOM,
    )


def test_a_microvm() -> None:
    """The disk is in the last slot, where the guest looks first, and slot 0, whose interrupt is lost, stays empty."""
    share = Share("data", Path("/a,b"), read_only=True)
    spec = replace(MICROVM, sandbox=True, config=Path("/c.iso"), shares=(share, *shares(1)), ports=(("ipc.0", 7),))
    assert argv.arguments(replace(spec, command_line="quiet", tsc_khz=2_000_000)) == (
        "qemu-system-x86_64",
        *("-machine", "microvm,acpi=on,ioapic2=on,pcie=off,usb=off"),
        *("-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "2", "-m", "4096"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SECCOMP),
        *("-kernel", "/k", "-initrd", "/i", "-append", f"quiet tsc_early_khz=2000000 {TRUST}"),
        *("-chardev", "file,id=console,path=/run/console.log,append=on", "-serial", "chardev:console"),
        *("-drive", "if=none,id=disk0,format=qcow2,snapshot=on,discard=unmap,file=/images/a,,b.qcow2"),
        *("-device", "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.23"),
        *("-drive", "if=none,id=config0,format=raw,readonly=on,file=/c.iso"),
        *("-device", "virtio-blk-device,drive=config0,bus=virtio-mmio-bus.22"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-device,netdev=net0,bus=virtio-mmio-bus.21"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom"),
        *("-device", "virtio-rng-device,rng=rng0,bus=virtio-mmio-bus.20"),
        *("-fsdev", "local,id=share0,path=/a,,b,security_model=none,readonly=on"),
        *("-device", "virtio-9p-device,fsdev=share0,mount_tag=data,bus=virtio-mmio-bus.18"),
        *("-fsdev", "local,id=share1,path=/tmp,security_model=none"),
        *("-device", "virtio-9p-device,fsdev=share1,mount_tag=t0,bus=virtio-mmio-bus.17"),
        *("-device", "virtio-serial-device,id=serial0,bus=virtio-mmio-bus.19"),
        *("-chardev", "socket,id=port0,fd=7", "-device", "virtserialport,bus=serial0.0,chardev=port0,name=ipc.0"),
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tsc_khz": 5}, f'quiet  a="b  c" tsc_early_khz=5 {TRUST}'),
        (
            {"tsc_khz": 5, "command_line": "tsc=unstable tsc=unstable5 x"},
            f"tsc=unstable5 x tsc_early_khz=5 {TRUST}",
        ),
        ({"tsc_khz": None}, f"{LINE} loglevel=5"),
        ({"tsc_khz": 5, "accelerator": "kvm"}, LINE),
        ({"tsc_khz": 5, "machine": "standard"}, LINE),
    ],
)
def test_an_emulated_microvm_is_told_about_its_only_clock(changes: dict[str, Any], line: str) -> None:
    """How fast it runs, and to trust it."""
    spec = replace(MICROVM, command_line=LINE)
    assert pairs(argv.arguments(replace(spec, **changes)), "-append") == [line]


def test_a_microvm_has_room_for_eighteen_shares() -> None:
    spec = replace(MICROVM, shares=shares(18), config=Path("/c"), ports=(("ipc.0", 7),))
    slots = [word.rpartition("mmio-bus.")[2] for word in argv.arguments(spec) if "mmio-bus." in word]
    assert sorted(map(int, slots)) == list(range(1, 24))
    assert MAX_MMIO_SHARES == 18


def test_only_a_private_copy_is_written_to() -> None:
    (drive,) = pairs(argv.arguments(replace(AMD64, disk=replace(DISK, writable=True))), "-drive")
    assert "snapshot=off" in drive


def test_the_boot_disk_is_vda_and_first() -> None:
    words = argv.arguments(replace(AMD64, config=Path("/c.iso")))
    assert pairs(words, "-device")[0] == "virtio-blk-pci,drive=disk0,bootindex=0"
    assert "readonly=on" in pairs(words, "-drive")[1]
    assert pairs(words, "-boot") == ["menu=off,strict=on"]


def test_scsi() -> None:
    words = argv.arguments(scsi(AMD64))
    assert "virtio-scsi-pci,id=scsi0" in words
    assert "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=0" in words


def test_direct_boot_uses_the_host_apps_command_line() -> None:
    words = argv.arguments(ARM64)
    line = "root=/dev/vda2 rootfstype=ext4 rw console=ttyAMA0,115200 init=/sbin/init quiet"
    assert pairs(words, "-append") == [line]
    assert (pairs(words, "-kernel"), pairs(words, "-initrd")) == (["/k"], ["/i"])
    amd64 = argv.arguments(replace(AMD64, firmware="direct", kernel=Path("/k")))
    line = "root=/dev/vda2 rootfstype=ext4 rw console=ttyS0,115200 init=/sbin/init quiet no_timer_check tsc=unstable"
    assert pairs(amd64, "-append") == [line]
    assert not any("bootindex" in word for word in words)
    assert pairs(argv.arguments(replace(ARM64, command_line="")), "-append") == [""]


def test_uefi_code_is_read_only_and_variables_are_not() -> None:
    flash = Firmware(Path("/code"), Path("/private/vars"))
    drives = pairs(argv.arguments(replace(AMD64, firmware="uefi", flash=flash)), "-drive")
    assert drives[0] == "if=pflash,unit=0,format=raw,readonly=on,file=/code"
    assert drives[1] == "if=pflash,unit=1,format=raw,snapshot=off,file=/private/vars"
    alone = pairs(argv.arguments(replace(AMD64, firmware="uefi", flash=Firmware(Path("/code"), None))), "-drive")
    assert alone == [drives[0], drives[2]]


def test_only_the_harness_sets_the_buffer_of_emulation() -> None:
    assert pairs(argv.arguments(AMD64), "-accel") == ["tcg,thread=multi,tb-size=64"]
    assert pairs(argv.arguments(replace(AMD64, accelerator="kvm", cpu="host")), "-accel") == ["kvm"]
    assert pairs(argv.arguments(host_app(AMD64)), "-accel") == ["tcg,thread=multi"]


def test_host_app_style_is_the_contracts() -> None:
    spec = host_app(replace(AMD64, shares=(Share("ipc", Path("/ipc")), Share("work", Path("/work")))))
    assert argv.arguments(spec) == (
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi"),
        *("-m", "4096", "-smp", "2", "-nographic", "-snapshot", "-no-reboot"),
        *("-serial", "file:/run/console.log"),
        *("-drive", "file=/images/a,,b.qcow2,format=qcow2,if=virtio"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"),
        *("-virtfs", "local,path=/ipc,mount_tag=ipc,security_model=none"),
        *("-virtfs", "local,path=/work,mount_tag=work,security_model=none"),
    )
    assert argv.arguments(host_app(ARM64))[1:3] == ("-machine", "virt")


@given(st.integers(0, MAX_SHARES))
def test_shares_never_share_a_function(count: int) -> None:
    words = argv.arguments(replace(AMD64, shares=shares(count)))
    devices = [word for word in words if word.startswith("virtio-9p-pci")]
    addresses = [word.partition("addr=")[2].partition(",")[0] for word in devices]
    assert len(set(addresses)) == len(devices) == count
    for device, address in zip(devices, addresses, strict=True):
        slot, _, function = address.partition(".")
        assert 0x10 <= int(slot, 16) < 0x1F  # q35 has its own devices at 0x1f
        alone = sum(other.startswith(slot + ".") for other in addresses) == 1
        assert ("multifunction=on" in device) == (function == "0" and not alone)


def test_ports_and_control_use_descriptors() -> None:
    words = argv.arguments(replace(AMD64, ports=(("ipc.0", 7),), qmp=9))
    assert "socket,id=port0,fd=7" in words
    assert "virtserialport,bus=serial0.0,chardev=port0,name=ipc.0" in words
    assert "socket,id=qmp,fd=9" in words


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(AMD64, arch="riscv64"), "riscv64: unknown architecture"),
        (replace(AMD64, arch="arm64"), "arm64 has no BIOS"),
        (host_app(replace(AMD64, config=Path("/c"))), "no config drive"),
        (replace(AMD64, firmware="coreboot"), "coreboot: unknown firmware"),  # type: ignore[arg-type]
        (replace(AMD64, firmware="direct"), "needs a kernel"),
        (replace(AMD64, firmware="uefi"), "needs firmware"),
        (replace(AMD64, cpus=0), "at least one CPU and 1 MiB of memory"),
        (replace(AMD64, memory_mib=0), "at least one CPU and 1 MiB of memory"),
        (host_app(replace(AMD64, disk=replace(DISK, writable=True))), "never writes to the image"),
        (replace(AMD64, shares=shares(MAX_SHARES + 1)), "97 shares are too many"),
        (replace(MICROVM, shares=shares(19)), "19 shares are too many"),
        (replace(MICROVM, arch="arm64"), "QEMU has no machine microvm for arm64"),
        (replace(MICROVM, firmware="bios"), "the machine microvm has no bios: QEMU starts the kernel itself"),
        (replace(MICROVM, firmware="uefi"), "the machine microvm has no uefi"),
        (replace(MICROVM, kernel=None), "direct boot needs a kernel"),
        (replace(AMD64, machine="pc"), "pc: unknown machine"),  # type: ignore[arg-type]
        (replace(AMD64, shares=shares(1) + shares(1)), "t0: two shares of the same name"),
        (replace(AMD64, shares=(Share("a,b", Path("/")),)), "'a,b': not a name"),
        (replace(AMD64, shares=(Share("x" * 32, Path("/")),)), "not a name for a share"),
        (replace(AMD64, shares=(Share(".x", Path("/")),)), "'.x': not a name for a share"),
        (replace(AMD64, shares=(Share("", Path("/")),)), "'': not a name for a share"),
    ],
)
def test_nonsense_is_refused(spec: VmSpec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        argv.arguments(spec)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (replace(AMD64, arch="riscv64"), "known are amd64, arm64"),
        (replace(AMD64, arch="arm64"), "--firmware uefi or --firmware direct"),
        (replace(AMD64, firmware="coreboot"), "known are bios, uefi, direct"),  # type: ignore[arg-type]
        (replace(AMD64, shares=shares(MAX_SHARES + 1)), "at most 96 fit on the bus"),
        (replace(MICROVM, shares=shares(19)), "at most 18 fit into a microvm"),
        (replace(MICROVM, arch="arm64"), "it is for amd64 only; leave out --machine"),
        (replace(MICROVM, firmware="bios"), "leave out --firmware"),
        (replace(AMD64, machine="pc"), "known are standard, microvm"),  # type: ignore[arg-type]
        (replace(AMD64, shares=(Share("a b", Path("/")),)), "letters, digits, dot, _ and -; at most 31 of them"),
    ],
)
def test_a_refusal_says_what_would_do(spec: VmSpec, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        argv.arguments(spec)
    assert caught.value.hint == hint


@pytest.mark.parametrize("tag", ["a", "A0._-z", "x" * 31])
def test_names_of_shares(tag: str) -> None:
    assert argv.check_tag(tag) == tag


def test_a_share_that_qemu_has_another_way_to() -> None:
    words = argv.arguments(replace(AMD64, shares=(Share("t", Path("/t"), view=5),)))
    assert pairs(words, "-fsdev") == ["local,id=share0,path=/proc/self/fd/5,security_model=none"]


@pytest.mark.vm
@pytest.mark.parametrize(
    ("style", "base", "count"),
    [
        ("harness", AMD64, 50),
        ("harness", ARM64, 50),
        ("host-app", AMD64, 2),
        ("host-app", ARM64, 2),
        ("harness", MICROVM, MAX_MMIO_SHARES),
    ],
)
def test_qemu_takes_them(style: str, base: VmSpec, count: int, tmp_path: Path) -> None:
    """QEMU sets the machine up, with many shares in the harness's style, and leaves it standing before its start."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(4096))
    base = replace(base, disk=Disk(disk, "raw"), console=tmp_path / "console")
    tags = tuple(Share(f"t{number}", tmp_path) for number in range(count))
    extra = ("-S", "-monitor", "stdio")
    spec = replace(STYLES[style](base), shares=tags, memory_mib=64, extra=extra, kernel=kernel, initrd=None)
    words = argv.arguments(spec)
    need_program(words[0])
    with process.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        stdout, stderr = child.communicate(b"info qtree\nquit\n", timeout=60)
    assert child.returncode == 0, stderr
    assert stdout.count(b"mount_tag = ") == count


def test_what_an_images_name_says() -> None:
    assert [guess_arch(Path(f"/x/{name}.qcow2")) for name in ("linux-arm64", "my_amd64_2")] == ["arm64", "amd64"]
    assert guess_arch(Path("/arm64/disk.qcow2")) == host_arch()
    assert (machine("amd64").firmware, machine("arm64").firmware) == ("bios", "uefi")


def test_direct_boots_have_the_arguments_that_the_recipe_gives_the_others() -> None:
    """The arguments are stated in two places, because imgkit.vm does not import recipes."""
    recipe = load(Path(__file__).parents[1] / "recipes/core.py")
    assert set(recipe.architectures) == set(MACHINES)
    for arch, facts in recipe.architectures.items():
        assert tuple(facts.kernel_arguments) == machine(arch).kernel_arguments
