"""Free runs of addresses, adjoining ones as one."""

from __future__ import annotations

from sortedcontainers import SortedDict


class FreeRuns(SortedDict[int, int]):
    """Runs by their first address, each with the address after its last (bytes)."""

    def join(self, start: int, end: int) -> int:
        """Put a run among the others, as one with those that it touches.  Returns how long the whole is.

        Raises ``ValueError`` where a part of it is free already: nothing has changed then.
        """
        after = self.bisect_left(start)
        if after < len(self) and self.peekitem(after)[0] < end:
            raise ValueError(f"{start:#x} is free already")
        if after:
            first, last = self.peekitem(after - 1)
            if last > start:
                raise ValueError(f"{start:#x} is free already")
            if last == start:
                start = first
        if end in self:
            end = self.pop(end)
        self[start] = end
        return end - start

    def cut(self, start: int, first: int, last: int) -> None:
        """Take the addresses from ``first`` up to, but not with, ``last`` out of the run that begins at ``start``."""
        end = self.pop(start)
        if start < first:
            self[start] = first
        if last < end:
            self[last] = end
