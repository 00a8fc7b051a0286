"""Domains with page tables: which stage they use, what they span, and when they fit a unit.

Before 7.2 a domain is allocated for no unit in particular, 57 bits wide, and trimmed when a device is attached; since, it is made
to measure for the unit of the device that it is allocated for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.kernel.boot import BootState
from iommukit.policy import Era
from iommukit_intel_vtd.capabilities import DEFAULT_WIDTH, FSTS, SMTS, SSTS, common, large_pages
from iommukit_intel_vtd.remapping import RemappingUnit

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus
    from iommukit_intel_vtd.space import AddressSpace

SIZE_4K = 1 << 12


@dataclass(slots=True, eq=False)
class PagingDomain(Domain):
    """A domain with page tables, of the first or the second stage."""

    first_stage: bool = False
    space: AddressSpace | None = None
    """The tables, where the domain is used on hardware."""

    @property
    def mapped(self) -> int:
        """The first address (bytes) beyond all that was ever mapped."""
        regions = max((end + 1 for _, end in self.direct), default=0)
        return regions if self.space is None else max(regions, self.space.used)


def first_stage_by_default(unit: RemappingUnit, boot: BootState, *, unmanaged: bool = False) -> bool:
    """Whether a domain gets first-stage tables (``first_level_by_default``); before 7.2 all units decide together."""
    if boot.era >= Era.V7_2:
        words = [unit.capabilities]
        scalable, unmanaged = unit.scalable, False
    else:
        words = [member.capabilities for member in unit.platform.active()]
        scalable = unit.platform.options.scalable and common(words, SMTS)
    first, second = common(words, FSTS), common(words, SSTS)
    if not scalable:
        return False
    return first if first != second else not unmanaged


def aperture(width: int, first_stage: bool) -> tuple[int, int]:
    """First-stage addresses are canonical: their upper half needs the uppermost bits set, so only the lower half is used."""
    return 0, (1 << width - first_stage) - 1


def _large_pages(units: Sequence[RemappingUnit], first_stage: bool) -> int:
    if not units[0].platform.options.superpages:
        return 0
    return large_pages(frozenset([unit.capabilities for unit in units]), first_stage)


def new_paging_domain(type: DomainType, unit: RemappingUnit, boot: BootState) -> PagingDomain:
    """Allocate a translated or unmanaged domain (``intel_iommu_domain_alloc``)."""
    first_stage = first_stage_by_default(unit, boot, unmanaged=type is DomainType.UNMANAGED)
    if boot.era < Era.V7_2:
        return PagingDomain(type, aperture=aperture(DEFAULT_WIDTH, False), page_sizes=SIZE_4K, first_stage=first_stage)
    return PagingDomain(
        type,
        aperture=aperture(unit.width, first_stage),
        page_sizes=SIZE_4K | _large_pages([unit], first_stage),
        generic_pt=True,
        first_stage=first_stage,
    )


def new_space(domain: PagingDomain, unit: RemappingUnit, bus: Bus, era: Era) -> AddressSpace:
    """Empty tables for a domain: before 7.2 as deep as there are, to be trimmed when a device is attached.

    Raises ``IommuError("ENOMEM")``.
    """
    from iommukit_intel_vtd.space import AddressSpace  # numpy is slow to import, and policy needs none of it

    levels = unit.levels if era >= Era.V7_2 else (DEFAULT_WIDTH - 12) // 9
    return AddressSpace(bus.memory, first_stage=domain.first_stage, levels=levels, whole=era < Era.V7_2)


def fit(domain: PagingDomain, unit: RemappingUnit, device: Device) -> None:
    """Check that the unit can walk the domain's tables, and before 7.2 trim them to it (``prepare_domain_attach_device``)."""
    boot = device.system.boot
    if boot.era >= Era.V7_2:
        sizes = SIZE_4K | _large_pages([unit], domain.first_stage)
        if domain.aperture[1] > aperture(unit.width, domain.first_stage)[1] or domain.page_sizes & ~sizes:
            raise IommuError("EINVAL", "the domain's tables are not for this unit")
        return
    used = domain.mapped
    if used > 1 << unit.width:
        if boot.era >= Era.V6_12:
            raise IommuError("EINVAL", "the domain holds addresses beyond the unit's width")
        device.system.log(
            f"{device.log_name}: DMAR: prepare_domain_attach_device: iommu width ({unit.width}) is not sufficient for the"
            f" mapped address ({used:x})"
        )
        raise IommuError("EFAULT", "the domain holds addresses beyond the unit's width")
    domain.aperture = aperture(unit.width, domain.first_stage)
    domain.page_sizes |= _large_pages(unit.platform.active(), domain.first_stage)
