"""Faults: what is stopped is told, once, of the right device, and stops nothing else."""

from __future__ import annotations

from iommukit.device import Device
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import NotApplicable
from iommukit.hw.fault import Fault, FaultKind
from iommukit_conformance.case import Findings, hold
from iommukit_conformance.ground import SIZE
from iommukit_conformance.hardware import on_hardware
from iommukit_conformance.rig import Rig

PAGE = 0x1000
FLOOD, EMULATED_FLOOD = 5000, 600
"""More faults than any queue here has room for."""


def _shown(fault: Fault) -> str:
    way = {True: "a write", False: "a read", None: "an access"}[fault.write]
    at = "an unknown address" if fault.iova is None else f"{fault.iova:#x}"
    return f"{way} of {fault.requester:#x} at {at}, {fault.kind.value}"


def _told(rig: Rig, faults: list[Fault], device: Device, iova: int, *, write: bool, kind: FaultKind) -> Findings:
    """The faults that one stopped access has left."""
    what = f"{'a write' if write else 'a read'} of {rig.requester(device):#x} at {iova:#x}"
    yield hold(faults, f"{what} is stopped, and no fault is told")
    for fault in faults:
        said = f"{what} is told as {_shown(fault)}"
        yield hold(fault.requester == rig.requester(device), said)
        yield hold(fault.iova is not None and fault.iova & -PAGE == iova & -PAGE, said)
        yield hold(fault.write in (None, write), said)
        yield hold(fault.kind is kind, f"{said}; {kind.value} was expected")


def _nowhere(rig: Rig, domain: Domain) -> int:
    """An address at which nothing is mapped, in a table that is there."""
    granule = rig.granule(domain)
    iova, _ = rig.buffer(domain, granule)
    return iova + granule


@on_hardware("FAULT-01")
def test_an_unmapped_read(rig: Rig) -> Findings:
    """Beside a mapping, and far from any; at odd addresses too."""
    domain = rig.domain()
    for iova in (_nowhere(rig, domain), _nowhere(rig, domain) + 0x120, rig.border(domain, PAGE)):
        rig.faults()
        yield from rig.expect(rig.nic, iova, SIZE, None)
        yield from _told(rig, rig.faults(), rig.nic, iova, write=False, kind=FaultKind.NOT_MAPPED)


@on_hardware("FAULT-02")
def test_an_unmapped_write(rig: Rig) -> Findings:
    """The same, the other way."""
    domain = rig.domain()
    for iova in (_nowhere(rig, domain), _nowhere(rig, domain) + 0x120, rig.border(domain, PAGE)):
        rig.mark(rig.nic)
        rig.faults()
        rig.store(rig.nic, iova)
        yield from _told(rig, rig.faults(), rig.nic, iova, write=True, kind=FaultKind.NOT_MAPPED)


@on_hardware("FAULT-03")
def test_a_write_to_a_read_only_page(rig: Rig) -> Findings:
    """Not used before, and used."""
    domain = rig.domain()
    granule = rig.granule(domain)
    for used in (False, True):
        iova, physical = rig.buffer(domain, granule, prot=Prot.READ)
        if used:
            yield from rig.expect(rig.nic, iova, granule, physical)
        data = rig.mark(rig.nic)
        rig.faults()
        rig.store(rig.nic, iova)
        yield from _told(rig, rig.faults(), rig.nic, iova, write=True, kind=FaultKind.PERMISSION)
        yield hold(not rig.was_hit(physical, data), f"a write to the read-only page at {iova:#x} is told and done")


@on_hardware("FAULT-04")
def test_a_blocked_device(rig: Rig) -> Findings:
    """In a blocked domain, after it has used another."""
    home = rig.domain()
    blocked = rig.alloc(rig.nic, DomainType.BLOCKED)
    iova, physical = rig.buffer(home, rig.granule(home))
    yield from rig.expect(rig.nic, iova, PAGE, physical)
    rig.faults()
    rig.attach(rig.nic, blocked)
    rig.initiator(rig.nic).load(iova, SIZE)
    told = rig.faults()
    rig.attach(rig.nic, home)
    yield None
    for fault in told:
        yield hold(fault.requester == rig.requester(rig.nic), f"a read of a blocked device at {iova:#x} is told as {_shown(fault)}")
    yield from rig.expect(rig.nic, iova, PAGE, physical, " after it was blocked for a while")


@on_hardware("FAULT-05")
def test_an_access_beyond_the_aperture(rig: Rig) -> Findings:
    """The first address beyond it or reserved, and one whose lower bits are a mapped page's."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, granule)
    last = domain.aperture[1]
    reach = rig.initiator(rig.nic).reach
    span = 1 << last.bit_length()
    tries = [at for at in dict.fromkeys((last + 1, iova + span, rig.edges(domain)[1] + 1)) if at + SIZE <= min(reach, 1 << 64)]
    if not tries:
        raise NotApplicable("the device cannot address anything beyond the aperture")
    for at in tries:
        rig.faults()
        yield from rig.expect(rig.nic, at, SIZE, None, " beyond the aperture", was=physical)
        for fault in rig.faults():
            fine = fault.requester == rig.requester(rig.nic) and fault.iova is not None and fault.iova & -PAGE == at & -PAGE
            yield hold(fine, f"a read at {at:#x}, beyond the aperture, is told as {_shown(fault)}")
    yield from rig.expect(rig.nic, iova, granule, physical, " after a read beyond the aperture")


@on_hardware("FAULT-06")
def test_a_fault_stops_nothing_else(rig: Rig) -> Findings:
    """Of the device itself, and of another."""
    one, two = rig.domain(rig.nic), rig.domain(rig.second)
    granule = rig.granule(one)
    first, second = rig.buffer(one, granule), rig.buffer(two, granule)
    for _ in range(3):
        yield from rig.expect(rig.nic, first[0] + granule, SIZE, None)
        yield from rig.expect(rig.nic, first[0], granule, first[1], " after a fault")
        yield from rig.expect(rig.second, second[0], granule, second[1], " after another device's fault")


@on_hardware("FAULT-07")
def test_a_fault_is_told_once(rig: Rig) -> Findings:
    """And one that comes again is told again."""
    domain = rig.domain()
    iova = _nowhere(rig, domain)
    for _ in range(2):
        rig.faults()
        yield from rig.expect(rig.nic, iova, SIZE, None)
        yield hold(rig.faults(), f"a read at {iova:#x} is stopped, and no fault is told")
        again = rig.faults()
        yield hold(not again, f"after all faults were read, there is {len(again) and _shown(again[0])}")


@on_hardware("FAULT-08")
def test_a_flood(rig: Rig) -> Findings:
    """Thousands of faults that nobody reads, then one more."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, granule)
    size = 64 * granule
    base = rig.iovas(domain, size)
    device = rig.initiator(rig.nic)
    for number in range(EMULATED_FLOOD if rig.emulated else FLOOD):
        device.load(base + number * PAGE % size, SIZE)
    for _ in range(3):
        rig.faults()
    yield from rig.expect(rig.nic, iova, granule, physical, " after a flood of faults")
    rig.faults()
    yield from rig.expect(rig.nic, base, SIZE, None)
    yield from _told(rig, rig.faults(), rig.nic, base, write=False, kind=FaultKind.NOT_MAPPED)


@on_hardware("FAULT-09")
def test_what_is_let_through_is_no_fault(rig: Rig) -> Findings:
    """Reads and writes that are allowed; mapping and unmapping."""
    domain = rig.domain()
    granule = rig.granule(domain)
    rig.faults()
    for _ in range(3):
        iova, physical = rig.buffer(domain, 3 * granule)
        yield from rig.expect(rig.nic, iova, 3 * granule, physical)
        yield from rig.expect_write(rig.nic, iova, physical, lands=True)
        rig.unmap(domain, iova, 3 * granule)
    faults = rig.faults()
    yield hold(not faults, f"nothing was stopped, and there is {faults and _shown(faults[0])}")


@on_hardware("FAULT-10")
def test_two_devices(rig: Rig) -> Findings:
    """One fault each; then one each that the driver reads together, as far as there is room."""
    one, two = rig.domain(rig.nic), rig.domain(rig.second)
    both = ((rig.nic, _nowhere(rig, one)), (rig.second, _nowhere(rig, two)))
    rig.faults()
    for device, iova in both:
        rig.load(device, iova)
        yield from _told(rig, rig.faults(), device, iova, write=False, kind=FaultKind.NOT_MAPPED)
    for device, iova in both:
        rig.initiator(device).load(iova, 4)
    faults = rig.faults()
    for device, iova in both:
        mine = [fault for fault in faults if fault.requester == rig.requester(device)]
        if mine or device is rig.nic:
            yield from _told(rig, mine, device, iova, write=False, kind=FaultKind.NOT_MAPPED)
    if len(rig.units) == 1 and len(faults) > 1:
        oldest = faults[0].requester
        yield hold(oldest == rig.requester(rig.nic), f"the first fault was {rig.nic.name}'s, and the first told is {oldest:#x}'s")
