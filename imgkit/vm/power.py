"""Switch a machine off by its power button."""

from __future__ import annotations

import time
from contextlib import suppress

from imgkit.host import statusline
from imgkit.vm.qemu.launch import Running
from imgkit.vm.qemu.qmp import QmpError
from imgkit.vm.waiting import POLL

_PRESS_INTERVAL = 2.0  # seconds


def press_until_off(running: Running, timeout: float) -> bool:
    """Press the power button and wait until QEMU has ended, at most ``timeout`` seconds.

    The button is pressed repeatedly: a guest that has just come up may not react to it yet, and a guest that is
    shutting down ignores it.

    Returns:
        True if QEMU has ended.
    """
    deadline = time.monotonic() + timeout
    pressed = 0.0
    with statusline.doing("the guest shuts down"):
        while running.child.poll() is None and time.monotonic() < deadline:
            if time.monotonic() - pressed >= _PRESS_INTERVAL:
                pressed = time.monotonic()
                with suppress(QmpError):  # QEMU may be ending just now
                    running.qmp.execute("system_powerdown")
            time.sleep(POLL)
    return running.child.poll() is not None
