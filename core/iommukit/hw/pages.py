"""The pages that an operating system takes for its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from iommukit.errors import IommuError

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory


class PageAllocator:
    """Zeroed tables from the addresses ``start``..``end`` (the end excluded) of a memory.

    ``outstanding`` counts the bytes handed out and not given back; ``limit``, where it is set, is how many there may be:
    beyond it allocation fails with ``ENOMEM``, which is how a shortage is tried out.
    """

    GRAIN = 0x400
    """The smallest table, and the unit of all sizes (bytes)."""

    def __init__(self, memory: PhysicalMemory, start: int, end: int) -> None:
        self._memory = memory
        self.start = start
        self.end = end
        self.outstanding = 0
        self.limit: int | None = None
        self._fresh = start
        """Memory from here on was never handed out, and is zero."""
        self._free: SortedDict[int, int] = SortedDict()
        """Runs given back: first address to the address after the last."""

    def alloc(self, size: int, count: int = 1) -> int:
        """The address of ``count`` adjoining tables of ``size`` bytes (a power of two), aligned to their size and zero.

        Raises ``IommuError("ENOMEM")``.
        """
        wanted = size * count
        if self.limit is not None and self.outstanding + wanted > self.limit:
            raise IommuError("ENOMEM", "no page for a table")
        address = self._from_free(size, wanted)
        if address is None:
            address = -(-self._fresh // size) * size
            if address + wanted > self.end:
                raise IommuError("ENOMEM", "no page for a table")
            if address > self._fresh:
                self._give(self._fresh, address)
            self._fresh = address + wanted
        else:
            at = address - self._memory.base >> 3
            self._memory.words[at : at + (wanted >> 3)] = 0
        self.outstanding += wanted
        return address

    def alloc_runs(self, size: int, count: int) -> list[tuple[int, int]]:
        """``count`` tables of ``size`` bytes, as few runs as there are: address and number of adjoining tables.

        Raises ``IommuError("ENOMEM")``, with nothing allocated.
        """
        if self.limit is not None and self.outstanding + size * count > self.limit:
            raise IommuError("ENOMEM", "no page for a table")
        try:
            return [(self.alloc(size, count), count)]
        except IommuError:
            if count == 1:
                raise
        first = self.alloc_runs(size, count // 2)
        try:
            return first + self.alloc_runs(size, count - count // 2)
        except IommuError:
            for address, number in first:
                self.free(address, size * number)
            raise

    def free(self, address: int, size: int) -> None:
        """Give ``size`` bytes from ``address`` back: any part of what was handed out."""
        self._give(address, address + size)
        self.outstanding -= size

    def _from_free(self, size: int, wanted: int) -> int | None:
        for start, end in self._free.items():
            address = -(-start // size) * size
            if address + wanted <= end:
                del self._free[start]
                if start < address:
                    self._free[start] = address
                if address + wanted < end:
                    self._free[address + wanted] = end
                return address
        return None

    def _give(self, start: int, end: int) -> None:
        after = self._free.bisect_left(start)
        if after < len(self._free) and self._free.peekitem(after)[0] < end:
            raise ValueError(f"{start:#x} is given back twice")
        if after:
            first, last = self._free.peekitem(after - 1)
            if last > start:
                raise ValueError(f"{start:#x} is given back twice")
            if last == start:
                start = first
        if end in self._free:
            end = self._free.pop(end)
        self._free[start] = end
