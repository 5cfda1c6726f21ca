"""The order in which names are decided. :mod:`imgkit.apk.deduction` describes the rules behind it."""

from __future__ import annotations

import heapq
from collections import deque

from imgkit.apk.network import Name


class Agenda:
    """The names that wait to be decided, in three queues.

    Names without a choice come first, in the order of their arrival; then names that have a selectable candidate; then
    all others. In the second and the third queue the greatest rank comes first.
    """

    def __init__(self) -> None:
        self._clear: deque[Name] = deque()
        self._selectable: list[tuple[int, Name]] = []
        self._others: list[tuple[int, Name]] = []

    def put(self, name: Name) -> None:
        """Add a name that is wanted. A name that is already waiting moves to the queue where it belongs now."""
        if name.decided or name.queue is self._clear:
            return
        if name.queue is None and not (name.demands or name.invited or name.open_rule):
            return
        clear = name.last_user and name.demands > 0 and name.selectable and not name.several
        if clear:
            name.queue = self._clear
            self._clear.append(name)
            return
        queue = self._selectable if name.selectable else self._others
        if name.queue is not queue:
            name.queue = queue
            heapq.heappush(queue, (-name.rank, name))

    def take(self) -> Name | None:
        """Remove and return the next name to decide; None if there is none."""
        while self._clear:
            name = self._clear.popleft()
            if self._leaves(name, self._clear):
                return name
        for queue in (self._selectable, self._others):
            while queue:
                _, name = heapq.heappop(queue)
                if self._leaves(name, queue):
                    return name
        return None

    @staticmethod
    def _leaves(name: Name, queue: object) -> bool:
        """Take a name out of its queue. Returns False for an outdated entry, whose name moved or was decided."""
        if name.decided or name.queue is not queue:
            return False
        name.queue = None
        return True
