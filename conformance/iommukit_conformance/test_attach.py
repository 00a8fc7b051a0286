"""Attachment: which tables a device uses, from when on, and that there is no moment in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from iommukit.device import Device, DmaOps
from iommukit.dma.api import Direction, dma_map, dma_unmap
from iommukit.domain import UNBOUNDED, Domain, DomainType
from iommukit.errors import IommuError, NotApplicable
from iommukit_conformance.case import Findings, Undecided, hold
from iommukit_conformance.hardware import on_hardware, open_rig, with_lab
from iommukit_conformance.hook_ends import HookEnds
from iommukit_conformance.lab import Lab
from iommukit_conformance.rig import Rig
from iommukit_conformance.shortage import Shortage

ROUNDS = 10
NUMBERS, EMULATED_NUMBERS = 1100, 300
"""Domains, one after the other.  Going through the 65536 numbers that most hardware has would take too long."""


@dataclass(frozen=True)
class Place:
    """A buffer in a domain: I/O address, physical address, bytes."""

    domain: Domain
    iova: int
    physical: int
    size: int


def _place(rig: Rig, domain: Domain) -> Place:
    granule = rig.granule(domain)
    return Place(domain, *rig.buffer(domain, granule), granule)


def _works(rig: Rig, device: Device, place: Place, when: str = "") -> Findings:
    yield from rig.expect(device, place.iova, place.size, place.physical, when)
    yield from rig.expect_write(device, place.iova, place.physical, lands=True, when=when)


def _cut_off(rig: Rig, device: Device, place: Place, cut: Callable[[], object], back: Callable[[], object], when: str) -> Findings:
    """Reads and writes between ``cut`` and ``back`` reach nothing, at the old address and at the physical one.

    What the device has read is looked at when it can do DMA again: an emulated one needs some to tell.
    """
    targets = (place.iova, place.physical)
    rig.stamp(place.physical, place.size)
    rig.arm(device, len(targets))
    cut()
    for number, iova in enumerate(targets):
        rig.load(device, iova, number)
    back()
    for iova, at in zip(targets, rig.arrived(device, len(targets)), strict=True):
        yield hold(at is None, f"{device.name} reading at {iova:#x} {when} reaches {at or 0:#x}")
    data = rig.mark(device)
    cut()
    for iova in targets:
        rig.store(device, iova)
    back()
    yield hold(not rig.was_hit(place.physical, data), f"{device.name} writing {when} reaches {place.physical:#x}")


# ---- what reaches nothing --------------------------------------------------------------------------------------------


@on_hardware("ATTACH-01")
def test_blocked(rig: Rig) -> Findings:
    """After it has used a domain, and back in that domain afterwards."""
    home = rig.domain()
    place = _place(rig, home)
    blocked = rig.alloc(rig.nic, DomainType.BLOCKED)
    yield from _works(rig, rig.nic, place)
    yield from _cut_off(
        rig,
        rig.nic,
        place,
        lambda: rig.attach(rig.nic, blocked),
        lambda: rig.attach(rig.nic, home),
        "in a blocked domain",
    )
    yield from _works(rig, rig.nic, place, " after it was blocked")


@with_lab("ATTACH-02")
def test_never_attached(lab: Lab, variant: str) -> Findings:
    """A device that the driver has probed and the core has given no domain, while its unit is on."""
    with open_rig(lab, variant, absent="second") as rig:
        device = rig.system.devices["second"]
        rig.system.plug(device, multifunction=False)
        device.unit = rig.ops.probe_device(device=device, units=rig.system.units)
        physical = rig.frames(0x1000)
        engine = rig.initiator(device)
        engine.load(physical, 16)
        engine.store(physical, 16)
        rig.collect()
        word = rig.memory.word(physical)
        yield hold(word == physical, f"{device.name}, never attached, has written {word:#x} at {physical:#x}")
        rig.domain(device)
        at = rig.arrived(device)[0]
        yield hold(at is None, f"{device.name}, never attached, has read {physical:#x}")


@on_hardware("ATTACH-03")
def test_released(rig: Rig) -> Findings:
    """Taken out while it was using a domain, and put in again."""
    device = rig.nic
    home = rig.domain(device)
    place = _place(rig, home)
    yield from _works(rig, device, place)

    def leave() -> None:
        rig.system.kernel.remove(rig.system, device)

    def come_back() -> None:
        rig.add(device)
        rig.attach(device, home)

    yield from _cut_off(rig, device, place, leave, come_back, "after it was released")
    yield from _works(rig, device, place, " after it has come back")


@on_hardware("ATTACH-04")
def test_unmanaged_domains(rig: Rig) -> Findings:
    """An empty one, and one with a page."""
    home, empty = rig.domain(), rig.alloc(rig.nic)
    place = _place(rig, home)
    yield from _works(rig, rig.nic, place)
    yield from rig.expect(rig.nic, place.physical, place.size, _own(rig, home, place.physical), " (a physical address)")
    yield from _cut_off(
        rig,
        rig.nic,
        place,
        lambda: rig.system.attach(rig.nic, empty),
        lambda: rig.attach(rig.nic, home),
        "in an empty domain",
    )


def _own(rig: Rig, domain: Domain, iova: int) -> int | None:
    """What a domain maps at an address, if anything."""
    return rig.table_answer(domain, iova) if domain.covers(iova, iova) else None


@on_hardware("ATTACH-05")
def test_identity(rig: Rig) -> Findings:
    """Physical addresses, all over memory; and no longer once the device is elsewhere."""
    home = rig.domain()
    identity = rig.alloc(rig.nic, DomainType.IDENTITY)
    buffers = rig.platform.buffers
    frames = [1 << bit for bit in range(12, 63) if 1 << bit in buffers] + [buffers.stop - 0x1000]
    for physical in frames:
        rig.stamp(physical, 0x1000)
        rig.arm(rig.nic)
        rig.attach(rig.nic, identity)
        rig.load(rig.nic, physical)
        rig.attach(rig.nic, home)
        at = rig.arrived(rig.nic)[0]
        yield hold(at == physical, f"{rig.nic.name} in an identity domain reads {at or 0:#x} at {physical:#x}")
        data = rig.mark(rig.nic)
        rig.attach(rig.nic, identity)
        rig.store(rig.nic, physical)
        rig.attach(rig.nic, home)
        yield hold(rig.was_hit(physical, data), f"{rig.nic.name} in an identity domain does not write to {physical:#x}")
    yield from rig.expect(rig.nic, frames[0], 0x1000, _own(rig, home, frames[0]), " after it has left identity", was=frames[0])


# ---- moving ----------------------------------------------------------------------------------------------------------


@on_hardware("ATTACH-06")
def test_a_new_domain_counts_at_once(rig: Rig) -> Findings:
    """To and fro between two domains, with one address that both map and one that only the old one does."""
    one = rig.domain()
    two = rig.alloc(rig.nic)
    granule = rig.granule(one)
    iova = rig.iovas(one, 2 * granule)
    first, second = rig.frames(2 * granule, granule), rig.frames(granule, granule)
    rig.map(one, iova, first, 2 * granule)
    rig.map(two, iova, second, granule)
    for _ in range(3):
        yield from rig.expect(rig.nic, iova, 2 * granule, first)
        rig.attach(rig.nic, two)
        yield from rig.expect(rig.nic, iova, granule, second, " after the device was moved")
        yield from rig.expect(rig.nic, iova + granule, granule, None, " after the device was moved", was=first + granule)
        yield from rig.expect_write(rig.nic, iova, second, lands=True, when=" after the device was moved")
        rig.attach(rig.nic, one)


@on_hardware("ATTACH-07")
def test_domains_are_apart(rig: Rig) -> Findings:
    """Two devices, two domains, equal and different addresses."""
    one, two = rig.domain(rig.nic), rig.domain(rig.second)
    granule = rig.granule(one)
    iova = rig.iovas(one, granule)
    first, second = rig.frames(granule, granule), rig.frames(granule, granule)
    rig.map(one, iova, first, granule)
    rig.map(two, iova, second, granule)
    only, other = _place(rig, one), _place(rig, two)
    for _ in range(2):
        yield from rig.expect(rig.nic, iova, granule, first)
        yield from rig.expect(rig.second, iova, granule, second)
        yield from rig.expect(rig.nic, only.iova, granule, only.physical)
        yield from rig.expect(rig.second, only.iova, granule, None, " of another's domain", was=only.physical)
        yield from rig.expect(rig.second, other.iova, granule, other.physical)
        yield from rig.expect(rig.nic, other.iova, granule, None, " of another's domain", was=other.physical)


@on_hardware("ATTACH-08")
def test_one_domain_for_two(rig: Rig) -> Findings:
    """What was mapped before the second came, and what is mapped afterwards."""
    domain = rig.domain(rig.nic)
    before = _place(rig, domain)
    yield from _works(rig, rig.nic, before)
    rig.attach(rig.second, domain)
    after = _place(rig, domain)
    for device in (rig.nic, rig.second):
        for place in (before, after):
            yield from _works(rig, device, place, " of a common domain")


@on_hardware("ATTACH-09")
def test_moving_one_leaves_the_other(rig: Rig) -> Findings:
    """Into another domain, into the same one, blocked, and back."""
    mine = rig.domain(rig.second)
    place = _place(rig, mine)
    goals = [rig.alloc(rig.nic), mine, rig.alloc(rig.nic)]
    for kind in (DomainType.BLOCKED, DomainType.IDENTITY):
        try:
            goals.insert(1, rig.alloc(rig.nic, kind))
        except NotApplicable:
            continue
    yield from _works(rig, rig.second, place)
    for goal in goals:
        rig.attach(rig.nic, goal)
        yield from _works(rig, rig.second, place, f" after another device was moved into {goal.type.name}")


SWITCHES = ("DMA-FQ", "DMA", "identity", "DMA", "auto")
DIRECT = {"name": "nic", "role": "direct-region"}


def _switching(lab: Lab, variant: str, ends: HookEnds, *, registers: bool) -> Findings:
    """Switch the type of a group with a direct region, and look again and again."""
    lab.require("direct-regions")
    plain = {"name": "second", "id": "8086:10d3", "class": "020000", "kind": "endpoint"}
    with open_rig(lab, variant, devices=(DIRECT, plain), registry=lab.registry.wrapped(ends)) as rig:
        system, group = rig.system, rig.nic.group
        regions = [region for region in system.regions(rig.nic) if region.type.is_direct]
        if group is None or group.default_domain is None or not regions:
            raise NotApplicable(f"{lab.vendor.name} has no group with a direct region in {lab.kernel.name}")
        region = regions[0]
        rig.stamp(region.start, region.end + 1 - region.start)
        missed: list[str] = []
        looks, looking = 0, False

        def look(where: str) -> None:
            nonlocal looks, looking
            if looking:
                return
            looks, looking = looks + 1, True
            # Looking is what hardware does by itself, so that nobody's faults are taken away.
            if rig.words(rig.nic, [region.start])[0] != region.start and where not in missed:
                missed.append(where)
            looking = False

        look("after boot")
        if registers:
            rig.platform.bus.after = lambda: look(f"after a register write within {ends.within or 'the kernel'}")
        else:
            ends.after = lambda hook: look(f"when {hook} has returned")
        try:
            for keyword in SWITCHES:
                try:
                    system.kernel.write_type(system, group, keyword)
                except IommuError:
                    continue
        finally:
            rig.platform.bus.after = ends.after = None
        if looks == 1:
            raise Undecided("nothing was to be seen between two types")
        yield None
        for where in missed:
            yield f"the direct region at {region.start:#x} is out of reach {where}"


@with_lab("ATTACH-10", kernels=("rfc", "6.1", "6.12", "7.2"))
def test_direct_regions_at_each_return(lab: Lab, variant: str) -> Findings:
    """DMA-FQ, DMA, identity and back, at every return of a hook.  With the posted patch the core itself leaves a gap."""
    yield from _switching(lab, variant, HookEnds(), registers=False)


@with_lab("ATTACH-11", kernels=("rfc",))
def test_direct_regions_at_each_register_write(lab: Lab, variant: str) -> Findings:
    """The same, between register writes; only the posted patch's successor promises that much."""
    yield from _switching(lab, variant, HookEnds(), registers=True)


# ---- refusals --------------------------------------------------------------------------------------------------------


@on_hardware("ATTACH-12")
def test_a_refused_attachment(rig: Rig) -> Findings:
    """A domain at the end of the address space, which narrow hardware refuses."""
    home = rig.domain()
    place = _place(rig, home)
    yield from _works(rig, rig.nic, place)
    far = rig.alloc(rig.nic)
    far.aperture = (UNBOUNDED - 0xFFF, UNBOUNDED)
    found = rig.refusal(rig.system.attach, rig.nic, far)
    if not found:
        raise Undecided(f"{rig.system.vendor.name} refuses none of the attachments that were tried")
    yield from _works(rig, rig.nic, place, f" after an attachment was refused ({found})")


def _rooms(rig: Rig, shortage: Shortage, action: Callable[[], object]) -> Iterator[tuple[int, str, int]]:
    """Try something with room for no table, for one, and so on: room (bytes), errno, and how much more is in use afterwards.

    Ends with the first success, which is not told.
    """
    for room in range(0, 1 << 20, 1 << 10):
        before = rig.pages.outstanding
        with shortage.of(rig.pages, room):
            found = rig.refusal(action)
        if not found:
            return
        yield room, found, rig.pages.outstanding - before


@with_lab("ATTACH-13")
def test_without_memory(lab: Lab, variant: str) -> Findings:
    """Allocation, attachment, and the arrival of a device, each with room for no table, for one, and so on."""
    shortage = Shortage()
    with open_rig(lab, variant, absent="second", registry=lab.registry.wrapped(shortage)) as rig:
        home = rig.domain()
        place = _place(rig, home)
        yield from _works(rig, rig.nic, place)
        made: list[Domain] = []

        def alloc() -> None:
            domain = rig.system.alloc(rig.nic, DomainType.UNMANAGED)
            if domain is None:
                raise IommuError("ENOMEM", "no domain")
            made.append(domain)

        second = rig.system.devices["second"]

        def add() -> None:
            if second.present:
                rig.system.kernel.remove(rig.system, second)
            rig.add(second)
            if second.group is None:
                raise IommuError("ENOMEM", "no group")

        def attach() -> None:
            rig.system.attach(rig.nic, made[0])

        for what, action in (("an allocation", alloc), ("an attachment", attach), ("the arrival of a device", add)):
            yield None
            for room, found, more in _rooms(rig, shortage, action):
                text = f"{what} with {room:#x} bytes for tables"
                yield hold(found == "ENOMEM", f"{text} is answered by {found}")
                if action is not add:  # Tables for a device may stay: it may come back.
                    yield hold(not more, f"after {text} was refused, {more:#x} bytes more are in use")
                yield from _works(rig, rig.nic, place, f" after {text} was refused")
            if action is attach:
                rig.attach(rig.nic, home)
            yield from _works(rig, rig.nic, place, f" after {what}")


@on_hardware("ATTACH-14")
def test_blocked_at_once(rig: Rig) -> Findings:
    """Where the driver can."""
    home = rig.domain()
    place = _place(rig, home)
    yield from _works(rig, rig.nic, place)
    if not rig.ops.set_dev_blocked(device=rig.nic):
        raise NotApplicable(f"{rig.system.vendor.name} leaves blocking to the core in {rig.system.kernel.name}")
    rig.attach(rig.nic, home)
    yield from _cut_off(
        rig,
        rig.nic,
        place,
        lambda: rig.ops.set_dev_blocked(device=rig.nic),
        lambda: rig.attach(rig.nic, home),
        "after set_dev_blocked",
    )


# ---- coming and going ------------------------------------------------------------------------------------------------


@on_hardware("ATTACH-15")
def test_a_device_that_comes_and_goes(rig: Rig) -> Findings:
    """Ten times."""
    system, device = rig.system, rig.second
    used = []
    for _ in range(ROUNDS):
        system.kernel.remove(system, device)
        rig.add(device)
        used.append(rig.pages.outstanding)
    yield hold(used[-1] == used[1], f"after the second return {used[1]:#x} bytes are in use, after the tenth {used[-1]:#x}")


@with_lab("ATTACH-16")
def test_the_dma_api_reaches_memory(lab: Lab, variant: str) -> Findings:
    """Strict, lazy and identity by default, each with a buffer that is mapped, used and given back."""
    for kconfig in ("strict", "lazy", "passthrough"):
        with open_rig(lab, variant, kconfig=kconfig) as rig:
            device = rig.nic
            group = device.group
            domain = group.default_domain if group is not None else None
            if domain is None or device.dma_ops is DmaOps.PLATFORM:
                raise NotApplicable(f"{lab.vendor.name} has no default domains in {lab.kernel.name}")
            rig.open_windows(device, domain)
            for size in (0x100, 0x3000):
                physical = rig.frames(0x4000, 0x1000)
                address = dma_map(device, physical, size, Direction.BIDIRECTIONAL)
                rig.arm(device)
                rig.load(device, address)
                at = rig.arrived(device)[0]
                text = f"{device.name} ({domain.type.sysfs}) reads {at or 0:#x} at {address:#x}, mapped to {physical:#x}"
                yield hold(at == physical, text)
                dma_unmap(device, address)


@on_hardware("ATTACH-17")
def test_numbers_come_back(rig: Rig) -> Findings:
    """More often than narrow hardware has numbers."""
    rounds = EMULATED_NUMBERS if rig.emulated else NUMBERS
    rig.system.free(rig.alloc(rig.nic))
    before = rig.pages.outstanding
    for number in range(rounds):
        try:
            domain = rig.alloc(rig.nic)
        except IommuError as error:
            yield f"domain {number} is refused ({error}), although those before it were given back"
            return
        rig.system.free(domain)
    yield hold(rig.pages.outstanding == before, f"after {rounds} domains {rig.pages.outstanding - before:#x} bytes more are in use")
