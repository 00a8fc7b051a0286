"""Walks of a memory that the driver has written, and of damaged ones."""

from __future__ import annotations

import pytest

from iommukit.dma.mapping import iommu_map, iova_to_phys
from iommukit.domain import DomainType, Prot
from iommukit.errors import InputError
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.walk import Mode
from tests.vendors.arm_smmu_hardware import ARM, BASE, CONTEXT, NOT_GLOBAL, PAGE, REGISTERS, SID, TABLE, Bench, boot, parts

RW = Prot.READ | Prot.WRITE
VARIANTS = ({}, {"stages": [2]}, {"granules": ["16K"]}, {"granules": ["64K"], "oas": 52, "ias": 52, "va_bits": 52}, {"sid_bits": 8})


def roots(bus):
    return {"strtab_base": bus.read(REGISTERS + 0x80, 8), "strtab_base_cfg": bus.read(REGISTERS + 0x88, 4)}


def walks(memory, registers, requester=None, iova=None):
    return list(ARM.ops.walk_tables(memory=memory, roots=registers, requester=requester, iova=iova))


@pytest.mark.parametrize("hardware", VARIANTS)
def test_what_the_driver_has_mapped(hardware):
    system = boot("7.2", hardware=hardware)
    bus = system.platform.bus
    _, domain, _ = parts(system)
    sizes = [1 << bit for bit in range(40) if domain.page_sizes >> bit & 1]
    small, large = sizes[:2]
    iommu_map(domain, 3 * small, 7 * small, 5 * small, RW)
    iommu_map(domain, 9 * small, 7 * small, small, Prot.READ)
    iommu_map(domain, 4 * large, 2 * large, 2 * large, RW)
    first, second = walks(bus.memory, roots(bus))
    assert (first.requester, second.requester) == (24, 32)
    assert first.mode is second.mode is Mode.TRANSLATED
    assert first.domain == domain.context.number
    assert [step.name for step in first.steps] == (["STE"] if hardware.get("stages") == [2] else ["STE", "CD"])
    assert [(leaf.iova, leaf.physical, leaf.size, leaf.read, leaf.write, leaf.page) for leaf in first.pages] == [
        (3 * small, 7 * small, 5 * small, True, True, small),
        (9 * small, 7 * small, small, True, False, small),
        (4 * large, 2 * large, 2 * large, True, True, large),
    ]
    assert list(second.pages) == []
    for address in (3 * small + 5, 9 * small, 5 * large, 8 * small):
        (walk,) = walks(bus.memory, roots(bus), 24, address)
        (leaf,) = walk.pages
        known = iova_to_phys(domain, address)
        assert bool(leaf.reason) is (known is None)
        assert known is None or leaf.physical + address - leaf.iova == known


def test_identity_and_blocked():
    system = boot("7.2")
    bus = system.platform.bus
    for name, kind in (("nic", DomainType.IDENTITY), ("second", DomainType.BLOCKED)):
        device = system.devices[name]
        system.attach(device, system.alloc(device, kind))
    assert [(walk.requester, walk.mode) for walk in walks(bus.memory, roots(bus))] == [(24, Mode.PASS_THROUGH)]
    assert walks(bus.memory, roots(bus), 32)[0].mode is Mode.BLOCKED


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda bench: bench.ste(0), "C_BAD_STE"),
        (lambda bench: bench.cd(0, flip=1 << 31), "C_BAD_CD"),
        (lambda bench: bench.ste(0b1011 | BASE - 0x1000), "F_CD_FETCH"),
    ],
)
def test_entries_that_cannot_be(spoil, reason):
    bench = Bench()
    bench.stage_1()
    spoil(bench)
    (walk,) = walks(bench.memory, roots(bench.bus), SID)
    assert walk.mode is Mode.BAD
    assert walk.reason.startswith(reason)


def test_descriptors_that_cannot_be():
    bench = Bench()
    root = bench.stage_1()
    entries = (PAGE & ~0x400, PAGE & ~2, PAGE & ~0x40, PAGE | 0x80)
    for at, entry in enumerate(entries):
        bench.map(root, 39, 0x2000 * at, BASE | entry | NOT_GLOBAL)
    (walk,) = walks(bench.memory, roots(bench.bus))
    found = [(leaf.iova, leaf.read, leaf.write, leaf.reason.split(":")[0]) for leaf in walk.pages]
    assert found == [
        (0, False, False, "F_ACCESS"),
        (0x2000, False, False, "F_TRANSLATION"),
        (0x4000, False, False, ""),
        (0x6000, True, False, ""),
    ]


def test_both_halves_of_the_addresses():
    bench = Bench()
    lower, upper = bench.room(0x1000), bench.room(0x1000)
    bench.cd(lower, ttb1=upper)
    bench.ste(0b1011 | CONTEXT)
    bench.map(lower, 39, 0x1000, BASE | PAGE)
    bench.map(upper, 39, 0x1000, BASE | PAGE)
    (walk,) = walks(bench.memory, roots(bench.bus))
    assert [leaf.iova for leaf in walk.pages] == [0x1000, (1 << 64) - (1 << 39) + 0x1000]
    (walk,) = walks(bench.memory, roots(bench.bus), SID, 1 << 40)
    assert [leaf.reason for leaf in walk.pages] == [f"{1 << 40:#x} is outside what the tables translate"]


@pytest.mark.parametrize("format", [2 << 16 | 8, 1 << 16 | 7 << 6 | 16, 33])
def test_roots_that_cannot_be(format):
    with pytest.raises(InputError, match="strtab_base_cfg"):
        walks(PhysicalMemory(0x10000), {"strtab_base": 0, "strtab_base_cfg": format})


def test_a_stream_table_outside_the_memory():
    with pytest.raises(InputError, match="no memory at"):
        walks(PhysicalMemory(0x10000, BASE), {"strtab_base": TABLE})
