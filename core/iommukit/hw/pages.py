"""The pages that an operating system takes for its tables."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from iommukit.errors import IommuError
from iommukit.hw.runs import FreeRuns

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory


class PageAllocator:
    """Zeroed tables from the addresses ``start``..``end`` (the end excluded) of a memory.

    ``outstanding`` counts the bytes handed out and not given back; ``limit``, where it is set, is how many there may be:
    beyond it allocation fails with ``ENOMEM``, which is how a shortage is tried out.

    A table given back is the next of its size to be handed out; runs of many are joined with what is free beside them.
    """

    GRAIN = 0x400
    """The smallest table, and the unit of all sizes (bytes): they are rounded up to it."""
    LARGEST_KEPT = 0x10000
    """Larger ones (bytes) are joined with their neighbours at once."""
    MANY = 2 << 20
    """From so many bytes on it pays to prepare memory for what is coming."""

    def __init__(self, memory: PhysicalMemory, start: int, end: int) -> None:
        self._memory = memory
        self.start = start
        self.end = end
        self.outstanding = 0
        self.limit: int | None = None
        self._taken = mmap.mmap(-1, max(1, (end - start) // self.GRAIN), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        """One byte for each grain: whether it is handed out."""
        self._fresh = start
        """Memory from here on was never handed out, and is zero."""
        self._kept: dict[int, list[int]] = {}
        """Tables given back singly, by size (bytes)."""
        self._free = FreeRuns()
        """Runs given back: first address to the address after the last."""
        self._longest = 0
        """No run is longer (bytes)."""

    def alloc(self, size: int, count: int = 1) -> int:
        """The address of ``count`` adjoining tables of ``size`` bytes (a power of two), aligned to their size and zero.

        Raises ``IommuError("ENOMEM")``.
        """
        wanted = -(-size * count // self.GRAIN) * self.GRAIN
        if self.limit is not None and self.outstanding + wanted > self.limit:
            raise IommuError("ENOMEM", "no page for a table")
        kept = self._kept.get(wanted) if count == 1 else None
        address = kept.pop() if kept else self._from_free(size, wanted)
        if address is None:
            address = self._from_fresh(size, wanted)
        used = min(address + wanted, self._fresh) - address
        if used > 0:
            at = address - self._memory.base >> 3
            self._memory.words[at : at + (used >> 3)] = 0
        self._fresh = max(self._fresh, address + wanted)
        self._mark(address, wanted, b"\1")
        self.outstanding += wanted
        return address

    def alloc_runs(self, size: int, count: int) -> list[tuple[int, int]]:
        """``count`` tables of ``size`` bytes in as few runs as can be: address and number of adjoining tables.

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
        """Give ``size`` bytes from ``address`` back: any part of what was handed out.

        Raises ``ValueError`` for what is not handed out: a mistake of the caller, not of a modelled driver.
        """
        size = -(-size // self.GRAIN) * self.GRAIN
        first = address - self.start
        at, end = first // self.GRAIN, (first + size) // self.GRAIN
        if first < 0 or first % self.GRAIN or self._taken[at:end] != b"\1" * (size // self.GRAIN):
            raise ValueError(f"{address:#x} is given back twice, or was never handed out")
        self._mark(address, size, b"\0")
        self.outstanding -= size
        if size <= self.LARGEST_KEPT and not address % size and not size & size - 1:
            self._kept.setdefault(size, []).append(address)
        else:
            self._join(address, address + size)

    def _mark(self, address: int, size: int, state: bytes) -> None:
        at = (address - self.start) // self.GRAIN
        count = size // self.GRAIN
        self._taken[at : at + count] = state * count

    def _from_free(self, size: int, wanted: int) -> int | None:
        """Memory that was given back."""
        for kept, addresses in self._kept.items():
            for address in addresses:
                self._join(address, address + kept)
            addresses.clear()
        if wanted > self._longest:
            return None
        longest = 0
        for start, end in self._free.items():
            address = -(-start // size) * size
            if address + wanted <= end:
                self._free.cut(start, address, address + wanted)
                return address
            longest = max(longest, end - start)
        self._longest = longest
        return None

    def _from_fresh(self, size: int, wanted: int) -> int:
        """Memory at the end of what was ever handed out, beginning in the free run there, if there is one."""
        begin = self._fresh
        if self._free and self._free.peekitem(-1)[1] == begin:
            begin = self._free.peekitem(-1)[0]
        address = -(-begin // size) * size
        if address + wanted > self.end:
            raise IommuError("ENOMEM", "no page for a table")
        if wanted >= self.MANY:
            self._memory.expect_much(address, wanted)
        self._free.pop(begin, None)
        if begin < address:
            self._join(begin, address)
        return address

    def _join(self, start: int, end: int) -> None:
        """Put a run among the free ones, as one with its neighbours."""
        self._longest = max(self._longest, self._free.join(start, end))
