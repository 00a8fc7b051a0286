"""The VT-d driver on QEMU's unit in the modes that the conformance suite's one machine does not have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap
from iommukit.domain import DomainType, Prot
from iommukit.hw.fault import FaultKind
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit_intel_vtd.emulated import MACHINE, emulated_machine
from iommukit_oracle.hardware.platform import QemuPlatform
from tests.oracle.conftest import need
from tests.vendors.intel_vtd import INTEL, OPS, REGISTRY

IO, PAGE, OTHER = 0x1234_5000, 0x40_0000, 0x41_0000
RW = Prot.READ | Prot.WRITE
MODES = {
    "four levels": ("aw-bits=48", {"address_width": 48}),
    "caching mode": ("aw-bits=48,caching-mode=on", {"address_width": 48, "caching_mode": True}),
    "snoop control": ("aw-bits=39,snoop-control=on", {"address_width": 39, "snoop_control": True}),
    "scalable": ("aw-bits=48,x-scalable-mode=on", {"address_width": 48, "scalable_mode": True}),
}


def test_there_is_no_machine_in_old_qemu():
    assert emulated_machine((6, 2)) is None


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
@pytest.mark.parametrize("mode", MODES)
def test_a_device_s_life(mode, kernel):
    """Map, reach, unmap, fault, move to another domain, pass through, block."""
    need("x86_64")
    options, hardware = MODES[mode]
    machine = {**MACHINE, "hardware": hardware}
    emulation = emulated_machine((7, 2))
    emulation = replace(emulation, arguments=("-M", "q35", "-device", f"intel-iommu,{options}"), machine=machine)
    with QemuPlatform(emulation) as platform:
        document = Machine.model_validate(machine)
        system = start_system(get_kernel(kernel), INTEL, REGISTRY, document, BootSpec(), platform=platform)
        nic, unit = system.devices["nic"], system.units[0]
        engine, memory = platform.initiator(nic), platform.bus.memory

        def new(type):
            domain = system.alloc(nic, type)
            if type is DomainType.UNMANAGED:
                for window in engine.windows:
                    iommu_map(domain, window.iova, window.physical, window.size, RW)
            return domain

        def arrives(iova, physical):
            """Whether a read and a write of the device reach memory."""
            memory.write(physical, b"from memory!")
            engine.poke(0, bytes(12))
            engine.load(iova, 12)
            read = engine.peek(0, 12) == b"from memory!"
            engine.poke(0, b"from device!")
            engine.store(iova, 12)
            return read, memory.read(physical, 12) == b"from device!"

        first, second = new(DomainType.UNMANAGED), new(DomainType.UNMANAGED)
        system.attach(nic, first)
        iommu_map(first, IO, PAGE, 0x1000, RW)
        iommu_map(first, 0x4000_0000, 0, 0x60_0000, RW)
        iommu_map(second, IO, OTHER, 0x1000, RW)
        assert arrives(IO, PAGE) == arrives(0x4000_0000 + OTHER, OTHER) == (True, True)
        assert not OPS.take_faults(unit=unit)
        iommu_unmap(first, IO, 0x1000)
        assert arrives(IO, PAGE) == (False, False)
        assert {(fault.kind, fault.iova, fault.requester) for fault in OPS.take_faults(unit=unit)} == {
            (FaultKind.NOT_MAPPED, IO, 3 << 3)
        }
        system.attach(nic, second)
        assert arrives(IO, OTHER) == (True, True)
        system.attach(nic, new(DomainType.IDENTITY))
        assert arrives(PAGE, PAGE) == (True, True)
        system.attach(nic, second)
        # QEMU takes a device that was passed through off its fast path only for a context-cache invalidation, not for one of the
        # PASID cache.
        assert arrives(IO, OTHER) == ((False, False) if mode == "scalable" else (True, True))
        assert OPS.set_dev_blocked(device=nic)
        memory.write(OTHER, b"from memory!")
        engine.store(IO, 12)
        assert memory.read(OTHER, 12) == b"from memory!"
