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
from imgkit.vm.console import ConsoleFailure, Stage
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


def test_the_stages_that_were_passed() -> None:
    assert console.stages(console.clean(SEABIOS)) == [Stage.FIRMWARE]
    passed = [Stage.BOOT_LOADER, Stage.KERNEL, Stage.INITRAMFS, Stage.INIT, Stage.LOGIN]
    assert console.stages(console.clean(LOGIN)) == passed
    assert [stage.words for stage in passed[-2:]] == ["OpenRC had started", "the system was up"]


PANIC = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
NOTHING = "the firmware found nothing to boot on the disk"
FAILURES: list[tuple[str, type[BootError], float, str]] = [  # text, class, seconds of silence, message
    (NOTHING_BIOS, failures.NothingToBootError, 0.3, NOTHING),
    ("BdsDxe: No bootable option or device was found.\r\n", failures.NothingToBootError, 0.3, NOTHING),
    (EDK2 + "\r\n\x1b[1mShell> \x1b[0m", failures.NothingToBootError, 2.0, NOTHING),
    (EDK2, failures.NothingToBootError, 8.0, NOTHING),
    (
        GRUB + "error: no such device: 1234-abcd.\r\nEntering rescue mode...\r\ngrub rescue> ",
        failures.BootLoaderError,
        1.0,
        "GRUB ended at its rescue prompt: error: no such device: 1234-abcd.",
    ),
    (
        GRUB + "error: file `/boot/vmlinuz' not found.\r\nMinimal BASH-like line editing is supported.\r\ngrub> ",
        failures.BootLoaderError,
        1.0,
        "GRUB ended at its prompt: error: file `/boot/vmlinuz' not found.",
    ),
    (
        GRUB + "Minimal BASH-like line editing is supported.\r\n",
        failures.BootLoaderError,
        1.0,
        "GRUB ended at its prompt: it found no configuration",
    ),
    (GRUB + "grub> ", failures.BootLoaderError, 1.0, "GRUB ended at its prompt: it found no configuration"),
    (GRUB + "error: out of memory.\r\n", failures.BootLoaderError, 20.0, "GRUB stopped: error: out of memory."),
    (
        KERNEL + PANIC,
        failures.KernelPanicError,
        1.0,
        "kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    (
        INITRAMFS
        + "mount: mounting /dev/vdz on /sysroot failed: No such file or directory\r\nMounting root failed. \r\n"
        "Launching initramfs emergency recovery shell.\r\n",
        failures.InitramfsError,
        1.0,
        "the initramfs could not mount the root filesystem: mount: mounting /dev/vdz on /sysroot failed: "
        "No such file or directory",
    ),
    (
        INITRAMFS + "Launching initramfs emergency recovery shell.\r\n",
        failures.InitramfsError,
        1.0,
        "the initramfs could not mount the root filesystem",
    ),
    (
        INITRAMFS + "/nix not found in new root. Launching emergency recovery shell\r\n" + PANIC,
        failures.InitramfsError,
        1.0,
        "the root filesystem has no init: /nix not found in new root. Launching emergency recovery shell",
    ),
    (
        INITRAMFS + "switch_root: can't execute '/nix': No such file or directory\r\n" + PANIC,
        failures.InitramfsError,
        1.0,
        "the root filesystem has no init: switch_root: can't execute '/nix': No such file or directory",
    ),
    (
        OPENRC + "can't run '/sbin/openrc': No such file\r\n",
        failures.InitError,
        1.0,
        "init failed: /sbin/openrc': No such file",
    ),
    (OPENRC + "openrc: cannot fork\r\n", failures.InitError, 1.0, "init failed: openrc: cannot fork"),
    (
        OPENRC + "can't open /etc/inittab: gone\r\n",
        failures.InitError,
        1.0,
        "init failed: can't open /etc/inittab: gone",
    ),
    (
        OPENRC + " * ERROR: agentd failed to start\r\n",
        failures.AgentError,
        2.0,
        "agentd crashed: ERROR: agentd failed to start",
    ),
    (
        OPENRC + "supervise-daemon: agentd respawned too many times\r\n",
        failures.AgentError,
        2.0,
        "agentd crashed: supervise-daemon: agentd respawned too many times",
    ),
]


@pytest.mark.parametrize(("text", "kind", "silence", "message"), FAILURES)
def test_diagnosis(text: str, kind: type[BootError], silence: float, message: str) -> None:
    cleaned = console.clean(text)
    assert console.diagnose(cleaned) == ConsoleFailure(kind, message, silence)
    error = console.failure(ConsoleFailure(kind, message, silence), cleaned)
    assert type(error) is kind
    assert error.message == message
    assert error.hint is None
    assert error.console == console.tail(cleaned)
    assert "\x1b" not in str(error)


def test_a_message_of_the_guests_is_cut() -> None:
    failure = console.diagnose(KERNEL + "Kernel panic - not syncing: " + "x" * 500)
    assert failure == ConsoleFailure(failures.KernelPanicError, "kernel panic: " + "x" * 200)
    failure = console.diagnose(INITRAMFS + "y" * 300 + " not found in new root" + "z" * 300 + "\n")
    assert failure == ConsoleFailure(failures.InitramfsError, "the root filesystem has no init: " + "y" * 199)


@pytest.mark.parametrize(
    "sentence",
    [
        "No bootable device.\n",
        "Shell> ",
        "UEFI Interactive Shell v2.2\n",
        "error: no such device\ngrub rescue> ",
        "error: no such file\nMinimal BASH-like line editing\n",
        "Minimal BASH-like line editing\n",
        "grub> ",
        "error: out of memory\n",
        "Mounting root failed.\n",
        "/nix not found in new root\n",
    ],
)
def test_what_a_running_system_says_is_not_a_failure_of_its_boot(sentence: str) -> None:
    """Services and agents may print anything; only messages of the kernel, init and agentd count."""
    assert console.diagnose(sentence) is not None
    assert console.diagnose(console.clean(LOGIN) + "\n" + sentence) is None


@pytest.mark.parametrize("text", ["", SEABIOS, GRUB, KERNEL, INITRAMFS, OPENRC, LOGIN])
def test_a_good_boot_has_no_finding(text: str) -> None:
    assert console.diagnose(console.clean(text)) is None


def test_what_is_overcome_is_no_failure() -> None:
    """GRUB complains about a missing font and boots; the firmware tries the network first and then the disk."""
    text = NOTHING_BIOS + "error: file `/boot/grub/fonts/unicode.pf2' not found.\r\n" + KERNEL
    assert console.diagnose(console.clean(text)) is None


def test_a_machine_without_a_display_is_no_error() -> None:
    blind = GRUB + "error: no suitable video mode found.\r\nBooting in blind mode\r\n"
    assert console.diagnose(console.clean(blind)) is None
    failure = console.diagnose(console.clean(blind + "error: no such partition.\r\n"))
    assert failure is not None
    assert failure.message == "GRUB stopped: error: no such partition."


TIMER = "[    0.002000] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n"


NO_CLOCK = "[    0.000000] tsc: Unable to calibrate against PIT\r\n"


@pytest.mark.parametrize("said", ["[    1.319441] Oops: int3: 0000 [#1] SMP NOPTI\r\n" + PANIC, TIMER, NO_CLOCK])
def test_a_fault_of_the_emulation_is_told_apart(said: str) -> None:
    text = console.clean(KERNEL + said)
    failure = console.diagnose(text)
    assert failure is not None
    error = console.failure(failure, text)
    assert isinstance(error, failures.KernelPanicError)
    assert error.emulation
    assert failure.silence == (5.0 if said == NO_CLOCK else 1.0)
    assert error.hint == "a known fault of QEMU's multi-threaded emulation; try again or use one CPU"
    other = console.failure(failure, console.clean(KERNEL + PANIC))
    assert isinstance(other, failures.KernelPanicError)
    assert not other.emulation
    assert other.hint is None


def test_a_dead_qemu_is_explained_by_the_console_first() -> None:
    assert isinstance(console.died("ended", "", console.clean(KERNEL + PANIC)), failures.KernelPanicError)
    died = console.died("was killed by SIGKILL", "first\nlast \x1b[1mwords\n", console.clean(SEABIOS))
    assert isinstance(died, failures.QemuDiedError)
    assert died.message == "QEMU was killed by SIGKILL: last words"
    assert died.console.splitlines()[-1] == "Booting from Hard Disk..."
    assert console.died("ended", "\n", "").message == "QEMU ended"


STUCK = "no heartbeat within 60 s: "
NO_AGENT = "no heartbeat of agentd within 60 s, though "


@pytest.mark.parametrize(
    ("text", "quiet", "heartbeat", "kind", "message"),
    [
        ("", 9.0, "", failures.BootTimeoutError, f"{STUCK}nothing was written to the console, silent for the last 9 s"),
        (KERNEL, 9.9, "", failures.BootTimeoutError, f"{STUCK}the kernel had started, it was still making progress"),
        (KERNEL, 10.0, "", failures.BootTimeoutError, f"{STUCK}the kernel had started, silent for the last 10 s"),
        (KERNEL, 70.0, "", failures.BootTimeoutError, f"{STUCK}the kernel had started, silent for the last 60 s"),
        (OPENRC, 1.0, "", failures.BootTimeoutError, f"{STUCK}OpenRC had started, it was still making progress"),
        (OPENRC, 10.0, "", failures.BootTimeoutError, f"{STUCK}OpenRC had started, silent for the last 10 s"),
        (OPENRC, 10.1, "", failures.AgentError, f"{NO_AGENT}OpenRC had started"),
        (LOGIN, 1.0, "", failures.AgentError, f"{NO_AGENT}the system was up"),
        (LOGIN + "\r\nagentd: x\r\n", 1.0, "", failures.AgentError, f"{NO_AGENT}agentd had started"),
        (
            OPENRC,
            1.0,
            "its heartbeat is 20 s old",
            failures.AgentError,
            "agentd is not ready after 60 s: its heartbeat is 20 s old",
        ),
        (NOTHING_BIOS, 1.0, "x", failures.NothingToBootError, NOTHING),
    ],
)
def test_deadline(text: str, quiet: float, heartbeat: str, kind: type[BootError], message: str) -> None:
    cleaned = console.clean(text)
    error = console.late(60.0, quiet, cleaned, heartbeat)
    assert type(error) is kind
    assert error.message == message
    assert error.console == console.tail(cleaned)
    if isinstance(error, failures.BootTimeoutError):
        assert error.progress == message.endswith("still making progress")
        assert error.hint == ("a longer --timeout may be enough" if error.progress else None)
    if message.startswith(NO_AGENT):
        assert error.hint == "is agentd in the default runlevel, and was the ipc share given?"


def test_tail_is_short_and_clean() -> None:
    shown = console.tail("".join(f"\x1b[31mline {n}\x1b[0m\r\n\r\n" for n in range(100)) + "x" * 1000)
    assert shown.splitlines()[0] == "line 81"
    assert shown.splitlines()[-1] == "x" * 200
    assert len(shown.splitlines()) == 20
    assert console.tail("a\nb\nc\n", lines=2, width=1) == "b\nc"
    assert console.tail("early" + "\n" * 64_000) == "", "only the end is looked at"
    assert console.tail("early" + "\n" * 63_999) == "y"


def test_a_control_sequence_is_taken_away_as_a_whole() -> None:
    assert console.clean("a\x1b[?7lb\x1b(Bc\x1b7d\x1b=e\rf\tg\x07h\x9bi") == "abcdef\tghi"


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    cleaned = console.clean(text)
    assert not any(ord(character) < 32 and character not in "\n\t" for character in cleaned)
    console.stage(cleaned)
    console.diagnose(cleaned)


@pytest.mark.slow
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
        yield lambda path: stack.enter_context(closing(ConsoleLog(path)))


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
    log = opened(path)
    with path.open("ab", buffering=0) as sink:
        sink.write(b"x" * 1000)
        assert log.refresh()
        assert path.stat().st_size == 1000, "as much as it may have"
        sink.write(b"x")
        assert log.refresh()
        assert path.stat().st_size == 0
        sink.write(b"after\n")
    assert log.refresh()
    assert log.text.endswith("xafter\n")
