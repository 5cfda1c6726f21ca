"""Boot an image, run commands in it and switch it off: :class:`VM` is the handle that tests and commands use.

    with VM.boot("out/linux-amd64.qcow2", shares={"data": "."}) as vm:
        assert vm.run("ls /mnt/data").check().text

:mod:`imgkit.vm.booted` boots, watches and ends the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from imgkit.errors import GuestError, UsageError
from imgkit.vm.agent import inputs, requests
from imgkit.vm.agent.callbacks import OnHostTool, OnPermission, deny_permission, reject_host_tool
from imgkit.vm.agent.completed import Completed, collect
from imgkit.vm.agent.inputs import BytesInput, InputSource, RefusedInput
from imgkit.vm.agent.requests import AgentRequest
from imgkit.vm.agent.serialtransport import SerialTransport
from imgkit.vm.booted import BootedMachine
from imgkit.vm.sessions import sessionhost
from imgkit.vm.sessions.guestsession import GuestSession, start_message
from imgkit.vm.sessions.sessionhost import SessionHost
from imgkit.vm.starting import Started


class VM(BootedMachine):
    """A running machine. :meth:`boot` starts it, and it is switched off when that block ends."""

    def __init__(self, machine: Started) -> None:
        super().__init__(machine)
        self._sessions = SessionHost(machine.running.qmp, self.check)

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
        version = self._protocol_version()
        body = requests.compose(
            prompt=prompt,
            command=command,
            env=env,
            cwd=_start_folder(cwd, mounts),
            mounts=mounts,
            auto_approve=auto_approve,
            stdin=version >= inputs.VERSION and stdin is not None,
            extra=extra,
        )
        if stdin is not None and version < inputs.VERSION:
            stdin = RefusedInput(stdin, version)
        seconds, hint = self.spec.quotas.request_timeout(timeout)
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
        variables = {"TERM": "dumb", **(env or {})}
        of_agent: dict[str, Any] = {} if root else {"mounts": mounts, "cwd": _start_folder(cwd, mounts)}
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
        return 0 if beat is None else beat.protocol_version

    @property
    def serial(self) -> SerialTransport:
        """The serial transport, through which files are pushed and received.

        Raises:
            UsageError: the machine was booted in file mode.
        """
        if not isinstance(self._transport, SerialTransport):
            raise UsageError("files go through shares in file mode", hint="boot with ipc='serial'")
        return self._transport


def _guest_path(tag: str) -> str:
    return "/workspace/project" if tag == "work" else f"/mnt/{tag}"


def _start_folder(cwd: str | None, mounts: Mapping[str, Mapping[str, str]]) -> str | None:
    return mounts["work"]["guestPath"] if cwd is None and "work" in mounts else cwd
