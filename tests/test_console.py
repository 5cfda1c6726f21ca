"""Stages and failures from console texts, as real firmware, kernels and Alpine's init write them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.vm import console, failures
from imgkit.vm.console import Stage
from imgkit.vm.consolelog import KEEP, ConsoleLog
from imgkit.vm.failures import BootError

SEABIOS = "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\nBooting from Hard Disk...\r\n"
NOTHING_BIOS = SEABIOS + "Boot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"
EDK2 = (
    '\x1b[2J\x1b[01;01HBdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x1,0x0): Not Found\r\n'
    'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)\r\n'
    "\x1b[2J\x1b[01;01HUEFI Interactive Shell v2.2\r\nPress \x1b[1mESC\x1b[0m in 1 seconds to skip startup.nsh"
)
GRUB = SEABIOS + "Welcome to GRUB!\r\n"
KERNEL = GRUB + "[    0.000000] Linux version 6.18.56-0-virt (buildozer@build-3-23-x86_64)\r\n"
INITRAMFS = KERNEL + "[    2.822666] Alpine Init 3.13.0-r0\r\n"
OPENRC = INITRAMFS + "\r\n   OpenRC 0.63 is starting up Linux 6.18.56-0-virt (x86_64)\r\n"
LOGIN = OPENRC + "\r\nWelcome to Alpine Linux 3.23\r\nimgkit login: "


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("", Stage.NOTHING),
        (SEABIOS, Stage.FIRMWARE),
        (EDK2, Stage.FIRMWARE),
        (GRUB, Stage.BOOT_LOADER),
        (KERNEL, Stage.KERNEL),
        (INITRAMFS, Stage.INITRAMFS),
        (OPENRC, Stage.INIT),
        (LOGIN, Stage.LOGIN),
        (LOGIN + "\r\nagentd: ready\r\n", Stage.AGENT),
    ],
)
def test_stage(text: str, stage: Stage) -> None:
    assert console.stage(console.clean(text)) is stage


PANIC = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
FAILURES: list[tuple[str, type[BootError], str]] = [
    (NOTHING_BIOS, failures.NothingToBootError, "found nothing to boot"),
    ("BdsDxe: No bootable option or device was found.\r\n", failures.NothingToBootError, "found nothing to boot"),
    (EDK2 + "\r\n\x1b[1mShell> \x1b[0m", failures.NothingToBootError, "found nothing to boot"),
    (
        GRUB + "error: no such device: 1234-abcd.\r\nEntering rescue mode...\r\ngrub rescue> ",
        failures.BootLoaderError,
        "rescue prompt: error: no such device: 1234-abcd.",
    ),
    (
        GRUB + "error: file `/boot/vmlinuz' not found.\r\nMinimal BASH-like line editing is supported.\r\ngrub> ",
        failures.BootLoaderError,
        "prompt: error: file `/boot/vmlinuz' not found.",
    ),
    (GRUB + "Minimal BASH-like line editing is supported.\r\ngrub> ", failures.BootLoaderError, "no configuration"),
    (GRUB + "error: out of memory.\r\n", failures.BootLoaderError, "stopped: error: out of memory."),
    (KERNEL + PANIC, failures.KernelPanicError, "kernel panic: VFS: Unable to mount root fs"),
    (
        INITRAMFS
        + "mount: mounting /dev/vdz on /sysroot failed: No such file or directory\r\nMounting root failed. \r\n"
        "Launching initramfs emergency recovery shell.\r\n",
        failures.InitramfsError,
        "mount the root filesystem: mount: mounting /dev/vdz on /sysroot failed: No such file",
    ),
    (
        INITRAMFS + "/nix not found in new root. Launching emergency recovery shell\r\n" + PANIC,
        failures.InitramfsError,
        "no init: /nix not found in new root",
    ),
    (
        INITRAMFS + "switch_root: can't execute '/nix': No such file or directory\r\n" + PANIC,
        failures.InitramfsError,
        "no init: switch_root: can't execute '/nix'",
    ),
    (OPENRC + "can't run '/sbin/openrc': No such file\r\n", failures.InitError, "init failed: /sbin/openrc"),
    (
        OPENRC + " * ERROR: agentd failed to start\r\n",
        failures.AgentError,
        "the agent crashed: ERROR: agentd failed to start",
    ),
]


@pytest.mark.parametrize(("text", "kind", "words"), FAILURES, ids=[words[:24] for _, _, words in FAILURES])
def test_diagnosis(text: str, kind: type[BootError], words: str) -> None:
    cleaned = console.clean(text)
    finding = console.diagnose(cleaned)
    assert finding is not None
    assert finding.kind is kind
    error = console.failure(finding, cleaned)
    assert type(error) is kind
    assert words in error.message
    assert "\n" not in error.message
    assert error.console.splitlines()[-1] in cleaned
    assert "\x1b" not in str(error)


@pytest.mark.parametrize("text", ["", SEABIOS, GRUB, KERNEL, INITRAMFS, OPENRC, LOGIN])
def test_a_good_boot_has_no_finding(text: str) -> None:
    assert console.diagnose(console.clean(text)) is None


def test_what_is_overcome_is_no_failure() -> None:
    """GRUB complains about a missing font and boots; the firmware tries the network first and then the disk."""
    text = NOTHING_BIOS + "error: file `/boot/grub/fonts/unicode.pf2' not found.\r\n" + KERNEL
    assert console.diagnose(console.clean(text)) is None


def test_grub_gets_time_to_overcome_its_error() -> None:
    finding = console.diagnose(console.clean(GRUB + "error: no video mode activated.\r\n"))
    assert finding is not None
    assert finding.patience >= 10


def test_a_machine_without_a_display_is_no_error() -> None:
    blind = GRUB + "error: no suitable video mode found.\r\nBooting in blind mode\r\n"
    assert console.diagnose(console.clean(blind)) is None
    finding = console.diagnose(console.clean(blind + "error: no such partition.\r\n"))
    assert finding is not None
    assert "no such partition" in finding.message


def test_the_shell_that_may_run_startup_nsh_gets_time() -> None:
    finding = console.diagnose(console.clean(EDK2))
    assert finding is not None
    assert finding.patience > 5


TIMER = "[    0.002000] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n"


@pytest.mark.parametrize("said", ["[    1.319441] Oops: int3: 0000 [#1] SMP NOPTI\r\n" + PANIC, TIMER])
def test_a_fault_of_the_emulation_is_told_apart(said: str) -> None:
    text = console.clean(KERNEL + said)
    finding = console.diagnose(text)
    assert finding is not None
    error = console.failure(finding, text)
    assert isinstance(error, failures.KernelPanicError)
    assert error.emulation
    other = console.failure(finding, console.clean(KERNEL + PANIC))
    assert isinstance(other, failures.KernelPanicError)
    assert not other.emulation


def test_a_dead_qemu_is_explained_by_the_console_first() -> None:
    assert isinstance(console.died("ended", "", console.clean(KERNEL + PANIC)), failures.KernelPanicError)
    died = console.died("was killed by SIGKILL", "first\nlast words\n", console.clean(SEABIOS))
    assert isinstance(died, failures.QemuDiedError)
    assert died.message == "QEMU was killed by SIGKILL: last words"


@pytest.mark.parametrize(
    ("text", "quiet", "heartbeat", "kind", "words"),
    [
        ("", 60.0, "", failures.BootTimeoutError, "nothing was written to the console, silent for the last 60 s"),
        (KERNEL, 1.0, "", failures.BootTimeoutError, "the kernel had started, it was still getting on"),
        (OPENRC, 1.0, "", failures.BootTimeoutError, "OpenRC had started, it was still getting on"),
        (OPENRC, 30.0, "", failures.AgentError, "no heartbeat of the agent within 60 s, though OpenRC had started"),
        (LOGIN, 1.0, "", failures.AgentError, "though the system was up"),
        (OPENRC, 1.0, "its heartbeat is 20 s old", failures.AgentError, "not ready after 60 s: its heartbeat is 20 s"),
        (NOTHING_BIOS, 1.0, "", failures.NothingToBootError, "nothing to boot"),
    ],
)
def test_deadline(text: str, quiet: float, heartbeat: str, kind: type[BootError], words: str) -> None:
    error = console.late(60.0, quiet, console.clean(text), heartbeat)
    assert type(error) is kind
    assert words in error.message
    if isinstance(error, failures.BootTimeoutError):
        assert error.progress == (quiet < 10)


def test_tail_is_short_and_clean() -> None:
    shown = console.tail("".join(f"\x1b[31mline {n}\x1b[0m\r\n\r\n" for n in range(100)) + "x" * 1000)
    assert shown.splitlines()[0] == "line 81"
    assert shown.splitlines()[-1] == "x" * 200
    assert len(shown.splitlines()) == 20


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    cleaned = console.clean(text)
    assert not any(ord(character) < 32 and character not in "\n\t" for character in cleaned)
    console.stage(cleaned)
    console.diagnose(cleaned)


@pytest.mark.parametrize(
    "piece",
    ["error: ", " ", "openrc: ", "agentd", "supervise-daemon agentd ", "mount: mounting ", "OpenRC 1.", "\x1b["],
)
def test_a_hostile_console_costs_no_time(piece: str) -> None:
    text = piece * (KEEP // len(piece))
    start = time.process_time()
    for variant in (text, text.replace(" ", "\n"), "BdsDxe: " + text):
        console.diagnose(console.clean(variant))
    assert time.process_time() - start < 5


@pytest.fixture
def opened() -> Iterator[Callable[..., ConsoleLog]]:
    """Opens console files, for the length of a test."""
    with ExitStack() as stack:
        yield lambda path, **options: stack.enter_context(closing(ConsoleLog(path, **options)))


def test_the_log_follows_a_growing_file(tmp_path: Path, opened: Callable[..., ConsoleLog]) -> None:
    path = tmp_path / "console"
    log = opened(path)
    assert not log.refresh()
    with path.open("ab", buffering=0) as sink:
        sink.write(SEABIOS.encode())
        assert log.refresh()
        assert log.stage.name == "FIRMWARE"
        sink.write(b"\xff\xfe\r\n\x1b[")  # no text, and half a control sequence
        log.refresh()
        sink.write(b"31m[    0.000000] x\r\n")
        assert log.refresh()
        assert log.stage.name == "KERNEL"
        sink.write(b"filler\r\n" * KEEP)
        while log.refresh():
            pass
    assert log.stage == Stage.KERNEL
    assert len(log.text) <= KEEP
    assert list(log.times) == [Stage.FIRMWARE, Stage.KERNEL]


def test_stages_that_pass_while_nobody_looks_are_noted(tmp_path: Path, opened: Callable[..., ConsoleLog]) -> None:
    path = tmp_path / "console"
    log = opened(path)
    path.write_text("Welcome to GRUB!\n[    1.000000] x\nAlpine Init 3.0\n   OpenRC 0.6 is starting up Linux\n")
    log.refresh()
    assert list(log.times) == [Stage.BOOT_LOADER, Stage.KERNEL, Stage.INITRAMFS, Stage.INIT]
    path.write_text(f"{path.read_text()}agentd: here\n")
    log.refresh()
    assert list(log.times)[-2:] == [Stage.INIT, Stage.AGENT]


def test_an_earlier_machines_console_is_not_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., ConsoleLog]
) -> None:
    monkeypatch.setattr("imgkit.vm.consolelog.MAX_FILE", 1000)
    path = tmp_path / "console"
    path.write_text("Kernel panic - not syncing: earlier\n")
    log = opened(path)
    assert not log.refresh()
    with path.open("ab", buffering=0) as sink:
        sink.write(b"x" * 2000)
        assert log.refresh()
    assert console.diagnose(log.text) is None
    assert path.read_text() == "Kernel panic - not syncing: earlier\n", "only what this machine wrote is cut away"


def test_a_flooded_console_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., ConsoleLog]
) -> None:
    monkeypatch.setattr("imgkit.vm.consolelog.MAX_FILE", 1000)
    path = tmp_path / "console"
    path.write_bytes(b"x" * 2000)
    log = opened(path, anew=True)
    assert log.refresh()
    assert path.stat().st_size == 0
    with path.open("ab") as sink:
        sink.write(b"after\n")
    assert log.refresh()
    assert log.text.endswith("xafter\n")
