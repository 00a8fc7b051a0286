"""The s390 driver on its hardware model, in every generation: what it tells the hardware, and what DMA reaches then."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap, iova_to_phys
from iommukit.domain import DomainType, Prot
from iommukit.errors import InputError, IommuError
from iommukit.hookspecs import Gather, hookimpl
from iommukit.hw.bus import Completion
from iommukit.hw.fault import Fault, FaultKind
from iommukit.hw.platform import UNMAPPED
from iommukit.hw.walk import Mode
from iommukit_s390.model.unit import State
from iommukit_s390.zpci import enable
from tests.vendors.s390 import KERNELS, REGISTRY, S390, SDMA, Program, boot, machine

OPS = S390.ops
ERAS = pytest.mark.parametrize("kernel", KERNELS)
SHADOWED = pytest.mark.parametrize("shadow", [True, False])
PAGE = 0x1000
BUFFER = 0x40_0000
RW = int(Prot.READ | Prot.WRITE)


class Calls:
    """Instructions, counted and noted down on their way."""

    def __init__(self, real):
        self.real = real
        self.refreshed = []
        self.controls = []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def refresh_translations(self, handle, address, size):
        self.refreshed.append((handle, address, size))
        return self.real.refresh_translations(handle, address, size)

    def modify_controls(self, handle, operation, space, block):
        self.controls.append((handle, operation, int.from_bytes(block[32:40], "big")))
        return self.real.modify_controls(handle, operation, space, block)


def started(kernel, *names, shadow=True, **hardware):
    """A booted system, its platform, its first device in a domain of its own, and the calls from then on."""
    system, platform = boot(kernel, *(names or ("nic",)), hardware={"tlb_refresh": shadow, **hardware})
    device = next(iter(system.devices.values()))
    domain = system.alloc(device, DomainType.UNMANAGED)
    system.attach(device, domain)
    return system, platform, device, domain


def watch(device):
    hardware = device.unit.state.hardware
    hardware.instructions = calls = Calls(hardware.instructions)
    return calls


def lands(platform, device, iova, physical):
    """Whether the device's write at an address arrives in memory; its errors are handled afterwards."""
    initiator = platform.initiator(device)
    mark = (iova ^ physical).to_bytes(8, "big")
    platform.bus.memory.write(physical, b"-" * 8)
    initiator.poke(0, mark)
    initiator.store(iova, 8)
    OPS.take_faults(unit=device.unit)
    return platform.bus.memory.read(physical, 8) == mark


# ---- starting --------------------------------------------------------------------------------------------------------


@ERAS
def test_every_function_is_enabled(kernel):
    system, platform = boot(kernel, "a", "b")
    for unit in system.units:
        function = unit.state
        assert platform.model(system.devices[function.name]).state is State.ENABLED
        assert function.hardware.handle == platform.model(system.devices[function.name]).handle


def test_a_function_that_was_left_enabled_is_reset():
    program = Program().enabled().register()
    function = program.model.facts
    before = program.handle
    enable(function, BusOf(program))
    assert (program.model.registration, program.handle != before) == (None, True)
    assert function.hardware.handle == program.handle


class BusOf:
    def __init__(self, program, instructions=None):
        self.memory, self.clock = program.memory, program.bus.clock
        self.instructions = program.facility if instructions is None else instructions


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pft", 5, "CLP says pft 0x0, the machine 0x5"),
        ("edma", 0xFFFF_FFFF, "CLP says edma 0x1ffffffffffffff, the machine 0xffffffff"),
        ("tlb_refresh", False, "CLP says tlb_refresh 0x1, the machine 0x0"),
        ("fid", 9, "CLP lists no function 0x9"),
    ],
)
def test_a_machine_that_is_another_is_refused(field, value, message):
    program = Program()
    told = dataclasses.replace(program.model.facts, **{field: value})
    with pytest.raises(IommuError, match=f"ENODEV.*{message}"):
        enable(told, BusOf(program))


def test_without_instructions_there_is_no_function():
    class Broken:
        def clp(self, request):
            return Completion(3), b""

    program = Program()
    with pytest.raises(IommuError, match="ENODEV: CLP ends with condition code 3"):
        enable(program.model.facts, BusOf(program, Broken()))


def test_policy_alone_needs_no_numpy():
    code = """
import sys
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry
import iommukit_s390
registry = VendorRegistry()
vendor = registry.register(iommukit_s390, "s390")
device = {"name": "nic", "id": "1af4:1042", "class": "010000", "kind": "zpci"}
machine = Machine.model_validate({"machine": "z", "arch": "s390x", "devices": [device]})
system = start_system(get_kernel("7.2"), vendor, registry, machine, BootSpec())
domain = system.devices["nic"].attached
system.detach(system.devices["nic"])
system.free(domain)
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- mapping ---------------------------------------------------------------------------------------------------------


@ERAS
@SHADOWED
def test_what_is_mapped_is_reached_until_it_is_unmapped(kernel, shadow):
    _, platform, device, domain = started(kernel, shadow=shadow)
    assert not lands(platform, device, SDMA, BUFFER)
    iommu_map(domain, SDMA, BUFFER, 5 * PAGE, RW)
    assert [lands(platform, device, SDMA + n * PAGE, BUFFER + n * PAGE) for n in range(6)] == [True] * 5 + [False]
    assert iommu_unmap(domain, SDMA + PAGE, 2 * PAGE) == 2 * PAGE
    assert [lands(platform, device, SDMA + n * PAGE, BUFFER + n * PAGE) for n in range(5)] == [True, False, False, True, True]
    assert iova_to_phys(domain, SDMA + 3 * PAGE + 5) == BUFFER + 3 * PAGE + 5
    assert iova_to_phys(domain, SDMA + PAGE) is None


@ERAS
def test_entries_in_memory(kernel):
    """The way from the anchor to a page, with the bits of each entry."""
    _, platform, device, domain = started(kernel)
    iova = 0x1_1234_5000
    iommu_map(domain, iova, 0x1234_5000, PAGE, RW)
    iommu_map(domain, iova + PAGE, 0x1234_7000, PAGE, Prot.READ)
    memory = platform.bus.memory
    anchor = platform.model(device).registration.anchor
    assert (anchor.translate, anchor.type, anchor.origin % 0x4000) == (True, 1, 0)
    region = memory.big_word(anchor.origin + 8 * (iova >> 31))
    segment = memory.big_word((region & ~0xFFF) + 8 * (iova >> 20 & 2047))
    pages = segment & ~0x7FF
    assert (region & 0xFFF, region & 0x3000, segment & 0x7FF) == (0x7, 0, 0)
    page = iova >> 12 & 255
    assert memory.big_word(pages + 8 * page) == 0x1234_5000
    assert memory.big_word(pages + 8 * (page + 1)) == 0x1234_7200
    assert memory.big_word(pages + 8 * (page + 2)) == 0x400
    assert memory.big_word((region & ~0xFFF) + 8 * ((iova >> 20 & 2047) + 1)) == 0x20
    assert memory.big_word(anchor.origin) == 0x20


@pytest.mark.parametrize(
    ("dtsm", "memory", "type", "top"), [(0x6C, 1 << 43, 2, (1 << 43) + SDMA - PAGE), (0x7C, 1 << 55, 3, (1 << 55) + SDMA - PAGE)]
)
def test_longer_tables_in_72(dtsm, memory, type, top):
    hardware = {"dtsm": dtsm, "memory_size": memory, "end_dma": (1 << 57) - 1}
    _, platform, device, domain = started("7.2", **hardware)
    assert platform.model(device).registration.anchor.type == type
    for iova in (SDMA, top):
        iommu_map(domain, iova, BUFFER, PAGE, RW)
        assert lands(platform, device, iova + 8, BUFFER + 8)


def test_61_maps_every_power_of_two_in_pages():
    _, platform, device, domain = started("6.1")
    iommu_map(domain, SDMA, 0x80_0000, 0x40_0000, RW)
    assert [lands(platform, device, SDMA + at, 0x80_0000 + at) for at in (0, 0x1F_F000, 0x3F_FFF8)] == [True] * 3
    assert iommu_unmap(domain, SDMA, 0x40_0000) == 0x40_0000


@pytest.mark.parametrize(("kernel", "taken"), [("6.1", False), ("rfc", True), ("6.12", True)])
def test_a_mapping_for_writing_alone_can_be_read_too_since_the_common_dma_api(kernel, taken):
    _, platform, device, domain = started(kernel)
    if not taken:
        with pytest.raises(IommuError, match="EINVAL"):
            iommu_map(domain, SDMA, BUFFER, PAGE, Prot.WRITE)
        return
    iommu_map(domain, SDMA, BUFFER, PAGE, Prot.WRITE)
    assert platform.model(device).translate(1, SDMA, write=False) == BUFFER


@ERAS
def test_refusals_change_nothing(kernel):
    _, platform, device, domain = started(kernel)
    iommu_map(domain, SDMA + 2 * PAGE, BUFFER, PAGE, RW)
    for iova, size, errno in ((SDMA, 4 * PAGE, "EEXIST"), (1 << 42, PAGE, "EINVAL"), ((1 << 42) - PAGE, 2 * PAGE, "EINVAL")):
        with pytest.raises(IommuError, match=errno):
            iommu_map(domain, iova, 0x80_0000, size, RW)
    assert lands(platform, device, SDMA + 2 * PAGE, BUFFER)
    assert [iova_to_phys(domain, SDMA + n * PAGE) for n in range(4)] == [None, None, BUFFER, None]


@ERAS
def test_no_memory_for_tables(kernel):
    _, platform, _, domain = started(kernel)
    pages = platform.bus.memory.pages
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    before = pages.limit = pages.outstanding
    with pytest.raises(IommuError, match="ENOMEM"):
        iommu_map(domain, SDMA + (1 << 20) - PAGE, BUFFER, 2 * PAGE, RW)
    assert (pages.outstanding, iova_to_phys(domain, SDMA + (1 << 20) - PAGE)) == (before, None)


@ERAS
def test_tables_stay_until_the_domain_goes(kernel):
    system, platform, device, domain = started(kernel)
    pages = platform.bus.memory.pages
    iommu_map(domain, SDMA, BUFFER, 1 << 21, RW)
    full = pages.outstanding
    gather = Gather()
    OPS.unmap_pages(domain=domain, iova=SDMA, pgsize=PAGE, pgcount=512, gather=gather)
    OPS.iotlb_sync(domain=domain, gather=gather)
    assert (gather.freed, pages.outstanding) == ([], full)
    system.detach(device)
    system.free(domain)
    # A root, a segment table and two page tables.
    assert full - pages.outstanding == 2 * 0x4000 + 2 * 0x800


# ---- RPCIT -----------------------------------------------------------------------------------------------------------


@ERAS
@SHADOWED
def test_when_rpcit_is_issued(kernel, shadow):
    _, _, device, domain = started(kernel, shadow=shadow)
    handle = device.unit.state.hardware.handle
    calls = watch(device)
    iommu_map(domain, SDMA, BUFFER, 3 * PAGE, RW)
    mapped, calls.refreshed = calls.refreshed, []
    if kernel == "6.1":
        # Inside map, for each call of it: the sizes that fit, largest first.
        assert sum(size for _, _, size in mapped) == 3 * PAGE
    else:
        assert mapped == ([(handle, SDMA, 3 * PAGE)] if shadow else [])
    gather = Gather()
    OPS.unmap_pages(domain=domain, iova=SDMA + PAGE, pgsize=PAGE, pgcount=1, gather=gather)
    at_once, calls.refreshed = calls.refreshed, []
    assert at_once == ([(handle, SDMA + PAGE, PAGE)] if kernel == "6.1" else [])
    OPS.unmap_pages(domain=domain, iova=SDMA + 2 * PAGE, pgsize=PAGE, pgcount=1, gather=gather)
    calls.refreshed = []
    OPS.iotlb_sync(domain=domain, gather=gather)
    assert calls.refreshed == ([] if kernel == "6.1" else [(handle, SDMA + PAGE, 2 * PAGE)])
    calls.refreshed = []
    OPS.iotlb_sync(domain=domain, gather=Gather())
    assert calls.refreshed == []
    OPS.flush_iotlb_all(domain=domain)
    function = device.unit.state
    assert calls.refreshed == [(handle, function.start_dma, function.end_dma - function.start_dma + 1)]


def test_every_function_of_a_domain_is_refreshed():
    system, platform, first, domain = started("7.2", "a", "b")
    second = system.devices["b"]
    system.attach(second, domain)
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    assert lands(platform, first, SDMA, BUFFER) and lands(platform, second, SDMA, BUFFER)
    iommu_unmap(domain, SDMA, PAGE)
    assert not lands(platform, first, SDMA, BUFFER) and not lands(platform, second, SDMA, BUFFER)


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_a_hypervisor_without_room_finds_stale_entries_by_a_refresh_of_all(kernel):
    _, platform, device, domain = started(kernel)
    platform.model(device).registration.translation.limit = 8
    iommu_map(domain, SDMA, BUFFER, 8 * PAGE, RW)
    # As under a flush queue: unmapped, not refreshed.
    OPS.unmap_pages(domain=domain, iova=SDMA, pgsize=PAGE, pgcount=8, gather=Gather(queued=True))
    calls = watch(device)
    iommu_map(domain, SDMA + 16 * PAGE, BUFFER, 8 * PAGE, RW)
    function = device.unit.state
    assert [size for _, _, size in calls.refreshed] == [8 * PAGE, function.end_dma - function.start_dma + 1]
    assert lands(platform, device, SDMA + 16 * PAGE, BUFFER)
    with pytest.raises(IommuError, match="ENOMEM"):
        iommu_map(domain, SDMA + 32 * PAGE, BUFFER, PAGE, RW)
    assert iova_to_phys(domain, SDMA + 32 * PAGE) is None
    assert lands(platform, device, SDMA + 16 * PAGE, BUFFER)


def test_61_undoes_a_map_that_cannot_be_shadowed_and_the_2022_series_says_nothing():
    for kernel in ("6.1", "rfc"):
        _, platform, device, domain = started(kernel)
        platform.model(device).registration.translation.limit = 0
        if kernel == "6.1":
            with pytest.raises(IommuError, match="ENOMEM"):
                iommu_map(domain, SDMA, BUFFER, PAGE, RW)
            assert iova_to_phys(domain, SDMA) is None
        else:
            iommu_map(domain, SDMA, BUFFER, PAGE, RW)
            assert not lands(platform, device, SDMA, BUFFER)


def test_a_busy_instruction_is_tried_again():
    _, platform, device, domain = started("7.2")
    hardware = device.unit.state.hardware

    class Busy(Calls):
        left = 3

        def refresh_translations(self, handle, address, size):
            self.left -= 1
            return Completion(2) if self.left >= 0 else super().refresh_translations(handle, address, size)

    hardware.instructions = Busy(hardware.instructions)
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    assert lands(platform, device, SDMA, BUFFER)


# ---- attaching -------------------------------------------------------------------------------------------------------


@ERAS
@SHADOWED
def test_moving_between_domains(kernel, shadow):
    system, platform, device, first = started(kernel, shadow=shadow)
    iommu_map(first, SDMA, BUFFER, PAGE, RW)
    second = system.alloc(device, DomainType.UNMANAGED)
    iommu_map(second, SDMA, 0x50_0000, PAGE, RW)
    assert lands(platform, device, SDMA, BUFFER)
    system.attach(device, second)
    assert (lands(platform, device, SDMA, BUFFER), lands(platform, device, SDMA, 0x50_0000)) == (False, True)
    system.attach(device, first)
    assert lands(platform, device, SDMA, BUFFER)
    system.detach(device)
    assert (lands(platform, device, SDMA, BUFFER), device.attached, first.functions) == (False, None, [])


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_blocked_is_no_registration(kernel):
    system, platform, device, domain = started(kernel)
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    calls = watch(device)
    system.attach(device, system.alloc(device, DomainType.BLOCKED))
    assert [operation for _, operation, _ in calls.controls] == [5]
    assert platform.model(device).registration is None
    platform.initiator(device).store(SDMA, 8)
    assert [fault.kind for fault in OPS.take_faults(unit=device.unit)] == [FaultKind.BLOCKED]


def test_identity_in_72_reaches_memory_behind_the_first_dma_address():
    system, platform = boot("7.2", hardware={"rtr": True}, cmdline="iommu.passthrough=1")
    device = system.devices["nic"]
    assert device.attached.type is DomainType.IDENTITY
    assert lands(platform, device, SDMA + BUFFER, BUFFER)
    domain = system.alloc(device, DomainType.UNMANAGED)
    system.attach(device, domain)
    assert not lands(platform, device, SDMA + BUFFER, BUFFER)


@ERAS
def test_a_registration_that_fails_leaves_the_old_one(kernel):
    system, platform, device, first = started(kernel)
    iommu_map(first, SDMA, BUFFER, PAGE, RW)
    second = system.alloc(device, DomainType.UNMANAGED)
    hardware = device.unit.state.hardware

    class Refusing(Calls):
        def modify_controls(self, handle, operation, space, block):
            refused = operation == 4 and int.from_bytes(block[32:40], "big") == second.iota
            return Completion(1, 40) if refused else super().modify_controls(handle, operation, space, block)

    hardware.instructions = Refusing(hardware.instructions)
    with pytest.raises(IommuError, match="EIO"):
        system.attach(device, second)
    assert device.attached is first
    assert (lands(platform, device, SDMA, BUFFER), second.functions, len(first.functions)) == (True, [], 1)


def test_a_domain_that_cannot_be_shadowed_is_not_entered():
    system, platform, device, first = started("7.2")
    iommu_map(first, SDMA, BUFFER, PAGE, RW)
    second = system.alloc(device, DomainType.UNMANAGED)
    iommu_map(second, SDMA, 0x50_0000, 16 * PAGE, RW)
    platform.model(device).shadow_limit = 4
    with pytest.raises(IommuError, match="ENOMEM"):
        system.attach(device, second)
    assert lands(platform, device, SDMA, BUFFER)


def test_a_designation_that_the_hardware_lacks_is_refused():
    # 7.2 takes the code of a region-second table for its bit in dtsm; the bit says something else.
    system, _ = boot("7.2", hardware={"dtsm": 0x48, "memory_size": 1 << 43})
    assert system.devices["nic"].attached is None


def test_a_device_that_leaves_and_returns():
    system, platform, device, domain = started("7.2")
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    before = platform.bus.memory.pages.outstanding
    for _ in range(3):
        system.kernel.remove(system, device)
        assert platform.model(device) is None and not device.present
        system.kernel.add(system, device)
        assert platform.bus.memory.pages.outstanding <= before
        assert not lands(platform, device, SDMA, BUFFER)


# ---- faults ----------------------------------------------------------------------------------------------------------


@ERAS
@SHADOWED
def test_faults_by_their_event_codes(kernel, shadow):
    _, platform, device, domain = started(kernel, shadow=shadow)
    iommu_map(domain, SDMA, BUFFER, PAGE, Prot.READ)
    initiator = platform.initiator(device)
    seen = []
    for iova, write in ((SDMA + PAGE + 4, False), (SDMA + 8, True), (SDMA - 8, True)):
        (initiator.store if write else initiator.load)(iova, 4)
        seen += OPS.take_faults(unit=device.unit)
    assert seen == [
        Fault(FaultKind.NOT_MAPPED, 1, SDMA + PAGE + 4, False, 4),
        Fault(FaultKind.PERMISSION, 1, SDMA + 8, True, 4),
        Fault(FaultKind.OUT_OF_RANGE, 1, SDMA - 8, True, 2),
    ]
    assert OPS.take_faults(unit=device.unit) == []
    assert OPS.requester(device=device) == 1


def test_a_broken_table_is_told():
    _, platform, device, domain = started("7.2", shadow=False)
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    table = domain.table
    (_, address, _), *_ = table.entries(SDMA)
    for value, code in ((0, 7), (0x10_0000, 9), (0x10_0000 | 0x44, 8)):
        platform.bus.memory.set_big_word(address, value)
        OPS.flush_iotlb_all(domain=domain)
        platform.initiator(device).load(SDMA, 4)
        assert OPS.take_faults(unit=device.unit) == [Fault(FaultKind.BAD_TABLE, 1, SDMA, False, code)]


def test_events_of_another_function_are_kept_for_it():
    system, platform, first, _ = started("7.2", "a", "b")
    second = system.devices["b"]
    platform.initiator(second).load(0x10, 4)
    assert OPS.take_faults(unit=first.unit) == []
    assert platform.model(second).state is State.ENABLED
    assert [fault.requester for fault in OPS.take_faults(unit=second.unit)] == [2]


def test_an_event_of_an_earlier_life_is_ignored():
    _, platform, device, _ = started("7.2")
    model = platform.model(device)
    platform.initiator(device).load(0x10, 4)
    model.disable()
    model.enable()
    device.unit.state.hardware.handle = model.handle
    assert OPS.take_faults(unit=device.unit) == []


def test_an_error_does_not_stop_the_next_refresh():
    """Nobody has asked for faults: the driver finds the function in error when it uses it, and handles the event."""
    _, platform, device, domain = started("7.2")
    platform.initiator(device).load(SDMA, 4)
    assert platform.model(device).state is State.ERROR
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    assert lands(platform, device, SDMA, BUFFER)


def test_an_error_does_not_outlast_its_domain():
    system, platform, device, domain = started("7.2")
    system.detach(device)
    platform.initiator(device).load(SDMA, 4)
    iommu_map(domain, SDMA, BUFFER, PAGE, RW)
    system.attach(device, domain)
    assert [fault.kind for fault in OPS.take_faults(unit=device.unit)] == [FaultKind.BLOCKED]
    assert lands(platform, device, SDMA, BUFFER)


# ---- walking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtsm", "memory"), [(0x40, 1 << 32), (0x6C, 1 << 43), (0x7C, 1 << 54)])
def test_a_walk_reads_back_what_the_driver_wrote(dtsm, memory):
    _, platform, _, domain = started("7.2", dtsm=dtsm, memory_size=memory)
    ranges = [(SDMA, BUFFER, 40, RW), (SDMA + 0x7FFF_0000, 0x60_0000, 300, RW), (SDMA + 0x4000_0000, BUFFER, 3, int(Prot.READ))]
    for iova, physical, count, prot in ranges:
        iommu_map(domain, iova, physical, count * PAGE, prot)
    (walk,) = OPS.walk_tables(memory=platform.bus.memory, roots={"iota": domain.iota}, requester=7, iova=None)
    assert (walk.requester, walk.mode) == (7, Mode.TRANSLATED)
    merged = []
    for leaf in walk.pages:
        last = merged[-1] if merged else None
        if last and last[0] + last[2] == leaf.iova and last[1] + last[2] == leaf.physical and last[3] == leaf.write:
            last[2] += leaf.size
        else:
            merged.append([leaf.iova, leaf.physical, leaf.size, leaf.write])
    assert sorted(map(tuple, merged)) == sorted((i, p, n * PAGE, bool(prot & Prot.WRITE)) for i, p, n, prot in ranges)


def test_a_walk_of_one_address_shows_the_way():
    _, platform, _, domain = started("7.2")
    iommu_map(domain, SDMA, BUFFER, PAGE, Prot.READ)

    def ask(iova, iota=domain.iota):
        (walk,) = OPS.walk_tables(memory=platform.bus.memory, roots={"iota": iota}, requester=None, iova=iova)
        return walk, list(walk.pages)

    walk, (leaf,) = ask(SDMA + 0x123)
    assert (leaf.iova, leaf.physical, leaf.size, leaf.read, leaf.write) == (SDMA, BUFFER, PAGE, True, False)
    bits = [step.meaning.split(" address")[0] for step in walk.steps + leaf.path]
    assert bits == ["T=1 DT=1", "TT=1 TF=0 TL=3", "TT=0", "P"]
    assert ask(SDMA + PAGE)[1][0].reason == "not present"
    assert ask(1 << 42)[1][0].reason.endswith(f"beyond the table at {domain.table.root:#x}")
    (_, address, _), *_ = domain.table.entries(SDMA)
    platform.bus.memory.set_big_word(address, 0)
    assert ask(SDMA)[1][0].reason == "an entry of zeros"
    assert ask(SDMA, 0)[0].mode is Mode.PASS_THROUGH
    with pytest.raises(InputError, match="designation type 4 in 0x810 has no tables"):
        ask(SDMA, 0x810)


# ---- in bulk ---------------------------------------------------------------------------------------------------------


@SHADOWED
def test_many_requests_at_once(shadow):
    _, platform, device, domain = started("7.2", shadow=shadow, memory_size=1 << 32)
    iommu_map(domain, SDMA, 0x400_0000, 1 << 28, RW)
    iommu_map(domain, SDMA + (1 << 30), 0x400_0000, PAGE, Prot.READ)
    iovas = np.random.default_rng(5).integers(0, 1 << 28, 20_000).astype(np.uint64) + np.uint64(SDMA)
    model = platform.model(device)
    assert (model.translate_many(1, iovas, write=True) == iovas - np.uint64(SDMA - 0x400_0000)).all()
    mixed = np.array([SDMA, SDMA + (1 << 30), SDMA + (1 << 29), SDMA - PAGE], dtype=np.uint64)
    assert model.translate_many(1, mixed, write=True).tolist() == [0x400_0000, *[int(UNMAPPED)] * 3]
    assert OPS.take_faults(unit=device.unit) == [Fault(FaultKind.PERMISSION, 1, SDMA + (1 << 30), True, 4)]


# ---- the machine of QEMU, and mistakes -------------------------------------------------------------------------------


def test_the_emulated_machine_is_a_machine():
    emulation = OPS.emulation(version=(7, 2))
    document = type(machine()).model_validate(emulation.machine)
    assert [device.name for device in document.devices] == ["nic", "second"]
    assert len({device.attributes["fid"] for device in document.devices}) == 2


def test_mistakes_wrap_hooks_of_this_vendor():
    mistakes = OPS.mistakes()
    assert len({mistake.name for mistake in mistakes}) == len(mistakes) >= 5
    for mistake in mistakes:
        registry = REGISTRY.wrapped(mistake.wrapper())
        system, platform = boot("7.2", "a", "b", registry=registry)
        assert Counter(device.attached is not None for device in system.devices.values()) == {True: 2}
        platform.close()


def test_a_wrapper_sees_the_driver_start():
    class Seen:
        started = 0

        @hookimpl(wrapper=True)
        def start_unit(self, unit):
            answer = yield
            Seen.started += 1
            return answer

    boot("7.2", "a", "b", registry=REGISTRY.wrapped(Seen()))
    assert Seen.started == 2
