"""Interpret the text of the serial console: how far a boot has come, and what went wrong. All functions are pure.

    text = clean(raw)
    failed = diagnose(text)
    if failed:
        raise failure(failed, text)

The patterns match messages of SeaBIOS, EDK2 (``BdsDxe.c``, the UEFI shell), GRUB 2, Linux, Alpine's
initramfs and OpenRC.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from imgkit.host import terminal
from imgkit.vm import failures
from imgkit.vm.failures import BootError

_STUCK = 10.0  # seconds of silence after which a boot counts as stuck
TAIL_LINES = 20
"""Lines of the console that an error shows."""


class Stage(enum.IntEnum):
    """A stage of the boot, in the order in which a boot passes them."""

    NOTHING = enum.auto()
    FIRMWARE = enum.auto()
    BOOT_LOADER = enum.auto()
    KERNEL = enum.auto()
    INITRAMFS = enum.auto()
    INIT = enum.auto()
    LOGIN = enum.auto()
    AGENT = enum.auto()

    @property
    def words(self) -> str:
        """The stage as a phrase for messages."""
        return _STAGE_WORDS[self]

    @property
    def doing(self) -> str:
        """What the guest is doing at this stage, as a phrase for the status line."""
        return _STAGE_DOING[self]


_STAGE_WORDS = {
    Stage.NOTHING: "nothing was written to the console",
    Stage.FIRMWARE: "the firmware had started",
    Stage.BOOT_LOADER: "the boot loader had started",
    Stage.KERNEL: "the kernel had started",
    Stage.INITRAMFS: "the initramfs had started",
    Stage.INIT: "OpenRC had started",
    Stage.LOGIN: "the system was up",
    Stage.AGENT: "agentd had started",
}

_STAGE_DOING = {
    Stage.NOTHING: "the machine starts",
    Stage.FIRMWARE: "the firmware runs",
    Stage.BOOT_LOADER: "the boot loader runs",
    Stage.KERNEL: "the kernel starts",
    Stage.INITRAMFS: "the initramfs mounts the disk",
    Stage.INIT: "services start",
    Stage.LOGIN: "the system is up, and agentd not ready yet",
    Stage.AGENT: "agentd starts",
}

_STAGES: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    (Stage.FIRMWARE, re.compile(r"\S")),
    (Stage.BOOT_LOADER, re.compile(r"GNU GRUB|Welcome to GRUB|^Booting `|^Loading Linux|^grub>", re.MULTILINE)),
    (Stage.KERNEL, re.compile(r"^\[ *\d+\.\d{6}\] |\bLinux version \d", re.MULTILINE)),
    (Stage.INITRAMFS, re.compile(r"Alpine Init [0-9]|Run /init as init process|Loading boot drivers|Mounting root")),
    (Stage.INIT, re.compile(r"^ {0,8}OpenRC [0-9.]{1,20}.{0,80} is starting up", re.MULTILINE)),
    (Stage.LOGIN, re.compile(r"^\S{1,64} login: ?$|^Welcome to Alpine Linux", re.MULTILINE)),
    (Stage.AGENT, re.compile(r"^.{0,40}(?:\* Starting agentd\b|\bagentd: )", re.MULTILINE)),
)


def clean(text: str) -> str:
    """Return ``text`` without terminal control sequences and carriage returns, for matching.

    :func:`tail` makes text that can be shown.
    """
    text = re.sub(r"\x1b(?:\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[A-Za-z78=>])", "", text)
    return re.sub(r"[^\n\t\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]", "", text)


def tail(text: str, lines: int = TAIL_LINES, width: int = 200) -> str:
    """Return the last ``lines`` non-empty lines of ``text``, cleaned and each cut to ``width`` characters."""
    kept = [line.rstrip() for line in clean(text[-64_000:]).split("\n") if line.strip()]
    return terminal.block("\n".join(line[:width] for line in kept[-lines:]))


def stage(text: str) -> Stage:
    """Return the furthest stage that the cleaned console text shows."""
    return max(stages(text), default=Stage.NOTHING)


def stages(text: str) -> list[Stage]:
    """Return every stage that the cleaned console text shows, in order.

    The firmware is included only if there is no other stage, because any text may come from the firmware.
    """
    reached = [stage for stage, pattern in _STAGES if pattern.search(text)]
    return reached[1:] or reached


@dataclass(frozen=True)
class ConsoleFailure:
    """A failure that the console shows.

    Attributes:
        kind: the exception for it.
        message: what failed, in one line.
        silence: seconds for which the console must stay silent before the failure counts. The rest of the message may
            still arrive, and GRUB continues after many of its errors.
    """

    kind: type[BootError]
    message: str
    silence: float = 1.0


@dataclass(frozen=True)
class _Sign:
    """A message on the console that means a failure.

    Attributes:
        kind: the exception for it.
        pattern: matches the message. Repetitions are bounded, because the guest chooses the text.
        message: what failed; ``{what}`` stands for the pattern's first group that matched.
        silence: as in :class:`ConsoleFailure`.
        until: the last stage of the boot at which the message counts.
        also: another text that must be on the console.
    """

    kind: type[BootError]
    pattern: re.Pattern[str]
    message: str
    silence: float = 1.0
    until: Stage = Stage.AGENT
    also: str = ""


def _sign(
    kind: type[BootError],
    pattern: str,
    message: str,
    *,
    silence: float = 1.0,
    until: Stage = Stage.AGENT,
    also: str = "",
) -> _Sign:
    return _Sign(kind, re.compile(pattern, re.MULTILINE), message, silence, until, also)


_NOTHING = "the firmware found nothing to boot on the disk"
# Without a display GRUB for EFI always says that it has no video mode, and boots.
_GRUB_ERROR = r"^ {0,8}(?P<what>error: (?!no suitable video mode found)[^\n]{0,200})"

_SIGNS: tuple[_Sign, ...] = (
    # Without an init the kernel panics right afterwards, so the cause is looked for first.
    _sign(
        failures.InitramfsError,
        r"(?P<what>[^\n]{0,200}not found in new root[^\n]{0,200}|switch_root: can't execute[^\n]{0,200})",
        "the root filesystem has no init: {what}",
        until=Stage.INITRAMFS,
    ),
    _sign(failures.KernelPanicError, r"Kernel panic - not syncing: (?P<what>[^\n]{0,200})", "kernel panic: {what}"),
    # An emulated microvm on a host whose counter imgkit.vm.qemu.hostclock cannot read.
    _sign(
        failures.KernelPanicError,
        r"tsc: Unable to calibrate against PIT",
        "the kernel found no clock and waits for its first tick",
        silence=5.0,
        until=Stage.KERNEL,
    ),
    _sign(
        failures.NothingToBootError,
        r"^No bootable device\.|BdsDxe: No bootable option",
        _NOTHING,
        silence=0.3,
        until=Stage.FIRMWARE,
    ),
    _sign(failures.NothingToBootError, r"^Shell> ?\Z", _NOTHING, silence=2.0, until=Stage.FIRMWARE),
    # The shell waits five seconds before it runs a startup.nsh, which may boot the system.
    _sign(failures.NothingToBootError, r"UEFI Interactive Shell v", _NOTHING, silence=8.0, until=Stage.FIRMWARE),
    _sign(
        failures.BootLoaderError,
        _GRUB_ERROR,
        "GRUB ended at its rescue prompt: {what}",
        until=Stage.BOOT_LOADER,
        also="grub rescue>",
    ),
    _sign(
        failures.BootLoaderError,
        _GRUB_ERROR,
        "GRUB ended at its prompt: {what}",
        until=Stage.BOOT_LOADER,
        also="Minimal BASH-like",
    ),
    _sign(
        failures.BootLoaderError,
        r"^grub> ?|Minimal BASH-like line editing",
        "GRUB ended at its prompt: it found no configuration",
        until=Stage.BOOT_LOADER,
    ),
    # GRUB continues after many of its errors, and a quiet kernel then writes nothing for a long time.
    _sign(failures.BootLoaderError, _GRUB_ERROR, "GRUB stopped: {what}", silence=20.0, until=Stage.BOOT_LOADER),
    _sign(
        failures.InitramfsError,
        r"(?P<what>mount: mounting [^\n]{0,200})?[ \n]{0,4}(?:Mounting root failed|initramfs emergency recovery shell)",
        "the initramfs could not mount the root filesystem: {what}",
        until=Stage.INITRAMFS,
    ),
    _sign(
        failures.InitError,
        r"can't run '(?P<what>/sbin/openrc[^\n]{0,200})|(?P<what2>openrc: [^\n]{0,100}(?:cannot|fail)[^\n]{0,200})"
        r"|(?P<what3>can't open /etc/inittab[^\n]{0,200})",
        "init failed: {what}",
    ),
    _sign(
        failures.AgentError,
        r"(?P<what>ERROR: agentd failed to start[^\n]{0,200}|agentd: fatal[^\n]{0,200}"
        r"|supervise-daemon[^\n]{0,200}agentd[^\n]{0,200}(?:too many times|giving up)[^\n]{0,200})",
        "agentd crashed: {what}",
        silence=2.0,
    ),
)

_EMULATION = re.compile(r"Oops: int3: |IO-APIC \+ timer doesn't work|tsc: Unable to calibrate against PIT")
"""Messages of a kernel that QEMU's emulation has crashed.

The first is a breakpoint trap in kernel code. The kernel patches its own code through a breakpoint, and QEMU's
multi-threaded emulation of x86 sometimes executes it after it has been replaced: in one of nine boots if the kernel
comes to trust the TSC (recipes/arch/amd64.py has the argument against that), otherwise too rarely to be counted. The
second is a check of the timer that counts ticks during a busy wait: too few come if the host is busy. The third is a
measurement that a busy host disturbs; other machines than microvm have further clocks."""


def diagnose(text: str) -> ConsoleFailure | None:
    """Return the failure that the cleaned console text shows, or None. Of several, return the cause of the others."""
    reached = stage(text)
    for sign in _SIGNS:
        match = None if reached > sign.until or sign.also not in text else sign.pattern.search(text)
        if match is None:
            continue
        detail = next((value.strip() for value in match.groupdict().values() if value), "")
        return ConsoleFailure(sign.kind, sign.message.format(what=detail[:200]).rstrip(": "), sign.silence)
    return None


def failure(shown: ConsoleFailure, text: str) -> BootError:
    """Return the exception for a failure that the cleaned console text shows."""
    error = shown.kind(shown.message, console=tail(text))
    if isinstance(error, failures.KernelPanicError) and _EMULATION.search(text):
        error.emulation = True
        error.hint = "a known fault of QEMU's multi-threaded emulation; try again or use one CPU"
    return error


def died(ending: str, stderr: str, text: str) -> BootError:
    """Return the exception for a QEMU that ended by itself. A failure that the console shows takes precedence.

    Args:
        ending: how the process ended, in words.
        stderr: what it wrote to standard error.
        text: the cleaned console text.
    """
    shown = diagnose(text)
    if shown is not None:
        return failure(shown, text)
    last_line = clean(stderr).strip().rpartition("\n")[2]
    return failures.QemuDiedError(f"QEMU {ending}" + (f": {last_line}" if last_line else ""), console=tail(text))


def late(seconds: float, quiet: float, text: str, heartbeat: str) -> BootError:
    """Return the exception for a boot whose deadline has passed.

    Args:
        seconds: how long the boot was given.
        quiet: for how many seconds the console had been silent.
        text: the cleaned console text.
        heartbeat: what was wrong with the heartbeat, one phrase; empty if there never was one.
    """
    shown = diagnose(text)
    if shown is not None:
        return failure(shown, text)
    if heartbeat:
        return failures.AgentError(f"agentd is not ready after {seconds:.0f} s: {heartbeat}", console=tail(text))
    reached = stage(text)
    if reached >= Stage.LOGIN or (reached == Stage.INIT and quiet > _STUCK):
        return failures.AgentError(
            f"no heartbeat of agentd within {seconds:.0f} s, though {reached.words}",
            console=tail(text),
            hint="is agentd in the default runlevel, and was the ipc share given?",
        )
    progress = quiet < _STUCK and bool(text)
    pace = "it was still making progress" if progress else f"silent for the last {min(quiet, seconds):.0f} s"
    error = failures.BootTimeoutError(
        f"no heartbeat within {seconds:.0f} s: {reached.words}, {pace}",
        console=tail(text),
        hint="a longer --timeout may be enough" if progress else None,
    )
    error.progress = progress
    return error
