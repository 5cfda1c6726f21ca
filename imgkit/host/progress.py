"""Progress bars, and the timed steps of a build. All of it goes to standard error.

Bars are shown on a terminal only. A step is in the status line there, and a line of the log elsewhere::

    with steps.step("compress"), bar(size, "compress") as progress:
        progress.update(1024)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from imgkit.host import interrupts, statusline, terminal

if TYPE_CHECKING:
    from typing_extensions import Never

log = logging.getLogger("imgkit")
tqdm.set_lock(threading.RLock())  # tqdm's own is for processes too, and takes 10 ms to be made


def bar(total: int | None, description: str, *, unit: str = "B") -> tqdm[Never]:
    """Return a progress bar for ``total`` units of work. It disappears when it is closed.

    Args:
        total: how many units there are; None if that is not known.
        description: a few words in front of the bar.
        unit: "B" for bytes (shown as kB, MB …), or the name of the things that are counted.
    """
    with interrupts.held_back():  # a bar that is only half made fails when it is removed
        return _Bar(
            total=total,
            desc=terminal.line(description, 60),
            unit=unit,
            unit_scale=unit == "B",
            leave=False,
            disable=None if log.isEnabledFor(logging.WARNING) else True,
            dynamic_ncols=True,
        )


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that takes the place of the status line."""

    def __init__(self, **options: Any) -> None:
        statusline.hide()
        super().__init__(**options)
        if self.disable:
            statusline.show()

    def close(self) -> None:
        """Remove the bar. It may be closed twice."""
        shown = not self.disable
        super().close()
        if shown:
            statusline.show()


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        start: seconds from the creation of the :class:`Steps` to the beginning of the step.
        seconds: how long it took.
    """

    name: str
    start: float
    seconds: float


@dataclass
class Steps:
    """The timed steps of one build. Several threads may record steps."""

    finished: list[Step] = field(default_factory=list)
    _origin: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block as the step ``name``. A block that raises is recorded as well, for the table."""
        start = time.monotonic()
        log.log(logging.DEBUG if statusline.active() else logging.INFO, "%s …", name)
        try:
            with statusline.doing(name):
                yield
        finally:
            with self._lock:
                self.finished.append(Step(name, start - self._origin, time.monotonic() - start))

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._origin

    def table(self) -> str:
        """Return the steps with their times, one per line, and the total.

        Steps may overlap, so their times can add up to more than the total.
        """
        steps = sorted(self.finished, key=lambda step: step.start)
        width = max([len(step.name) for step in steps] + [5])
        lines = [f"{step.name:<{width}}  {step.seconds:6.1f} s" for step in steps]
        return "\n".join([*lines, f"{'total':<{width}}  {self.elapsed:6.1f} s"])
