"""Mapping and unmapping ranges: which page sizes are used, and when the TLB is told (``iommu_map``, ``iommu_unmap``)."""

from __future__ import annotations

import numpy as np

from iommukit.domain import Domain, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.platform import UNMAPPED


def choose_pages(sizes: int, iova: int, paddr: int, size: int) -> tuple[int, int]:
    """The page size (bytes) to begin a range with, and how many such pages to use (``iommu_pgsize``).

    The largest size that fits the range and both addresses; as many as there are up to the border from which a larger size fits,
    if it ever does.  ``sizes`` is the domain's bitmap; the range is aligned to the smallest.
    """
    both = iova | paddr
    usable = sizes & ((1 << size.bit_length()) - 1)
    if both:
        usable &= ((both & -both) << 1) - 1
    pgsize = 1 << usable.bit_length() - 1
    larger = sizes & -(pgsize << 1)
    if larger:
        next_size = larger & -larger
        if not (iova ^ paddr) & (next_size - 1):
            border = next_size - (both & (next_size - 1))
            if border + next_size <= size:
                size = border
    return pgsize, size // pgsize


def _check(domain: Domain, size: int, *addresses: int) -> None:
    smallest = domain.page_sizes & -domain.page_sizes
    if not smallest:
        raise IommuError("EINVAL", "the domain maps nothing")
    for value in (size, *addresses):
        if value & (smallest - 1):
            raise IommuError("EINVAL", f"{value:#x} is not aligned to the smallest page, {smallest:#x}")


def iommu_map(domain: Domain, iova: int, paddr: int, size: int, prot: int) -> None:
    """Map ``size`` bytes from ``iova`` to ``paddr``, all or nothing.

    Raises ``EINVAL`` for unaligned values, and what the driver raises, with the domain as it was.
    """
    _check(domain, size, iova, paddr)
    ops = domain.ops
    done = 0
    try:
        while done < size:
            pgsize, count = choose_pages(domain.page_sizes, iova + done, paddr + done, size - done)
            done += ops.map_pages(domain=domain, iova=iova + done, paddr=paddr + done, pgsize=pgsize, pgcount=count, prot=prot)
        ops.iotlb_sync_map(domain=domain, iova=iova, size=size)
    except IommuError:
        if done:
            iommu_unmap(domain, iova, done)
        raise


def iommu_unmap_gathered(domain: Domain, iova: int, size: int, gather: Gather) -> int:
    """Unmap up to ``size`` bytes without telling the TLB (``iommu_unmap_fast``).  Returns bytes unmapped.

    Ends early where nothing is mapped.  Raises ``EINVAL`` for unaligned values.
    """
    _check(domain, size, iova)
    ops = domain.ops
    done = 0
    while done < size:
        pgsize, count = choose_pages(domain.page_sizes, iova + done, iova + done, size - done)
        gone = ops.unmap_pages(domain=domain, iova=iova + done, pgsize=pgsize, pgcount=count, gather=gather)
        if not gone:
            break
        done += gone
    return done


def iommu_unmap(domain: Domain, iova: int, size: int) -> int:
    """Unmap up to ``size`` bytes and wait until no device uses them.  Returns bytes unmapped."""
    gather = Gather()
    done = iommu_unmap_gathered(domain, iova, size, gather)
    domain.ops.iotlb_sync(domain=domain, gather=gather)
    return done


def iova_to_phys(domain: Domain, iova: int) -> int | None:
    """The physical address (bytes) that the tables give for one address; ``None`` where nothing is mapped."""
    physical = domain.ops.iova_to_phys(domain=domain, iova=np.array([iova], dtype=np.uint64))[0]
    return None if physical == UNMAPPED else int(physical)


def map_one_to_one(domain: Domain, start: int, end: int) -> None:
    """Map what is not mapped yet of the bytes ``start``..``end`` to the same physical addresses."""
    smallest = domain.page_sizes & -domain.page_sizes
    first, last = start // smallest, end // smallest
    pages = np.arange(first, last + 1, dtype=np.uint64) * np.uint64(smallest)
    missing = domain.ops.iova_to_phys(domain=domain, iova=pages) == UNMAPPED
    edges = np.flatnonzero(np.diff(np.concatenate(([False], missing, [False])).astype(np.int8)))
    for begin, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        at = (first + begin) * smallest
        iommu_map(domain, at, at, (stop - begin) * smallest, Prot.READ | Prot.WRITE)
