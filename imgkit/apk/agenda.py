"""In which order names are decided (:mod:`imgkit.apk.deduction` says why)."""

from __future__ import annotations

import heapq
from collections import deque

from imgkit.apk.network import Name


class Agenda:
    """The names that wait to be decided, in three queues.

    First come those without a choice, in the order of their arrival; then those that have a selectable candidate; then
    the others. In these two the greatest rank comes first.
    """

    def __init__(self) -> None:
        self._at_once: deque[Name] = deque()
        self._selectable: list[tuple[int, Name]] = []
        self._open: list[tuple[int, Name]] = []

    def put(self, name: Name, *, again: bool = False) -> None:
        """Enter a name that is wanted; one that waits already moves only up, or where it belongs now (``again``)."""
        if name.decided or name.queue is self._at_once:
            return
        clear = name.last_user and name.demands > 0 and name.selectable and not name.several
        if name.queue is None:
            if not (name.demands or name.invited or name.open_rule):
                return
        elif not (clear or again):
            return
        if clear:
            name.queue = self._at_once
            self._at_once.append(name)
        else:
            name.queue = queue = self._selectable if name.selectable else self._open
            heapq.heappush(queue, (-name.rank, name))

    def take(self) -> Name | None:
        """The next name to decide."""
        while self._at_once:
            name = self._at_once.popleft()
            if self._is_next(name, self._at_once):
                return name
        for queue in (self._selectable, self._open):
            while queue:
                _, name = heapq.heappop(queue)
                if self._is_next(name, queue):
                    return name
        return None

    @staticmethod
    def _is_next(name: Name, queue: object) -> bool:
        """Whether an entry of a queue still holds: those of names that moved or were decided stay where they are."""
        if name.decided or name.queue is not queue:
            return False
        name.queue = None
        return True
