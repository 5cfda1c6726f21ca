"""Keep a machine running until the user ends it, and open terminals on it for other processes of the user."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgkit.errors import GuestError
from imgkit.host import terminal
from imgkit.vm.failures import QemuDiedError
from imgkit.vm.running import VM
from imgkit.vm.sessions import runningmachines, sessionserver
from imgkit.vm.sessions.sessionhost import OpenedSession

log = logging.getLogger("imgkit")

_POLL = 0.2  # seconds between two looks at the machine


class VmOpener:
    """Opens sessions on a machine for :func:`imgkit.vm.sessions.sessionserver.serving`."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def open(self, wanted: Mapping[str, Any]) -> OpenedSession:
        """Open a session with these arguments of :meth:`VM.terminal`."""
        return self._vm.session_host().open(self._vm.session_start(**wanted))

    def close(self, name: str) -> None:
        """End a session."""
        self._vm.session_host().close(name)


def until_interrupted(image: Path, vm: VM) -> None:
    """Keep the machine running until Ctrl-C or SIGTERM. The caller powers it off.

    Raises:
        GuestError: the guest has powered itself off.
        BootError: the machine has failed.
    """
    with runningmachines.announced(image) as listener, sessionserver.serving(listener, VmOpener(vm)):
        log.info("%s runs until Ctrl-C; imgkit shell %s opens a terminal in it", image, terminal.line(image))
        try:
            while True:
                vm.check()
                time.sleep(_POLL)
        except KeyboardInterrupt:
            log.info("powering off")
        except QemuDiedError as died:
            if vm.exit_status == 0:
                raise GuestError(f"{image}: the guest has powered itself off") from died
            raise
