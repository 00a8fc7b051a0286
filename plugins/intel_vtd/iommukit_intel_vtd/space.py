"""A domain's page tables, the units that use them, and how these are told of changes (``drivers/iommu/intel/iommu.c``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.hw.radix import PageTable, Partial
from iommukit_intel_vtd.invalidation import Request, domain_pages, domain_pasid_pages, iotlb_domain, pasid_iotlb
from iommukit_intel_vtd.layout import PAGE
from iommukit_intel_vtd.tables import table_format

if TYPE_CHECKING:
    from iommukit.hookspecs import Gather
    from iommukit.hw.memory import PhysicalMemory
    from iommukit.hw.platform import Addresses
    from iommukit_intel_vtd.running import RunningUnit

NO_PASID = 0
"""The PASID of requests without one (``IOMMU_NO_PASID``)."""


@dataclass(slots=True)
class Use:
    """One unit's use of an address space: the domain id there, and how many devices have it."""

    number: int
    devices: int = 0


class AddressSpace:
    """Page tables of ``levels`` levels, of the first or the second stage.

    Raises ``IommuError("ENOMEM")`` without a page for the root.
    """

    def __init__(self, memory: PhysicalMemory, *, first_stage: bool, levels: int, whole: bool) -> None:
        self.first_stage = first_stage
        self.uses: dict[RunningUnit, Use] = {}
        self.used = 0
        """The first address (bytes) beyond all that was ever mapped."""
        self.table = PageTable(table_format(first_stage), memory, top=levels - 1)
        self._pages = memory.pages
        self._partial = Partial.WHOLE if whole else Partial.WHOLE_FROM_START

    @property
    def levels(self) -> int:
        """How many levels the tables have."""
        return self.table.top + 1

    # ---- users -------------------------------------------------------------------------------------------------------

    def join(self, running: RunningUnit) -> int:
        """Count one more device of a unit.  Returns the domain id there.  Raises ``IommuError("ENOSPC")``."""
        use = self.uses.get(running)
        if use is None:
            use = self.uses[running] = Use(running.numbers.take())
        use.devices += 1
        return use.number

    def leave(self, running: RunningUnit) -> None:
        """Count one device fewer; the id is free with the last, of which nothing may be cached any more."""
        use = self.uses[running]
        use.devices -= 1
        if not use.devices:
            del self.uses[running]
            running.numbers.give(use.number)

    def trim(self, levels: int) -> list[tuple[int, int]]:
        """Take levels off the top, where the tables are deeper than a unit's: addresses beyond are not mapped.

        Returns the tables that are left over (address and bytes), to be freed once no entry names them.
        """
        table, over = self.table, []
        while self.levels > levels:
            entry = table.memory.word(table.root)
            if table.format.present(entry, table.top):
                over.append((table.root, PAGE))
                table.bytes -= PAGE
                table.root = table.format.address(entry, table.top)
            table.top -= 1
        return over

    def free(self) -> None:
        """Give the tables back."""
        self.table.free()

    # ---- mapping -----------------------------------------------------------------------------------------------------

    def map(self, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
        """Map pages; empty tables in the way of a larger page go once the units have forgotten them."""
        gone: list[tuple[int, int]] = []
        size = self.table.map(iova, paddr, pgsize, pgcount, prot, gone)
        if iova + size > self.used:
            self.used = iova + size
        if gone:
            self.invalidate(iova, iova + size - 1, leaves_only=False)
            self._give(gone)
        return size

    def unmap(self, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
        """Unmap pages; what was gathered apart from them is invalidated first (``iommu_iotlb_gather_add_page``)."""
        if not gather.queued and (gather.apart(iova, pgsize * pgcount) or (gather.pgsize and gather.pgsize != pgsize)):
            self.sync(gather)
        size = self.table.unmap(iova, pgsize, pgcount, partial=self._partial, freed=gather.freed)
        if size and not gather.queued:
            gather.add(iova, size, pgsize)
        return size

    def lookup(self, iovas: Addresses) -> Addresses:
        """Physical addresses, ``UNMAPPED`` where there is none."""
        return self.table.lookup_many(iovas)

    # ---- telling the units -------------------------------------------------------------------------------------------

    def domain_request(self, number: int) -> Request:
        """Forget all translations under a domain id."""
        return pasid_iotlb(number, NO_PASID) if self.first_stage else iotlb_domain(number)

    def invalidate(self, first: int, last: int, *, leaves_only: bool) -> None:
        """Have all units forget the bytes ``first``..``last``; ``leaves_only``: no table has gone."""
        for running, use in self.uses.items():
            if self.first_stage:
                request = domain_pasid_pages(running.largest_mask, use.number, NO_PASID, first, last, leaves_only)
            else:
                request = domain_pages(running.largest_mask, use.number, first, last, leaves_only)
            running.invalidation.submit(request)

    def invalidate_all(self) -> None:
        """Have all units forget everything of the domain."""
        for running, use in self.uses.items():
            running.invalidation.submit(self.domain_request(use.number))

    def sync(self, gather: Gather) -> None:
        """Invalidate what was gathered, then free the tables that went with it; the gather is empty then."""
        if not gather.empty:
            self.invalidate(gather.start, gather.end, leaves_only=not gather.freed)
        elif gather.freed:
            self.invalidate_all()
        self._give(gather.freed)
        gather.start, gather.end, gather.pgsize = (1 << 64) - 1, 0, 0
        gather.freed.clear()

    def sync_map(self, iova: int, size: int) -> None:
        """Make new entries known: units with caching mode may have kept that nothing was there."""
        for running, use in self.uses.items():
            if running.caching_mode and not self.first_stage:
                running.invalidation.submit(domain_pages(running.largest_mask, use.number, iova, iova + size - 1, True))
            else:
                running.flush_write_buffer()

    def _give(self, tables: list[tuple[int, int]]) -> None:
        for address, size in tables:
            self._pages.free(address, size)
