"""The driver on the hardware model: what it writes, what it invalidates, and what becomes of failures."""

import numpy as np
import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap, iova_to_phys
from iommukit.domain import DomainType, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.bus import ModelBus
from iommukit.hw.fault import Fault, FaultKind
from iommukit.hw.platform import UNMAPPED
from iommukit.hw.walk import Mode
from iommukit_amd_vi.attach import aligned_pieces
from iommukit_amd_vi.layout import Command
from iommukit_amd_vi.model.unit import AmdModel
from iommukit_amd_vi.start import start
from iommukit_amd_vi.units import Iommu

from .amd_vi import KERNELS
from .amd_vi_hardware import GUEST_TABLES, IR, IW, NIC, SECOND, TV, OnModel, V

BLOCKED_ENTRY = {kernel: V if kernel == "7.2" else V | TV for kernel in KERNELS}
RW = int(Prot.READ | Prot.WRITE)
A, B = 0x2000_0000, 0x3000_0000


def commands(machine):
    """Codes and words of all commands in the buffer so far, oldest first."""
    queue = machine.system.units[0].state.hardware.queue
    words = [machine.memory.word(queue.ring + at) for at in range(0, queue._tail, 8)]
    return list(zip(words[::2], words[1::2], strict=True))


def since(machine, before, code):
    """The commands of one code after the first ``before`` ones."""
    return [words for words in commands(machine)[before:] if words[0] >> 60 == code]


# ---- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_blocks_before_a_device_is_attached(kernel):
    with OnModel(kernel) as machine:
        assert machine.entry(0x1234) == (V | TV, 0, 0, 0)
        unit = machine.system.units[0]
        assert machine.platform.model(machine.nic).translate(0x1234, A, write=False) is None
        fault = Fault(FaultKind.BLOCKED, 0x1234, A, False, 2)
        assert list(machine.ops.take_faults(unit=unit)) == [fault]
        assert list(machine.ops.take_faults(unit=unit)) == []


def test_other_features_than_were_said_are_no_device():
    with OnModel("7.2") as machine:
        state = machine.system.units[0].state
        bus = ModelBus(machine.memory)
        AmdModel(bus, Iommu(0, 0, 2, efr=state.iommu.efr ^ 1))
        for there in (bus, ModelBus(machine.memory)):
            with pytest.raises(IommuError, match="ENODEV"):
                start(state, there)


def test_without_iasup_everything_is_invalidated_one_by_one():
    with OnModel("6.1", hardware={"efr": 0x29D3 & ~(1 << 6)}) as machine:
        queue = machine.system.units[0].state.hardware.queue
        assert queue.timeouts == 0
        assert machine.reaches(machine.nic, A) is None


def test_two_units_with_a_table_each_and_ids_in_common():
    blocks = [
        {"kind": "ivhd11", "device": own, "segment": own >> 14, "address": address, "efr_image": 0x29D3, "entries": entries}
        for own, address, entries in (
            (0x0002, 0xFED80000, [{"kind": "all"}]),
            (0x4002, 0xFEC80000, [{"kind": "select", "device": 0x0018}]),
        )
    ]
    other = {**NIC, "name": "other", "address": "0001:00:03.0"}
    with OnModel("7.2", NIC, other, firmware={"info": 1, "blocks": blocks}) as machine:
        nic, other = machine.nic, machine.other
        assert nic.unit is not other.unit
        iommu_map(nic.attached, 0x1000, A, 0x1000, RW)
        assert (machine.reaches(nic, 0x1000), machine.reaches(other, 0x1000)) == (A, None)
        assert nic.attached.id != other.attached.id


# ---- device table entries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_entries_of_all_kinds_of_domains(kernel):
    with OnModel(kernel) as machine:
        nic, domain = machine.nic, machine.nic.attached
        through = V | TV | IR | IW
        assert machine.entry(nic) == (through | 3 << 9 | domain.tables.root, domain.id, 0, 0)
        identity = machine.system.alloc(nic, DomainType.IDENTITY)
        machine.ops.attach_dev(domain=identity, device=nic)
        assert machine.entry(nic) == (through, identity.id, 0, 0)
        assert identity.id > 0
        assert machine.reaches(nic, 0x1234_5678) == 0x1234_5678
        blocked = machine.system.alloc(nic, DomainType.BLOCKED)
        machine.ops.attach_dev(domain=blocked, device=nic)
        if kernel in ("6.12", "7.2"):
            assert machine.entry(nic) == (BLOCKED_ENTRY[kernel], 0, 0, 0)
        assert machine.reaches(nic, 0x1234_5678) is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_device_that_leaves_is_blocked(kernel):
    with OnModel(kernel) as machine:
        nic, id = machine.nic, machine.ops.requester(device=machine.nic)
        model = machine.platform.model(nic)
        iommu_map(nic.attached, 0x1000, A, 0x1000, RW)
        assert model.translate(id, 0x1000, write=True) == A
        machine.system.kernel.remove(machine.system, nic)
        assert machine.entry(id) == (BLOCKED_ENTRY[kernel], 0, 0, 0)
        assert model.translate(id, 0x1000, write=True) is None
        machine.system.kernel.add(machine.system, nic)
        iommu_map(nic.attached, 0x1000, B, 0x1000, RW)
        assert model.translate(id, 0x1000, write=True) == B


@pytest.mark.parametrize("kernel", KERNELS)
def test_aliases_have_the_same_entry(kernel):
    entries = [{"kind": "select", "device": 0xFFFF}, {"kind": "all"}, {"kind": "alias_select", "device": 0x18, "source": 0x88}]
    blocks = [{"kind": "ivhd11", "device": 2, "address": 0xFED80000, "efr_image": 0x29D3, "entries": entries}]
    with OnModel(kernel, {**NIC, "dma_aliases": ["05.0"]}, firmware={"info": 1, "blocks": blocks}) as machine:
        nic = machine.nic
        assert machine.ops.requester(device=nic) == 0x88
        assert machine.entry(0x18) == machine.entry(0x88) == machine.entry(0x28) != machine.entry(0x30)
        iommu_map(nic.attached, 0x1000, A, 0x1000, RW)
        model = machine.platform.model(nic)
        assert {model.translate(id, 0x1000, write=False) for id in (0x18, 0x88, 0x28)} == {A}
        machine.system.kernel.remove(machine.system, nic)
        assert {model.translate(id, 0x1000, write=False) for id in (0x18, 0x88, 0x28)} == {None}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_region_of_firmware_stays_in_reach_while_the_type_changes(kernel):
    region = {"start": 0x4000_0000, "end": 0x4000_1FFF, "type": "direct"}
    with OnModel(kernel, {**NIC, "reserved": [region]}) as machine:
        nic, bus = machine.nic, machine.nic.unit.state.hardware
        seen = []

        class Watched:
            """After each register write the device's entry is read anew."""

            memory, clock, instructions = machine.memory, None, None
            read = staticmethod(bus.bus.read)
            to = bus.bus

            def write(self, address, size, value):
                self.to.write(address, size, value)
                seen.append(machine.reaches(nic, 0x4000_1000))

        bus.queue._bus = Watched()
        for domain in [machine.system.alloc(nic, kind) for kind in (DomainType.IDENTITY, DomainType.DMA, DomainType.IDENTITY)]:
            if domain.type is DomainType.DMA:
                iommu_map(domain, 0x4000_0000, 0x4000_0000, 0x2000, RW)
            machine.ops.attach_dev(domain=domain, device=nic)
        assert seen
        assert set(seen) == {0x4000_1000}


# ---- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("bits", "levels"), [(39, 3), (41, 4), (48, 4), (49, 5), (57, 5), (58, 6), (64, 6)])
def test_host_tables_grow_to_the_address(kernel, bits, levels):
    with OnModel(kernel, hardware={"efr": 0x29D3}) as machine:
        nic, second, domain = machine.nic, machine.second, machine.nic.attached
        machine.ops.attach_dev(domain=domain, device=second)
        iommu_map(domain, 0x1000, A, 0x1000, RW)
        assert machine.reaches(nic, 0x1000) == A
        iova = (1 << bits) - 0x1000
        iommu_map(domain, iova, B, 0x1000, RW)
        for device in (nic, second):
            assert machine.entry(device)[0] >> 9 & 7 == levels
            assert (machine.reaches(device, 0x1000), machine.reaches(device, iova)) == (A, B)
        assert iova_to_phys(domain, iova) == B
        assert iommu_unmap(domain, iova, 0x1000) == 0x1000
        assert machine.reaches(nic, iova) is None


def test_a_page_of_a_higher_level_grows_them_too():
    with OnModel("7.2", hardware={"efr": 0x29D3}) as machine:
        domain = machine.nic.attached
        size = 1 << 41
        assert machine.ops.map_pages(domain=domain, iova=0, paddr=0, pgsize=size, pgcount=1, prot=RW) == size
        assert machine.reaches(machine.nic, size - 1) == size - 1
        assert machine.entry(machine.nic)[0] >> 9 & 7 == 4


@pytest.mark.parametrize("short", [0, 0x1000, 0x2000, 0x3000, 0x4000])
def test_growth_without_memory_changes_nothing(short):
    with OnModel("6.1") as machine:
        domain, pages = machine.nic.attached, machine.memory.pages
        iommu_map(domain, 0x1000, A, 0x1000, RW)
        before, entry, used = pages.outstanding, machine.entry(machine.nic), domain.tables.bytes
        pages.limit = before + short
        with pytest.raises(IommuError, match="ENOMEM"):
            iommu_map(domain, (1 << 64) - 0x1000, B, 0x1000, RW)
        assert (pages.outstanding, machine.entry(machine.nic), domain.tables.bytes) == (before, entry, used)
        assert machine.reaches(machine.nic, 0x1000) == A
        pages.limit = None
        iommu_map(domain, (1 << 64) - 0x1000, B, 0x1000, RW)
        assert machine.reaches(machine.nic, (1 << 64) - 8) == B + 0xFF8


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_tables_do_not_outgrow_the_hardware(kernel):
    with OnModel(kernel, hardware={"hats": 0}) as machine:
        domain = machine.nic.attached
        iommu_map(domain, (1 << 48) - 0x1000, A, 0x1000, RW)
        with pytest.raises(IommuError, match="no more than 4 levels"):
            iommu_map(domain, 1 << 48, B, 0x1000, RW)
        assert machine.reaches(machine.nic, (1 << 48) - 8) == A + 0xFF8


def test_the_aperture_is_enforced():
    with OnModel("7.2", hardware={"efr": 0x29D3 & ~(3 << 10)}) as machine:
        for iova in (1 << 48, (1 << 64) - 0x1000):
            with pytest.raises(IommuError, match="ERANGE"):
                iommu_map(machine.nic.attached, iova, A, 0x1000, RW)


# ---- unmapping and invalidating --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "first", "gone"), [("6.1", 0, True), ("6.1", 5, True), ("7.2", 0, True), ("7.2", 5, False)])
def test_a_part_of_a_larger_page(kernel, first, gone):
    """6.1 takes all of it and says so; 7.2 only from its first byte on."""
    with OnModel(kernel) as machine:
        domain = machine.nic.attached
        iommu_map(domain, 0x200000, A, 0x200000, RW)
        assert machine.reaches(machine.nic, 0x3FF000) == A + 0x1FF000
        done = iommu_unmap(domain, 0x200000 + first * 0x1000, 0x1000)
        assert done == (0x200000 if gone else 0)
        for iova in (0x200000, 0x205000, 0x3FF000):
            assert (machine.reaches(machine.nic, iova) is None) is gone


@pytest.mark.parametrize(("kernel", "released"), [("6.1", False), ("6.12", False), ("7.2", True)])
def test_tables_are_given_back_with_the_invalidation_since_7_2(kernel, released):
    with OnModel(kernel) as machine:
        domain, pages = machine.nic.attached, machine.memory.pages
        before = pages.outstanding
        machine.ops.map_pages(domain=domain, iova=0x40000000, paddr=A, pgsize=0x1000, pgcount=1024, prot=RW)
        full = pages.outstanding
        gather = Gather()
        machine.ops.unmap_pages(domain=domain, iova=0x40000000, pgsize=0x1000, pgcount=1024, gather=gather)
        assert pages.outstanding == full
        assert bool(gather.freed) is released
        machine.ops.iotlb_sync(domain=domain, gather=gather)
        assert gather.freed == []
        assert pages.outstanding == (before + 0x1000 if released else full)


def test_a_larger_page_replaces_an_empty_table():
    with OnModel("6.1") as machine:
        domain, pages = machine.nic.attached, machine.memory.pages
        iommu_map(domain, 0x200000, A, 0x1000, RW)
        assert machine.reaches(machine.nic, 0x200000) == A
        iommu_unmap(domain, 0x200000, 0x1000)
        before = pages.outstanding
        machine.ops.map_pages(domain=domain, iova=0x200000, paddr=B, pgsize=0x200000, pgcount=1, prot=RW)
        assert pages.outstanding == before - 0x1000
        assert machine.reaches(machine.nic, 0x3FF008) == B + 0x1FF008


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_command_for_a_range_and_aligned_ones_under_np_cache(kernel):
    for np_cache, expected in ((False, [0x7FFFF]), (True, [0x1000, 0x2000, 0x4000, 0x8000, 0x8000])):
        with OnModel(kernel, hardware={"np_cache": np_cache}) as machine:
            domain = machine.nic.attached
            iommu_map(domain, 0x1000, A + 0x1000, 0x17000, RW)
            before = len(commands(machine))
            iommu_unmap(domain, 0x1000, 0x17000)
            sent = since(machine, before, Command.INVALIDATE_IOMMU_PAGES)
            assert {first >> 32 & 0xFFFF for first, _ in sent} == {domain.id}
            assert all(second & 2 for _, second in sent), "directories too"
            assert len(sent) == len(expected)
            assert machine.reaches(machine.nic, 0x8000) is None


def test_ranges_cut_into_aligned_powers_of_two():
    assert aligned_pieces(0x3000, 0x6000) == [(0x3000, 0x1000), (0x4000, 0x4000), (0x8000, 0x1000)]
    assert aligned_pieces(0, 0x6000) == [(0, 0x4000), (0x4000, 0x2000)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("np_cache", [False, True])
def test_unmaps_that_do_not_touch_are_invalidated_apart_under_np_cache(kernel, np_cache):
    with OnModel(kernel, hardware={"np_cache": np_cache}) as machine:
        domain, nic, gather = machine.nic.attached, machine.nic, Gather()
        for iova in (0x10000, 0x900000):
            iommu_map(domain, iova, A + iova, 0x1000, RW)
            assert machine.reaches(nic, iova) == A + iova
        for iova in (0x10000, 0x900000):
            machine.ops.unmap_pages(domain=domain, iova=iova, pgsize=0x1000, pgcount=1, gather=gather)
        assert (machine.reaches(nic, 0x10000) is None) is np_cache
        assert machine.reaches(nic, 0x900000) == A + 0x900000
        machine.ops.iotlb_sync(domain=domain, gather=gather)
        assert machine.reaches(nic, 0x10000) is machine.reaches(nic, 0x900000) is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("np_cache", [False, True])
def test_only_np_cache_has_new_mappings_invalidated(kernel, np_cache):
    with OnModel(kernel, hardware={"np_cache": np_cache}) as machine:
        domain, nic = machine.nic.attached, machine.nic
        assert machine.reaches(nic, 0x5000) is None
        before = len(commands(machine))
        machine.ops.map_pages(domain=domain, iova=0x5000, paddr=A, pgsize=0x1000, pgcount=1, prot=RW)
        assert machine.reaches(nic, 0x5000) == (None if np_cache else A)
        machine.ops.iotlb_sync_map(domain=domain, iova=0x5000, size=0x1000)
        assert machine.reaches(nic, 0x5000) == A
        assert len(since(machine, before, Command.INVALIDATE_IOMMU_PAGES)) == np_cache


def test_ids_and_tables_come_back():
    with OnModel("6.12") as machine:
        nic, pages = machine.nic, machine.memory.pages
        before, ids = pages.outstanding, set(nic.unit.state.driver.ids)
        for _ in range(3):
            domain = machine.system.alloc(nic, DomainType.UNMANAGED)
            iommu_map(domain, 0x1000, A, 0x400000, RW)
            machine.ops.domain_free(domain=domain)
        assert (pages.outstanding, nic.unit.state.driver.ids) == (before, ids)


def test_ids_run_out():
    with OnModel("6.12") as machine:
        driver, before = machine.nic.unit.state.driver, machine.memory.pages.outstanding
        driver.ids.update(range(1, 1 << 16))
        with pytest.raises(IommuError, match="ENOSPC"):
            machine.system.alloc(machine.nic, DomainType.UNMANAGED)
        assert machine.memory.pages.outstanding == before


def test_a_full_log_is_read_and_starts_again():
    with OnModel("7.2") as machine:
        nic, unit = machine.nic, machine.nic.unit
        machine.platform.model(nic).translate_many(0x18, np.arange(0, 1 << 22, 1 << 12, dtype=np.uint64), write=True)
        faults = machine.ops.take_faults(unit=unit)
        assert [fault.iova for fault in faults] == list(range(0, 511 << 12, 1 << 12))
        assert {(fault.kind, fault.write) for fault in faults} == {(FaultKind.NOT_MAPPED, True)}
        machine.reaches(nic, 0x777000)
        assert list(machine.ops.take_faults(unit=unit)) == [Fault(FaultKind.NOT_MAPPED, 0x18, 0x777000, False, 2)]


def test_kinds_of_faults():
    with OnModel("7.2") as machine:
        nic, unit, model = machine.nic, machine.nic.unit, machine.platform.model(machine.nic)
        iommu_map(nic.attached, 0x1000, A, 0x1000, Prot.READ)
        machine.reaches(nic, 0x1000, write=True)
        table = nic.unit.state.hardware.table
        table.write(0x77, V | TV | 7 << 9)
        model.translate(0x77, 0x1000, write=False)
        table.write(0x78, V | TV | IR | IW | 1 << 9 | 1 << 45 | 9 << 64)
        model.translate(0x78, 0x1000, write=False)
        found = [(fault.kind, fault.requester, fault.write, fault.code) for fault in machine.ops.take_faults(unit=unit)]
        assert found == [
            (FaultKind.PERMISSION, 0x18, True, 2),
            (FaultKind.BAD_ENTRY, 0x77, False, 1),
            (FaultKind.BAD_TABLE, 0x78, False, 4),
        ]


# ---- guest tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_guest_tables(kernel):
    with OnModel(kernel, hardware=GUEST_TABLES, cmdline="amd_iommu=pgtbl_v2", kconfig="lazy") as machine:
        nic, second, domain = machine.nic, machine.second, machine.nic.attached
        assert domain.format == 2
        before, ids = machine.memory.pages.outstanding, set(nic.unit.state.driver.ids)
        machine.ops.attach_dev(domain=domain, device=second)
        one, two = machine.entry(nic), machine.entry(second)
        assert (one == two) is (kernel in ("6.1", "rfc")), "one GCR3 table a domain, later one a device"
        last = domain.aperture[1] + 1 - 0x1000
        for iova, size in ((0x5000, 0x1000), (0x400000, 0x200000), (0x40000000, 0x40000000), (last, 0x1000)):
            machine.ops.map_pages(domain=domain, iova=iova, paddr=0x40000000, pgsize=size, pgcount=1, prot=RW)
            machine.ops.iotlb_sync_map(domain=domain, iova=iova, size=size)
            for device in (nic, second):
                assert machine.reaches(device, iova + size - 8, write=True) == 0x40000000 + size - 8
            assert iommu_unmap(domain, iova, size) == size
            for device in (nic, second):
                assert machine.reaches(device, iova + size - 8) is None
        fresh = machine.system.alloc(second, DomainType.DMA)
        machine.ops.attach_dev(domain=fresh, device=second)
        machine.ops.attach_dev(domain=domain, device=second)
        machine.ops.domain_free(domain=fresh)
        machine.system.kernel.remove(machine.system, second)
        assert nic.unit.state.driver.ids < ids
        assert machine.memory.pages.outstanding < before + 0x10000


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_a_gcr3_table_without_memory(kernel):
    with OnModel(kernel, hardware=GUEST_TABLES, cmdline="amd_iommu=pgtbl_v2", kconfig="lazy") as machine:
        nic, pages = machine.nic, machine.memory.pages
        fresh, home = machine.system.alloc(nic, DomainType.DMA), nic.attached
        before, entry, ids = pages.outstanding, machine.entry(nic), set(nic.unit.state.driver.ids)
        pages.limit = before
        with pytest.raises(IommuError, match="ENOMEM"):
            machine.ops.attach_dev(domain=fresh, device=nic)
        assert (pages.outstanding, machine.entry(nic), nic.attached) == (before, entry, home)
        assert nic.unit.state.driver.ids == ids


# ---- walks of memory -------------------------------------------------------------------------------------------------


def _walk(machine, **chosen):
    hardware = machine.system.units[0].state.hardware
    roots = {"devtab": hardware.table.address | (hardware.table.size >> 12) - 1}
    return list(machine.ops.walk_tables(memory=machine.memory, roots=roots, requester=None, iova=None, **chosen))


@pytest.mark.parametrize("cmdline", ["", "amd_iommu=pgtbl_v2"])
def test_a_walk_finds_what_the_driver_has_mapped(cmdline):
    with OnModel(
        "6.12", NIC, SECOND, {**NIC, "name": "third", "address": "0000:00:05.0"}, hardware=GUEST_TABLES, cmdline=cmdline
    ) as machine:
        domain = machine.nic.attached
        iommu_map(domain, 0x5000, A + 0x5000, 0xB000, RW)
        iommu_map(domain, 0x40000000, 0x80000000, 0x40000000, Prot.READ)
        identity = machine.system.alloc(machine.second, DomainType.IDENTITY)
        machine.ops.attach_dev(domain=identity, device=machine.second)
        machine.ops.set_dev_blocked(device=machine.third)
        walks = _walk(machine)
        assert [(walk.requester, walk.mode) for walk in walks] == [(0x18, Mode.TRANSLATED), (0x20, Mode.PASS_THROUGH)]
        pages = {}
        for leaf in walks[0].pages:
            for offset in range(0, leaf.size, max(leaf.size // 16, 0x1000)):
                pages[leaf.iova + offset] = leaf.physical + offset, leaf.read, leaf.write
        assert {iova: found[0] for iova, found in pages.items()} == {iova: iova_to_phys(domain, iova) for iova in pages}
        assert {found[1:] for found in pages.values()} == {(True, True), (True, False)}
        assert sum(1 for iova in pages if iova < 0x40000000) == 11


def test_a_walk_names_the_entries_and_says_what_is_wrong():
    with OnModel("7.2") as machine:
        nic, table = machine.nic, machine.nic.unit.state.hardware.table
        iommu_map(nic.attached, 0x5000, A, 0x1000, RW)
        table.write(0x77, V | TV | 7 << 9)
        roots = {"devtab": table.address | (table.size >> 12) - 1}
        walk = lambda **more: list(machine.ops.walk_tables(memory=machine.memory, roots=roots, **more))  # noqa: E731
        (one,) = walk(requester=0x18, iova=0x5123)
        (leaf,) = one.pages
        assert (leaf.iova, leaf.physical, leaf.size) == (0x5000, A, 0x1000)
        assert [step.name for step in leaf.path] == ["level 3 entry", "level 2 entry", "level 1 entry"]
        assert one.steps[0].meaning.startswith("V TV IR IW Mode=3")
        (missing,) = walk(requester=0x18, iova=0x6000)
        assert [leaf.reason for leaf in missing.pages] == ["not present"]
        (bad,) = walk(requester=0x77, iova=None)
        assert (bad.mode, bad.reason) == (Mode.BAD, "mode 7, and there are 6 levels at most")
        (blocked,) = walk(requester=0x78, iova=None)
        assert blocked.mode is Mode.BLOCKED


def test_many_lookups_agree_with_the_hardware():
    with OnModel("7.2") as machine:
        domain = machine.nic.attached
        for shift in range(12, 31):
            machine.ops.map_pages(domain=domain, iova=3 << 32 | 1 << shift, paddr=1 << shift, pgsize=1 << shift, pgcount=1, prot=RW)
        iovas = np.random.default_rng(7).integers(3 << 32, (3 << 32) + (1 << 32), 5000, dtype=np.uint64)
        found = machine.ops.iova_to_phys(domain=domain, iova=iovas)
        reached = machine.platform.model(machine.nic).translate_many(0x18, iovas, write=True)
        assert (found == reached).all()
        assert (found != UNMAPPED).any()
