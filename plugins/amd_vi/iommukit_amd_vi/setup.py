"""Bringing the IOMMUs up: the driver's state machine, its global variables and what it prints on the way.

Before the policy lines the table is read and, for the sake of interrupts, the hardware enabled (``amd_iommu_prepare``);
after them each IOMMU is taken into use (``amd_iommu_init_pci``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.errors import IommuError
from iommukit.kernel.boot import BootState
from iommukit.machine.model import Machine
from iommukit.policy import Era
from iommukit_amd_vi import log
from iommukit_amd_vi.layout import GIO_SUP, GT_SUP, HATS, NO_HOST_TABLES, PPR_SUP, SNP_SUP
from iommukit_amd_vi.options import POLICY_LINE, AmdOptions, amd_options
from iommukit_amd_vi.units import Iommu, Platform, read_platform

if TYPE_CHECKING:
    from iommukit.device import Device
    from iommukit.kernel.system import System
    from iommukit_amd_vi.domains import AmdDomain
    from iommukit_amd_vi.queue import DeviceTable
    from iommukit_amd_vi.start import Running

DRIVER = "amd_vi.driver"
"""Where ``BootState.options`` keeps the ``AmdVi`` of a boot."""

STONEY_RIDGE = "1002:98e4"
"""Graphics beside which the IOMMU is not used: translation disturbs them."""

MAX_DOMAINS = 1 << 16
"""Domain ids are 16 bits wide."""

V2_REFUSED = "AMD-Vi: Cannot enable v2 page table for DMA-API. Fallback to v1."


@dataclass(slots=True)
class AmdVi:
    """The driver's global variables.

    ``detected``: there is a table and no reason to leave the IOMMUs alone.  ``table`` is the page-table format of
    translated domains: 1, 2, or 0 where the hardware has neither.  ``efr`` are the features that all IOMMUs share.
    ``host_levels`` counts the levels of host page tables.  ``identity`` and ``blocked`` are the static domains.
    """

    platform: Platform
    options: AmdOptions
    era: Era
    detected: bool = False
    table: int = 1
    host_levels: int = 6
    host_tables: bool = True
    efr: int = 0
    snp: bool = False
    identity: AmdDomain | None = None
    blocked: AmdDomain | None = None
    printed: set[str] = field(default_factory=set)
    """Messages that are printed once and have been."""
    device_tables: dict[int, DeviceTable] = field(default_factory=dict)
    """By PCI segment, where the driver runs on hardware."""
    ids: set[int] = field(default_factory=set)
    """Domain ids in use."""
    homes: dict[Device, AmdDomain] = field(default_factory=dict)
    """The domain that each device's entry in the device table names."""

    def take_id(self) -> int:
        """The lowest domain id that is free (``domain_id_alloc``).  Raises ``IommuError("ENOSPC")``."""
        for id in range(1, MAX_DOMAINS):
            if id not in self.ids:
                self.ids.add(id)
                return id
        raise IommuError("ENOSPC", "no domain id is free")

    def give_id(self, id: int) -> None:
        """Take a domain id back; nothing of it is cached any more."""
        self.ids.discard(id)

    @property
    def np_cache(self) -> bool:
        """Whether any IOMMU caches absent entries (``amd_iommu_np_cache``)."""
        return any(iommu.np_cache for iommu in self.platform.iommus)

    def print_once(self, system: System, message: str, device: Device | None = None) -> None:
        """Log a message, of a device or of the driver, unless it has been logged before."""
        if message not in self.printed:
            self.printed.add(message)
            system.log(f"{device.log_name}: {message}" if device else message)

    def features(self, iommu: Iommu) -> int:
        """An IOMMU's features: its own before 6.7, later what all share."""
        return self.efr if self.era >= Era.V6_12 else iommu.table_efr or iommu.efr

    def has_pasids(self, iommu: Iommu) -> bool:
        """Guest translation and page requests (``is_iommu_v2``, ``amd_iommu_gt_ppr_supported``)."""
        features = self.features(iommu)
        return bool(GT_SUP.get(features) and PPR_SUP.get(features))

    @property
    def walkable_levels(self) -> int:
        """Levels of host tables that every IOMMU walks (HATS)."""
        return min((4 + HATS.get(iommu.efr) for iommu in self.platform.iommus), default=6)

    @property
    def interrupts_remapped(self) -> bool:
        """``irq_remapping_enabled``."""
        return self.platform.southbridge_ioapic


@dataclass(slots=True, eq=False)
class AmdUnit:
    """``Unit.state``: the IOMMU, the driver that runs it, and its hardware once it has been brought up."""

    iommu: Iommu
    driver: AmdVi
    hardware: Running | None = None


def guest_tables(features: int) -> bool:
    """Whether the DMA API can use page-table format 2 (``amd_iommu_v2_pgtbl_supported``)."""
    return bool(GIO_SUP.get(features) and GT_SUP.get(features))


# ---- before the policy lines -----------------------------------------------------------------------------------------


def detect(machine: Machine, boot: BootState) -> AmdVi:
    """Find the table, ask for ACS, and read the table (``amd_iommu_detect``, ``amd_iommu_prepare``)."""
    options = amd_options(boot)
    driver = AmdVi(read_platform(machine), options, boot.era, table=options.table)
    if not options.force_enable and _has_stoney_ridge(machine):
        boot.log.append("AMD-Vi: Disable IOMMU on Stoney Ridge")
        return driver
    boot.acs_requested = True
    if boot.no_iommu:
        return driver
    if options.off:
        if boot.release < POLICY_LINE:
            boot.log.append("AMD-Vi: AMD IOMMU disabled")
        return driver
    platform = driver.platform
    if not platform.usable:
        return driver
    driver.detected = True
    boot.log.extend(log.table_lines(platform, boot.release))
    _share_features(driver)
    if boot.era >= Era.V7_2:
        _choose_tables_early(driver, boot)
    boot.log.extend(log.interrupt_lines(platform))
    if driver.interrupts_remapped:
        _enable(driver, boot)
    return driver


def _enable(driver: AmdVi, boot: BootState) -> None:
    """Switch the hardware on (``early_enable_iommus``)."""
    boot.log.extend(log.takeover_lines(driver.platform))
    boot.log.extend(log.cache_lines(driver.platform, driver.options))


def _has_stoney_ridge(machine: Machine) -> bool:
    """Whether some slot of bus 0 has that graphics as its first function."""
    return any(
        (spec.id or "").lower() == STONEY_RIDGE and (numbers := spec.pci_numbers()) and numbers[:2] == (0, 0) and numbers[3] == 0
        for spec in machine.devices
    )


def _share_features(driver: AmdVi) -> None:
    """The features that the table gives to all IOMMUs; else the first IOMMU's register (``get_global_efr``)."""
    iommus = driver.platform.iommus
    if iommus:
        driver.efr = iommus[0].table_efr
        for iommu in iommus[1:]:
            driver.efr &= iommu.table_efr


def _choose_tables_early(driver: AmdVi, boot: BootState) -> None:
    """7.2 decides by the table's copy alone, before any register can be read."""
    levels = HATS.get(driver.efr)
    if levels == NO_HOST_TABLES:
        driver.host_tables = False
        boot.log.append(f"AMD-Vi: [Firmware Bug]: Disable host address translation due to invalid translation level ({levels:#x}).")
    else:
        driver.host_levels = 4 + levels
    if driver.table == 2 and not guest_tables(driver.efr):
        boot.log.append(V2_REFUSED)
        driver.table = 1
    if not driver.host_tables:
        driver.table = 2 if guest_tables(driver.efr) else 0


# ---- after them ------------------------------------------------------------------------------------------------------


def bring_up(driver: AmdVi, boot: BootState) -> list[Iommu]:
    """Take the IOMMUs into use (``amd_iommu_init``): the list of those that register."""
    if not driver.detected:
        return []
    platform = driver.platform
    if not driver.interrupts_remapped:
        _enable(driver, boot)
    if platform.hardware.snp and platform.iommus:
        _enable_snp(driver, boot)
    for iommu in platform.iommus:
        _init_one(driver, iommu, boot)
    boot.log.extend(log.summary_lines(platform, driver.options, boot.release, driver.features, driver.table))
    return platform.iommus


def _init_one(driver: AmdVi, iommu: Iommu, boot: BootState) -> None:
    """``iommu_init_pci``."""
    boot.log.extend(log.mismatch_lines(iommu, boot.release))
    if not driver.efr:
        driver.efr = iommu.efr
    if iommu.np_cache:
        _be_strict(boot)
    boot.log.extend(log.counter_lines(iommu, driver.features(iommu)))
    if driver.table == 2 and boot.era < Era.V7_2:
        _check_guest_tables(driver, iommu, boot)


def _be_strict(boot: BootState) -> None:
    """An IOMMU that caches absent entries is an emulated one, where batching costs more than it saves."""
    if boot.release >= (5, 15):
        boot.log.append("AMD-Vi: Using strict mode due to virtualization")
    elif boot.release >= (5, 14):
        boot.log.append("AMD-Vi: IOMMU batching is disabled due to virtualization")
    else:
        return
    boot.set_dma_strict()


def _check_guest_tables(driver: AmdVi, iommu: Iommu, boot: BootState) -> None:
    if not guest_tables(driver.features(iommu)):
        boot.log.append(V2_REFUSED)
        driver.table = 1
    elif boot.era < Era.V6_12 and boot.default_passthrough():
        boot.log.append("AMD-Vi: V2 page table doesn't support passthrough mode. Fallback to v1.")
        driver.table = 1


def _enable_snp(driver: AmdVi, boot: BootState) -> None:
    """SEV-SNP wants every device translated by host page tables; what stands in its way wins since 6.12.

    6.1: ``amd_iommu_snp_enable``; later ``iommu_snp_enable``.
    """
    # No register has been read yet: only the table's copy counts.
    shared = bool(SNP_SUP.get(driver.efr))
    if boot.era < Era.V6_12:
        if boot.default_passthrough():
            boot.log.append("AMD-Vi: SNP: IOMMU is disabled or configured in passthrough mode, SNP cannot be supported")
        elif shared:
            driver.snp = True
            boot.log.append("AMD-Vi: SNP enabled")
            if driver.table != 1:
                boot.log.append("AMD-Vi: Force to using AMD IOMMU v1 page table due to SNP")
                driver.table = 1
        return
    if boot.default_passthrough():
        reason = "IOMMU disabled or configured in passthrough mode"
    elif driver.table != 1:
        reason = "IOMMU is configured with V2 page table mode"
    elif not shared:
        reason = "IOMMU SNP feature not enabled"
    else:
        driver.snp = True
        boot.log.append("AMD-Vi: IOMMU SNP support enabled.")
        return
    boot.log.append(f"AMD-Vi: SNP: {reason}, SNP cannot be supported.")
