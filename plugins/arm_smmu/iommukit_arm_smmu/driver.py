"""What Linux decides for devices behind Arm SMMUs (``drivers/iommu/arm``): both drivers, SMMUv3 and SMMUv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption
from iommukit.kernel.grouping import generic_device_group, pci_device_group
from iommukit.machine.acpi import TableFormat
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import ReservedRegion
from iommukit_arm_smmu import options
from iommukit_arm_smmu.described import SOFTWARE_MSI, Description, Master, Synthetic
from iommukit_arm_smmu.firmware import IORT, Iort
from iommukit_arm_smmu.iort import IortDescription
from iommukit_arm_smmu.options import Hardware, read_hardware
from iommukit_arm_smmu.smmu import Smmu, SmmuDomain, smmu_of, start_units
from iommukit_arm_smmu.streams import HISILICON_PTT, StreamMap, is_qcom_client, requester_ids

_REGION = {"start": 0x5FF0_0000, "end": 0x5FF0_FFFF}
"""64 KiB near the end of the first 512 MiB of memory."""

EXAMPLES: Mapping[str, ExampleDevice] = {
    "identity-required": ExampleDevice(
        {"id": "19e5:a12e", "class": "ff0000", "kind": "integrated_endpoint"}, hardware={"version": 3}
    ),
    "direct-region": ExampleDevice(
        {"id": "8086:10d3", "class": "020000", "kind": "endpoint", "reserved": [{**_REGION, "type": "direct"}]}
    ),
    "relaxable-region": ExampleDevice(
        {"id": "8086:10d3", "class": "020000", "kind": "endpoint", "reserved": [{**_REGION, "type": "direct-relaxable"}]}
    ),
}


@hookimpl
def declare() -> VendorDeclaration:
    """Declare the vendor."""
    return VendorDeclaration(
        title="Arm SMMUv3 and SMMUv2",
        arch=("aarch64",),
        capabilities=frozenset(
            {
                "identity",
                "lazy",
                "pci",
                "identity-required",
                "direct-regions",
                "relaxable-regions",
                "superpages",
                "pasid",
                "resv-firmware",
            }
        ),
        expected_failures={
            "ATTACH-11": "before 6.9 the driver moves a stream to other tables through an entry that stops it",
        },
        hardware_variants={
            "stage-2": {"stages": [2]},
            "both-stages": {"stages": [1, 2]},
            "16K-granule": {"granules": ["16K"]},
            "64K-granule": {"granules": ["64K"]},
            "52-bit": {"granules": ["64K"], "oas": 52, "ias": 52, "va_bits": 52},
            "linear-stream-table": {"sid_bits": 8},
        },
        hardware_options={name: str(field.description) for name, field in Hardware.model_fields.items()},
    )


@hookimpl
def kernel_options(boot: BootState) -> Sequence[KernelOption]:
    """The drivers' ``disable_bypass``."""
    return options.kernel_options(boot)


# ---- hardware --------------------------------------------------------------------------------------------------------


@hookimpl
def firmware_formats() -> Sequence[TableFormat[Iort]]:
    """IORT."""
    return (IORT,)


def describe(machine: Machine, hardware: Hardware) -> Description:
    """What firmware says of the machine."""
    table = machine.firmware.get(IORT.signature)
    if table is None:
        return Synthetic(machine, hardware)
    return IortDescription(table, machine, hardware)


@hookimpl
def early_quirks(machine: Machine, boot: BootState) -> None:
    """Ask for access control services where that happens before PCI is scanned.

    IORT: ``iort_enable_acs``.  Device tree: since 7.2; earlier when the first driver binds, too late for the ports that are there.
    """
    if boot.era >= Era.V7_2 or describe(machine, read_hardware(machine)).acpi:
        boot.acs_requested = True


@hookimpl
def discover(machine: Machine, boot: BootState) -> Sequence[Unit]:
    """The SMMUs of firmware, in its order (``arm_smmu_device_probe``)."""
    hardware = read_hardware(machine)
    return start_units(describe(machine, hardware), hardware, boot)


@hookimpl
def example_device(role: str, boot: BootState) -> ExampleDevice | None:
    """HiSilicon's trace device needs identity; regions come from an IORT."""
    return EXAMPLES.get(role)


# ---- devices ---------------------------------------------------------------------------------------------------------


@hookimpl
def probe_device(device: Device, units: Sequence[Unit]) -> Unit | None:
    """The unit that firmware names for the device, if its stream ids are to be had there."""
    if not units:
        return None
    first: Smmu = units[0].state
    master = first.description.master(device)
    if master is None or units[master.unit].failed:
        return None
    unit = units[master.unit]
    smmu: Smmu = unit.state
    smmu.streams.claim(device, master.ids, device.system.boot.era)
    if smmu.running is not None:
        try:
            smmu.running.insert(master.ids)
        except IommuError:
            smmu.streams.release(device)
            raise
    device.vendor_state = master
    return unit


@hookimpl
def release_device(device: Device) -> None:
    """Give the stream ids back, with their entries as they were before the device came."""
    if device.unit is not None:
        smmu = smmu_of(device)
        if smmu.running is not None:
            smmu.running.release(device.vendor_state.ids, passes=device.require_direct)
        smmu.streams.release(device)


@hookimpl
def requester(device: Device) -> int:
    """The first stream id; of a device that no unit has met, its requester id."""
    master: Master | None = device.vendor_state
    return requester_ids(device)[0] if master is None else master.ids[0]


@hookimpl
def device_group(device: Device) -> Group:
    """SMMUv3: by PCI topology, else alone.  SMMUv2: first by what its stream-map entries remember."""
    smmu = smmu_of(device)
    streams = smmu.streams
    if not isinstance(streams, StreamMap):
        return _topology_group(device, fsl_mc=False)
    try:
        group = streams.group_of(device)
    except IommuError:
        streams.release(device)
        raise
    if group is None:
        group = _topology_group(device, fsl_mc=True)
        streams.remember(device, group)
    return group


def _topology_group(device: Device, *, fsl_mc: bool) -> Group:
    if device.facts.pci is not None:
        return pci_device_group(device)
    if fsl_mc and device.facts.attributes.get("bus") == "fsl-mc":
        return _fsl_mc_device_group(device)
    return generic_device_group(device)


def _fsl_mc_device_group(device: Device) -> Group:
    """The group of the container that the device lives in (attribute ``container``), else a new one."""
    container = device.system.devices.get(str(device.facts.attributes.get("container")))
    group = container.group if container is not None else None
    return group or generic_device_group(device)


@hookimpl
def get_resv_regions(device: Device) -> Sequence[ReservedRegion]:
    """The software MSI window, and firmware's regions."""
    master: Master = device.vendor_state
    return [SOFTWARE_MSI, *smmu_of(device).description.regions(device, master)]


# ---- policy ----------------------------------------------------------------------------------------------------------


@hookimpl
def def_domain_type(device: Device) -> DmaApiPolicy:
    """Identity for HiSilicon's trace device (v3), behind the legacy binding, and for Qualcomm's clients (v2)."""
    smmu = smmu_of(device)
    if smmu.version == 3:
        required = device.facts.pci is not None and device.facts.ids == HISILICON_PTT
    else:
        required = smmu.hardware.legacy_binding or (smmu.qcom and is_qcom_client(device, device.system.boot.era))
    return DmaApiPolicy.IDENTITY if required else DmaApiPolicy.ANY


@hookimpl
def prefer_dma_api_fq(device: Device) -> bool:
    """A queue works everywhere; before 6.3 the drivers said so by allocating lazy domains."""
    return True


@hookimpl
def capable(device: Device, capability: str) -> bool:
    """The drivers' answers; isolation of interrupts is the interrupt controller's business here, never the SMMU's."""
    smmu = smmu_of(device)
    era = device.system.boot.era
    v3 = smmu.version == 3
    coherent = smmu.facts.coherent_walk
    answers: dict[str, Any] = {
        "cache_coherency": coherent or (not v3 and device.facts.attributes.get("dma_coherent", False)),
        "noexec": True,
        "deferred_flush": era >= Era.V6_12,
        "dirty_tracking": v3 and era >= Era.V6_12 and coherent and smmu.hardware.dirty_state,
        "enforce_cache_coherency": v3 and era >= Era.V7_2 and smmu.hardware.canwbs,
    }
    return bool(answers.get(capability, False))


# ---- domains ---------------------------------------------------------------------------------------------------------


@hookimpl
def domain_alloc(device: Device, type: DomainType) -> Domain | None:
    """Before 6.12 allocated, and none to block; since then identity and blocked are static.

    SMMUv3 fixes the format at allocation since 6.12; otherwise the first attachment does.  On hardware allocation does always, so
    that there are tables to map into before the first attachment.
    """
    smmu = smmu_of(device)
    era = device.system.boot.era
    if era >= Era.V6_12 and type in (DomainType.IDENTITY, DomainType.BLOCKED):
        return smmu.domains.identity if type is DomainType.IDENTITY else smmu.domains.blocked
    refused = era < Era.V6_12 and smmu.hardware.legacy_binding and type.uses_dma_api
    if refused or not (type.uses_dma_api or type in (DomainType.UNMANAGED, DomainType.IDENTITY)):
        return None
    domain = SmmuDomain(type)
    if (era >= Era.V6_12 and smmu.version == 3) or smmu.running is not None:
        assert device.unit is not None
        smmu.settle(domain, device.unit)
    return domain


@hookimpl
def attach_dev(domain: Domain, device: Device) -> None:
    """A domain serves one unit only: ``EINVAL`` on another, before 6.12 ``ENXIO`` for SMMUv3."""
    if isinstance(domain, SmmuDomain):
        assert device.unit is not None
        smmu = smmu_of(device)
        if domain.unit is None:
            smmu.settle(domain, device.unit)
        elif domain.unit is not device.unit:
            raise IommuError("ENXIO" if smmu.version == 3 and device.system.boot.era < Era.V6_12 else "EINVAL")
    running = smmu_of(device).running
    if running is not None:
        context = domain.context if isinstance(domain, SmmuDomain) else None
        running.attach(device.vendor_state.ids, context, domain.type, attached=device.attached is not None)
    device.attached = domain


@hookimpl
def set_dev_blocked(device: Device) -> bool:
    """An entry that stops everything."""
    running = smmu_of(device).running
    if running is None:
        return False
    running.block(device.vendor_state.ids)
    device.attached = None
    return True
