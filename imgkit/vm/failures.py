"""The ways in which a guest fails, one class each. All carry the last lines of the console."""

from __future__ import annotations

from imgkit.errors import GuestError
from imgkit.host import terminal


class BootError(GuestError):
    """The guest did not come up, or went down again.

    ``message`` is one line; ``console`` the tail of the console, fit for a terminal; ``str()`` gives both.
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
    """The firmware found nothing that it could start."""


class BootLoaderError(BootError):
    """GRUB reported an error or ended at its prompt."""


class KernelPanicError(BootError):
    """The kernel gave up. ``emulation`` marks a crash that QEMU's multi-threaded emulation causes, not the image."""

    emulation = False


class InitramfsError(BootError):
    """The initramfs could not mount the root filesystem and opened its emergency shell."""


class InitError(BootError):
    """Init or OpenRC could not do its work."""


class AgentError(BootError):
    """The system came up, and the agent is missing, crashed or does not answer as it should."""


class BootTimeoutError(BootError):
    """The deadline passed. ``progress`` tells whether the guest was still getting on with it."""

    progress = False


class RequestError(GuestError):
    """A request to the agent ended without a result: deadline passed, guest gone, limits exceeded."""


class FloodError(RequestError):
    """The guest says more, in lines or in bytes, than any agent has to say in that time."""


class QuotaError(BootError):
    """The guest took more of the host's disk than it may; the machine was ended.

    A request that takes more time than it may is a :class:`RequestError`, and its machine goes on.
    """
