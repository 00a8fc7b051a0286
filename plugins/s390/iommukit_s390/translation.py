"""The driver's page tables and refreshes: what a domain's operations do (``s390-iommu.c``).

Only 4 KiB pages exist.  6.1 is asked for any power of two, writes its pages one after the other, and refreshes inside map and
unmap.  Since the series of 2022 the core says when: after a map only functions under a hypervisor that shadows tables are
refreshed.  Tables stay until their domain is freed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather, hookimpl
from iommukit.policy import Era
from iommukit_s390.functions import PAGE
from iommukit_s390.zpci import refresh, refresh_all

if TYPE_CHECKING:
    from iommukit.hw.platform import Addresses
    from iommukit_s390.functions import Function
    from iommukit_s390.tables import PagingDomain


@hookimpl
def map_pages(domain: PagingDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
    """Write the entries; 6.1 refreshes them too and takes no mapping without ``READ``."""
    size = pgsize * pgcount
    if not domain.covers(iova, iova + size - 1):
        raise IommuError("EINVAL", f"{iova:#x} is outside the aperture")
    old = domain.era is Era.V6_1
    if old and not prot & Prot.READ:
        raise IommuError("EINVAL", "every page can be read")
    domain.table.map(iova, paddr, PAGE, size // PAGE, prot)
    if old:
        try:
            for function in domain.functions:
                refresh(function, iova, size)
        except IommuError:
            _clear(domain, iova, size)
            raise
    return size


@hookimpl
def unmap_pages(domain: PagingDomain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
    """Invalidate the entries up to the first that maps nothing; 6.1 refreshes them at once."""
    done = _clear(domain, iova, pgsize * pgcount)
    if done and domain.era is Era.V6_1:
        _forget(domain, iova, done)
    elif done:
        gather.add(iova, done, PAGE)
    return done


@hookimpl
def iova_to_phys(domain: PagingDomain, iova: Addresses) -> Addresses:
    """Read the tables."""
    return domain.table.lookup_many(iova)


@hookimpl
def flush_iotlb_all(domain: PagingDomain) -> None:
    """Refresh the whole DMA range of each function."""
    for function in domain.functions:
        with suppress(IommuError):
            refresh_all(function)


@hookimpl
def iotlb_sync(domain: PagingDomain, gather: Gather) -> None:
    """Refresh what was gathered; there are no tables to give back."""
    if not gather.empty:
        _forget(domain, gather.start, gather.end - gather.start + 1)


@hookimpl
def iotlb_sync_map(domain: PagingDomain, iova: int, size: int) -> None:
    """Refresh new entries where a hypervisor shadows tables.

    A hypervisor that can shadow no more may hold entries that are long invalid: the whole range is refreshed then, which lets it
    find them.  The series of 2022 had no way to report failure.
    """
    if domain.era is Era.V6_1:
        return
    for function in domain.functions:
        if function.tlb_refresh:
            try:
                _show(function, iova, size)
            except IommuError:
                if domain.era >= Era.V6_12:
                    raise


def _show(function: Function, iova: int, size: int) -> None:
    try:
        refresh(function, iova, size)
    except IommuError as error:
        if error.name != "ENOMEM":
            raise
        refresh_all(function)


def _forget(domain: PagingDomain, iova: int, size: int) -> None:
    """Refresh at every function; what cannot be refreshed stays as it is, and nobody is told."""
    for function in domain.functions:
        with suppress(IommuError):
            refresh(function, iova, size)


def _clear(domain: PagingDomain, iova: int, size: int) -> int:
    """Invalidate entries, and keep their tables."""
    from iommukit.hw.radix import Partial

    return domain.table.unmap(iova, PAGE, size // PAGE, partial=Partial.REFUSE, freed=[], release=False)
