"""What Linux decides on VT-d (``drivers/iommu/intel/iommu.c``), from 6.1 to 7.2.

The hooks in the order of a machine's life: the table and quirks before the policy is printed, switching remapping on, then
each device and each domain.
"""

from __future__ import annotations

from collections.abc import Sequence

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption
from iommukit.machine.acpi import TableFormat
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import RegionType, ReservedRegion
from iommukit_intel_vtd import hardware
from iommukit_intel_vtd.capabilities import (
    CM,
    DMA_AUDIT,
    FSTS,
    IR,
    PT,
    QI,
    SC,
    SMTS,
    SSADS,
    SSTS,
    audit,
    common,
)
from iommukit_intel_vtd.domains import PagingDomain, first_stage_by_default, fit, new_paging_domain, new_space
from iommukit_intel_vtd.firmware import DMAR, Dmar
from iommukit_intel_vtd.options import OPTIONS
from iommukit_intel_vtd.parse import audits, read_platform
from iommukit_intel_vtd.quirks import (
    AZALIA,
    SYSTEM_MANAGEMENT,
    check_isoch,
    is_display,
    is_isa_bridge,
    rmrr_is_relaxable,
    scan_fixups,
)
from iommukit_intel_vtd.remapping import Platform, RemappingUnit
from iommukit_intel_vtd.synthetic import INTERRUPTS

VENDOR = "intel_vtd"
PLATFORM = "intel_vtd.platform"
ISA_DMA = ReservedRegion(0, (1 << 24) - 1, RegionType.DIRECT_RELAXABLE)
"""What ISA devices such as a floppy drive reach without the DMA API (INTEL_IOMMU_FLOPPY_WA)."""


# ---- declaration -----------------------------------------------------------------------------------------------------


@hookimpl
def declare() -> VendorDeclaration:
    """Intel VT-d."""
    return VendorDeclaration(
        title="Intel VT-d",
        arch=("x86_64",),
        capabilities=frozenset(
            {
                "identity",
                "lazy",
                "pci",
                "trust",
                "identity-required",
                "strict-required",
                "direct-regions",
                "relaxable-regions",
                "superpages",
                "pasid",
                "resv-firmware",
                "legacy-strict-option",
            }
        ),
        hardware_options=hardware.OPTIONS,
        hardware_variants=hardware.VARIANTS,
    )


@hookimpl
def firmware_formats() -> Sequence[TableFormat[Dmar]]:
    """The DMAR table."""
    return (DMAR,)


@hookimpl
def kernel_options() -> Sequence[KernelOption]:
    """``intel_iommu=``."""
    return OPTIONS


@hookimpl
def example_device(role: str, boot: BootState) -> ExampleDevice | None:
    """A device for a role; see ``EXAMPLES``.  A required translation exists since 6.12."""
    if role == "strict-required" and boot.era < Era.V6_12:
        return None
    return EXAMPLES.get(role)


EXAMPLES: dict[str, ExampleDevice] = {
    # Sound of a Tylersburg board whose firmware routes it to the isochronous unit and gives that no TLB entries.
    "identity-required": ExampleDevice(
        device={"id": "{:04x}:{:04x}".format(*AZALIA), "class": "040300"},
        companions=(
            {
                "name": "system-management",
                "id": "{:04x}:{:04x}".format(*SYSTEM_MANAGEMENT),
                "class": "080000",
                "kind": "integrated_endpoint",
                "attributes": {"registers": {"0x188": 0}},
            },
        ),
        # Since 6.12 a unit without pass-through translates for everything, sound included.
        hardware={"pass_through": True},
    ),
    # Any device behind a unit without pass-through.
    "strict-required": ExampleDevice(device={"id": "8086:10d3", "class": "020000"}, hardware={"pass_through": False}),
    # A storage controller whose firmware shares a page with it.
    "direct-region": ExampleDevice(
        device={
            "id": "8086:2822",
            "class": "010400",
            "reserved": [{"start": 0x1FFD_D000, "end": 0x1FFD_DFFF, "type": "direct"}],
        }
    ),
    # A USB controller that firmware emulated a keyboard through.
    "relaxable-region": ExampleDevice(
        device={
            "id": "8086:a12f",
            "class": "0c0330",
            "reserved": [{"start": 0x1FFD_E000, "end": 0x1FFD_EFFF, "type": "direct-relaxable"}],
        }
    ),
}


# ---- boot ------------------------------------------------------------------------------------------------------------


@hookimpl
def early_quirks(machine: Machine, boot: BootState) -> None:
    """Read the table, ask for ACS, and run the quirks of the PCI scan."""
    platform = boot.options[PLATFORM] = read_platform(machine, boot)
    options = platform.options
    if platform.valid and not boot.no_iommu and (options.enabled or platform.table.dma_ctrl_platform_opt_in):
        boot.acs_requested = True
    platform.quirks = scan_fixups((node.facts for node in platform.devices), options.map_graphics, boot)


@hookimpl
def discover(machine: Machine, boot: BootState) -> Sequence[Unit]:
    """Switch DMA remapping on, or leave it off (``intel_iommu_init``)."""
    platform = _platform(machine, boot)
    if not platform.valid:
        return ()
    _obey_opt_in(platform, boot)
    if not platform.parsed or not platform.bind_all(boot.log):
        return ()
    if boot.no_iommu or not platform.options.enabled:
        return ()
    for name, found in (("RMRR", platform.rmrrs), ("ATSR", platform.atsrs), ("SATC", platform.satcs)):
        if not found:
            boot.log.append(f"DMAR: No {name} found")
    platform.leave_out()
    if not _initialise(platform, boot):
        boot.log.append("DMAR: Initialization failed")
        return ()
    if any(unit.capabilities.has(CM) and not first_stage_by_default(unit, boot) for unit in platform.active()):
        boot.log.append("DMAR: IOMMU batching disallowed due to virtualization")
        boot.set_dma_strict()
    boot.log.append("DMAR: Intel(R) Virtualization Technology for Directed I/O")
    return [Unit(unit.name, VENDOR, state=unit) for unit in platform.active()]


def _platform(machine: Machine, boot: BootState) -> Platform:
    platform = boot.options.get(PLATFORM)
    if platform is None:
        early_quirks(machine, boot)
        platform = boot.options[PLATFORM]
    assert isinstance(platform, Platform)
    return platform


def _obey_opt_in(platform: Platform, boot: BootState) -> None:
    """Switch remapping on where the platform asks for it and has a port for strangers (``platform_optin_force_iommu``).

    Where the build leaves remapping off, trusted devices then run untranslated.
    """
    outside = any(node.facts.external_facing for node in platform.devices)
    if not platform.table.dma_ctrl_platform_opt_in or platform.options.opt_in_vetoed or not outside:
        return
    if boot.no_iommu and boot.off_is_final:
        return
    if boot.no_iommu or not platform.options.enabled:
        boot.log.append("DMAR: Intel-IOMMU force enabled due to platform opt in")
    if not platform.options.enabled:
        boot.set_default_passthrough()
    platform.options.enabled = True
    boot.no_iommu = False


def _initialise(platform: Platform, boot: BootState) -> bool:
    """Start the units (``init_dmars``).  False where they cannot work together."""
    active = platform.active()
    words = [unit.capabilities for unit in active]
    if audits(boot):
        boot.log.extend(audit(words, DMA_AUDIT))
        if active and common(words, SMTS) and not common(words, FSTS) and not common(words, SSTS):
            return False
    for unit in active:
        how = "Queued" if unit.capabilities.has(QI) else "Register based"
        boot.log.append(f"DMAR: {unit.name}: Using {how} invalidation")
        if unit.pre_enabled:
            boot.log.append("DMAR: Translation already enabled - trying to copy translation structures")
            boot.log.append(f"DMAR: Copied translation tables from previous kernel for {unit.name}")
    if boot.era < Era.V6_12:
        boot.log.extend(
            "DMAR: VT-d Scalable Mode not enabled, no PASID allocation"
            for unit in active
            if unit.capabilities.has(CM) and not unit.scalable
        )
    check_isoch((node.facts for node in platform.devices), platform.quirks, boot)
    return True


# ---- devices ---------------------------------------------------------------------------------------------------------


def _unit(device: Device) -> RemappingUnit:
    assert device.unit is not None
    state = device.unit.state
    assert isinstance(state, RemappingUnit)
    return state


@hookimpl
def probe_device(device: Device, units: Sequence[Unit]) -> Unit | None:
    """The unit that the table gives the device to."""
    if not units:
        return None
    platform = units[0].state.platform
    platform.meet(device)
    found = platform.lookup(device)
    return next((unit for unit in units if unit.state is found), None)


@hookimpl
def probe_finalize(device: Device) -> None:
    """Before 6.12, point the device's mapping calls at its domain."""
    if device.system.boot.era < Era.V6_12:
        iommu_setup_dma_ops(device)


@hookimpl
def release_device(device: Device) -> None:
    """Take the device's translation away."""
    running = _unit(device).running
    if running is not None:
        running.attachments.forget(device)
    device.attached = None


@hookimpl
def get_resv_regions(device: Device) -> Sequence[ReservedRegion]:
    """Memory shared with firmware, ISA's first 16 MiB, and the interrupt window."""
    kind = RegionType.DIRECT_RELAXABLE if rmrr_is_relaxable(device.facts) else RegionType.DIRECT
    regions = [ReservedRegion(rmrr.base, rmrr.end, kind) for rmrr in _unit(device).platform.rmrrs_of(device)]
    if is_isa_bridge(device.facts) and device.system.boot.config.get("INTEL_IOMMU_FLOPPY_WA", True):
        regions.append(ISA_DMA)
    return [*regions, INTERRUPTS]


@hookimpl
def is_attach_deferred(device: Device) -> bool:
    """In a kdump kernel, until the device's driver shows up."""
    return _unit(device).pre_enabled and device.attached is None


@hookimpl
def capable(device: Device, capability: str) -> bool:
    """What the unit and the platform offer.

    Interrupt remapping is answered in all releases; later ones ask the interrupt domain for it, with the same result.
    """
    unit, era = _unit(device), device.system.boot.era
    match capability:
        case "cache_coherency":
            return True
        case "deferred_flush":
            return era is Era.V6_12
        case "pre_boot_protection":
            return unit.platform.table.dma_ctrl_platform_opt_in
        case "interrupt_remapping":
            words = [member.capabilities for member in unit.platform.units]
            return unit.platform.table.intr_remap and common(words, IR)
        case "enforce_cache_coherency":
            return era >= Era.V6_12 and unit.capabilities.has(SC)
        case "dirty_tracking":
            return era >= Era.V6_12 and unit.scalable and unit.capabilities.has(SSADS)
    return False


# ---- policy ----------------------------------------------------------------------------------------------------------


@hookimpl
def def_domain_type(device: Device) -> DmaApiPolicy:
    """What the hardware or a quirk leaves no choice about (``device_def_domain_type``)."""
    unit, boot = _unit(device), device.system.boot
    quirks = unit.platform.quirks
    if boot.era >= Era.V6_12:
        if not unit.capabilities.has(PT):
            return DmaApiPolicy.STRICT
    elif is_display(device.facts) and _graphics_untranslated(unit.platform, boot):
        return DmaApiPolicy.IDENTITY
    if quirks.azalia_identity and device.facts.ids == AZALIA:
        return DmaApiPolicy.IDENTITY
    return DmaApiPolicy.ANY


def _graphics_untranslated(platform: Platform, boot: BootState) -> bool:
    """Before 6.12: graphics that a unit translates for see physical addresses (``IDENTMAP_GFX``)."""
    excluded = not platform.options.map_graphics or platform.quirks.broken_graphics
    return excluded or boot.config.get("INTEL_IOMMU_BROKEN_GFX_WA", False)


@hookimpl
def prefer_dma_api_fq(device: Device) -> bool:
    """A queue works for every device."""
    return True


# ---- domains ---------------------------------------------------------------------------------------------------------


@hookimpl
def domain_alloc(device: Device, type: DomainType) -> Domain | None:
    """The two static domains (blocked since 6.12), or page tables."""
    unit, boot = _unit(device), device.system.boot
    if type is DomainType.IDENTITY:
        return unit.platform.identity
    if type is DomainType.BLOCKED:
        return unit.platform.blocked if boot.era >= Era.V6_12 else None
    if type is DomainType.PLATFORM or (type is DomainType.DMA_FQ and boot.era >= Era.V6_12):
        return None
    domain = new_paging_domain(type, unit, boot)
    assert device.unit is not None
    if device.unit.bus is not None:
        domain.space = new_space(domain, unit, device.unit.bus, boot.era)
    return domain


@hookimpl
def attach_dev(domain: Domain, device: Device) -> None:
    """Put the device's requests through a domain (``intel_iommu_attach_device``).

    Raises ``EPERM`` before 6.12 for an unmanaged domain where firmware shares memory with the device, ``EFAULT`` (later ``EINVAL``)
    for a domain with addresses that the unit cannot translate, ``ENOMEM``, and ``ENOSPC`` where the unit has no free domain id.
    """
    unit, boot = _unit(device), device.system.boot
    if domain.type is DomainType.UNMANAGED and boot.era < Era.V6_12 and _rmrr_locked(device):
        device.system.log(
            f"{device.log_name}: DMAR: Device is ineligible for IOMMU domain attach due to platform RMRR requirement."
            "  Contact your platform vendor."
        )
        raise IommuError("EPERM", "firmware shares memory with the device")
    if isinstance(domain, PagingDomain):
        fit(domain, unit, device)
    if unit.running is not None:
        unit.running.attach(device, domain)
    device.attached = domain


def _rmrr_locked(device: Device) -> bool:
    return not rmrr_is_relaxable(device.facts) and bool(_unit(device).platform.rmrrs_of(device))
