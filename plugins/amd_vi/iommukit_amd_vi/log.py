"""The lines that the driver prints of its hardware, release by release.

Only what the machine's data decide: a line that shows a register is left out where the register's value is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from iommukit_amd_vi.layout import (
    GA_SUP,
    GAM_SUP,
    GAPPI_SUP,
    GT_SUP,
    HE_SUP,
    IA_SUP,
    NX_SUP,
    PC_SUP,
    PPR_SUP,
    PREF_SUP,
    SNP_SUP,
    XT_SUP,
)
from iommukit_amd_vi.options import AmdOptions, Release
from iommukit_amd_vi.units import Iommu, Platform

PRINTS_ACPI_DEVICES: Release = (5, 14)
HEXADECIMAL_DEVIDS: Release = (7, 2)
ONE_FEATURE_LINE: Release = (5, 13)
HAS_EFR2: Release = (6, 0)
GUEST_LEVELS: Release = (6, 3)
GLOBAL_FEATURES: Release = (6, 7)
"""Since this release features are those that all IOMMUs share, and they are printed once."""

_FEATURES = (
    (PREF_SUP, "PreF"),
    (PPR_SUP, "PPR"),
    (XT_SUP, "X2APIC"),
    (NX_SUP, "NX"),
    (GT_SUP, "GT"),
    (GAPPI_SUP, "[5]"),
    (IA_SUP, "IA"),
    (GA_SUP, "GA"),
    (HE_SUP, "HE"),
    (PC_SUP, "PC"),
)


def hexadecimal(value: int) -> str:
    """A number as ``%#llx`` prints it."""
    return f"{value:#x}"


def table_lines(platform: Platform, release: Release) -> Iterator[str]:
    """What is printed while the table is read (``init_iommu_all``), before the policy lines."""
    if release >= PRINTS_ACPI_DEVICES:
        for acpi in platform.acpi_devices:
            root = (acpi.segment << 16 | acpi.devid) & ~7
            shown = hexadecimal(root) if release >= HEXADECIMAL_DEVIDS else str(root)
            yield f"AMD-Vi: ivrs, add hid:{acpi.hid}, uid:{acpi.uid}, rdevid:{shown}"
    if release < HAS_EFR2:
        return
    first = platform.iommus[:1]
    efr, efr2 = (first[0].table_efr, first[0].table_efr2) if first else (0, 0)
    for iommu in platform.iommus[1:]:
        if (iommu.table_efr, iommu.table_efr2) == (efr, efr2):
            continue
        own = f"{hexadecimal(iommu.table_efr)},{hexadecimal(iommu.table_efr2)}"
        shared = f"{hexadecimal(efr)},{hexadecimal(efr2)}"
        yield (
            f"AMD-Vi: [Firmware Bug]: Found inconsistent EFR/EFR2 {own} (global {shared}) on iommu{iommu.index} ({iommu.label})."
        )
        efr, efr2 = efr & iommu.table_efr, efr2 & iommu.table_efr2
    yield f"AMD-Vi: Using global IVHD EFR:{hexadecimal(efr)}, EFR2:{hexadecimal(efr2)}"


def interrupt_lines(platform: Platform) -> Iterator[str]:
    """What is printed where interrupts cannot be remapped (``check_ioapic_information``)."""
    if not platform.southbridge_ioapic:
        yield "AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found"
        yield "AMD-Vi: Disabling interrupt remapping"


def takeover_lines(platform: Platform) -> Iterator[str]:
    """A kdump kernel takes over the device table of the kernel that crashed (``early_enable_iommus``)."""
    if platform.hardware.translation_pre_enabled:
        yield "AMD-Vi: Translation is already enabled - trying to copy translation structures"
        yield "AMD-Vi: Copied DEV table from previous kernel."


def cache_lines(platform: Platform, options: AmdOptions) -> Iterator[str]:
    """The answer to ``amd_iommu=irtcachedis`` (``iommu_enable_irtcachedis``)."""
    if options.irt_cache_disabled:
        state = "disabled" if platform.hardware.irt_cache_dis else "enabled"
        for iommu in platform.iommus:
            yield f"AMD-Vi: iommu{iommu.index} ({iommu.devid:#06x}) : IRT cache is {state}"


def mismatch_lines(iommu: Iommu, release: Release) -> Iterator[str]:
    """The table's copy and the register differ (``late_iommu_features_init``)."""
    if not (iommu.efr_known and iommu.table_efr) or iommu.efr == iommu.table_efr:
        return
    line = f"AMD-Vi: [Firmware Warn]: EFR mismatch. Use IVHD EFR ({hexadecimal(iommu.efr)} : {hexadecimal(iommu.table_efr)})"
    if release >= HAS_EFR2:
        line += f", EFR2 ({hexadecimal(iommu.efr2)} : {hexadecimal(iommu.table_efr2)})"
    yield line + "."


def counter_lines(iommu: Iommu, features: int) -> Iterator[str]:
    """The IOMMU counts events (``init_iommu_perf_ctr``)."""
    if iommu.efr_known and PC_SUP.get(features):
        yield f"pci {iommu.label}: AMD-Vi: IOMMU performance counters supported"


def summary_lines(
    platform: Platform, options: AmdOptions, release: Release, features: Callable[[Iommu], int], table: int
) -> Iterator[str]:
    """What is printed when all IOMMUs run (``print_iommu_info``, ``enable_iommus_vapic``).

    ``features``: an IOMMU's features as the driver takes them; ``table``: the page-table format in use.
    """
    if release == ONE_FEATURE_LINE:
        yield from _invalidation_lines(options)
    for iommu in platform.iommus:
        if release < GLOBAL_FEATURES:
            yield f"pci {iommu.label}: AMD-Vi: Found IOMMU cap {iommu.cap_offset:#x}"
        if iommu.efr_known and (release < GLOBAL_FEATURES or iommu.index == 0):
            yield from _feature_lines(iommu, features(iommu), release)
    interrupts = platform.southbridge_ioapic
    virtual_apic = (
        interrupts
        and not options.legacy_interrupts
        and all(
            iommu.efr_known and iommu.guest_interrupts and GAM_SUP.get(iommu.efr) == GAM_SUP.get(features(iommu)) == 1
            for iommu in platform.iommus
        )
    )
    if interrupts:
        yield "AMD-Vi: Interrupt remapping enabled"
    if virtual_apic and release < HAS_EFR2:
        yield "AMD-Vi: Virtual APIC enabled"
    if interrupts and any(iommu.x2apic for iommu in platform.iommus):
        yield "AMD-Vi: X2APIC enabled"
    if table == 2:
        yield "AMD-Vi: V2 page table enabled" + (" (Paging mode : 4 level)" if release >= GUEST_LEVELS else "")
    if virtual_apic and release >= HAS_EFR2:
        yield "AMD-Vi: Virtual APIC enabled"
    if release < ONE_FEATURE_LINE:
        yield from _invalidation_lines(options)


def _feature_lines(iommu: Iommu, features: int, release: Release) -> Iterator[str]:
    names = [name for bit, name in _FEATURES if bit.get(features)]
    if GAM_SUP.get(features) & 1:
        names.append("GA_vAPIC")
    if release >= GLOBAL_FEATURES and SNP_SUP.get(features):
        names.append("SNP")
    words = "".join(f" {name}" for name in names)
    if release < ONE_FEATURE_LINE:
        yield f"pci {iommu.label}: AMD-Vi: Extended features ({hexadecimal(features)}):"
        yield words
    elif release < HAS_EFR2:
        yield f"AMD-Vi: Extended features ({hexadecimal(features)}):{words}"
    elif features:
        yield f"AMD-Vi: Extended features ({hexadecimal(features)}, {hexadecimal(iommu.efr2)}):{words}"


def _invalidation_lines(options: AmdOptions) -> Iterator[str]:
    """How unmaps are flushed, before the core said so."""
    yield "AMD-Vi: IO/TLB flush on unmap enabled" if options.full_flush else "AMD-Vi: Lazy IO/TLB flushing enabled"
