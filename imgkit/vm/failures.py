"""Exceptions for the ways in which a guest fails, so that callers can tell them apart.

try:
    with VM.boot(image) as vm: ...
except KernelPanicError as panic:
    print(panic.message, panic.console)
"""

from __future__ import annotations

from imgkit.errors import GuestError
from imgkit.host import terminal


class BootError(GuestError):
    """The guest did not come up, or went down again.

    ``str()`` gives the message and the console.

    Attributes:
        message: what failed, in one line.
    """

    def __init__(self, message: str, *, console: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.console = console

    def __str__(self) -> str:
        message = terminal.block(self.message)
        if not self.console:
            return message
        return f"{message}\nlast lines of the console:\n" + "\n".join(
            "    " + line for line in terminal.block(self.console).split("\n")
        )


class QemuDiedError(BootError):
    """The QEMU process ended by itself."""


class NothingToBootError(BootError):
    """The firmware found nothing on the disk that it could start."""


class BootLoaderError(BootError):
    """GRUB reported an error or ended at its prompt."""


class KernelPanicError(BootError):
    """The guest's kernel stopped with a panic.

    Attributes:
        emulation: the crash is a known fault of QEMU's multi-threaded emulation, not of the image.
    """

    emulation = False


class InitramfsError(BootError):
    """The initramfs could not mount the root filesystem and opened its emergency shell."""


class InitError(BootError):
    """Init or OpenRC failed."""


class AgentError(BootError):
    """The system came up, but agentd is missing or has crashed, or its heartbeat shows that it is not ready."""


class BootTimeoutError(BootError):
    """The guest was not ready within the time that it was given.

    Attributes:
        progress: the console was still being written to, so that more time may help.
    """

    progress = False


class RequestError(GuestError):
    """A request to agentd ended without a result: it took too long, the guest is gone, or a limit was exceeded."""


class CommandTimeoutError(RequestError):
    """The command ran longer than ``imgkit run --limit`` allows, and was ended. The status is that of timeout(1)."""

    exit_status = 124


class FloodError(RequestError):
    """The guest sends more lines or bytes per second than the limits of :mod:`imgkit.vm.agent.ratelimit` allow."""


class QuotaError(BootError):
    """The guest took more of the host's disk than its quota allows, and the machine was ended.

    A request that takes more time than its quota allows is a :class:`RequestError`, and its machine goes on.
    """
