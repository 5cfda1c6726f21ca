"""A booted image: the handle that tests and commands hold.

    with VM.boot("out/linux-amd64.qcow2", shares={"data": "."}) as vm:
        assert vm.run("ls /mnt/data").check().text

The process belongs to the thread that boots: on Linux QEMU is killed when that thread ends, however it ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from imgkit.errors import UsageError
from imgkit.vm import power
from imgkit.vm.agent import requests
from imgkit.vm.agent.callbacks import OnHostTool, OnPermission, deny_permission, reject_host_tool
from imgkit.vm.agent.completed import Completed, collect
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.agent.requests import AgentRequest, Transport
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.bootspec import BootSpec, StrPath
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.qemu import argv, probe
from imgkit.vm.shares.sharedfolder import SharedFolder
from imgkit.vm.starting import Started, started
from imgkit.vm.waiting import Progress

log = logging.getLogger("imgkit.vm")

TIMEOUT = 180.0
"""Seconds that a boot gets by default (the agentd contract)."""
POWER_OFF = 60.0
"""Seconds that a guest gets to shut down; emulated ones need ten, on a busy host thirty."""
SETTLE = 20.0
"""Seconds that a system gets, once its agent is ready, for its host name, loopback device and network."""
_EMULATION_TRIES = 3
_CONSOLE_READS = 100  # of a MiB each: more than a console file has

AnyVM = TypeVar("AnyVM", bound="VM")


class VM:
    """A running machine. Made by :meth:`boot`; over when that block ends.

    Attributes:
        spec: what was asked for.
        arch, firmware: what was booted ("amd64", "bios").
        memory_mib: the size that the host had memory for.
        accelerator: what QEMU runs the guest with, and why.
        argv: QEMU's command line.
    """

    def __init__(self, machine: Started) -> None:
        resolved = machine.running.spec
        self.spec = machine.spec
        self.arch = resolved.arch
        self.firmware = resolved.firmware
        self.memory_mib = resolved.memory_mib
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
        cls: type[AnyVM],
        spec: BootSpec | StrPath | None,
        *,
        timeout: float = TIMEOUT,
        wait: bool = True,
        settle: bool = True,
        **fields: Any,
    ) -> Iterator[AnyVM]:
        """Boot an image, wait until its agent is ready, and switch the machine off when the block ends.

        Args:
            spec: what is booted, or only its image (None for no disk).
            timeout: seconds until the agent must be ready.
            wait: False hands the machine over at once; see :meth:`wait_ready`.
            settle: False does not wait for the host name, the loopback device and the network; see :meth:`settle`.
            fields: other fields of :class:`~imgkit.vm.bootspec.BootSpec`: ``boot(image, cpus=4)`` is short for
                ``boot(BootSpec(image, cpus=4))``. Together with a specification they replace its own.

        Raises:
            UsageError: fields contradict one another, or have values that are not known.
            HostError: QEMU, firmware or image are missing, or QEMU refuses.
            InputError: the image refers to other files, or is of a format that is not booted.
            BootError: the guest did not come up; the class says how.
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
        """Wait for the agent's heartbeat, as the contract defines readiness.

        Raises:
            BootError: QEMU died, the console shows a failure, or the time is over; the class says which.
        """
        return self._progress.wait_ready(time.monotonic() + timeout, timeout)

    def settle(self, timeout: float = SETTLE) -> tuple[str, ...]:
        """Wait until commands find what they expect: a host name, a loopback device and, if there is a card, a network.

        The agent is ready before them, and says in its heartbeat what is still to come. In the guest, requests wait
        for the same (docs/agentd.md).

        Returns:
            What is still missing when the time is over, which is logged, too; empty if nothing is.

        Raises:
            BootError: the machine is gone, or its console shows a kernel panic.
        """
        return self._progress.settle(timeout)

    def check(self) -> None:
        """Raise if the machine has failed.

        Raises:
            BootError: the machine is gone, or its console shows a kernel panic.
            QuotaError: the machine was ended because it took more than it may.
        """
        self._progress.check()

    def close(self) -> None:
        """Give back descriptors; :meth:`boot` calls it."""
        self._stack.close()

    def _connect(self) -> Transport:
        for share in self._running.spec.shares:
            self._folders[share.tag] = folder = SharedFolder(share.path)
            self._stack.callback(folder.close)
        if self.spec.ipc == "serial":
            return SerialTransport(self._running.ports[argv.IPC_PORT])
        return FileTransport(self._folders["ipc"])

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether QEMU still runs."""
        return self._running.child.poll() is None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running.child.pid

    @property
    def seconds_to_ready(self) -> float | None:
        """Seconds from the start to the first good heartbeat; None before that."""
        return self._progress.seconds_to_ready

    @property
    def seconds_to_settled(self) -> float | None:
        """Seconds from the start to a settled system (:meth:`settle`); None before that."""
        return self._progress.seconds_to_settled

    def console(self) -> str:
        """Return the console's text so far (at most the last 256 Ki characters), without control sequences."""
        for _ in range(_CONSOLE_READS):  # a guest may write faster than anybody can read
            if not self._log.refresh():
                break
        return self._log.text

    def stages(self) -> Mapping[str, float]:
        """Return the seconds after which each stage of the boot showed on the console, by the stage's name."""
        return {stage.name.lower(): seconds for stage, seconds in self._log.times.items()}

    def heartbeat(self) -> Heartbeat | None:
        """Return the newest heartbeat since the machine was started, or None."""
        return self._transport.heartbeat()

    def share(self, tag: str) -> SharedFolder:
        """Return a shared folder, for reading and writing without being led astray by what the guest puts there.

        Raises:
            KeyError: the machine has no share of this tag.
        """
        return self._folders[tag]

    # ---- requests ------------------------------------------------------------------------------------------------

    def request(
        self,
        *,
        prompt: str | None = None,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        mounts: Mapping[str, Mapping[str, str]] | None = None,
        on_permission: OnPermission = deny_permission,
        on_host_tool: OnHostTool = reject_host_tool,
        auto_approve: bool = False,
        timeout: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> AgentRequest:
        """Hand a request to the agent; see :func:`imgkit.vm.agent.requests.compose` and
        :class:`imgkit.vm.agent.requests.AgentRequest`.

        ``mounts`` None mounts every share: ``work`` at /workspace/project (and starts there), others at /mnt/TAG.
        """
        if mounts is None:
            mounts = {tag: {"tag": tag, "guestPath": _guest_path(tag)} for tag in self._folders if tag != "ipc"}
        if cwd is None and "work" in mounts:
            cwd = mounts["work"]["guestPath"]
        body = requests.compose(
            prompt=prompt,
            command=command,
            env=env,
            cwd=cwd,
            mounts=mounts,
            auto_approve=auto_approve,
            extra=extra,
        )
        seconds, hint = _shorter(timeout, self.spec.quotas.seconds)
        return AgentRequest(
            self._transport,
            body,
            on_permission=on_permission,
            on_host_tool=on_host_tool,
            timeout=seconds,
            timeout_hint=hint,
            alive=self.check,
        )

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float | None = 120.0,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        auto_approve: bool = False,
    ) -> Completed:
        """Run a command in the guest as the agent's user; a string is given to ``/bin/sh -c``.

        What the command asks the host (``agent-ask``) is denied, unless ``auto_approve`` has the guest allow it.

        Raises:
            RequestError: no result in time. BootError: the machine died.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        request = self.request(command=words, env=env, cwd=cwd, auto_approve=auto_approve, timeout=timeout)
        return collect(request)

    @property
    def serial(self) -> SerialTransport:
        """The serial transport, for pushing and receiving files.

        Raises:
            UsageError: the machine was booted in file mode.
        """
        if not isinstance(self._transport, SerialTransport):
            raise UsageError("files go through shares in file mode", hint="boot with ipc='serial'")
        return self._transport

    # ---- power ---------------------------------------------------------------------------------------------------

    def power_off(self, timeout: float = POWER_OFF) -> bool:
        """Press the power button and wait, at most ``timeout`` seconds; a guest that still runs then is switched off.

        Returns:
            True if the guest shut itself down.
        """
        clean = power.press_until_off(self._running, timeout)
        if not clean:
            self.kill()
        self._log.refresh()
        return clean

    def kill(self) -> None:
        """Switch the machine off at once, as if by pulling the plug."""
        self._running.child.kill()
        self._running.child.wait()


def _guest_path(tag: str) -> str:
    return "/workspace/project" if tag == "work" else f"/mnt/{tag}"


def _shorter(timeout: float | None, quota: float | None) -> tuple[float | None, str]:
    """Return the shorter of a request's own seconds and the quota's, where None is no limit, and what allows more."""
    if quota is None or (timeout is not None and timeout <= quota):
        return timeout, "a longer timeout= of the request"
    return quota, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"
