"""Boot an image, watch the machine and switch it off: all that a machine does without requests.

    with VM.boot("out/linux-amd64.qcow2", wait=False) as vm:
        vm.wait_ready(300)
        print(vm.stages(), vm.console())

The QEMU process belongs to the thread that boots: on Linux it is killed when that thread ends for any reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from imgkit.vm import power
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.agent.requests import Transport
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.bootspec import BootSpec, StrPath
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.qemu import argv, probe
from imgkit.vm.shares.sharedfolder import SharedFolder
from imgkit.vm.starting import Started, started
from imgkit.vm.waiting import Progress

log = logging.getLogger("imgkit.vm")

TIMEOUT = 180.0
"""Default timeout of a boot in seconds (the agentd contract)."""
POWER_OFF = 60.0
"""Least default timeout of a shutdown in seconds. Emulated guests need ten seconds, and thirty on a busy host."""
_POWER_OFF_FACTOR = 3  # times what the boot took: a guest may have to end it first, and whoever was slow stays slow
SETTLE = 20.0
"""Default timeout in seconds, once agentd is ready, for the host name, the loopback device and the network."""
_EMULATION_TRIES = 3
_CONSOLE_READS = 100  # reads of 1 MiB each, which is more than a console file has

AnyMachine = TypeVar("AnyMachine", bound="BootedMachine")


class BootedMachine:
    """A machine and its console; :class:`~imgkit.vm.running.VM` adds requests to agentd, and terminals.

    Attributes:
        spec: the specification that was booted.
        arch, firmware: architecture and firmware of the machine ("amd64", "bios").
        memory_mib: size of the guest's memory, for which the host had room.
        accelerator: the accelerator that QEMU uses, and why it was chosen.
        published: ports of the host that lead to ports of the guest.
        argv: QEMU's command line.
    """

    def __init__(self, machine: Started) -> None:
        resolved = machine.running.spec
        self.spec = machine.spec
        self.arch = resolved.arch
        self.firmware = resolved.firmware
        self.memory_mib = resolved.memory_mib
        self.published = resolved.forwards
        self.accelerator = machine.accelerator
        self.argv = argv.arguments(resolved)
        self._running = machine.running
        self._log = machine.console
        self._stack = ExitStack()
        self._folders: dict[str, SharedFolder] = {}
        self._transport = self._connect()
        self._progress = Progress(machine, self._transport)

    # ---- booting -------------------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def boot(
        cls: type[AnyMachine],
        spec: BootSpec | StrPath | None,
        *,
        timeout: float = TIMEOUT,
        wait: bool = True,
        settle: bool = True,
        **fields: Any,
    ) -> Iterator[AnyMachine]:
        """Boot an image, wait until agentd is ready, and switch the machine off when the block ends.

        Args:
            spec: the specification, or only its image (None for no disk).
            timeout: seconds within which agentd must be ready.
            wait: False enters the block at once; see :meth:`wait_ready`.
            settle: False does not wait for the host name, the loopback device and the network; see :meth:`settle`.
            fields: other fields of :class:`~imgkit.vm.bootspec.BootSpec`: ``boot(image, cpus=4)`` is short for
                ``boot(BootSpec(image, cpus=4))``. They replace fields of a specification that is given.

        Raises:
            UsageError: fields contradict one another, or have unknown values.
            HostError: QEMU, the firmware or the image is missing, or QEMU refuses to start.
            InputError: the image refers to other files, or has a format that cannot be booted.
            BootError: the guest did not come up; the subclass says why.
        """
        spec = replace(spec, **fields) if isinstance(spec, BootSpec) else BootSpec(spec, **fields)
        deadline = time.monotonic() + timeout
        accelerator = probe.probe(spec.architecture, spec.accelerator)
        for attempt in range(1, _EMULATION_TRIES + 1):
            with ExitStack() as stack:
                vm = cls(stack.enter_context(started(spec, accelerator)))
                stack.callback(vm.close)
                try:
                    if wait:
                        vm._progress.wait_ready(deadline, timeout)
                    if wait and settle:
                        vm.settle()
                except KernelPanicError as panic:
                    if not panic.emulation or attempt == _EMULATION_TRIES:
                        raise
                    log.warning("emulation crashed the guest's kernel (%s); booting again", panic.message)
                    continue
                yield vm
                return

    def wait_ready(self, timeout: float = TIMEOUT) -> Heartbeat:
        """Wait until agentd's heartbeat shows that it is ready, as the agentd contract defines it.

        Raises:
            BootError: QEMU ended, the console shows a failure, or the timeout expired; the subclass says which.
        """
        return self._progress.wait_ready(time.monotonic() + timeout, timeout)

    def settle(self, timeout: float = SETTLE) -> tuple[str, ...]:
        """Wait until the guest has its host name, its loopback device and, if it has a network card, its network.

        agentd is ready before that, and its heartbeat reports what is still missing. Requests wait for the same in
        the guest (docs/reference/agentd.md).

        Returns:
            What is still missing when the timeout has expired, which is also logged; empty if nothing is.

        Raises:
            BootError: the machine is gone, or its console shows a kernel panic.
        """
        return self._progress.settle(timeout)

    def check(self) -> None:
        """Raise if the machine has failed.

        Raises:
            BootError: the machine is gone, or its console shows a kernel panic.
            QuotaError: the machine was ended because it exceeded its quotas.
        """
        self._progress.check()

    def close(self) -> None:
        """Close the descriptors. :meth:`boot` does this at the end of its block."""
        self._stack.close()

    def _connect(self) -> Transport:
        for share in self._running.spec.shares:
            self._folders[share.tag] = folder = SharedFolder(share.path)
            self._stack.callback(folder.close)
        if self.spec.ipc == "serial":
            return SerialTransport(self._running.ports[argv.IPC_PORT])
        return FileTransport(self._folders["ipc"])

    # ---- inspecting -------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether QEMU is still running."""
        return self._running.child.poll() is None

    @property
    def exit_status(self) -> int | None:
        """QEMU's exit status, as ``Popen.returncode``: 0 if the guest has powered itself off; None if QEMU runs."""
        return self._running.child.poll()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running.child.pid

    @property
    def seconds_to_ready(self) -> float | None:
        """Seconds from the start to the first heartbeat that shows readiness; None before that."""
        return self._progress.seconds_to_ready

    @property
    def seconds_to_settled(self) -> float | None:
        """Seconds from the start to a settled system (:meth:`settle`); None before that."""
        return self._progress.seconds_to_settled

    def console(self) -> str:
        """Return the console's text so far (at most the last 256 Ki characters), without control sequences."""
        for _ in range(_CONSOLE_READS):  # a guest may write faster than this process can read
            if not self._log.refresh():
                break
        return self._log.text

    def stages(self) -> Mapping[str, float]:
        """Return the seconds until each stage of the boot appeared on the console, by the stage's name."""
        return {stage.name.lower(): seconds for stage, seconds in self._log.times.items()}

    def heartbeat(self) -> Heartbeat | None:
        """Return the newest heartbeat since the machine was started, or None."""
        return self._transport.heartbeat()

    def share(self, tag: str) -> SharedFolder:
        """Return a shared folder, which can be read and written safely whatever the guest puts there.

        Raises:
            KeyError: the machine has no share of this tag.
        """
        return self._folders[tag]

    # ---- power ---------------------------------------------------------------------------------------------------

    def power_off(self, timeout: float | None = None) -> bool:
        """Press the power button and wait for at most ``timeout`` seconds, then switch off a guest that still runs.

        Args:
            timeout: None for :data:`POWER_OFF`, or three times what the guest took until agentd was ready, if that is
                longer.

        Returns:
            True if the guest shut itself down.
        """
        if timeout is None:
            timeout = max(POWER_OFF, _POWER_OFF_FACTOR * (self.seconds_to_ready or 0.0))
        clean = power.press_until_off(self._running, timeout)
        if not clean:
            self.kill()
        self._log.refresh()
        return clean

    def kill(self) -> None:
        """Switch the machine off at once, as if by pulling the plug."""
        self._running.child.kill()
        self._running.child.wait()
