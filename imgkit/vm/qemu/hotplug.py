"""Plug virtio-serial ports into a running machine, and take them out again.

    ports = PluggedPorts(running.qmp)
    near = ports.plug_port("imgkit.session.1")
    console = ports.plug_console("imgkit.console.1")
    ports.unplug("imgkit.console.1")

QEMU gets the far ends of sockets and pipes over its control connection, and opens no file. A port has a name that the
guest's kernel takes from QEMU, and nothing in the guest can make one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imgkit.vm.qemu.argv import SERIAL_BUS
from imgkit.vm.qemu.qmp import Qmp, QmpError

_LAST_PORT = 30  # a device has 31 ports, and those of the command line are numbered from 1
MAX_PORTS = 16
"""Ports that can be plugged in at a time. The guest's kernel has eight consoles (``hvc_console.h``)."""
PIPE_BYTES = 1 << 20
"""Size of the pipe for a console's output.

QEMU drops what its end of a pipe or socket does not take at once: the guest's kernel waits for a console with a lock
held, so QEMU does not make it wait (``flush_buf`` in ``hw/char/virtio-console.c``). A socket has room for 277 short
writes, which a reader that is not at once awake does not meet. This is the most that the kernel gives an ordinary user
(``fs.pipe-max-size``). Writes that do not fill its pages leave room unused, so half of it is sure.
"""
_REMOVAL_TIMEOUT = 5.0  # seconds until the backend of a removed port is free


@dataclass(frozen=True)
class ConsolePipes:
    """The host's ends of a console: descriptors to read its output and to write its input. They do not block."""

    reading: int
    writing: int

    def close(self) -> None:
        """Close both ends."""
        for descriptor in (self.reading, self.writing):
            with suppress(OSError):
                os.close(descriptor)


class PluggedPorts:
    """The ports that were plugged into one machine, by their names."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._numbers: dict[str, int] = {}

    def plug_port(self, name: str) -> socket.socket:
        """Plug in a port, and return the host's end of it.

        Raises:
            QmpError: QEMU refuses, or all ports are in use.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with far:
                self._qmp.execute("getfd", fdname=name, descriptors=[far.fileno()])
            address = {"type": "fd", "data": {"str": name}}
            self._add(name, "virtserialport", {"type": "socket", "data": {"addr": address, "server": False}})
        except BaseException:
            near.close()
            raise
        return near

    def plug_console(self, name: str) -> ConsolePipes:
        """Plug in a console, which is a terminal in the guest, and return the host's ends of it.

        Raises:
            QmpError: QEMU refuses, or all ports are in use.
        """
        guest_in, writing = os.pipe()
        reading, guest_out = os.pipe()
        if sys.platform == "linux":
            with suppress(OSError):  # the pipes of this user have reached the limit of the kernel
                fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        pipes = ConsolePipes(reading, writing)
        sets: list[int] = []
        try:
            for descriptor in (guest_in, guest_out):
                sets.append(self._qmp.execute("add-fd", descriptors=[descriptor])["fdset-id"])
            paths = {"in": f"/dev/fdset/{sets[0]}", "out": f"/dev/fdset/{sets[1]}", "append": True}
            self._add(name, "virtconsole", {"type": "file", "data": paths})
        except BaseException:
            pipes.close()
            raise
        finally:
            os.close(guest_in)
            os.close(guest_out)
            for number in sets:  # the device has descriptors of its own
                with suppress(QmpError):
                    self._execute("remove-fd", {"fdset-id": number})
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        return pipes

    def _add(self, name: str, driver: str, backend: dict[str, object]) -> None:
        number = self._free_number()
        self._qmp.execute("chardev-add", id=name, backend=backend)
        try:
            device = {"driver": driver, "id": f"device.{name}", "chardev": name, "name": name}
            self._execute("device_add", {**device, "bus": f"{SERIAL_BUS}.0", "nr": number})
        except QmpError:
            self._remove_backend(name)
            raise
        self._numbers[name] = number

    def _execute(self, command: str, arguments: dict[str, Any]) -> None:
        self._qmp.execute(command, **arguments)

    def _free_number(self) -> int:
        taken = set(self._numbers.values())
        for number in range(_LAST_PORT, _LAST_PORT - MAX_PORTS, -1):
            if number not in taken:
                return number
        raise QmpError(f"{MAX_PORTS} ports are in use")

    def unplug(self, name: str) -> None:
        """Take a port out of the machine, if it is there. In the guest, a console's programs get SIGHUP.

        Raises:
            QmpError: QEMU refuses, or has ended.
        """
        if name not in self._numbers:
            return
        self._qmp.execute("device_del", id=f"device.{name}")
        del self._numbers[name]
        self._remove_backend(name)

    def _remove_backend(self, name: str) -> None:
        """Remove the backend of a port, which QEMU keeps busy for a moment after the port is gone."""
        deadline = time.monotonic() + _REMOVAL_TIMEOUT
        while True:
            try:
                self._qmp.execute("chardev-remove", id=name)
            except QmpError as refused:
                if "busy" not in str(refused) or time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
            else:
                return
