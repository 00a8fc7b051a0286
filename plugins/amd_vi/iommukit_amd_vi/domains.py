"""The driver's domains: which types it offers, with which page tables, in each generation.

Page-table format 1 is the IOMMU's own (*host tables*), format 2 the processor's (*guest tables*).
"""

from __future__ import annotations

from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.policy import Era
from iommukit_amd_vi.options import V2_PAGE_SIZES
from iommukit_amd_vi.setup import AmdVi, guest_tables
from iommukit_amd_vi.units import Iommu

PAGING = frozenset({DomainType.DMA, DomainType.DMA_FQ, DomainType.UNMANAGED})


def allocate(driver: AmdVi, iommu: Iommu, type: DomainType, *, pasids: bool) -> Domain | None:
    """A domain for a device below ``iommu``; ``pasids``: the device has PASIDs.

    ``None`` where the driver has no such type.  Raises ``IommuError("ENOMEM")`` where it refuses.
    """
    if driver.era < Era.V6_12:
        return _allocate_6_1(driver, type)
    if type is DomainType.BLOCKED:
        driver.blocked = driver.blocked or Domain(type, page_sizes=0, static=True)
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


def _allocate_6_1(driver: AmdVi, type: DomainType) -> Domain | None:
    """Any type: a blocked domain is one in which nothing is mapped.  Identity and unmanaged domains use format 1."""
    if type is DomainType.IDENTITY and driver.snp:
        return None
    host = type in (DomainType.IDENTITY, DomainType.UNMANAGED)
    return _paging(driver, type, 1 if host else driver.table)


def _identity(driver: AmdVi) -> Domain:
    if driver.era >= Era.V7_2:
        driver.identity = driver.identity or Domain(DomainType.IDENTITY, page_sizes=0, static=True)
        return driver.identity
    if driver.snp:
        raise IommuError("ENOMEM", "SNP forbids identity")
    return Domain(DomainType.IDENTITY, page_sizes=driver.options.page_sizes)


def _paging(driver: AmdVi, type: DomainType, format: int) -> Domain:
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
    return Domain(type, aperture=(0, (1 << bits) - 1), page_sizes=page_sizes, generic_pt=newest)
