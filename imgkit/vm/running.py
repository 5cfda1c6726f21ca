"""Boot an image, run commands in it and switch it off: :class:`VM` is the handle that tests and commands use.

    with VM.boot("out/linux-amd64.qcow2", shares={"data": "."}) as vm:
        assert vm.run("ls /mnt/data").check().text

The QEMU process belongs to the thread that boots: on Linux it is killed when that thread ends for any reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from imgkit.errors import GuestError, UsageError
from imgkit.vm import power
from imgkit.vm.agent import inputs, requests
from imgkit.vm.agent.callbacks import OnHostTool, OnPermission, deny_permission, reject_host_tool
from imgkit.vm.agent.completed import Completed, collect
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.agent.inputs import BytesInput, InputSource, RefusedInput
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.agent.requests import AgentRequest, Transport
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.bootspec import BootSpec, StrPath
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.qemu import argv, probe
from imgkit.vm.sessions import sessionhost
from imgkit.vm.sessions.guestsession import GuestSession, start_message
from imgkit.vm.sessions.sessionhost import SessionHost
from imgkit.vm.shares.sharedfolder import SharedFolder
from imgkit.vm.starting import Started, started
from imgkit.vm.waiting import Progress

log = logging.getLogger("imgkit.vm")

TIMEOUT = 180.0
"""Default timeout of a boot in seconds (the agentd contract)."""
POWER_OFF = 60.0
"""Default timeout of a shutdown in seconds. Emulated guests need ten seconds, and thirty on a busy host."""
SETTLE = 20.0
"""Default timeout in seconds, once agentd is ready, for the host name, the loopback device and the network."""
_EMULATION_TRIES = 3
_CONSOLE_READS = 100  # reads of 1 MiB each, which is more than a console file has

AnyVM = TypeVar("AnyVM", bound="VM")


class VM:
    """A running machine. :meth:`boot` starts it, and it is switched off when that block ends.

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
        self._sessions = SessionHost(self._running.qmp, self.check)
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
        limit: float | None = None,
        stdin: InputSource | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> AgentRequest:
        """Submit a request to agentd, and return it.

        The arguments are those of :func:`imgkit.vm.agent.requests.compose` and
        :class:`imgkit.vm.agent.requests.AgentRequest`. If ``mounts`` is None, every share is mounted: ``work`` at
        /workspace/project, where the request then starts, and all others at /mnt/TAG.
        """
        if mounts is None:
            mounts = self._mounts()
        if cwd is None and "work" in mounts:
            cwd = mounts["work"]["guestPath"]
        version = self._protocol_version()
        body = requests.compose(
            prompt=prompt,
            command=command,
            env=env,
            cwd=cwd,
            mounts=mounts,
            auto_approve=auto_approve,
            stdin=version >= inputs.VERSION and stdin is not None,
            extra=extra,
        )
        if stdin is not None and version < inputs.VERSION:
            stdin = RefusedInput(stdin, version)
        seconds, hint = _shorter(timeout, self.spec.quotas.seconds)
        return AgentRequest(
            self._transport,
            body,
            on_permission=on_permission,
            on_host_tool=on_host_tool,
            timeout=seconds,
            timeout_hint=hint,
            limit=limit,
            stdin=stdin,
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
        input: bytes | None = None,
    ) -> Completed:
        """Run a command in the guest as the agent's user; a string is given to ``/bin/sh -c``.

        ``input`` is its standard input, which is empty if there is none.

        If the command asks the host for permission (``agent-ask``), this is denied, unless ``auto_approve`` is True.

        Raises:
            RequestError: there is no result in time.
            BootError: the machine is gone, or its console shows a kernel panic.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        stdin = None if input is None else BytesInput(input)
        request = self.request(command=words, env=env, cwd=cwd, auto_approve=auto_approve, timeout=timeout, stdin=stdin)
        return collect(request)

    def _mounts(self) -> dict[str, dict[str, str]]:
        """Return the shares as the mounts of a request."""
        return {tag: {"tag": tag, "guestPath": _guest_path(tag)} for tag in self._folders if tag != "ipc"}

    @contextmanager
    def terminal(
        self,
        command: Sequence[str] | None = None,
        *,
        root: bool = False,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Iterator[GuestSession]:
        """Run a program on a terminal of its own for the length of the block, beside the requests.

        Args:
            command: the program and its arguments; None is a login shell.
            root: whether it runs as root, or as the agent's user with the rights and the environment of a request.
            columns, rows: size of the terminal.
            env: further variables; TERM is "dumb" unless it is given.
            cwd: folder to start in, for the agent's user; None is that of a request.

        Raises:
            UsageError: the machine was booted without ``terminals=True``.
            GuestError: the guest opens no terminal.
            BootError: the machine has failed.
        """
        start = self.session_start(command, root=root, columns=columns, rows=rows, env=env, cwd=cwd)
        host = self.session_host()
        opened = host.open(start)
        try:
            with closing(GuestSession(opened.control, opened.console)) as session:
                yield session
        finally:
            host.close(opened.name)

    def session_start(
        self,
        command: Sequence[str] | None,
        *,
        root: bool,
        columns: int,
        rows: int,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> dict[str, Any]:
        """Return the message that begins a session on this machine; the arguments are those of :meth:`terminal`."""
        mounts = self._mounts()
        if cwd is None and "work" in mounts:
            cwd = mounts["work"]["guestPath"]
        variables = {"TERM": "dumb", **(env or {})}
        of_agent: dict[str, Any] = {} if root else {"mounts": mounts, "cwd": cwd}
        return start_message(command, root=root, columns=columns, rows=rows, env=variables, **of_agent)

    def session_host(self) -> SessionHost:
        """Return what opens sessions on this machine.

        Raises:
            UsageError: the machine was booted without ``terminals=True``.
            GuestError: the agentd of the image has no sessions.
        """
        if not self.spec.terminals:
            raise UsageError("the machine was booted without terminals", hint="boot with terminals=True")
        if self._protocol_version() < sessionhost.PROTOCOL:
            raise GuestError("the agentd of this image opens no terminals", hint="build the image anew")
        return self._sessions

    def _protocol_version(self) -> int:
        """Return the version of the agentd protocol; 0 if agentd does not state one."""
        beat = self.heartbeat()
        version = None if beat is None else beat.extra.get("protocolVersion")
        return version if type(version) is int else 0

    @property
    def serial(self) -> SerialTransport:
        """The serial transport, through which files are pushed and received.

        Raises:
            UsageError: the machine was booted in file mode.
        """
        if not isinstance(self._transport, SerialTransport):
            raise UsageError("files go through shares in file mode", hint="boot with ipc='serial'")
        return self._transport

    # ---- power ---------------------------------------------------------------------------------------------------

    def power_off(self, timeout: float = POWER_OFF) -> bool:
        """Press the power button and wait for at most ``timeout`` seconds, then switch off a guest that still runs.

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
    """Return the shorter of a request's timeout and the quota's, where None is no limit, and a hint how to raise it."""
    if quota is None or (timeout is not None and timeout <= quota):
        return timeout, "a longer timeout= of the request"
    return quota, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"
