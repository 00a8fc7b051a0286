"""The SMMUv3 driver on the hardware model: bringing a unit up, attaching, mapping, invalidating, reading faults."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap, iova_to_phys
from iommukit.domain import DomainType, Prot
from iommukit.errors import IommuError
from iommukit.hw.fault import Fault, FaultKind
from iommukit.hw.platform import ModelPlatform
from iommukit.machine.model import Machine
from iommukit_arm_smmu.emulated import emulated_machine
from iommukit_arm_smmu.model.configuration import Features
from iommukit_arm_smmu.model.unit import SmmuUnit
from tests.vendors.arm_smmu_hardware import ARM, NIC, REGISTERS, Recorded, boot, parts, reaches, running

RW = Prot.READ | Prot.WRITE
ERAS = ("6.1", "rfc", "6.12", "7.2")
VARIANTS = (
    {},
    {"stages": [2]},
    {"stages": [1, 2]},
    {"granules": ["16K"]},
    {"granules": ["64K"]},
    {"granules": ["64K"], "oas": 52, "ias": 52, "va_bits": 52},
    {"stages": [2], "granules": ["64K"], "oas": 40, "ias": 40},
    {"sid_bits": 8},
)
OPS = ARM.ops


# ---- bringing up -----------------------------------------------------------------------------------------------------


class There(ModelPlatform):
    """A platform whose SMMU is there already, whatever the machine says."""

    def __init__(self, **features):
        super().__init__(8 << 30)
        known = {"stages": {1}, "granules": {12, 14, 16}, "output_bits": 44, "stream_bits": 16}
        known |= features
        found = Features(
            frozenset(known["stages"]), frozenset(known["granules"]), known["output_bits"], known["stream_bits"], False,
            known.get("coherent", True),
        )  # fmt: skip
        self.bus.attach(REGISTERS, 0x2_0000, SmmuUnit(self.bus.memory, found))

    def install(self, units, ops):
        return True


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"output_bits": 48}, "output_bits is 48, not 44"),
        ({"stages": {2}}, "stages is 2, not 1"),
        ({"stages": {1, 2}, "coherent": False}, "stages is 1, 2, not 1; coherent is False, not True"),
        ({"granules": {12}}, "granules is 4K, not 16K, 4K, 64K"),
        ({"stream_bits": 12}, "stream_bits is 12, not 16"),
    ],
)
def test_hardware_that_is_not_what_the_machine_says(features, said):
    boot("7.2", platform=There())
    with pytest.raises(IommuError, match=r"ENODEV.*0x9050000 is not what the machine says") as refused:
        boot("7.2", platform=There(**features))
    assert refused.value.reason.endswith(said)


def test_nothing_answers_at_the_address():
    class Empty(ModelPlatform):
        def install(self, units, ops):
            return True

    with pytest.raises(IommuError, match="ENODEV"):
        boot("7.2", platform=Empty(1 << 30))


@pytest.mark.parametrize("hardware", [{"oas": 38}, {"stages": [2], "ias": 44, "oas": 40}])
def test_widths_that_no_smmu_has(hardware):
    with pytest.raises(IommuError, match="ENODEV"):
        boot("7.2", hardware=hardware)


def test_the_order_of_switching_on():
    recorded = Recorded()
    boot("7.2", platform=recorded.platform)
    offsets = [offset for offset, _ in recorded.writes]
    first = [offset for offset, _ in itertools.groupby(offsets)][:16]
    assert first == [0x20, 0x28, 0x2C, 0x80, 0x88, 0x90, 0x98, 0x9C, 0x20, 0x98, 0xA0, 0x1_00A8, 0x1_00AC, 0x20, 0x50, 0x20]
    assert [value for offset, value in recorded.writes if offset == 0x20] == [0, 8, 0xC, 0xD]
    assert recorded.opcodes()[:4] == [0x04, 0x46, 0x30, 0x46]


@pytest.mark.parametrize(
    ("hardware", "format"), [({}, 1 << 16 | 8 << 6 | 16), ({"sid_bits": 8}, 8), ({"sid_bits": 32}, 1 << 16 | 8 << 6 | 25)]
)
def test_the_stream_table_that_is_used(hardware, format):
    system = boot("7.2", hardware=hardware)
    assert system.platform.bus.read(REGISTERS + 0x88, 4) == format
    assert iova_to_phys(parts(system)[1], 0) is None


def test_a_stream_beyond_the_table_is_refused():
    far = {"name": "far", "address": "far", "kind": "platform", "attributes": {"stream_ids": [1 << 26]}}
    system = boot("7.2", far, NIC, hardware={"sid_bits": 32})
    assert system.devices["far"].group is None
    assert system.devices["nic"].group is not None


def test_smmuv2_has_no_hardware():
    system = boot("7.2", hardware={"version": 2})
    assert system.platform is None
    assert system.devices["nic"].group.sysfs_type == "DMA"


# ---- attaching -------------------------------------------------------------------------------------------------------

CFGI_STE, CFGI_CD, PREFETCH, SYNC = 0x03, 0x05, 0x01, 0x46


@pytest.mark.parametrize(
    ("kernel", "kinds", "opcodes"),
    [
        # through an entry that stops everything
        ("6.1", (DomainType.UNMANAGED,), [CFGI_STE, SYNC, PREFETCH, CFGI_STE, SYNC, CFGI_STE, SYNC, PREFETCH]),
        ("6.1", (DomainType.IDENTITY,), [CFGI_STE, SYNC, PREFETCH, CFGI_STE, SYNC, PREFETCH]),
        # only the context descriptor changes: invalid, the rest, valid
        ("7.2", (DomainType.UNMANAGED,), [CFGI_CD, SYNC] * 3 + [PREFETCH]),
        # one word tells bypass from stage 1; then the descriptor is cleared: no longer valid, and the rest
        ("7.2", (DomainType.IDENTITY,), [CFGI_STE, SYNC] * 3 + [PREFETCH] + [CFGI_CD, SYNC] * 2),
        ("7.2", (DomainType.BLOCKED,), [CFGI_STE, SYNC] * 2 + [PREFETCH] + [CFGI_CD, SYNC] * 2),
    ],
)
def test_the_commands_of_an_attachment(kernel, kinds, opcodes):
    recorded = Recorded()
    system = boot(kernel, NIC, platform=recorded.platform)
    device = system.devices["nic"]
    for kind in kinds:
        domain = system.alloc(device, kind)
        recorded.opcodes()
        system.attach(device, domain)
        assert recorded.opcodes() == opcodes


def test_every_stream_of_a_device_is_attached():
    two = {**NIC, "attributes": {"stream_ids": [24, 600, 24]}}
    system = boot("7.2", two)
    device, domain, model = parts(system)
    iommu_map(domain, 0x1000, 0x10_0000, 0x1000, RW)
    assert [model.translate(sid, 0x1000, write=True) for sid in (24, 600)] == [0x10_0000] * 2
    system.attach(device, OPS.domain_alloc(device=device, type=DomainType.BLOCKED))
    assert [model.translate(sid, 0x1000, write=True) for sid in (24, 600)] == [None] * 2


@pytest.mark.parametrize(
    ("kernel", "cmdline", "passes"), [("6.1", "", False), ("6.1", "arm-smmu-v3.disable_bypass=0", True), ("7.2", "", False)]
)
def test_a_stream_without_a_domain(kernel, cmdline, passes):
    system = boot(kernel, NIC, cmdline=cmdline)
    _, _, model = parts(system)
    assert (model.translate(25, 0x1234, write=False) == 0x1234) is passes
    OPS.release_device(device=system.devices["nic"])
    assert (model.translate(24, 0x1234, write=False) == 0x1234) is passes


@pytest.mark.parametrize("hardware", VARIANTS)
@pytest.mark.parametrize("kernel", ERAS)
def test_a_domain_from_allocation_to_the_end(kernel, hardware):
    system = boot(kernel, NIC, hardware=hardware)
    device, home, model = parts(system)
    memory = system.platform.bus.memory
    sid = OPS.requester(device=device)
    before = memory.pages.outstanding
    for round in range(3):
        domain = system.alloc(device, DomainType.UNMANAGED)
        system.attach(device, domain)
        sizes = [1 << bit for bit in range(40) if domain.page_sizes >> bit & 1]
        at = domain.aperture[1] + 1 - 2 * sizes[-1]
        for size in sizes[:2]:
            place = at + (size if size != sizes[-1] else sizes[-1])
            iommu_map(domain, place, size * (round + 1), size, RW)
            assert model.translate(sid, place + size - 1, write=True) == size * (round + 2) - 1
            assert iova_to_phys(domain, place + 5) == size * (round + 1) + 5
            assert iommu_unmap(domain, place, size) == size
            assert model.translate(sid, place, write=False) is None
        assert [fault.kind for fault in OPS.take_faults(unit=system.units[0])] == [FaultKind.NOT_MAPPED] * 2
        system.attach(device, home)
        system.free(domain)
        assert memory.pages.outstanding == before, "all of it comes back"
    assert running(system).ring.illegal == []


def test_a_number_is_used_again_without_its_translations():
    system = boot("7.2", NIC)
    device, home, _ = parts(system)
    numbers = []
    for frame in (0x10_0000, 0x20_0000):
        domain = system.alloc(device, DomainType.UNMANAGED)
        system.attach(device, domain)
        iommu_map(domain, 0x5000, frame, 0x1000, RW)
        assert reaches(system, 0x5000) == frame
        numbers.append(domain.context.number)
        system.attach(device, home)
        system.free(domain)
    assert numbers[0] == numbers[1]


def test_numbers_run_out():
    system = boot("7.2", NIC)
    running(system).contexts.limits[1] = 4
    device = system.devices["nic"]
    pages = system.platform.bus.memory.pages
    domains = [system.alloc(device, DomainType.UNMANAGED) for _ in range(2)]
    before = pages.outstanding
    with pytest.raises(IommuError, match="ENOSPC"):
        system.alloc(device, DomainType.UNMANAGED)
    assert pages.outstanding == before
    system.free(domains[0])
    assert system.alloc(device, DomainType.UNMANAGED) is not None


@pytest.mark.parametrize("kernel", ERAS)
def test_no_memory_for_an_attachment(kernel):
    system = boot(kernel, NIC)
    device, home, _ = parts(system)
    pages = system.platform.bus.memory.pages
    iommu_map(home, 0x5000, 0x10_0000, 0x1000, RW)
    pages.limit = pages.outstanding
    with pytest.raises(IommuError, match="ENOMEM"):
        system.attach(device, system.alloc(device, DomainType.UNMANAGED))
    assert device.attached is home
    assert reaches(system, 0x5000) == 0x10_0000


def test_blocked_at_once():
    system = boot("7.2", NIC)
    device, home, _ = parts(system)
    iommu_map(home, 0x5000, 0x10_0000, 0x1000, RW)
    assert OPS.set_dev_blocked(device=device) is True
    assert device.attached is None
    assert reaches(system, 0x5000) is None


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_faults_are_read_once_and_in_order():
    system = boot("7.2")
    _, domain, _ = parts(system)
    iommu_map(domain, 0x5000, 0x10_0000, 0x1000, Prot.READ)
    reaches(system, 0x5004, write=True)
    reaches(system, 0x9008, name="second")
    unit = system.units[0]
    assert OPS.take_faults(unit=unit) == [
        Fault(FaultKind.PERMISSION, 24, 0x5004, True, 0x13),
        Fault(FaultKind.NOT_MAPPED, 32, 0x9008, False, 0x10),
    ]
    assert OPS.take_faults(unit=unit) == []


def test_a_flood_of_faults():
    system = boot("7.2", NIC)
    _, _, model = parts(system)
    wanted = np.arange(40_000, dtype=np.uint64) << np.uint64(12)
    model.translate_many(24, wanted, write=True)
    unit = system.units[0]
    assert len(OPS.take_faults(unit=unit)) == 1 << 15
    reaches(system, 0x1234)
    assert [fault.iova for fault in OPS.take_faults(unit=unit)] == [0x1234]


def test_a_stream_that_nobody_knows():
    system = boot("7.2", NIC)
    _, _, model = parts(system)
    assert model.translate(0x4000, 0, write=False) is None
    assert OPS.take_faults(unit=system.units[0]) == [Fault(FaultKind.BLOCKED, 0x4000, None, None, 0x02)]


# ---- QEMU ------------------------------------------------------------------------------------------------------------


def test_the_emulated_machine_is_one_that_the_driver_accepts():
    for version in ((7, 2), (10, 0)):
        emulation = emulated_machine(version)
        for each in (emulation, *emulation.variants.values()):
            machine = Machine.model_validate(each.machine)
            system = boot(
                "7.2",
                *(device.model_dump(exclude_unset=True, by_alias=True) for device in machine.devices),
                hardware=machine.hardware,
            )
            assert OPS.requester(device=system.devices["nic"]) == 24
    assert emulated_machine((6, 2)) is None


def test_qemu_has_stage_2_since_9_1():
    old, new = emulated_machine((7, 2)), emulated_machine((10, 0))
    assert list(old.variants) == ["16K-pages", "64K-pages"]
    assert list(new.variants) == ["16K-pages", "64K-pages", "stage-2"]
    assert [each.machine["hardware"]["stages"] for each in (old, new, new.variants["stage-2"])] == [[1], [1, 2], [2]]
