"""Run the first process of a container image in a machine of its own, and return its exit status.

    with EntryMachine.boot(spec, timeout=180, stop_signal=15) as machine:
        status = machine.follow(write)          # write("stdout", b"…") for everything that the process prints

The image has no agentd. The init of the machine (``rootfs/initramfs/guest/init.sh``) sends the output through two
virtio-serial ports, byte for byte, so nothing of the kernel's messages is in it. A third port carries lines: "started"
and "exit STATUS" from the guest, "signal NUMBER" from the host. A fourth one carries the standard input, if there is
any.
"""

from __future__ import annotations

import logging
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeAlias

from imgkit.host import statusline
from imgkit.vm import console
from imgkit.vm.agent.inputs import InputSource
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.failures import BootError, BootTimeoutError, CommandTimeoutError, KernelPanicError, RequestError
from imgkit.vm.qemu import probe
from imgkit.vm.starting import Started, started
from imgkit.vm.waiting import read_console

log = logging.getLogger("imgkit.vm")

OUTPUT, ERRORS, CONTROL, INPUT = "run.output", "run.errors", "run.control", "run.input"
STREAMS = {OUTPUT: "stdout", ERRORS: "stderr"}
"""Ports that carry output → the names of the streams."""
KILL_AFTER = 10.0
"""Seconds from the signal that asks the process to end to the one that ends it, as container engines wait."""
KILLED = 137
"""Exit status of a process that did not end when it was asked to: 128 and SIGKILL."""
_EMULATION_TRIES = 3
_POLL = 0.2  # seconds between two looks at the machine
_FEED_POLL = 0.02  # the same while there may be standard input
_CHUNK = 1 << 16
_MAX_LINE = 4096
_STATUS = re.compile(rb"exit ([0-9]{1,3})")

Write: TypeAlias = Callable[[str, bytes], object]
"""Takes the name of a stream, "stdout" or "stderr", and bytes of it."""


class _Feeder:
    """Passes standard input on to a port, as much as the guest takes.

    Attributes:
        source: where it comes from; None at its end.
    """

    def __init__(self, port: socket.socket | None) -> None:
        self.source: InputSource | None = None
        self._port = port
        self._unsent = b""

    def feed(self) -> bool:
        """Pass on what there is. Return whether there may be more soon."""
        if self._port is None or self.source is None:
            return False
        try:
            self._send(self._port, self.source)
        except BlockingIOError:
            return True
        except OSError:  # the machine has ended, which is reported elsewhere
            self.source = None
        return self.source is not None

    def _send(self, port: socket.socket, source: InputSource) -> None:
        data = self._unsent or source.read()
        if data:
            self._unsent = data
            port.setblocking(False)
            self._unsent = data[port.send(data) :]
        elif data is not None:
            # QEMU reads what was sent, and then the end. It would drop both if the socket were closed.
            port.shutdown(socket.SHUT_WR)
            self.source = None


class EntryMachine:
    """A machine that runs one process."""

    def __init__(self, machine: Started, stop_signal: int) -> None:
        self._machine = machine
        self._stop_signal = stop_signal
        self._control = machine.running.ports[CONTROL]
        self._pending = b""
        self._status: int | None = None
        self._started = False
        self._asked: float | None = None
        self._late = False  # it was asked to end because its time was over
        self._feeder = _Feeder(machine.running.ports.get(INPUT))

    @classmethod
    @contextmanager
    def boot(
        cls, spec: BootSpec, *, timeout: float, stop_signal: int, takes_input: bool = False
    ) -> Iterator[EntryMachine]:
        """Start the machine, and wait until its process has been started. It is switched off when the block ends.

        Args:
            spec: the machine; how it is talked to is filled in here.
            timeout: seconds until the process must have been started.
            stop_signal: number of the signal that asks the process to end.
            takes_input: whether the process gets the standard input that :meth:`follow` is given. Else it is empty.

        Raises:
            UsageError, HostError, InputError: as for :meth:`imgkit.vm.running.VM.boot`.
            BootError: the process was not started; the subclass says why.
        """
        carried = (OUTPUT, ERRORS, CONTROL, *([INPUT] if takes_input else []))
        spec = replace(spec, ipc="none", ports=(*spec.ports, *carried))
        deadline = time.monotonic() + timeout
        accelerator = probe.probe(spec.architecture, spec.accelerator)
        for attempt in range(1, _EMULATION_TRIES + 1):
            with started(spec, accelerator) as running:
                machine = cls(running, stop_signal)
                try:
                    with statusline.doing(console.Stage.NOTHING.doing) as say:
                        machine._wait_started(deadline, timeout, say)
                except KernelPanicError as panic:
                    if not panic.emulation or attempt == _EMULATION_TRIES:
                        raise
                    log.warning("emulation crashed the guest's kernel (%s); booting again", panic.message)
                    continue
                try:
                    yield machine
                finally:
                    running.running.child.kill()
                return

    def follow(
        self,
        write: Write,
        *,
        seconds: float | None = None,
        limit: float | None = None,
        stdin: InputSource | None = None,
    ) -> int:
        """Pass the output of the process on until it has ended, and return its exit status.

        An interrupt (Ctrl-C) sends the process its stop signal. If it then runs for another :data:`KILL_AFTER` seconds,
        the machine is switched off and the status is :data:`KILLED`.

        Args:
            write: takes the output.
            seconds: for which the process may run; None is without end.
            limit: seconds after which the process is asked to end, as by an interrupt, and its machine is then switched
                off; None is without end.
            stdin: the standard input of the process.

        Raises:
            RequestError: the process runs longer than ``seconds``.
            CommandTimeoutError: it was asked to end because of ``limit``.
            BootError: the machine is gone, or its console shows a kernel panic.
            QuotaError: the machine was ended because it exceeded its quotas.
        """
        begun = time.monotonic()
        self._feeder.source = stdin
        with selectors.DefaultSelector() as selector:
            for port, stream in STREAMS.items():
                selector.register(self._machine.running.ports[port], selectors.EVENT_READ, stream)
            selector.register(self._control, selectors.EVENT_READ, "")
            while self._status is None and not self._is_overdue():
                try:
                    self._turn(selector, write)
                except KeyboardInterrupt:
                    self._ask_to_stop()
                self._watch_time(time.monotonic() - begun, seconds, limit)
            if self._status is not None:
                self._drain(write)
        if self._late:
            raise CommandTimeoutError(f"the image's program was ended after {limit:g} s")
        return KILLED if self._status is None else self._status

    def _watch_time(self, running: float, seconds: float | None, limit: float | None) -> None:
        """Act on the limits of :meth:`follow` after the process has run for ``running`` seconds."""
        if limit is not None and running >= limit and self._asked is None:
            self._late = True
            self._ask_to_stop()
        if seconds is not None and running >= seconds and self._status is None:
            hint = "--quota time=… allows more, --quota time=none all"
            raise RequestError(f"the image's program still runs after {seconds:g} s", hint=hint)

    def _turn(self, selector: selectors.BaseSelector, write: Write) -> None:
        """Wait for something to read, for a moment, and pass it on."""
        ready = selector.select(_FEED_POLL if self._feeder.feed() else _POLL)
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket), key
            data = key.fileobj.recv(_CHUNK)
            if not key.data:
                self._take_lines(data)
            elif data:
                write(key.data, data)
            else:
                selector.unregister(key.fileobj)
        if not ready:
            self._check()

    def _drain(self, write: Write) -> None:
        """Pass on what is left: the guest sends the status after the output, but through another port."""
        for port, stream in STREAMS.items():
            source = self._machine.running.ports[port]
            source.setblocking(False)
            with suppress(OSError):
                while data := source.recv(_CHUNK):
                    write(stream, data)

    def _wait_started(self, deadline: float, timeout: float, say: Callable[[str], None]) -> None:
        while not self._started:
            say(self._machine.console.stage.doing)
            self._control.settimeout(_POLL)
            with suppress(TimeoutError):
                self._take_lines(self._control.recv(_CHUNK))
                continue
            self._check(booting=True)
            if time.monotonic() >= deadline:
                message = f"the image's program was not started within {timeout:.0f} s"
                text = self._machine.console.text
                raise BootTimeoutError(message, console=console.tail(text), hint="--timeout with a larger number")
        self._control.settimeout(None)

    def _take_lines(self, data: bytes) -> None:
        if not data:
            self._check(booting=True)
            raise BootError("the machine has closed its ports", console=console.tail(self._machine.console.text))
        *lines, rest = (self._pending + data).split(b"\n")
        self._pending = rest[-_MAX_LINE:]
        for line in lines:
            if line == b"started":
                self._started = True
            elif (match := _STATUS.fullmatch(line)) is not None:
                self._status = int(match[1])

    def _ask_to_stop(self) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            self._control.sendall(f"signal {self._stop_signal}\n".encode())

    def _is_overdue(self) -> bool:
        return self._asked is not None and time.monotonic() - self._asked >= KILL_AFTER

    def _check(self, *, booting: bool = False) -> None:
        """Raise if the machine has failed."""
        self._machine.monitor.check()
        read_console(self._machine, self._machine.running.child.poll(), booting=booting)
