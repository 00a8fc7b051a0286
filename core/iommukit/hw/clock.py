"""Simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Nanoseconds since start; they pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0
        """Nanoseconds."""
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def call_at(self, when: int, action: Callable[[], None]) -> None:
        """Do something at a time (ns); what is due already is done at the next step of time."""
        heapq.heappush(self._due, (when, self._count, action))
        self._count += 1

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, doing what falls due on the way, in order."""
        until = self.now + nanoseconds
        while self._due and self._due[0][0] <= until:
            when, _, action = heapq.heappop(self._due)
            self.now = max(self.now, when)
            action()
        self.now = until
