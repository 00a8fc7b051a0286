"""What a device's driver sees of the DMA API, over a domain that is a plain dictionary."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iommukit.device import DmaOps
from iommukit.dma.api import BELOW_4G, Direction, dma_map, dma_unmap
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import FlushQueueOptions
from iommukit.hw.bus import ModelBus
from iommukit.hw.memory import PhysicalMemory
from iommukit.regions import RegionType, ReservedRegion
from tests.dma.test_mapping import K4, M2, Tables

DATA = 0x10_0000


class Flushing(Tables):
    """Counts what the TLB is told."""

    def __init__(self) -> None:
        super().__init__()
        self.flushes = 0

    def ops(self) -> SimpleNamespace:
        return SimpleNamespace(**vars(super().ops()), flush_iotlb_all=self.flush_iotlb_all)

    def flush_iotlb_all(self, domain: Domain) -> None:
        self.flushes += 1


class Bench:
    """A device in a domain, and the hardware's memory."""

    def __init__(self, *, queue: FlushQueueOptions | None = None, untrusted: bool = False, **system: Any) -> None:
        self.tables = Flushing()
        self.domain = Domain(DomainType.DMA, aperture=(0, (1 << 39) - 1), page_sizes=K4 | M2)
        self.domain.ops = self.tables.ops()
        self.domain.flush_queue = queue
        self.bus = ModelBus(PhysicalMemory(64 << 20))
        facts = SimpleNamespace(pci=object(), dma_mask=(1 << 64) - 1)
        boot = SimpleNamespace(forcedac=system.pop("forcedac", False))
        regions = system.pop("regions", [])
        self.device: Any = SimpleNamespace(
            dma_ops=DmaOps.IOMMU,
            attach_deferred=False,
            untrusted=untrusted,
            group=SimpleNamespace(default_domain=self.domain),
            unit=SimpleNamespace(bus=self.bus),
            facts=facts,
            system=SimpleNamespace(boot=boot, regions=lambda device: regions),
        )

    def map(self, physical: int = DATA, size: int = K4, direction: Direction = Direction.BIDIRECTIONAL) -> int:
        return dma_map(self.device, physical, size, direction)


def test_an_offset_stays_and_whole_granules_are_mapped() -> None:
    bench = Bench()
    address = bench.map(DATA + 0x123, K4)
    assert address % K4 == 0x123
    page = address - 0x123
    assert bench.tables.pages == {page: DATA, page + K4: DATA + K4}
    dma_unmap(bench.device, address)
    assert not bench.tables.pages


def test_addresses_lie_below_4_gib_unless_told_otherwise_or_full() -> None:
    assert Bench().map() <= BELOW_4G
    assert Bench(forcedac=True).map() > BELOW_4G
    bench = Bench(regions=[ReservedRegion(0, BELOW_4G, RegionType.RESERVED)])
    assert bench.map() > BELOW_4G


def test_a_device_s_mask_holds() -> None:
    bench = Bench(forcedac=True)
    bench.device.facts.dma_mask = (1 << 24) - 1
    assert bench.map() < 1 << 24
    with pytest.raises(IommuError, match="ENOSPC"):
        bench.map(size=1 << 25)
    assert len(bench.tables.pages) == 1


def test_reserved_regions_are_left_alone_but_for_software_msi() -> None:
    top = ReservedRegion(BELOW_4G - 0xFFFFF, BELOW_4G, RegionType.MSI)
    assert Bench(regions=[top]).map() < top.start
    software = ReservedRegion(top.start, top.end, RegionType.SW_MSI)
    assert Bench(regions=[software]).map() > top.start


def test_strict_tells_the_tlb_before_the_address_is_free() -> None:
    bench = Bench()
    address = bench.map()
    dma_unmap(bench.device, address)
    assert bench.tables.synced == [(address, address + K4 - 1)]
    assert bench.map() == address
    with pytest.raises(IommuError, match="EINVAL"):
        dma_unmap(bench.device, address + M2)


def test_lazy_keeps_the_address_until_the_queue_is_flushed() -> None:
    bench = Bench(queue=FlushQueueOptions())
    address = bench.map()
    dma_unmap(bench.device, address)
    assert (bench.tables.synced, bench.tables.flushes) == ([], 0)
    assert bench.map() != address
    bench.bus.clock.advance(10_000_000)
    assert bench.tables.flushes == 1
    assert bench.map() == address


def test_a_queue_may_start_while_the_domain_is_in_use() -> None:
    bench = Bench()
    first, second = bench.map(), bench.map()
    dma_unmap(bench.device, first)
    bench.domain.flush_queue = FlushQueueOptions()
    dma_unmap(bench.device, second)
    assert len(bench.tables.synced) == 1
    bench.bus.clock.advance(10_000_000)
    assert bench.tables.flushes == 1


def test_a_refused_mapping_leaves_nothing() -> None:
    bench = Bench()
    bench.tables.fail_at = 0
    with pytest.raises(IommuError, match="ENOMEM"):
        bench.map()
    assert not bench.tables.pages
    address = bench.map()
    assert bench.domain.dma_space.iovas.free_bytes == (1 << 39) - 2 * K4
    dma_unmap(bench.device, address)


def test_without_a_domain_the_physical_address_is_the_answer() -> None:
    bench = Bench()
    bench.device.dma_ops = DmaOps.DIRECT
    assert bench.map(DATA + 5) == DATA + 5
    dma_unmap(bench.device, DATA + 5)


def test_an_untrusted_device_sees_a_copy_and_nothing_beside_it() -> None:
    bench = Bench(untrusted=True)
    memory = bench.bus.memory
    memory.write(DATA, b"secret" + b"buffer" + b"secret")
    held = memory.pages.outstanding
    address = bench.map(DATA + 6, 6)
    page = bench.tables.pages[address - 6]
    assert page != DATA
    assert memory.read(page, K4) == bytes(6) + b"buffer" + bytes(K4 - 12)
    memory.write(page + 6, b"answer")
    dma_unmap(bench.device, address)
    assert memory.read(DATA, 18) == b"secretanswersecret"
    assert memory.pages.outstanding == held


def test_what_an_untrusted_device_may_only_read_does_not_come_back() -> None:
    bench = Bench(untrusted=True)
    memory = bench.bus.memory
    memory.write(DATA + 6, b"buffer")
    address = bench.map(DATA + 6, 6, Direction.TO_DEVICE)
    memory.write(bench.tables.pages[address - 6] + 6, b"hacked")
    dma_unmap(bench.device, address)
    assert memory.read(DATA + 6, 6) == b"buffer"


def test_whole_granules_of_an_untrusted_device_are_mapped_as_they_are() -> None:
    bench = Bench(untrusted=True)
    assert bench.tables.pages.get(bench.map(DATA, 2 * K4)) == DATA
    with pytest.raises(IommuError, match="EINVAL"):
        bench.map(DATA + 1, 1 << 20)
