"""Page sizes over ranges, and mapping that is all or nothing, against a domain that is a plain dictionary."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iommukit.dma.mapping import choose_pages, iommu_map, iommu_unmap, iova_to_phys, map_one_to_one
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.platform import UNMAPPED, Addresses

K4, M2, G1 = 1 << 12, 1 << 21, 1 << 30
SIZES = K4 | M2 | G1
aligned = st.integers(0, 1 << 20).map(lambda page: page * K4)
lengths = st.one_of(st.integers(1, 2000), st.integers(1, 600_000)).map(lambda pages: pages * K4)


@given(aligned, aligned, lengths, st.sampled_from([K4, K4 | M2, SIZES, K4 | 1 << 16 | M2]))
def test_pages_fit_and_cover_the_range(iova: int, paddr: int, size: int, sizes: int) -> None:
    done = 0
    while done < size:
        pgsize, count = choose_pages(sizes, iova + done, paddr + done, size - done)
        assert pgsize & sizes
        assert count > 0
        assert not (iova + done | paddr + done) % pgsize
        larger = [1 << bit for bit in range(64) if sizes >> bit & 1 and 1 << bit > pgsize]
        for next_size in larger:
            for at in (done, done + (count - 1) * pgsize):
                usable = not (iova + at | paddr + at) % next_size and size - at >= next_size
                assert not usable, "a larger page would have done"
        done += pgsize * count
    assert done == size


class Tables:
    """Hooks over a dictionary from page to page; ``fail_at`` is the call of ``map_pages`` that is refused."""

    def __init__(self, fail_at: int = -1, sync_fails: bool = False) -> None:
        self.pages: dict[int, int] = {}
        self.calls = 0
        self.fail_at = fail_at
        self.sync_fails = sync_fails
        self.synced: list[tuple[int, int]] = []

    def ops(self) -> SimpleNamespace:
        return SimpleNamespace(
            map_pages=self.map_pages,
            unmap_pages=self.unmap_pages,
            iotlb_sync=self.iotlb_sync,
            iotlb_sync_map=self.iotlb_sync_map,
            iova_to_phys=self.iova_to_phys,
        )

    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise IommuError("ENOMEM")
        for at in range(0, pgsize * pgcount, K4):
            self.pages[iova + at] = paddr + at
        return pgsize * pgcount

    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
        done = 0
        while done < pgsize * pgcount and self.pages.pop(iova + done, None) is not None:
            done += K4
        if done:
            gather.add(iova, done, pgsize)
        return done

    def iotlb_sync(self, domain: Domain, gather: Gather) -> None:
        self.synced.append((gather.start, gather.end))

    def iotlb_sync_map(self, domain: Domain, iova: int, size: int) -> None:
        if self.sync_fails:
            raise IommuError("ENOMEM")

    def iova_to_phys(self, domain: Domain, iova: Addresses) -> Addresses:
        found = [self.pages.get(int(at) & -K4) for at in iova]
        return np.array(
            [UNMAPPED if page is None else page + int(at) % K4 for at, page in zip(iova, found, strict=True)], dtype=np.uint64
        )


def domain_over(tables: Tables) -> Domain:
    domain = Domain(DomainType.UNMANAGED, page_sizes=K4 | M2)
    domain.ops = tables.ops()
    return domain


@given(aligned, aligned, st.integers(1, 1500).map(lambda pages: pages * K4))
def test_what_is_mapped_is_translated_and_unmapped(iova: int, paddr: int, size: int) -> None:
    tables = Tables()
    domain = domain_over(tables)
    iommu_map(domain, iova, paddr, size, 3)
    assert tables.pages == {iova + at: paddr + at for at in range(0, size, K4)}
    assert iova_to_phys(domain, iova + size - 1) == paddr + size - 1
    assert iova_to_phys(domain, iova + size) is None
    assert iommu_unmap(domain, iova, size) == size
    assert not tables.pages
    assert tables.synced == [(iova, iova + size - 1)]


@pytest.mark.parametrize("refused", [Tables(fail_at=0), Tables(fail_at=1), Tables(fail_at=2), Tables(sync_fails=True)])
def test_a_refused_map_leaves_nothing(refused: Tables) -> None:
    domain = domain_over(refused)
    with pytest.raises(IommuError):
        iommu_map(domain, M2 - K4, 5 * M2 - K4, M2 + 2 * K4, 3)
    assert not refused.pages


@pytest.mark.parametrize("values", [(1, 0, K4), (0, 1, K4), (0, 0, K4 + 1)])
def test_unaligned_values_are_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(IommuError, match="EINVAL"):
        iommu_map(domain_over(Tables()), *values, 3)


def test_one_to_one_leaves_what_is_there() -> None:
    tables = Tables()
    domain = domain_over(tables)
    iommu_map(domain, 4 * K4, 99 * K4, K4, 3)
    map_one_to_one(domain, 2 * K4 + 5, 7 * K4)
    assert tables.pages == {2 * K4: 2 * K4, 3 * K4: 3 * K4, 4 * K4: 99 * K4, 5 * K4: 5 * K4, 6 * K4: 6 * K4, 7 * K4: 7 * K4}
