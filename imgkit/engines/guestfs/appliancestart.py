"""Wait for the start of the appliance, and turn a failed start into an error with a remedy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from imgkit.engines.engineerrors import EngineStartError
from imgkit.engines.guestfs import bindings, quickstart
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Options
from imgkit.errors import HostError
from imgkit.host import process

KERNEL_FIX = "apt-get install linux-image-amd64 (Ubuntu: linux-image-generic, arm64: linux-image-arm64)"
"""What to do about a missing kernel."""

_FINAL_KINDS = ("bindings", "kernel")  # kinds of failures that the quick and the stock appliance have in common
_MOST_CONSOLE = 200  # characters of the appliance's last line that a message quotes


@dataclass(frozen=True)
class Start:
    """How the appliance started.

    Attributes:
        appliance: which one it is.
        seconds: how long the start took.
        quick_failure: why the quick appliance did not start; empty if it did, or was not to be used.
    """

    appliance: Literal["quick", "stock"]
    seconds: float
    quick_failure: str = ""


def wait(channel: Channel, deadline: float, options: Options) -> Start:
    """Wait until the appliance is up. If the quick one fails for any reason, the stock one is started.

    Args:
        deadline: of the first start, in the time of :func:`time.monotonic`.

    Raises:
        EngineStartError: the appliance cannot be started on this host.
        HostError: a program is missing, or the process that holds libguestfs died.
    """
    quick_failure = ""
    if channel.quick:
        try:
            return Start("quick", channel.take(deadline)["seconds"])
        except TimeoutError:
            quick_failure = f"nothing within {options.launch_timeout:g} s"
        except HostError as cause:
            quick_failure = cause.message
        except ApplianceError as cause:
            if cause.kind in _FINAL_KINDS:
                raise launch_error(cause) from cause
            quick_failure = cause.message
        channel.restart_stock()
        deadline = time.monotonic() + options.launch_timeout
    try:
        return Start("stock", channel.take(deadline)["seconds"], quick_failure)
    except TimeoutError:
        raise EngineStartError(
            f"the libguestfs appliance did not start within {options.launch_timeout:g} s",
            hint="libguestfs-test-tool shows where it hangs",
        ) from None
    except ApplianceError as cause:
        if quick_failure.startswith(quickstart.NO_SUPERMIN):
            raise process.missing("supermin") from cause
        raise launch_error(cause) from cause


def check(channel: Channel) -> None:
    """Check a start that is in progress, without waiting for it.

    Raises:
        HostError: the start has failed, and the stock appliance would fail as well (or has failed).
    """
    failure = channel.failure()
    if failure is not None and (failure.kind in _FINAL_KINDS or not channel.quick):
        raise launch_error(failure) from failure


def launch_error(cause: ApplianceError) -> HostError:
    """Return the error for a start that failed: an EngineStartError, or a MissingProgramError."""
    if cause.kind == "bindings":
        return EngineStartError(
            f"libguestfs' Python bindings cannot be imported: {cause.message}", hint=bindings.BINDINGS_FIX
        )
    if cause.kind == "kernel":
        return _kernel_error(cause.message)
    for word, program in (("supermin", "supermin"), ("qemu-system", "qemu-system-x86_64")):
        if word in cause.message and ("No such file" in cause.message or "not found" in cause.message):
            return process.missing(program)
    first_line = cause.message.strip().partition("\n")[0]  # the rest is advice for users of the library
    last_output = cause.console.strip().rpartition("\n")[2].strip()[-_MOST_CONSOLE:]
    quoted = f"; its last output: {last_output}" if last_output else ""
    return EngineStartError(
        f"the libguestfs appliance did not start: {first_line}{quoted}", hint="libguestfs-test-tool shows why"
    )


def _kernel_error(message: str) -> EngineStartError:
    if "not readable" in message:
        return EngineStartError(
            f"libguestfs needs a kernel, and {message} by this user",
            hint="sudo chmod 0644 /boot/vmlinuz-*; or without root: apt-get download linux-image-$(uname -r),"
            " dpkg-deb -x it, and set SUPERMIN_KERNEL to its boot/vmlinuz-…",
        )
    return EngineStartError(
        f"libguestfs needs a kernel: {message}",
        hint=KERNEL_FIX,
    )
