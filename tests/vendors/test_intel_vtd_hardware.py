"""What the VT-d driver writes to hardware: entries, tables, invalidations."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap, iommu_unmap_gathered
from iommukit.domain import DomainType, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.fault import FaultKind
from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec
from iommukit_intel_vtd.capabilities import ND, QI, RWBF, SAGAW, Capabilities
from tests.vendors.intel_vtd import INTEL, NIC, OPS, REGISTRY, dmar, drhd, machine, scope

BASE = 0xFED9_0000
IO, MEMORY = 0x1234_5000, 0x40_0000
RW = Prot.READ | Prot.WRITE
SECOND = {**NIC, "name": "second", "address": "0000:00:05.0"}
BRIDGE = {"name": "bridge", "address": "0000:00:06.0", "id": "8086:244e", "class": "060400", "kind": "pcie_to_pci_bridge"}
BRIDGE |= {"buses": "03"}
CARDS = [
    {"name": f"card{slot}", "address": f"0000:03:0{slot}.0", "id": "1102:0004", "class": "040100", "kind": "conventional"}
    | {"parent": "bridge"}
    for slot in (1, 2)
]
SCALABLE = {"address_width": 48, "scalable_mode": True}
FIRST = {**SCALABLE, "first_stage": True}
ERAS = ["6.1", "6.12", "7.2"]


def unit_words(*changes, of=None):
    words = of or Capabilities()
    for bits, value in changes:
        words = words.with_bits(bits, value)
    return {"units": [{"cap": f"{words.cap:#x}", "ecap": f"{words.ecap:#x}"}]}


class Recorder:
    """A bus that notes what is queued for invalidation."""

    def __init__(self, bus):
        self._bus = bus
        self.memory, self.clock, self.instructions = bus.memory, bus.clock, bus.instructions
        self.queued, self.commands = [], []
        self.before = lambda: None

    def read(self, address, size):
        return self._bus.read(address, size)

    def write(self, address, size, value):
        self.before()
        if address == BASE + 0x88:
            queue = self._bus.read(BASE + 0x90, 8)
            step, at = (32 if queue >> 11 & 1 else 16), self._bus.read(BASE + 0x80, 8)
            while at != value:
                low, high = (self.memory.word((queue & -0x1000) + at + offset) for offset in (0, 8))
                if low & 0xF != 5:
                    self.queued.append((low, high))
                at = (at + step) % (0x1000 << (queue & 7))
        elif address == BASE + 0x18:
            self.commands.append(value)
        self._bus.write(address, size, value)

    def take(self):
        taken, self.queued = self.queued, []
        return taken


class Setup:
    def __init__(self, kernel, hardware=None, devices=(NIC, SECOND), cmdline="", *, size=1 << 30, dmar=None):
        self.platform = ModelPlatform(size)
        self.recorder = self.platform.bus = Recorder(self.platform.bus)
        self.platform.install = self._install
        self.system = start_system(
            get_kernel(kernel),
            INTEL,
            REGISTRY,
            machine(list(devices), hardware, dmar),
            BootSpec(cmdline=cmdline),
            platform=self.platform,
        )
        self.memory = self.platform.bus.memory

    def _install(self, units, ops):
        """Models attach to the model's own bus; the driver gets the recorder."""
        for unit in units:
            self.platform._models[id(unit)] = ops.create_unit(bus=self.recorder._bus, unit=unit)
        return True

    @property
    def unit(self):
        return self.system.units[0]

    def device(self, name="nic"):
        return self.system.devices[name]

    def new(self, device=None, type=DomainType.UNMANAGED):
        return self.system.alloc(device or self.device(), type)

    def attached(self, name="nic", type=DomainType.UNMANAGED):
        domain = self.new(self.device(name), type)
        self.system.attach(self.device(name), domain)
        self.recorder.take()
        return domain

    def reach(self, iova, name="nic", write=False):
        device = self.device(name)
        return self.platform.model(device).translate(OPS.requester(device=device), iova, write=write)

    def faults(self):
        return list(OPS.take_faults(unit=self.unit))

    def entry(self, requester, words=2):
        root = self.recorder.read(BASE + 0x20, 8)
        if root >> 10 & 3:
            table = self.memory.word((root & -0x1000) + (requester >> 8) * 16 + (requester >> 7 & 1) * 8)
            at = (table & -0x1000) + (requester & 0x7F) * 32
        else:
            at = (self.memory.word((root & -0x1000) + (requester >> 8) * 16) & -0x1000) + (requester & 0xFF) * 16
        return [self.memory.word(at + 8 * number) for number in range(words)]


# ---- units -----------------------------------------------------------------------------------------------------------


def test_a_unit_is_started():
    setup = Setup("6.1")
    assert setup.recorder.read(BASE + 0x1C, 4) >> 26 == 0b110001, "TES, RTPS, QIES"
    assert setup.recorder.read(BASE + 0x38, 4) == 0, "the fault interrupt is unmasked"


@pytest.mark.parametrize("register", [0x08, 0x10])
def test_a_unit_that_is_not_what_the_machine_says_is_refused(register):
    class Liar(Recorder):
        def read(self, address, size):
            return super().read(address, size) ^ (1 << 5 if address == BASE + register else 0)

    setup = Setup("6.1")
    setup.unit.bus = Liar(setup.recorder._bus)
    with pytest.raises(IommuError, match=r"ENODEV.*dmar0.*the machine says"):
        OPS.start_unit(unit=setup.unit)


def test_units_have_their_own_registers():
    table = dmar(drhd(0xFED9_1000, scope("04.0")), drhd(BASE, everything=True))
    setup = Setup("6.12", dmar=table, devices=(NIC, SECOND))
    one, two = setup.attached("nic"), setup.attached("second")
    iommu_map(one, IO, MEMORY, 0x1000, RW)
    iommu_map(two, IO, MEMORY + 0x1000, 0x1000, RW)
    assert (setup.reach(IO), setup.reach(IO, "second")) == (MEMORY, MEMORY + 0x1000)
    assert [unit.state.drhd.address for unit in setup.system.units] == [0xFED9_1000, BASE]
    both = setup.new()
    for name in ("nic", "second"):
        setup.system.attach(setup.device(name), both)
    iommu_map(both, IO, MEMORY, 0x1000, RW)
    assert (setup.reach(IO), setup.reach(IO, "second")) == (MEMORY, MEMORY)
    iommu_unmap(both, IO, 0x1000)
    assert (setup.reach(IO), setup.reach(IO, "second")) == (None, None)


def test_a_unit_without_a_queue_is_driven_by_registers():
    setup = Setup("6.1", unit_words((QI, 0)))
    domain = setup.attached()
    iommu_map(domain, IO, MEMORY, 0x2000, RW)
    assert setup.reach(IO) == MEMORY
    iommu_unmap(domain, IO, 0x1000)
    assert (setup.reach(IO), setup.reach(IO + 0x1000)) == (None, MEMORY + 0x1000)
    setup.system.attach(setup.device(), setup.new())
    assert setup.reach(IO + 0x1000) is None
    assert not setup.recorder.take()


def test_a_refused_invalidation_is_an_error_and_the_queue_goes_on():
    setup = Setup("6.1")
    running = setup.unit.state.running
    with pytest.raises(IommuError, match="EIO"):
        running.invalidation.submit((0xF, 0))
    running.invalidation.submit((2 | 1 << 4, 0))
    assert setup.recorder.read(BASE + 0x80, 8) == setup.recorder.read(BASE + 0x88, 8)


@pytest.mark.parametrize("hardware", [unit_words((RWBF, 1)), None])
def test_write_buffers_are_flushed_where_they_must_be(hardware):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    setup.recorder.commands.clear()
    iommu_map(domain, IO, MEMORY, 0x1000, RW)
    assert [command >> 27 & 1 for command in setup.recorder.commands] == ([1] if hardware else [])
    assert setup.reach(IO) == MEMORY


# ---- device entries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "code"), [(39, 1), (48, 2), (57, 3)])
def test_legacy_context_entries(width, code):
    setup = Setup("7.2", {"address_width": width})
    domain = setup.attached()
    low, high = setup.entry(4 << 3)
    assert low == domain.space.table.root | 1
    assert high & 0xFF == code
    assert high >> 8 >= 2, "ids 0 and 1 are reserved"
    setup.system.attach(setup.device(), setup.new(type=DomainType.IDENTITY))
    assert setup.entry(4 << 3) == [1 | 2 << 2, 1 << 8 | code]
    setup.system.attach(setup.device(), setup.new(type=DomainType.BLOCKED))
    assert setup.entry(4 << 3) == [0, 0]


@pytest.mark.parametrize("hardware", [SCALABLE, FIRST])
def test_scalable_entries(hardware):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    context = setup.entry(4 << 3, words=4)
    assert (context[0] & 0xFFF, context[1:]) == (1 | 2 << 9, [0, 0, 0])
    directory = setup.memory.word(context[0] & -0x1000)
    entry = [setup.memory.word((directory & -0x1000) + 8 * number) for number in range(8)]
    root, number = domain.space.table.root, entry[1]
    if hardware is FIRST:
        assert entry == [1 | 1 << 6 | 2 << 2, number, root, 0, 0, 0, 0, 0]
    else:
        assert entry == [root | 2 << 6 | 2 << 2 | 1, number, 0, 0, 0, 0, 0, 0]
    OPS.release_device(device=setup.device())
    assert setup.entry(4 << 3, words=4) == [0, 0, 0, 0]


@pytest.mark.parametrize("hardware", [None, SCALABLE, FIRST])
@pytest.mark.parametrize("kernel", ERAS)
def test_what_replacing_an_entry_forgets(kernel, hardware):
    """Context or PASID entry first, then the old domain's translations, under its old id."""
    setup = Setup(kernel, hardware)
    old = setup.attached()
    number = old.space.uses[setup.unit.state.running].number
    setup.system.attach(setup.device(), setup.new())
    kinds = [(low & 0xF, low >> 4 & 3, low >> 16 & 0xFFFF) for low, _ in setup.recorder.take()]
    first = old.first_stage
    if hardware is None:
        assert kinds == [(1, 3, number), (2, 2, number)]
    else:
        assert kinds[:2] == [(7, 1, number), (6, 2, number) if first else (2, 2, number)]


def test_a_new_entry_is_told_in_caching_mode_alone():
    for hardware, expected in (({"caching_mode": True}, [1, 2]), (None, [])):
        setup = Setup("7.2", hardware)
        setup.system.detach(setup.device())
        setup.recorder.take()
        setup.system.attach(setup.device(), setup.new())
        assert [low & 0xF for low, _ in setup.recorder.take()] == expected


@pytest.mark.parametrize("hardware", [None, SCALABLE, FIRST, {"caching_mode": True}])
@pytest.mark.parametrize("kernel", ERAS)
def test_a_live_entry_is_replaced_without_a_gap(kernel, hardware):
    setup = Setup(kernel, hardware)
    domains = [setup.attached(), setup.new(), setup.new(type=DomainType.IDENTITY), setup.new()]
    at = 0x80_0000
    for domain in domains:
        if domain.type is DomainType.UNMANAGED:
            iommu_map(domain, at, at, 0x1000, RW)
    reached = []
    setup.recorder.before = lambda: reached.append(setup.reach(at))
    for domain in (*domains[1:], domains[0]):
        setup.system.attach(setup.device(), domain)
    assert len(reached) >= 4
    assert set(reached) == {at}


def test_requests_behind_a_bridge_carry_the_bridge_s_id():
    setup = Setup("6.12", devices=(BRIDGE, *CARDS))
    assert OPS.requester(device=setup.device("card1")) == 3 << 8
    domain = setup.device("card1").attached
    assert setup.device("card2").attached is domain
    iommu_map(domain, IO, MEMORY, 0x1000, RW)
    assert (setup.reach(IO, "card1"), setup.reach(IO, "card2")) == (MEMORY, MEMORY)
    assert setup.entry(3 << 8 | 1 << 3) == setup.entry(3 << 8) != [0, 0]


@pytest.mark.parametrize("hardware", [None, SCALABLE])
def test_a_shared_id_stays_until_the_last_of_its_devices_leaves(hardware):
    setup = Setup("6.12", hardware, devices=(BRIDGE, *CARDS))
    domain = setup.device("card1").attached
    iommu_map(domain, IO, MEMORY, 0x1000, RW)
    assert setup.reach(IO, "card2") == MEMORY
    for name, expected in (("card2", MEMORY), ("card1", None)):
        OPS.release_device(device=setup.device(name))
        setup.recorder.take()
        assert setup.reach(IO, "card1") == expected


def test_identity_without_pass_through_is_a_map_before_6_12():
    setup = Setup("6.1", {"pass_through": False}, cmdline="iommu.passthrough=1")
    assert setup.device().attached.type is DomainType.IDENTITY
    low, _ = setup.entry(4 << 3)
    assert low >> 2 & 3 == 0
    for address in (0, MEMORY, setup.memory.end - 0x1000):
        assert setup.reach(address, write=True) == address
    assert setup.reach(setup.memory.end) is None
    other = setup.attached()
    assert setup.reach(MEMORY) is None
    assert other.space is not setup.unit.state.platform.one_to_one
    later = Setup("6.12", {"pass_through": False})
    with pytest.raises(IommuError, match=r"EINVAL.*no pass-through"):
        later.system.attach(later.device(), later.new(type=DomainType.IDENTITY))


# ---- domain ids ------------------------------------------------------------------------------------------------------


def test_domain_ids_run_out_and_come_back():
    setup = Setup("7.2", unit_words((ND, 0)))
    names = ("nic", "second")
    domains = {name: setup.attached(name) for name in names}
    used = {domain.space.uses[setup.unit.state.running].number for domain in domains.values()}
    running = setup.unit.state.running
    taken = [running.numbers.take() for _ in range(16 - 2 - len(used))]
    assert not used & set(taken)
    spare = setup.new()
    iommu_map(domains["nic"], IO, MEMORY, 0x1000, RW)
    before = setup.memory.pages.outstanding
    with pytest.raises(IommuError, match="ENOSPC"):
        setup.system.attach(setup.device(), spare)
    assert (setup.reach(IO), setup.memory.pages.outstanding) == (MEMORY, before)
    running.numbers.give(taken[3])
    setup.system.attach(setup.device(), spare)
    assert spare.space.uses[running].number == taken[3]


# ---- page tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "prot", "size", "bits"),
    [
        (None, Prot.READ, 0x1000, 0b01),
        (None, Prot.WRITE, 0x1000, 0b10),
        (None, RW, 0x1000, 0b11),
        (None, RW, 0x20_0000, 0b11 | 1 << 7),
        (None, RW | Prot.CACHE | Prot.NOEXEC, 0x1000, 0b11),
        (FIRST, Prot.READ, 0x1000, 1 | 4 | 1 << 5),
        (FIRST, RW, 0x1000, 1 | 2 | 4 | 1 << 5 | 1 << 6),
        (FIRST, RW, 0x20_0000, 1 | 2 | 4 | 1 << 5 | 1 << 6 | 1 << 7),
    ],
)
def test_leaf_bits(hardware, prot, size, bits):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    OPS.map_pages(domain=domain, iova=0x4000_0000, paddr=0x60_0000, pgsize=size, pgcount=1, prot=int(prot))
    *tables, (_, _, leaf) = domain.space.table.entries(0x4000_0000)
    assert leaf == 0x60_0000 | bits
    assert {entry & 0xFFF for _, _, entry in tables} == {1 | 2 | 4 | 1 << 5 if hardware else 0b11}


def test_write_only_pages():
    for hardware, readable in ((None, None), (FIRST, MEMORY)):
        setup = Setup("7.2", hardware)
        domain = setup.attached()
        iommu_map(domain, IO, MEMORY, 0x1000, Prot.WRITE)
        assert setup.reach(IO, write=True) == MEMORY
        assert setup.reach(IO) == readable


@pytest.mark.parametrize("kernel", ERAS)
def test_refusals(kernel):
    setup = Setup(kernel)
    domain = setup.attached()
    beyond = "ERANGE" if kernel == "7.2" else "EFAULT"
    iommu_map(domain, IO, MEMORY, 0x1000, RW)
    for iova, prot, errno in ((1 << 39, RW, beyond), (IO, RW, "EEXIST"), (IO + 0x1000, 0, "EINVAL")):
        with pytest.raises(IommuError, match=errno):
            OPS.map_pages(domain=domain, iova=iova, paddr=MEMORY, pgsize=0x1000, pgcount=1, prot=int(prot))
    with pytest.raises(IommuError, match="EOPNOTSUPP"):
        OPS.map_pages(domain=setup.new(type=DomainType.IDENTITY), iova=0, paddr=0, pgsize=0x1000, pgcount=1, prot=3)
    assert setup.reach(IO) == MEMORY


@pytest.mark.parametrize(("width", "levels"), [(39, 3), (48, 4), (57, 5)])
@pytest.mark.parametrize("kernel", ERAS)
def test_before_7_2_tables_are_trimmed_to_the_unit(kernel, width, levels):
    setup = Setup(kernel, {"address_width": width})
    home = setup.attached()
    before = setup.memory.pages.outstanding
    domain = setup.new()
    deep = levels if kernel == "7.2" else 5
    OPS.map_pages(domain=domain, iova=IO, paddr=MEMORY, pgsize=0x1000, pgcount=1, prot=3)
    assert setup.memory.pages.outstanding - before == deep << 12
    setup.system.attach(setup.device(), domain)
    assert setup.memory.pages.outstanding - before == levels << 12
    assert domain.space.table.bytes == levels << 12
    assert setup.reach(IO) == MEMORY
    assert OPS.iova_to_phys(domain=domain, iova=np.array([IO], dtype=np.uint64)).tolist() == [MEMORY]
    setup.system.attach(setup.device(), home)
    setup.system.free(domain)
    assert setup.memory.pages.outstanding == before


def test_trimmed_tables_are_told_to_all_their_users():
    """A domain on a unit with four levels comes to one with three."""
    table = dmar(drhd(0xFED9_1000, scope("04.0")), drhd(BASE, everything=True), width=48)
    both = Capabilities().with_width(48).with_bits(SAGAW, 0b110)
    narrow = Capabilities()
    hardware = {"units": [{"cap": f"{words.cap:#x}", "ecap": f"{words.ecap:#x}"} for words in (both, narrow)]}
    setup = Setup("6.1", hardware, dmar=table)
    domain = setup.attached("nic")
    iommu_map(domain, IO, MEMORY, 0x1000, RW)
    assert (domain.space.levels, setup.reach(IO)) == (4, MEMORY)
    setup.system.attach(setup.device("second"), domain)
    assert domain.space.levels == 3
    assert (setup.reach(IO), setup.reach(IO, "second")) == (MEMORY, MEMORY)
    iommu_map(domain, IO + 0x1000, MEMORY, 0x1000, RW)
    assert (setup.reach(IO + 0x1000), setup.reach(IO + 0x1000, "second")) == (MEMORY, MEMORY)


@pytest.mark.parametrize("kernel", ERAS)
def test_a_part_of_a_large_page(kernel):
    setup = Setup(kernel)
    domain = setup.attached()
    size = 0x20_0000
    iommu_map(domain, 4 * size, 2 * size, size, RW)
    assert setup.reach(4 * size + 0x3000) == 2 * size + 0x3000
    gather = Gather()
    gone = OPS.unmap_pages(domain=domain, iova=4 * size + 0x1000, pgsize=0x1000, pgcount=1, gather=gather)
    OPS.iotlb_sync(domain=domain, gather=gather)
    whole = kernel != "7.2"
    assert gone == (size if whole else 0)
    assert (setup.reach(4 * size) is None) == (setup.reach(5 * size - 0x1000) is None) == whole


def test_all_memory_comes_back():
    setup = Setup("7.2")
    before = setup.memory.pages.outstanding
    domain = setup.new()
    iommu_map(domain, 0, 0, 64 << 20, RW)
    iommu_map(domain, 1 << 38, 0x1000, 0x5000, RW)
    iommu_unmap(domain, 0, 64 << 20)
    setup.system.free(domain)
    assert setup.memory.pages.outstanding == before


# ---- invalidation of ranges ------------------------------------------------------------------------------------------


def unmap(setup, domain, iova, size):
    iommu_map(domain, iova, 0x80_0000 | iova & 0xFFF000, size, RW)
    setup.recorder.take()
    iommu_unmap(domain, iova, size)
    return [(low & 0xF, low >> 4 & 3, high & -0x1000, high & 0x3F, high >> 6 & 1) for low, high in setup.recorder.take()]


@pytest.mark.parametrize(
    ("first", "pages", "address", "mask"),
    [
        (0x10, 1, 0x10, 0),
        (0x10, 2, 0x10, 1),
        (0x11, 2, 0x10, 2),
        (0x10, 3, 0x10, 2),
        (0x0F, 2, 0x00, 5),
        (0x13, 6, 0x10, 4),
        (0x40, 64, 0x40, 6),
        (0x7F, 2, 0x00, 8),
    ],
)
@pytest.mark.parametrize("hardware", [None, FIRST])
def test_the_smallest_block_that_holds_the_range(first, pages, address, mask, hardware):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    kind = 6 if hardware else 2
    assert unmap(setup, domain, first << 12, pages << 12) == [(kind, 3, address << 12, mask, 1)]


def test_tables_that_went_and_ranges_that_are_too_large():
    setup = Setup("7.2", {"superpages": []})
    domain = setup.attached()
    assert unmap(setup, domain, 0x20_0000, 0x20_0000) == [(2, 3, 0x20_0000, 9, 0)]
    assert unmap(setup, domain, (1 << 30) - 0x1000, 0x2000) == [(2, 2, 0, 0, 0)], "the block would need a mask beyond MAMV"


def test_ranges_apart_are_invalidated_apart():
    setup = Setup("7.2")
    domain = setup.attached()
    for page in (0, 1, 0x100):
        iommu_map(domain, page << 12, MEMORY, 0x1000, RW)
    setup.recorder.take()
    gather = Gather()
    for page in (0, 1, 0x100):
        iommu_unmap_gathered(domain, page << 12, 0x1000, gather)
    OPS.iotlb_sync(domain=domain, gather=gather)
    assert [(high & -0x1000, high & 0x3F) for _, high in setup.recorder.take()] == [(0, 1), (0x10_0000, 0)]
    OPS.iotlb_sync(domain=domain, gather=Gather())
    assert not setup.recorder.take()


def test_a_queued_unmap_is_left_to_the_flush():
    setup = Setup("7.2", {"superpages": []})
    domain = setup.attached()
    iommu_map(domain, 0, 0, 0x20_0000, RW)
    setup.recorder.take()
    gather = Gather(queued=True)
    assert iommu_unmap_gathered(domain, 0, 0x20_0000, gather) == 0x20_0000
    assert gather.freed
    assert not setup.recorder.take()
    OPS.flush_iotlb_all(domain=domain)
    assert [low >> 4 & 3 for low, _ in setup.recorder.take()] == [2]


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [(None, []), ({"caching_mode": True}, [(2, 3, IO, 1, 1)]), ({**FIRST, "caching_mode": True}, [])],
)
def test_new_mappings_in_caching_mode(hardware, expected):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    assert setup.reach(IO & -0x2000) is None
    iommu_map(domain, IO & -0x2000, MEMORY, 0x2000, RW)
    found = [(low & 0xF, low >> 4 & 3, high & -0x1000, high & 0x3F, high >> 6 & 1) for low, high in setup.recorder.take()]
    assert found == [(kind, size, address & -0x2000, mask, hint) for kind, size, address, mask, hint in expected]
    assert setup.reach(IO & -0x2000) == MEMORY


def test_a_large_page_in_the_place_of_a_table():
    setup = Setup("7.2")
    domain = setup.attached()
    size = 0x20_0000
    iommu_map(domain, size, MEMORY, 0x1000, RW)
    assert setup.reach(size) == MEMORY
    iommu_unmap(domain, size, 0x1000)
    before = setup.memory.pages.outstanding
    iommu_map(domain, size, 4 * size, size, RW)
    assert setup.memory.pages.outstanding == before - 0x1000
    assert [(low & 0xF, high >> 6 & 1) for low, high in setup.recorder.take()][-1] == (2, 0)
    assert setup.reach(size + 0x5000) == 4 * size + 0x5000


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", [None, SCALABLE, FIRST])
def test_faults_are_read_back(hardware):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    iommu_map(domain, IO, MEMORY, 0x1000, Prot.READ)
    far = 1 << (48 if hardware else 39)
    for iova, write, kind in (
        (IO, True, FaultKind.PERMISSION),
        (IO + 0x1008, True, FaultKind.NOT_MAPPED),
        (IO + 0x2000, False, FaultKind.NOT_MAPPED),
        (far, False, FaultKind.OUT_OF_RANGE),
    ):
        assert setup.reach(iova, write=write) is None
        (fault,) = setup.faults()
        assert (fault.kind, fault.requester, fault.iova, fault.write) == (kind, 4 << 3, iova & -0x1000, write)
    assert OPS.set_dev_blocked(device=setup.device())
    assert setup.reach(IO) is None
    assert [fault.kind for fault in setup.faults()] == [FaultKind.BLOCKED]
    assert setup.faults() == []


# ---- without hardware ------------------------------------------------------------------------------------------------


def test_policy_needs_no_numpy():
    script = (
        "import sys; from tests.vendors.intel_vtd import OPS, boot; system = boot('6.1'); nic = system.devices['nic'];"
        "assert not OPS.set_dev_blocked(device=nic); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
