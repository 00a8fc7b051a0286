"""The page tables that the driver writes, and the domains that own them (``pci_dma.h``, ``s390-iommu.c``).

Region and segment tables have 2048 entries, page tables 256; all are big-endian.  Entries that map nothing carry an invalid bit,
which is another one in page tables: an entry of zeros would be an error, or the first frame of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iommukit.domain import UNBOUNDED, Domain, Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.radix import PageTable
from iommukit.policy import Era
from iommukit_s390.functions import SIZE_RS, SIZE_RT, Function
from iommukit_s390.layout import (
    FORMAT_CONTROL,
    INVALID,
    IOTA_TRANSLATE,
    IOTA_TYPE_SHIFT,
    PAGE_BITS,
    PAGE_FRAME,
    PAGE_INVALID,
    PAGE_SHIFT,
    PAGE_TABLE_ORIGIN,
    PROTECT,
    REGION_FIRST_SHIFT,
    REGION_SECOND_SHIFT,
    REGION_THIRD_SHIFT,
    SEGMENT_SHIFT,
    TABLE_BITS,
    TABLE_LENGTH,
    TABLE_ORIGIN,
)


class ZpciFormat(Format):
    """Page, segment, region-third, region-second and region-first tables, levels 0 to 4."""

    levels = (
        Level(PAGE_SHIFT, PAGE_BITS, PAGE_INVALID),
        Level(SEGMENT_SHIFT, TABLE_BITS, INVALID),
        Level(REGION_THIRD_SHIFT, TABLE_BITS, INVALID),
        Level(REGION_SECOND_SHIFT, TABLE_BITS, INVALID),
        Level(REGION_FIRST_SHIFT, TABLE_BITS, INVALID),
    )
    big_endian = True

    def present(self, entry: Entry, level: int) -> Entry:
        """Whether the invalid bit is off."""
        return entry & (INVALID if level else PAGE_INVALID) == 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """Linux maps no frames larger than a page; a segment-table entry could be one."""
        return entry & (FORMAT_CONTROL if level == 1 else 0) != 0

    def address(self, entry: Entry, level: int) -> Entry:
        """Page frame, page table (2 KiB) or region and segment table."""
        return entry & (PAGE_FRAME if not level else PAGE_TABLE_ORIGIN if level == 1 else TABLE_ORIGIN)

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """Protected without ``WRITE``.  All pages can be read: there is no bit against it."""
        if level:
            raise IommuError("EINVAL", f"no page has {pgsize:#x} bytes")
        return 0 if prot & Prot.WRITE else PROTECT

    def table(self, level: int) -> int:
        """The type of the table that the entry is in, and for region tables the full length of the one below."""
        return level - 1 << 2 | TABLE_LENGTH if level > 1 else 0


FORMAT = ZpciFormat()

_TOPS = {SIZE_RT - 1: 2, SIZE_RS - 1: 3, UNBOUNDED: 4}
"""The root's level by the last address that is to be translated."""


@dataclass(slots=True, eq=False)
class PagingDomain(Domain):
    """A domain with tables: ``table``, and the functions at which they are registered (``struct s390_domain``)."""

    era: Era = Era.V7_2
    table: PageTable = field(kw_only=True)
    functions: list[Function] = field(default_factory=list)

    @property
    def iota(self) -> int:
        """The translation anchor: where the root is, and which kind of table (``ZPCI_IOTA_RTTO_FLAG`` and so on)."""
        return self.table.root | IOTA_TRANSLATE | self.table.top - 1 << IOTA_TYPE_SHIFT

    @property
    def populated(self) -> bool:
        """Whether anything was ever mapped: tables below the root stay until the domain is freed."""
        return self.table.bytes > FORMAT.levels[self.table.top].size


def give_tables(domain: Domain, memory: PhysicalMemory, era: Era) -> PagingDomain:
    """The domain with an empty root table of the kind that spans its aperture, which was one kind before 7.2.

    Raises ``IommuError("ENOMEM")``.
    """
    table = PageTable(FORMAT, memory, top=_TOPS[domain.aperture[1]] if era >= Era.V7_2 else 2)
    return PagingDomain(domain.type, aperture=domain.aperture, page_sizes=domain.page_sizes, era=era, table=table)


def free_tables(domain: Domain) -> None:
    """Give all tables of a domain back."""
    assert isinstance(domain, PagingDomain)
    domain.table.free()
