"""What Linux does with VT-d hardware: the hooks for units at work, page tables and the TLB.

None of them is called without hardware; whatever needs numpy is imported when the first unit starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from iommukit.device import Device, Unit
from iommukit.domain import Domain
from iommukit.errors import IommuError
from iommukit.hookspecs import Emulation, Gather, Mistake, hookimpl
from iommukit_intel_vtd.domains import PagingDomain
from iommukit_intel_vtd.remapping import RemappingUnit

if TYPE_CHECKING:
    from iommukit.hw.bus import ModelBus
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import TableReader
    from iommukit.hw.platform import Addresses
    from iommukit.hw.walk import Walk
    from iommukit_intel_vtd.model.unit import VtdUnit
    from iommukit_intel_vtd.running import RunningUnit
    from iommukit_intel_vtd.space import AddressSpace


def _running(unit: Unit) -> RunningUnit:
    state = unit.state
    assert isinstance(state, RemappingUnit)
    assert state.running is not None
    return state.running


def _space(domain: Domain) -> AddressSpace:
    """A domain's tables.  Raises ``EOPNOTSUPP`` for the static domains, which have none to map in."""
    if not isinstance(domain, PagingDomain) or domain.space is None:
        raise IommuError("EOPNOTSUPP", "the domain has no page tables")
    return domain.space


# ---- units -----------------------------------------------------------------------------------------------------------


@hookimpl
def create_unit(bus: ModelBus, unit: Unit) -> VtdUnit:
    """The hardware model of a unit, its registers at the address that the DMAR table names."""
    from iommukit_intel_vtd.model.unit import VtdUnit

    state = unit.state
    assert isinstance(state, RemappingUnit)
    model = VtdUnit(bus.memory, state.capabilities, state.platform.table.address_bits)
    bus.attach(state.drhd.address, model.registers, model)
    return model


@hookimpl
def start_unit(unit: Unit) -> None:
    """Root table, invalidation queue, translation on (``init_dmars``, ``iommu_enable_translation``)."""
    from iommukit_intel_vtd.running import RunningUnit

    state = unit.state
    assert isinstance(state, RemappingUnit)
    assert unit.bus is not None
    state.running = RunningUnit(state, unit.bus, state.platform.era)


@hookimpl
def requester(device: Device) -> int:
    """The requester id that the device's requests carry on the bus: behind a bridge to conventional PCI, the bridge's."""
    assert device.unit is not None
    state = device.unit.state
    assert isinstance(state, RemappingUnit)
    return state.platform.requesters_of(device)[-1]


@hookimpl
def take_faults(unit: Unit) -> Sequence[Fault]:
    """What stands in the fault records."""
    return _running(unit).take_faults()


@hookimpl
def set_dev_blocked(device: Device) -> bool:
    """Take the device's entry away; without hardware there is none, and the core detaches."""
    if device.unit is None or device.unit.bus is None:
        return False
    _running(device.unit).attachments.clear(device)
    device.attached = None
    return True


# ---- domains ---------------------------------------------------------------------------------------------------------


@hookimpl
def domain_free(domain: Domain) -> None:
    """Give the domain's tables back."""
    if isinstance(domain, PagingDomain) and domain.space is not None:
        domain.space.free()
        domain.space = None


@hookimpl
def map_pages(domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
    """Map pages (``intel_iommu_map_pages``).

    Linux before 7.2 complains of a mapping that is there already and keeps it; here it is refused.
    """
    space = _space(domain)
    if not domain.covers(iova, iova + pgsize * pgcount - 1):
        raise IommuError("ERANGE" if domain.generic_pt else "EFAULT", f"{iova:#x} is outside the domain")
    return space.map(iova, paddr, pgsize, pgcount, prot)


@hookimpl
def unmap_pages(domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
    """Unmap pages (``intel_iommu_unmap_pages``)."""
    return _space(domain).unmap(iova, pgsize, pgcount, gather)


@hookimpl
def iova_to_phys(domain: Domain, iova: Addresses) -> Addresses:
    """Look addresses up in the tables."""
    return _space(domain).lookup(iova)


@hookimpl
def flush_iotlb_all(domain: Domain) -> None:
    """A domain-selective invalidation on each unit."""
    _space(domain).invalidate_all()


@hookimpl
def iotlb_sync(domain: Domain, gather: Gather) -> None:
    """A page-selective invalidation on each unit, which leaves upper entries cached where no table has gone."""
    _space(domain).sync(gather)


@hookimpl
def iotlb_sync_map(domain: Domain, iova: int, size: int) -> None:
    """With caching mode a page-selective invalidation, else a write-buffer flush where it is needed."""
    _space(domain).sync_map(iova, size)


# ---- dumps -----------------------------------------------------------------------------------------------------------


@hookimpl
def table_roots() -> Mapping[str, str]:
    """RTADDR leads to everything; CAP and ECAP say what is reserved."""
    return {
        "rtaddr": "RTADDR_REG (offset 0x20): the root table's address and the translation table mode",
        "cap": "CAP_REG (offset 0x08); without it every capability is taken to be there",
        "ecap": "ECAP_REG (offset 0x10); the same",
    }


@hookimpl
def walk_tables(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterable[Walk]:
    """Decode root, context, PASID and page tables."""
    from iommukit_intel_vtd.dump import walks

    return walks(memory, roots, requester, iova)


# ---- being judged ----------------------------------------------------------------------------------------------------


@hookimpl
def emulation(version: tuple[int, int]) -> Emulation | None:
    """QEMU's q35 with an ``intel-iommu``."""
    from iommukit_intel_vtd.emulated import emulated_machine

    return emulated_machine(version)


@hookimpl
def mistakes() -> Sequence[Mistake]:
    """Wrong drivers to try the suite with."""
    from iommukit_intel_vtd.wrong_use import MISTAKES

    return MISTAKES
