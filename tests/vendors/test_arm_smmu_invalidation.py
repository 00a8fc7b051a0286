"""What the SMMUv3 driver invalidates, and with which commands."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.dma.mapping import iommu_map, iommu_unmap, iova_to_phys
from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.platform import UNMAPPED
from iommukit_arm_smmu import commands
from tests.vendors.arm_smmu_hardware import ARM, NIC, Recorded, boot, parts, reaches, running

RW = Prot.READ | Prot.WRITE
ERAS = ("6.1", "rfc", "6.12", "7.2")
SYNC = 0x46
OPS = ARM.ops


@pytest.mark.parametrize(
    ("start", "size", "granule", "pgsize", "leaf", "expected"),
    [
        # NUM, SCALE, address, TTL, TG
        (0x5000, 0x1000, 12, 0x1000, True, [(0, 0, 0x5000, 3, 1)]),
        (0x5000, 0x3000, 12, 0x1000, True, [(2, 0, 0x5000, 3, 1)]),
        (0x5000, 0x2_1000, 12, 0x1000, True, [(0, 0, 0x5000, 3, 1), (0, 5, 0x6000, 3, 1)]),
        (0x20_0000, 0x20_0000, 12, 0x20_0000, True, [(0, 9, 0x20_0000, 2, 1)]),
        (0x4000_0000, 0x4000_0000, 12, 0x4000_0000, True, [(0, 18, 0x4000_0000, 1, 1)]),
        (0x5000, 0x1000, 12, 0x1000, False, [(0, 1, 0x5000, 0, 1)]),  # one page more, since 0, 0, 0 is reserved
        (0x20_0000, 0x40_0000, 12, 0, False, [(0, 10, 0x20_0000, 0, 1)]),
        (0x8000, 0x8000, 14, 0x4000, True, [(0, 1, 0x8000, 3, 2)]),
        (0x200_0000, 0x200_0000, 14, 0x200_0000, True, [(0, 11, 0x200_0000, 2, 2)]),
        (0x2000_0000, 0x2000_0000, 16, 0x2000_0000, True, [(0, 13, 0x2000_0000, 2, 3)]),
    ],
)
def test_ranges_by_hand(start, size, granule, pgsize, leaf, expected):
    found = commands.tlbi_range(0x12, start, size, granule, pgsize, leaf=leaf, ranges=True)
    assert [
        (first >> 12 & 31, first >> 20 & 31, second & ~0xFFF, second >> 8 & 3, second >> 10 & 3) for first, second in found
    ] == expected
    assert {second & 1 for _, second in found} == {int(leaf)}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([12, 14, 16]), st.integers(0, 1 << 20), st.integers(1, 1 << 22), st.booleans(), st.booleans(), st.booleans())
def test_a_range_is_covered_and_hardly_more(granule, first, count, leaf, known, ranges):
    start, size = first << granule, min(count, 1 << 22 if ranges else 300) << granule
    pgsize = 1 << granule if known else 0
    covered = []
    for one, two in commands.tlbi_range(0x12, start, size, granule, pgsize, leaf=leaf, ranges=ranges):
        at = two & ~0xFFF
        length = (1 << granule) if not ranges else (one >> 12 & 31) + 1 << (one >> 20 & 31) + granule
        assert not ranges or two >> 8 & 3 or one >> 12 & 31 or one >> 20 & 31, "reserved"
        covered.append((at, at + length))
    assert covered[0][0] == start
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
    assert 0 <= covered[-1][1] - start - size <= (1 << granule if ranges and not (leaf and known) else 0)


def test_without_ranges_each_page_has_a_command():
    recorded = Recorded()
    system = boot("7.2", NIC, platform=recorded.platform)
    running(system).contexts.ranges = False
    _, domain, _ = parts(system)
    iommu_map(domain, 0x5000, 0x10_0000, 0x4000, RW)
    recorded.opcodes()
    iommu_unmap(domain, 0x5000, 0x4000)
    assert [second & ~0xFFF for _, second in recorded.commands] == [0x5000, 0x6000, 0x7000, 0x8000, 0]


def test_what_does_not_belong_together_is_invalidated_first():
    recorded = Recorded()
    system = boot("7.2", NIC, platform=recorded.platform)
    _, domain, _ = parts(system)
    for at in (0x5000, 0x6000, 0x100_0000):
        iommu_map(domain, at, 0x10_0000, 0x1000, RW)
    recorded.opcodes()
    gather = Gather()
    for at in (0x5000, 0x6000):
        OPS.unmap_pages(domain=domain, iova=at, pgsize=0x1000, pgcount=1, gather=gather)
    assert recorded.opcodes() == []
    OPS.unmap_pages(domain=domain, iova=0x100_0000, pgsize=0x1000, pgcount=1, gather=gather)
    assert recorded.opcodes() == [0x12, SYNC]
    OPS.iotlb_sync(domain=domain, gather=gather)
    assert recorded.opcodes() == [0x12, SYNC]


def test_a_queued_unmap_waits_for_the_queue():
    recorded = Recorded()
    system = boot("7.2", NIC, platform=recorded.platform)
    _, domain, _ = parts(system)
    iommu_map(domain, 0, 1 << 30, 0x20_0000 + 0x1000, RW)
    assert reaches(system, 0x1000) == (1 << 30) + 0x1000
    recorded.opcodes()
    gather = Gather(queued=True)
    for at in (0x20_0000, 0):
        OPS.unmap_pages(domain=domain, iova=at, pgsize=0x1000, pgcount=1 if at else 512, gather=gather)
    assert recorded.opcodes() == []
    OPS.flush_iotlb_all(domain=domain)
    assert recorded.opcodes() == [0x11, SYNC]
    assert reaches(system, 0x1000) is None


@pytest.mark.parametrize("kernel", ERAS)
def test_a_part_of_a_block(kernel):
    """Split before 6.13, refused since."""
    system = boot(kernel, NIC)
    _, domain, _ = parts(system)
    iommu_map(domain, 0x20_0000, 0x4000_0000, 0x20_0000, RW)
    assert reaches(system, 0x20_0000) == 0x4000_0000
    done = iommu_unmap(domain, 0x20_3000, 0x2000)
    assert done == (0 if kernel == "7.2" else 0x2000)
    gone = [at for at in range(0x20_0000, 0x20_8000, 0x1000) if reaches(system, at) is None]
    assert gone == ([] if kernel == "7.2" else [0x20_3000, 0x20_4000])
    assert reaches(system, 0x3F_F123, write=True) == 0x401F_F123


def test_a_block_over_an_empty_table():
    system = boot("7.2", NIC)
    _, domain, _ = parts(system)
    iommu_map(domain, 0x20_0000, 0x10_0000, 0x1000, RW)
    assert reaches(system, 0x20_0000) == 0x10_0000
    iommu_unmap(domain, 0x20_0000, 0x1000)
    iommu_map(domain, 0x20_0000, 0x4000_0000, 0x20_0000, RW)
    assert reaches(system, 0x20_1000) == 0x4000_1000


def test_single_pages_over_a_whole_block():
    """An unmap in small pages that takes a block away does not name the small pages' level."""
    system = boot("7.2", NIC)
    _, domain, _ = parts(system)
    iommu_map(domain, 0x20_0000, 0x4000_0000, 0x20_0000, RW)
    assert reaches(system, 0x20_0000) == 0x4000_0000
    gather = Gather()
    assert OPS.unmap_pages(domain=domain, iova=0x20_0000, pgsize=0x1000, pgcount=512, gather=gather) == 0x20_0000
    OPS.iotlb_sync(domain=domain, gather=gather)
    assert reaches(system, 0x20_0000) is None


@pytest.mark.parametrize(
    ("iova", "paddr", "prot", "errno"),
    [
        (1 << 48, 0x1000, RW, "ERANGE"),
        (0x1000, 1 << 48, RW, "ERANGE"),
        (0x1000, 0x1000, 0, "EINVAL"),
        (0x1000, 0x1000, Prot.NOEXEC, "EINVAL"),
        (0x5000, 0x1000, RW, "EEXIST"),
    ],
)
def test_maps_that_are_refused(iova, paddr, prot, errno):
    system = boot("7.2", NIC)
    _, domain, _ = parts(system)
    iommu_map(domain, 0x5000, 0x10_0000, 0x1000, RW)
    with pytest.raises(IommuError) as refused:
        OPS.map_pages(domain=domain, iova=iova, paddr=paddr, pgsize=0x1000, pgcount=1, prot=prot)
    assert refused.value.name == errno
    assert iova_to_phys(domain, 0x5000) == 0x10_0000


def test_lookups_of_few_and_of_many():
    system = boot("7.2", NIC)
    _, domain, _ = parts(system)
    iommu_map(domain, 0x5000, 0x10_0000, 0x3000, RW)
    wanted = np.array([0x5008, 0x8000, 0x7FF8] * 20, dtype=np.uint64)
    expected = np.array([0x10_0008, int(UNMAPPED), 0x10_2FF8] * 20, dtype=np.uint64)
    for count in (3, 60):
        assert (OPS.iova_to_phys(domain=domain, iova=wanted[:count]) == expected[:count]).all()


# ---- the command queue -----------------------------------------------------------------------------------------------


def test_a_refused_command_is_replaced():
    system = boot("7.2", NIC)
    ring = running(system).ring
    ring.issue([(0x7F, 0), commands.tlbi_asid(1)])
    assert ring.illegal == [0x7F]
    ring.issue([commands.tlbi_asid(1)])
    assert ring.illegal == [0x7F]


def test_more_commands_than_the_queue_holds():
    system = boot("7.2", NIC)
    ring = running(system).ring
    ring.issue([commands.tlbi_asid(1)] * 200_000)
    assert ring.illegal == []
