"""The driver's domains: which types it offers, with which page tables, in each generation.

Page-table format 1 is the IOMMU's own (*host tables*), format 2 the processor's (*guest tables*).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.policy import Era
from iommukit_amd_vi.options import V2_PAGE_SIZES
from iommukit_amd_vi.setup import AmdUnit, AmdVi, guest_tables
from iommukit_amd_vi.units import Iommu

if TYPE_CHECKING:
    from iommukit.device import Device
    from iommukit.hw.radix import PageTable

PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class GuestRoot:
    """A GCR3 table of one page, whose entry 0 names a guest table, and the domain id that goes with it."""

    address: int
    id: int


@dataclass(frozen=True, slots=True)
class Member:
    """A device in a domain: its unit, the requester ids that it uses, and with guest tables their root."""

    unit: AmdUnit
    ids: tuple[int, ...]
    root: GuestRoot | None = None


@dataclass(slots=True, eq=False)
class AmdDomain(Domain):
    """A domain with what the driver keeps of it on hardware (``struct protection_domain``).

    ``format`` is that of its page tables, 0 without.  ``id`` is the domain id, 0 for a domain that needs none.  ``tables`` is
    ``None`` where the driver runs without hardware.  ``root``: the GCR3 table of a 6.1 domain with guest tables; later each
    device has its own.
    """

    driver: AmdVi | None = None
    format: int = 0
    id: int = 0
    tables: PageTable | None = None
    root: GuestRoot | None = None
    members: dict[Device, Member] = field(default_factory=dict)


PAGING = frozenset({DomainType.DMA, DomainType.DMA_FQ, DomainType.UNMANAGED})


def allocate(driver: AmdVi, iommu: Iommu, type: DomainType, *, pasids: bool) -> AmdDomain | None:
    """A domain for a device below ``iommu``; ``pasids``: the device has PASIDs.

    ``None`` where the driver has no such type.  Raises ``IommuError("ENOMEM")`` where it refuses.
    """
    if driver.era < Era.V6_12:
        return _allocate_6_1(driver, type)
    if type is DomainType.BLOCKED:
        driver.blocked = driver.blocked or AmdDomain(type, page_sizes=0, static=True, driver=driver)
        return driver.blocked
    if type is DomainType.IDENTITY:
        return _identity(driver)
    if type not in PAGING:
        return None
    if driver.era < Era.V7_2:
        return _paging(driver, type, 1 if type is DomainType.UNMANAGED else driver.table)
    # 7.2 asks for tables that can be shared with PASIDs, and takes what the command line says where there are none.
    shared = pasids and type is not DomainType.UNMANAGED and driver.has_pasids(iommu) and not driver.snp
    return _paging(driver, type, 2 if shared and guest_tables(driver.features(iommu)) else driver.table)


def _allocate_6_1(driver: AmdVi, type: DomainType) -> AmdDomain | None:
    """Any type: a blocked domain is one in which nothing is mapped.  Identity and unmanaged domains use format 1."""
    if type is DomainType.IDENTITY and driver.snp:
        return None
    host = type in (DomainType.IDENTITY, DomainType.UNMANAGED)
    return _paging(driver, type, 1 if host else driver.table)


def _identity(driver: AmdVi) -> AmdDomain:
    if driver.era >= Era.V7_2:
        driver.identity = driver.identity or AmdDomain(DomainType.IDENTITY, page_sizes=0, static=True, driver=driver)
        return driver.identity
    if driver.snp:
        raise IommuError("ENOMEM", "SNP forbids identity")
    return AmdDomain(DomainType.IDENTITY, page_sizes=driver.options.page_sizes, driver=driver)


def _paging(driver: AmdVi, type: DomainType, format: int) -> AmdDomain:
    """A domain with page tables; its aperture is enforced."""
    newest = driver.era >= Era.V7_2
    if format == 1:
        # Before 7.2 the tables grow as far as 64 bits, whatever the hardware can walk.
        bits = min(64, 12 + 9 * driver.host_levels) if newest else 64
        page_sizes = driver.options.page_sizes
    else:
        # 7.2 leaves out the top half, so that the tables fit a PASID's sign-extended addresses too.
        bits = 47 if newest else 48
        page_sizes = V2_PAGE_SIZES
    if type is DomainType.IDENTITY:
        format = 0  # 6.1: mode 0 instead of tables
    return AmdDomain(type, aperture=(0, (1 << bits) - 1), page_sizes=page_sizes, generic_pt=newest, driver=driver, format=format)


# ---- on hardware -----------------------------------------------------------------------------------------------------


def equip(domain: AmdDomain, unit: AmdUnit) -> None:
    """Give a new domain its id and its empty page tables.

    Raises ``IommuError``: ``ENOMEM`` without a page for them, ``ENOSPC`` without an id; the domain is of no use then.
    """
    from iommukit.hw.radix import PageTable
    from iommukit_amd_vi.tables import FIRST_TOP, GUEST, HOST

    assert domain.driver is not None
    assert unit.hardware is not None
    if domain.type is DomainType.BLOCKED and domain.static:
        return
    if domain.tables is not None or domain.id:
        return  # the static identity domain, handed out once more
    memory = unit.hardware.bus.memory
    domain.id = domain.driver.take_id()
    try:
        if domain.format == 1:
            domain.tables = PageTable(HOST, memory, top=FIRST_TOP)
        elif domain.format == 2:
            domain.tables = PageTable(GUEST, memory)
            if domain.driver.era < Era.V6_12:
                domain.root = guest_root(domain, unit, domain.id)
    except IommuError:
        dismantle(domain)
        raise


def guest_root(domain: AmdDomain, unit: AmdUnit, id: int) -> GuestRoot:
    """A GCR3 table that names the domain's guest table for PASID 0.  Raises ``ENOMEM``."""
    from iommukit_amd_vi.layout import GCR3_V

    assert domain.tables is not None
    assert unit.hardware is not None
    memory = unit.hardware.bus.memory
    address = memory.pages.alloc(PAGE)
    memory.set_word(address, domain.tables.root | GCR3_V.mask)
    return GuestRoot(address, id)


def dismantle(domain: AmdDomain) -> None:
    """Give back what ``equip`` has taken."""
    if domain.root is not None and domain.tables is not None:
        domain.tables.memory.pages.free(domain.root.address, PAGE)
        domain.root = None
    if domain.tables is not None:
        domain.tables.free()
        domain.tables = None
    if domain.id:
        assert domain.driver is not None
        domain.driver.give_id(domain.id)
        domain.id = 0
