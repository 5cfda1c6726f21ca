"""Sources of the standard input of a command in the guest, which are read without waiting.

    with vm.request(command=["tar", "-x"], stdin=PipeInput(sys.stdin.fileno())) as request: ...

A source is asked for more only while the guest takes what it was sent (:meth:`Transport.input_room`), so a large file,
or a program that writes without end, fills neither the host's memory nor the request share.
"""

from __future__ import annotations

import os
import select
import time
from typing import Protocol

from imgkit.errors import HostError
from imgkit.vm.failures import RequestError

VERSION = 2
"""The first version of the agentd protocol with standard input (``protocolVersion`` of the heartbeat)."""
PIECE = 256 << 10
"""Bytes that are sent to the guest at a time. agentd takes up to 1 MiB."""


class InputSource(Protocol):
    """Where the standard input of a command comes from."""

    def read(self) -> bytes | None:
        """Return up to :data:`PIECE` bytes; empty at the end, None if there is nothing at the moment."""

    def wait(self, seconds: float) -> None:
        """Wait until there may be something to read, or for ``seconds``."""


class PipeInput:
    """Input from a descriptor: a pipe, a file, a socket or a terminal. Its mode is not changed, as others share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> bytes | None:
        """Return what is there.

        Raises:
            HostError: it cannot be read.
        """
        try:
            if not self._ready(0):
                return None
            return os.read(self._descriptor, PIECE)
        except OSError as cause:
            raise HostError(f"standard input cannot be read: {cause.strerror}") from cause

    def wait(self, seconds: float) -> None:
        """Wait until there is something to read, or for ``seconds``."""
        self._ready(seconds)

    def _ready(self, seconds: float) -> bool:
        return bool(select.select([self._descriptor], [], [], seconds)[0])


class BytesInput:
    """Input that is known already."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def read(self) -> bytes:
        """Return the next bytes."""
        piece, self._rest = self._rest[:PIECE], self._rest[PIECE:]
        return bytes(piece)

    def wait(self, seconds: float) -> None:
        """Wait: there is something to read, but the guest takes nothing."""
        time.sleep(seconds)


class RefusedInput:
    """Input of a command in an image whose agentd takes none. It is an error only if there is any.

    A command that is run by a script often has the script's own input, or /dev/null, and reads neither.
    """

    def __init__(self, source: InputSource, version: int) -> None:
        self._source = source
        self._version = version

    def read(self) -> bytes | None:
        """Return the end, or None if it has not come yet.

        Raises:
            RequestError: there is input.
        """
        data = self._source.read()
        if data:
            spoken = f"its protocol has version {self._version}, and standard input needs {VERSION}"
            raise RequestError(
                f"agentd of this image passes no standard input on: {spoken}",
                hint="build the image anew, or give the command none: </dev/null",
            )
        return data

    def wait(self, seconds: float) -> None:
        """Wait until there may be something to read, or for ``seconds``."""
        self._source.wait(seconds)
