"""The allocator of I/O virtual addresses (``drivers/iommu/iova.c``)."""

from __future__ import annotations

from iommukit.errors import IommuError
from iommukit.hw.runs import FreeRuns


class IovaSpace:
    """The addresses ``first``..``last`` (bytes, inclusive), in units of ``granule`` bytes.

    Addresses are taken from the top, aligned to the next power of two of their size, so that what is mapped can be mapped by
    large pages.
    """

    def __init__(self, granule: int, first: int, last: int) -> None:
        self.granule = granule
        self._free = FreeRuns()
        start, end = -(-first // granule) * granule, (last + 1) // granule * granule
        if start < end:
            self._free[start] = end

    @property
    def free_bytes(self) -> int:
        """How much is free."""
        return sum(end - start for start, end in self._free.items())

    def reserve(self, first: int, last: int) -> None:
        """Never hand out the bytes ``first``..``last``; what lies outside the space, or is reserved already, is no matter."""
        low, high = first // self.granule * self.granule, -(-(last + 1) // self.granule) * self.granule
        at = max(self._free.bisect_right(low) - 1, 0)
        for start in list(self._free.islice(at)):
            end = self._free[start]
            if start >= high:
                break
            if end > low:
                self._free.cut(start, max(start, low), min(end, high))

    def alloc(self, size: int, limit: int) -> int:
        """Take ``size`` bytes, rounded up to granules, none of them above ``limit``.  Raises ``IommuError("ENOSPC")``."""
        size = -(-size // self.granule) * self.granule
        alignment = 1 << (size - 1).bit_length()
        for start in self._free.islice(0, self._free.bisect_right(limit), reverse=True):
            end = self._free[start]
            found = (min(end, limit + 1) - size) & -alignment
            if found >= start:
                self._free.cut(start, found, found + size)
                return found
        raise IommuError("ENOSPC", f"no {size:#x} bytes of I/O address space below {limit:#x}")

    def free(self, iova: int, size: int) -> None:
        """Give back what ``alloc`` answered for ``size``.  Raises ``ValueError`` for what is free."""
        self._free.join(iova, iova + -(-size // self.granule) * self.granule)
