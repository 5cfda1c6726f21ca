"""The console file of a running machine, read as it grows."""

from __future__ import annotations

import os
import time
from pathlib import Path

from imgkit.vm import console
from imgkit.vm.console import Stage

KEEP = 256 << 10
"""Bytes from the end that are looked at."""
MAX_FILE = 64 << 20
"""Bytes of one machine after which its part of the file is begun anew: a guest must not fill the host's disk."""


class ConsoleLog:
    """Follows a file that QEMU appends to, from byte ``begin`` on: what is before that is an earlier machine's.

    ``times`` has the seconds since the start at which each stage showed.
    """

    def __init__(self, path: Path, begin: int = 0) -> None:
        self.path = path
        self.text = ""
        self.stage = Stage.NOTHING
        self.times: dict[Stage, float] = {}
        self._raw = b""
        self._begin = self._offset = begin
        self._started = self._changed = time.monotonic()

    @property
    def quiet(self) -> float:
        """Seconds since the console last grew."""
        return time.monotonic() - self._changed

    def refresh(self) -> bool:
        """Read what is new; whether there was something."""
        try:
            with self.path.open("rb") as source:
                source.seek(self._offset)
                data = source.read(KEEP * 4)
        except FileNotFoundError:
            return False
        if not data:
            return False
        self._offset += len(data)
        if self._offset - self._begin > MAX_FILE:
            os.truncate(self.path, self._begin)
            self._offset = self._begin
        self._changed = time.monotonic()
        self._raw = (self._raw + data)[-KEEP:]  # uncleaned: a control sequence may come in two pieces
        self.text = console.clean(self._raw.decode(errors="replace"))
        for reached in console.stages(self.text):
            if reached > self.stage:  # several at once, when nobody looked for a while
                self.stage = reached
                self.times[reached] = self._changed - self._started
        return True
