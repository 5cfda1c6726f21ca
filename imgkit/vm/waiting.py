"""Wait until agentd of a started machine is ready and its system is settled, and notice when the machine fails."""

from __future__ import annotations

import logging
import time

from imgkit.host import process, statusline
from imgkit.vm import console
from imgkit.vm.agent.protocol import HEARTBEAT_AGE, Heartbeat
from imgkit.vm.agent.requests import Transport
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.starting import Started

log = logging.getLogger("imgkit.vm")

POLL = 0.1
"""Seconds between two checks of the machine."""
_CONSOLE_INTERVAL = 1.0  # seconds between two looks at the console once the machine is up
_ALIVE = 3 * HEARTBEAT_AGE  # seconds since the newest heartbeat in which a guest counts as alive; it may be slow


class Pulse:
    """Tells a guest that stands still from one whose clock is behind the host's: both have old heartbeats."""

    def __init__(self) -> None:
        self._newest: Heartbeat | None = None
        self._renewed: float | None = None

    def trouble(self, beat: Heartbeat, now: float, clock: float) -> str:
        """Return why agentd is not ready, as a phrase; empty if it is ready.

        Args:
            beat: the newest heartbeat.
            now: seconds since 1970.
            clock: seconds of a clock that nobody sets.
        """
        if self._newest is not None and beat.timestamp != self._newest.timestamp:
            self._renewed = clock
        self._newest = beat
        trouble = beat.trouble(now)
        if not trouble or not beat.ipc_mounted or self._renewed is None or clock - self._renewed >= _ALIVE:
            return trouble
        return f"its heartbeats arrive, but the guest's clock is {now - beat.timestamp:.0f} s behind the host's"


class Progress:
    """How far a machine has come since it was started.

    Attributes:
        seconds_to_ready: seconds from the start to the first heartbeat that shows readiness; None before that.
        seconds_to_settled: seconds from the start to a system that lacks nothing; None before that.
    """

    def __init__(self, machine: Started, transport: Transport) -> None:
        self.seconds_to_ready: float | None = None
        self.seconds_to_settled: float | None = None
        self._machine = machine
        self._transport = transport
        self._started = time.monotonic()
        self._looked = 0.0

    def wait_ready(self, deadline: float, timeout: float) -> Heartbeat:
        """Wait until a heartbeat shows that agentd is ready.

        Args:
            deadline: end of the wait on the monotonic clock.
            timeout: the timeout in seconds that the deadline was computed from, for messages.

        Raises:
            BootError: QEMU ended, the console shows a failure, or the deadline has passed; the subclass says which.
        """
        shown, pulse, trouble = self._machine.console, Pulse(), ""
        with statusline.doing(console.Stage.NOTHING.doing) as say:
            while True:
                beat = self._transport.heartbeat()
                if beat is not None:
                    trouble = pulse.trouble(beat, time.time(), time.monotonic())
                    if not trouble:
                        self.seconds_to_ready = time.monotonic() - self._started
                        return beat
                self.check(booting=True)
                if time.monotonic() >= deadline:
                    raise console.late(timeout, shown.quiet, shown.text, trouble)
                say(shown.stage.doing)
                time.sleep(POLL)

    def settle(self, timeout: float) -> tuple[str, ...]:
        """Wait up to ``timeout`` seconds until the newest heartbeat reports nothing as missing.

        Returns:
            What is still missing when the timeout has expired, which is also logged; empty if nothing is.

        Raises:
            BootError: the machine is gone, or its console shows a kernel panic.
        """
        deadline = time.monotonic() + timeout
        with statusline.doing("agentd is ready") as say:
            while True:
                beat = self._transport.heartbeat()
                missing = ("heartbeat",) if beat is None else beat.missing()
                if not missing:
                    self.seconds_to_settled = time.monotonic() - self._started
                    return ()
                if time.monotonic() >= deadline:
                    log.warning("agentd is ready, and the guest still has no %s", " and no ".join(missing))
                    return missing
                self.check()
                say(f"agentd is ready, and the guest has no {' and no '.join(missing)} yet")
                time.sleep(POLL)

    def check(self, *, booting: bool = False) -> None:
        """Raise if the machine has failed. Unless ``booting``, the console is read at most once a second.

        Raises:
            BootError: QEMU has ended, or the console shows a failure; unless ``booting``, only a kernel panic counts.
            QuotaError: the machine was ended because it exceeded its quotas.
        """
        self._machine.monitor.check()
        status = self._machine.running.child.poll()
        if status is None and not booting and time.monotonic() - self._looked < _CONSOLE_INTERVAL:
            return
        self._looked = time.monotonic()
        read_console(self._machine, status, booting=booting)


def read_console(machine: Started, status: int | None, *, booting: bool) -> None:
    """Read what the guest has written since, and raise if the machine has failed.

    Args:
        status: how QEMU has ended, as ``Popen.returncode``; None if it runs.

    Raises:
        BootError: QEMU has ended, or the console shows a failure; unless ``booting``, only a kernel panic counts.
    """
    shown = machine.console
    shown.refresh()
    if status is not None:
        ending = "ended" if status == 0 else process.ending(status)
        raise console.died(ending, machine.running.stderr_tail(), shown.text)
    failure = console.diagnose(shown.text)
    if failure is None or shown.quiet < failure.silence:
        return
    if booting or failure.kind is KernelPanicError:
        raise console.failure(failure, shown.text)
