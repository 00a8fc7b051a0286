"""What Linux decides on AMD-Vi (``drivers/iommu/amd/init.c`` and ``iommu.c``), from 6.1 to 7.2.

The hooks in the order of a machine's life: the table before the policy is printed, the IOMMUs, then each device and each
domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel import cmdline
from iommukit.kernel.aliases import add_dma_alias, dma_aliases
from iommukit.kernel.boot import BootState
from iommukit.kernel.grouping import generic_device_group, pci_device_group
from iommukit.machine.acpi import TableFormat
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import RegionType, ReservedRegion
from iommukit_amd_vi import options
from iommukit_amd_vi.attach import block, enter
from iommukit_amd_vi.domains import AmdDomain, allocate, equip
from iommukit_amd_vi.firmware import IVRS, Ivrs
from iommukit_amd_vi.hardware import OPTIONS, VARIANTS
from iommukit_amd_vi.layout import HD_SUP, HT_WINDOW, MSI_WINDOW
from iommukit_amd_vi.setup import DRIVER, AmdUnit, AmdVi, bring_up, detect
from iommukit_amd_vi.units import AcpiDevice, Iommu, Segment, is_iommu_class, unity_region

VENDOR = "amd_vi"


@dataclass(frozen=True, slots=True)
class DeviceState:
    """``Device.vendor_state`` (``struct iommu_dev_data``).

    ``segment`` and ``devid`` say under which requester id the driver keeps the device; ``acpi`` is set for a device of
    the ACPI namespace.  ``identity``: its PASIDs make the driver require identity.
    """

    segment: int
    devid: int
    acpi: AcpiDevice | None
    identity: bool = False


def _unit(device: Device) -> AmdUnit:
    assert device.unit is not None
    unit: AmdUnit = device.unit.state
    return unit


def _era(device: Device) -> Era:
    return device.system.boot.era


# ---- declaration -----------------------------------------------------------------------------------------------------


@hookimpl
def declare() -> VendorDeclaration:
    """AMD I/O Virtualization Technology."""
    return VendorDeclaration(
        title="AMD-Vi",
        arch=("x86_64",),
        capabilities=frozenset(
            {
                "identity",
                "lazy",
                "pci",
                "trust",
                "identity-required",
                "direct-regions",
                "superpages",
                "pasid",
                "resv-firmware",
                "legacy-strict-option",
                "write-only",
            }
        ),
        hardware_options=OPTIONS,
        hardware_variants=VARIANTS,
    )


@hookimpl
def firmware_formats() -> Sequence[TableFormat[Ivrs]]:
    """The IVRS table."""
    return (IVRS,)


@hookimpl
def kernel_options(boot: BootState) -> Sequence[cmdline.KernelOption]:
    """``amd_iommu=`` and its companions."""
    return options.kernel_options(boot)


@hookimpl
def example_device(role: str) -> ExampleDevice | None:
    """A device for a role; see ``EXAMPLES``."""
    return EXAMPLES.get(role)


EXAMPLES: dict[str, ExampleDevice] = {
    # Graphics that share address spaces with processes.
    "identity-required": ExampleDevice(
        device={"id": "1002:1506", "class": "030000", "capabilities": ["ats", "pri", "pasid"]},
        hardware={"guest_translation": True, "ppr": True},
    ),
    # A USB controller whose firmware goes on reading its own buffers.
    "direct-region": ExampleDevice(
        device={
            "id": "1022:15e0",
            "class": "0c0330",
            "reserved": [{"start": 0x1FFD_D000, "end": 0x1FFD_DFFF, "type": "direct"}],
        }
    ),
}


# ---- the IOMMUs ------------------------------------------------------------------------------------------------------


@hookimpl
def early_quirks(machine: Machine, boot: BootState) -> None:
    """Detect and read the table."""
    boot.options[DRIVER] = detect(machine, boot)


@hookimpl
def discover(machine: Machine, boot: BootState) -> Sequence[Unit]:
    """Bring the IOMMUs up; none with ``iommu=off``, ``amd_iommu=off`` or beside Stoney Ridge graphics."""
    driver: AmdVi = boot.options.get(DRIVER) or detect(machine, boot)
    return [Unit(iommu.name, VENDOR, state=AmdUnit(iommu, driver)) for iommu in bring_up(driver, boot)]


# ---- devices ---------------------------------------------------------------------------------------------------------


@hookimpl
def probe_device(device: Device, units: Sequence[Unit]) -> Unit | None:
    """The IOMMU that the table assigns to the device's requester id (``amd_iommu_probe_device``)."""
    if not units:
        return None
    driver: AmdVi = units[0].state.driver
    place = _place(device, driver)
    if place is None:
        return None
    segment = driver.platform.segment(place.segment)
    iommu = segment.iommu_of(place.devid)
    unit = next((unit for unit in units if unit.state.iommu is iommu), None)
    if iommu is None or unit is None:
        return None
    if driver.table == 0:
        driver.print_once(device.system, "AMD-Vi: amd_iommu_probe_device: DMA translation not supported by iommu.")
        return None
    _set_up_aliases(device, segment, iommu)
    device.vendor_state = replace(place, identity=_uses_pasids(device, driver, iommu))
    return unit


def _place(device: Device, driver: AmdVi) -> DeviceState | None:
    """Where the tables have the device; ``None`` where they cannot know it (``get_device_sbdf_id``)."""
    facts = device.facts
    if facts.pci is not None:
        if driver.platform.synthetic and is_iommu_class(facts.class_code):
            return None
        return DeviceState(facts.pci.segment, facts.pci.rid, None)
    acpi = _acpi_device(device, driver)
    return DeviceState(acpi.segment, acpi.devid, acpi) if acpi else None


def _acpi_device(device: Device, driver: AmdVi) -> AcpiDevice | None:
    """The table's entry for a platform device, by hardware id and unique id (``get_acpihid_device_id``).

    Since 6.12 an entry of another unique id is taken as well if it is the only one of that hardware id, with a complaint
    of the firmware.
    """
    attributes = device.facts.attributes
    named = [acpi for acpi in driver.platform.acpi_devices if acpi.hid == attributes.get("hid")]
    uid = str(attributes.get("uid", ""))
    for acpi in named:
        if acpi.uid in ("", uid):
            return acpi
    if not named or _era(device) < Era.V6_12:
        return None
    plural = "" if len(named) == 1 else "s"
    message = f"AMD-Vi: [Firmware Bug]: No ACPI device matched UID, but {len(named)} device{plural} matched HID."
    driver.print_once(device.system, message, device)
    return named[0] if len(named) == 1 else None


def _set_up_aliases(device: Device, segment: Segment, iommu: Iommu) -> None:
    """Take over what the table knows of aliases (``setup_aliases``).

    An alias on the device's own bus becomes a DMA alias, which groups the two; the IOMMU serves all aliases.
    """
    address = device.facts.pci
    if address is None:
        return
    alias = segment.alias_of(address.rid)
    if alias != address.rid and alias >> 8 == address.bus:
        add_dma_alias(device, alias & 0xFF)
    for used in (alias, *(rid for _, rid in dma_aliases(device))):
        if used != address.rid:
            segment.take_over(used, iommu)


NEEDED_FOR_PASIDS = {Era.V6_1: {"ats", "pri", "pasid"}, Era.RFC: {"ats", "pri", "pasid"}}
"""PCIe capabilities without which a driver generation takes no notice of PASIDs; later ones look at PASID alone."""


def _capabilities(device: Device) -> set[str]:
    """The device's PCIe capabilities; an untrusted device may not translate for itself (``pci_ats_supported``)."""
    found = set(device.facts.attributes.get("capabilities", ()))
    return found - {"ats"} if device.untrusted else found


def _uses_pasids(device: Device, driver: AmdVi, iommu: Iommu) -> bool:
    """Whether the driver would use the device's PASIDs (``iommu_init_device``)."""
    if driver.options.force_isolation and not device.system.boot.default_passthrough():
        return False
    needed = NEEDED_FOR_PASIDS.get(driver.era, {"pasid"})
    return device.facts.pci is not None and driver.has_pasids(iommu) and needed <= _capabilities(device)


@hookimpl
def probe_finalize(device: Device) -> None:
    """Set up the DMA API; the core's business since 6.12."""
    if _era(device) < Era.V6_12:
        iommu_setup_dma_ops(device)


@hookimpl
def release_device(device: Device) -> None:
    """Forget the device; it may do no DMA any more, and what it did to the firmware's tables stays.

    7.2 expects that a device has no domain by now (``amd_iommu_release_device``), and the core has parked one whose memory firmware
    shares in identity.
    """
    if device.system.boot.era >= Era.V7_2 and device.require_direct:
        device.system.log("WARNING: at amd_iommu_release_device")
    if device.unit is not None and device.unit.bus is not None:
        block(device)
    device.vendor_state = None


@hookimpl
def requester(device: Device) -> int:
    """The id under which the device's requests arrive: the table's alias where it has one."""
    state = device.vendor_state
    if isinstance(state, DeviceState) and device.unit is not None:
        segment: Segment = _unit(device).driver.platform.segment(state.segment)
        return segment.alias_of(state.devid)
    return device.facts.pci.rid if device.facts.pci is not None else 0


@hookimpl
def device_group(device: Device) -> Group:
    """PCI's rule; ACPI devices of one requester id share a group (``acpihid_device_group``)."""
    if device.facts.pci is not None:
        return pci_device_group(device)
    for other in device.system.devices.values():
        state = other.vendor_state
        if other is device or other.group is None or not isinstance(state, DeviceState) or state.acpi is None:
            continue
        if (state.segment, state.devid) == (device.vendor_state.segment, device.vendor_state.devid):
            return other.group
    return generic_device_group(device)


FIXED_REGIONS = (
    ReservedRegion(*MSI_WINDOW, RegionType.MSI),
    ReservedRegion(*HT_WINDOW, RegionType.RESERVED),
)


@hookimpl
def get_resv_regions(device: Device) -> Sequence[ReservedRegion]:
    """Unity maps, the interrupt window and the HyperTransport range."""
    state: DeviceState = device.vendor_state
    maps = _unit(device).driver.platform.segment(state.segment).unity_maps
    regions = [unity.region for unity in maps if unity.first <= state.devid <= unity.last]
    for asked in device.facts.reserved:
        region = unity_region(asked.start, asked.end - asked.start + 1)
        if asked.type is RegionType.DIRECT and region is not None:
            regions.append(region)
    return [*regions, *FIXED_REGIONS]


@hookimpl
def is_attach_deferred(device: Device) -> bool:
    """In a kdump kernel each device keeps its old translation until its driver maps (``translation_pre_enabled``)."""
    return _unit(device).driver.platform.hardware.translation_pre_enabled and device.attached is None


# ---- policy ----------------------------------------------------------------------------------------------------------


@hookimpl
def def_domain_type(device: Device) -> DmaApiPolicy:
    """Identity for devices with PASIDs; since 6.12 the driver itself wants untrusted devices translated.

    Identity is not required under memory encryption, which some such devices cannot address, nor under SNP, which
    forbids it.
    """
    if device.untrusted and _era(device) >= Era.V6_12:
        return DmaApiPolicy.STRICT
    if device.vendor_state.identity and not device.system.boot.memory_encryption and not _unit(device).driver.snp:
        return DmaApiPolicy.IDENTITY
    return DmaApiPolicy.ANY


@hookimpl
def prefer_dma_api_fq() -> bool:
    """A flush queue always works."""
    return True


CAPABLE: dict[str, tuple[Era, Era, Callable[[AmdUnit], bool]]] = {
    "cache_coherency": (Era.V6_1, Era.V7_2, lambda unit: True),
    "interrupt_remapping": (Era.V6_1, Era.V7_2, lambda unit: unit.driver.interrupts_remapped),
    "pre_boot_protection": (Era.V6_1, Era.V7_2, lambda unit: unit.driver.platform.pre_boot_protection),
    "deferred_flush": (Era.V6_12, Era.V6_12, lambda unit: True),
    "enforce_cache_coherency": (Era.V6_12, Era.V7_2, lambda unit: True),
    "dirty_tracking": (
        Era.V6_12,
        Era.V7_2,
        lambda unit: unit.driver.host_tables and bool(HD_SUP.get(unit.driver.features(unit.iommu))),
    ),
}
"""Capability: first and last generation whose driver knows it, and the answer.

7.2 has no ``deferred_flush``: its generic page tables imply the flush queue.
"""


@hookimpl
def capable(device: Device, capability: str) -> bool:
    """``amd_iommu_capable``."""
    if capability not in CAPABLE:
        return False
    first, last, answer = CAPABLE[capability]
    return first <= _era(device) <= last and answer(_unit(device))


# ---- domains ---------------------------------------------------------------------------------------------------------


@hookimpl
def domain_alloc(device: Device, type: DomainType) -> Domain | None:
    """A domain of the driver's generation (``amd_iommu_domain_alloc``, ``…_alloc_paging_flags``, static domains)."""
    unit = _unit(device)
    domain = allocate(unit.driver, unit.iommu, type, pasids="pasid" in _capabilities(device))
    if domain is not None and unit.hardware is not None:
        equip(domain, unit)
    return domain


@hookimpl
def attach_dev(domain: Domain, device: Device) -> None:
    """Enter the domain in the device table (``amd_iommu_attach_device``); 7.2 refuses identity under SNP only here."""
    if domain.type is DomainType.IDENTITY and _era(device) >= Era.V7_2 and _unit(device).driver.snp:
        raise IommuError("EINVAL", "SNP forbids identity")
    if _unit(device).hardware is not None and isinstance(domain, AmdDomain):
        enter(domain, device)
    device.attached = domain


@hookimpl
def set_dev_blocked(device: Device) -> bool:
    """Clear the device table entry of a leaving device (``release_domain``, since 6.12; before that ``detach_dev``)."""
    if _unit(device).hardware is not None:
        block(device)
    elif _era(device) < Era.V6_12:
        return False
    device.attached = None
    return True
