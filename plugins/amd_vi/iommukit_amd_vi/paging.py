"""The hooks of page tables and of the TLB (``amd_iommu_map_pages`` and its companions)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommukit.domain import Domain, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather, hookimpl
from iommukit.policy import Era
from iommukit_amd_vi.attach import flush, retarget
from iommukit_amd_vi.domains import AmdDomain, dismantle
from iommukit_amd_vi.layout import PTE_ADDRESS
from iommukit_amd_vi.queue import EVERYTHING

if TYPE_CHECKING:
    from iommukit.hw.platform import Addresses
    from iommukit.hw.radix import PageTable

_ANY_ACCESS = int(Prot.READ | Prot.WRITE)
_HOST = 1


def _tables(domain: Domain) -> tuple[AmdDomain, PageTable]:
    assert isinstance(domain, AmdDomain)
    if domain.tables is None:
        raise IommuError("EINVAL", "the domain has no page tables")
    return domain, domain.tables


@hookimpl
def map_pages(domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
    """Map; host tables grow by levels where the address needs it.

    A table in the way of a larger page is emptied first and freed after the invalidation.
    """
    amd, tables = _tables(domain)
    size = pgsize * pgcount
    last = iova + size - 1
    first, end = domain.aperture
    if iova < first or last > end:
        newest = amd.driver is not None and amd.driver.era >= Era.V7_2
        raise IommuError("ERANGE" if newest else "EFAULT", f"{iova:#x} is outside the aperture")
    if not prot & _ANY_ACCESS or not pgsize & domain.page_sizes:
        raise IommuError("EINVAL", "a mapping needs a permission and a page size of the domain")
    if paddr + size - 1 >> PTE_ADDRESS.low + PTE_ADDRESS.width:
        raise IommuError("ERANGE", f"{paddr:#x} is beyond 52 bits")
    freed: list[tuple[int, int]] = []
    if last < tables.span and pgsize <= tables.span >> 9:
        tables.map(iova, paddr, pgsize, pgcount, prot, freed)
    else:
        _map_grown(amd, tables, iova, paddr, pgsize, pgcount, prot, freed)
    if freed:
        flush(amd, iova, size)
        _free(tables, freed)
    return size


def _map_grown(
    domain: AmdDomain,
    tables: PageTable,
    iova: int,
    paddr: int,
    pgsize: int,
    pgcount: int,
    prot: int,
    freed: list[tuple[int, int]],
) -> None:
    """Map into tables with more levels (``increase_address_space``).

    The hardware goes on with the old root until the mapping stands, so that a failure leaves everything as it was.
    """
    top, span = tables.top, tables.span
    last = iova + pgsize * pgcount - 1
    wanted = max((last.bit_length() - 13) // 9, tables.format.leaf_level(pgsize)[0])
    assert domain.driver is not None
    if wanted >= domain.driver.walkable_levels:
        raise IommuError("ENOMEM", f"the hardware walks no more than {domain.driver.walkable_levels} levels")
    tables.grow(wanted)
    try:
        tables.map(iova, paddr, pgsize, pgcount, prot, freed)
    except IommuError:
        _shrink(tables, top)
        tables.span = span
        raise
    if tables.top > top:
        retarget(domain)


def _shrink(tables: PageTable, top: int) -> None:
    """Undo growth that the hardware has not seen."""
    while tables.top > top:
        size = tables.format.levels[tables.top].size
        below = tables.format.address(tables.memory.word(tables.root), tables.top)
        tables.memory.pages.free(tables.root, size)
        tables.bytes -= size
        tables.root, tables.top = below, tables.top - 1


def _free(tables: PageTable, freed: list[tuple[int, int]]) -> None:
    for address, size in freed:
        tables.memory.pages.free(address, size)
    freed.clear()


@hookimpl
def unmap_pages(domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
    """Unmap.  A page larger than what is asked for goes as a whole; since 7.2 only from its first byte on.

    Tables stay for later maps before 7.2; since then those that the range covers are given back.  Under NpCache ranges that do
    not touch are invalidated apart.
    """
    from iommukit.hw.radix import Partial

    amd, tables = _tables(domain)
    assert amd.driver is not None
    newest = amd.driver.era >= Era.V7_2
    freed: list[tuple[int, int]] = []
    partial = Partial.WHOLE_FROM_START if newest else Partial.WHOLE
    gone = tables.unmap(iova, pgsize, pgcount, partial=partial, freed=freed, release=newest)
    if gone:
        if gather.apart(iova, gone) and amd.driver.np_cache:
            iotlb_sync(domain, gather)
            gather.start, gather.end, gather.pgsize = Gather().start, 0, 0
        gather.add(iova, gone)
        gather.freed += freed
    return gone


@hookimpl
def iova_to_phys(domain: Domain, iova: Addresses) -> Addresses:
    """Look addresses up."""
    return _tables(domain)[1].lookup_many(iova)


@hookimpl
def flush_iotlb_all(domain: Domain) -> None:
    """Invalidate everything of the domain (``amd_iommu_flush_iotlb_all``)."""
    if isinstance(domain, AmdDomain) and domain.tables is not None:
        flush(domain, 0, EVERYTHING)


@hookimpl
def iotlb_sync(domain: Domain, gather: Gather) -> None:
    """Invalidate one range around all that was gathered (``amd_iommu_iotlb_sync``)."""
    amd, tables = _tables(domain)
    if not gather.empty:
        flush(amd, gather.start, gather.end - gather.start + 1)
    if gather.freed:
        _free(tables, gather.freed)


@hookimpl
def iotlb_sync_map(domain: Domain, iova: int, size: int) -> None:
    """Under NpCache invalidate what was absent (``amd_iommu_iotlb_sync_map``)."""
    if isinstance(domain, AmdDomain) and domain.driver is not None and domain.driver.np_cache:
        flush(domain, iova, size)


@hookimpl
def domain_free(domain: Domain) -> None:
    """Give back tables and domain id; nothing of them is cached since the last device left (``amd_iommu_domain_free``)."""
    if isinstance(domain, AmdDomain):
        dismantle(domain)
