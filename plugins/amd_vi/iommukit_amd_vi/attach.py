"""Which domain a device's requests go to: its entry in the device table, and the invalidations that go with a change.

An entry is replaced in one go, from the old domain to the new, so that firmware's 1:1 regions stay in reach.  (Linux empties
it in between.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommukit.domain import DomainType
from iommukit.errors import IommuError
from iommukit.kernel.aliases import dma_aliases
from iommukit.policy import Era
from iommukit_amd_vi.domains import PAGE, AmdDomain, GuestRoot, Member, guest_root
from iommukit_amd_vi.layout import (
    DTE_DOMAIN,
    DTE_GCR3_14_12,
    DTE_GCR3_30_15,
    DTE_GCR3_51_31,
    DTE_GIOV,
    DTE_GV,
    DTE_HOST_ROOT,
    DTE_IR,
    DTE_IW,
    DTE_MODE,
    DTE_TV,
    DTE_V,
)
from iommukit_amd_vi.queue import EVERYTHING, invalidate_entry, invalidate_pages

if TYPE_CHECKING:
    from iommukit.device import Device
    from iommukit_amd_vi.setup import AmdUnit

_THROUGH = DTE_V.mask | DTE_TV.mask | DTE_IR.mask | DTE_IW.mask


def requester_ids(device: Device) -> tuple[int, ...]:
    """The ids under which a device's requests arrive: its own, the table's alias, PCI's aliases (``clone_aliases``)."""
    state = device.vendor_state
    assert device.unit is not None
    segment = device.unit.state.driver.platform.segment(state.segment)
    ids = {state.devid: None, segment.alias_of(state.devid): None}
    if device.facts.pci is not None:
        ids |= {rid: None for _, rid in dma_aliases(device)}
    return tuple(ids)


def entry_bits(domain: AmdDomain, root: GuestRoot | None) -> int:
    """A device table entry for a domain (``set_dte_entry``, ``clear_dte_entry``)."""
    if root is not None:
        bits = _THROUGH | DTE_GV.mask | DTE_GIOV.mask | DTE_DOMAIN.of(root.id)
        bits |= DTE_GCR3_14_12.of(root.address >> 12) | DTE_GCR3_30_15.of(root.address >> 15)
        return bits | DTE_GCR3_51_31.of(root.address >> 31)
    if domain.tables is not None:
        tables = domain.tables
        return _THROUGH | DTE_MODE.of(tables.top + 1) | DTE_HOST_ROOT.of(tables.root >> 12) | DTE_DOMAIN.of(domain.id)
    if domain.type is DomainType.IDENTITY:
        return _THROUGH | DTE_DOMAIN.of(domain.id)
    return _blocking(domain)


def _blocking(domain: AmdDomain) -> int:
    """An entry that lets nothing through: without permissions, and since 7.2 without a translation."""
    assert domain.driver is not None
    return DTE_V.mask if domain.driver.era >= Era.V7_2 else DTE_V.mask | DTE_TV.mask


def enter(domain: AmdDomain, device: Device) -> None:
    """Put a device into a domain (``attach_device``).  Raises ``ENOMEM`` or ``ENOSPC`` with the device where it was."""
    assert device.unit is not None
    unit: AmdUnit = device.unit.state
    assert unit.hardware is not None
    root = _root_for(domain, unit)
    member = Member(unit, requester_ids(device), root)
    _write(member, entry_bits(domain, root))
    _leave(unit, device)
    domain.members[device] = member
    unit.driver.homes[device] = domain
    device.attached = domain


def _root_for(domain: AmdDomain, unit: AmdUnit) -> GuestRoot | None:
    """The GCR3 table for a device that joins: the domain's in 6.1, one of its own with an id of its own later."""
    if domain.format != 2:
        return None
    if domain.root is not None:
        return domain.root
    assert domain.driver is not None
    id = domain.driver.take_id()
    try:
        return guest_root(domain, unit, id)
    except IommuError:
        domain.driver.give_id(id)
        raise


def _write(member: Member, bits: int, *, ids: tuple[int, ...] | None = None) -> None:
    """Write a device's entries and have the IOMMU read them again."""
    hardware = member.unit.hardware
    assert hardware is not None
    chosen = member.ids if ids is None else ids
    for id in chosen:
        hardware.table.write(id, bits)
    hardware.queue.send([invalidate_entry(id) for id in chosen])


def _leave(unit: AmdUnit, device: Device) -> None:
    """Forget the domain that a device was in: its entry names another by now, or none (``detach_device``)."""
    domain = unit.driver.homes.pop(device, None)
    if domain is None:
        return
    member = domain.members.pop(device)
    hardware = member.unit.hardware
    assert hardware is not None
    id = member.root.id if member.root is not None else domain.id
    if id:
        hardware.queue.send([invalidate_pages(id, 0, EVERYTHING, guest=_by_guest(domain))])
    if member.root is not None and member.root is not domain.root:
        assert domain.driver is not None
        hardware.bus.memory.pages.free(member.root.address, PAGE)
        domain.driver.give_id(member.root.id)


def _by_guest(domain: AmdDomain) -> bool:
    """Whether invalidations name guest addresses; 6.1 never does, which forgets all of a domain's guest addresses."""
    assert domain.driver is not None
    return domain.format == 2 and domain.driver.era >= Era.V6_12


def block(device: Device) -> None:
    """Empty a device's entries (``release_domain``), but for ids that others of its domain go on using."""
    assert device.unit is not None
    unit: AmdUnit = device.unit.state
    if unit.hardware is None or device.vendor_state is None:
        return
    domain = unit.driver.homes.get(device)
    members = domain.members.items() if domain is not None else ()
    others = {id for other, member in members if other is not device for id in member.ids}
    member = Member(unit, tuple(id for id in requester_ids(device) if id not in others))
    _write(member, DTE_V.mask if unit.driver.era >= Era.V7_2 else DTE_V.mask | DTE_TV.mask)
    _leave(unit, device)


def retarget(domain: AmdDomain) -> None:
    """Let all entries of a domain name its new root and mode (``amd_iommu_update_and_flush_device_table``)."""
    for member in domain.members.values():
        _write(member, entry_bits(domain, member.root))


def flush(domain: AmdDomain, start: int, size: int) -> None:
    """Have every IOMMU forget ``size`` bytes of a domain from ``start`` on (``amd_iommu_domain_flush_pages``).

    Under NpCache only aligned powers of two are invalidated: a hypervisor would look at every page of anything larger.
    """
    assert domain.driver is not None
    pieces = [(start, size)]
    if size < EVERYTHING and domain.driver.np_cache:
        pieces = aligned_pieces(start, size)
    guest = _by_guest(domain)
    done: set[tuple[int, int]] = set()
    for member in domain.members.values():
        id = member.root.id if member.root is not None else domain.id
        key = member.unit.iommu.index, id
        if key in done:
            continue
        done.add(key)
        assert member.unit.hardware is not None
        member.unit.hardware.queue.send([invalidate_pages(id, first, length, guest=guest) for first, length in pieces])


def aligned_pieces(start: int, size: int) -> list[tuple[int, int]]:
    """A range cut into powers of two that are aligned to themselves."""
    pieces = []
    while size:
        largest = 1 << size.bit_length() - 1
        length = min(start & -start or largest, largest)
        pieces.append((start, length))
        start += length
        size -= length
    return pieces
