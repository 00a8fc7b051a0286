"""What Linux decides for s390 PCI functions (``drivers/iommu/s390-iommu.c``, ``arch/s390/pci``).

Three drivers in one: 6.1, where the architecture maps by itself and the IOMMU driver serves VFIO only; the series of November
2022, which the posted patch was a comment on; and the driver since 6.7.
"""

from __future__ import annotations

from collections.abc import Sequence

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, FlushQueueOptions, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption
from iommukit.kernel.grouping import generic_device_group
from iommukit.machine.acpi import TableFormat
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import ReservedRegion
from iommukit_s390 import options
from iommukit_s390.firmware import CLP, PFT_ISM, ClpConfiguration
from iommukit_s390.functions import PAGE, SIZE_RT, Function, Hardware, find_functions

VENDOR = "s390"

ANY_PAGE_SIZE = ~0xFFF & ((1 << 64) - 1)
"""6.1 takes every power of two from 4 KiB, though its tables only hold 4 KiB entries."""

SHADOWED_QUEUE = FlushQueueOptions(entries=32768, timeout_ns=1_000_000_000, single_queue=True)
"""One long queue where each flush makes the hypervisor walk its shadow tables."""

_RANDOM_NUMBERS = {"id": "1af4:1044", "class": "00ff00", "kind": "zpci"}
_SHARED_MEMORY = {"id": "1014:04ed", "class": "000000", "kind": "zpci", "attributes": {"pft": PFT_ISM}}


def _function(device: Device) -> Function:
    assert device.unit is not None
    function: Function = device.unit.state
    return function


@hookimpl
def declare() -> VendorDeclaration:
    """Declare the vendor."""
    return VendorDeclaration(
        title="IBM Z PCI (zPCI)",
        arch=("s390x",),
        capabilities=frozenset({"lazy", "no-lazy", "lazy-preferred", "resv-firmware", "legacy-strict-option"}),
        hardware_options={name: str(field.description) for name, field in Hardware.model_fields.items()},
        hardware_variants={
            "partition": {"tlb_refresh": False},
            "relaxed": {"rtr": True, "start_dma": 0, "memory_size": 64 << 30},
            "region-second": {"dtsm": 0x6C, "memory_size": 1 << 43},
            "region-first": {"dtsm": 0x7C, "memory_size": 1 << 54, "end_dma": (1 << 55) - 1},
        },
    )


@hookimpl
def firmware_formats() -> Sequence[TableFormat[ClpConfiguration]]:
    """What CLP answers, as JSON."""
    return (CLP,)


@hookimpl
def kernel_options(boot: BootState) -> Sequence[KernelOption]:
    """``s390_iommu=`` and ``s390_iommu_aperture=``."""
    return options.kernel_options(boot)


@hookimpl
def discover(machine: Machine, boot: BootState) -> Sequence[Unit]:
    """One unit for each function (``zpci_init_iommu``)."""
    functions = find_functions(machine, factor=options.aperture_factor(boot), era=boot.era)
    return [
        Unit(
            name=f"s390-iommu.{function.fid:08x}",
            vendor=VENDOR,
            default_domains=boot.era is not Era.V6_1,
            state=function,
        )
        for function in functions
    ]


@hookimpl
def example_device(role: str, boot: BootState) -> ExampleDevice | None:
    """ISM has no flush queue since 6.7; in the 2022 series every function wishes for one."""
    if role == "no-lazy" and boot.era >= Era.V6_12:
        return ExampleDevice(_SHARED_MEMORY)
    if role == "lazy-preferred" and boot.era is Era.RFC:
        return ExampleDevice(_RANDOM_NUMBERS)
    return None


@hookimpl
def probe_device(device: Device, units: Sequence[Unit]) -> Unit | None:
    """A function's own unit; a device that is not PCI has none."""
    unit = next((unit for unit in units if unit.state.name == device.name), None)
    if unit is not None and not unit.state.accepted(device.system.boot.era):
        raise IommuError("EINVAL")
    return unit


@hookimpl
def probe_finalize(device: Device) -> None:
    """The 2022 series sets up the DMA API here; since 6.12 the core does."""
    if device.system.boot.era is Era.RFC:
        iommu_setup_dma_ops(device)


@hookimpl
def device_group(device: Device) -> Group:
    """Each function alone: there is no topology that could join them."""
    return generic_device_group(device)


@hookimpl
def get_resv_regions(device: Device) -> Sequence[ReservedRegion]:
    """What lies outside the function's DMA range."""
    return _function(device).reserved(device.attached, device.system.boot.era)


@hookimpl
def def_domain_type(device: Device) -> DmaApiPolicy:
    """The 2022 series answers its wish for a queue where the core expects a requirement; nobody else has an opinion."""
    return DmaApiPolicy.LAZY if device.system.boot.era is Era.RFC else DmaApiPolicy.ANY


@hookimpl
def prefer_dma_api_fq(device: Device) -> bool:
    """Everything but ISM; the 2022 series knew no exception."""
    era = device.system.boot.era
    return era is Era.RFC or (era >= Era.V6_12 and _function(device).pft != PFT_ISM)


@hookimpl
def flush_queue_options(device: Device) -> FlushQueueOptions:
    """One long queue under a hypervisor that shadows the tables, short queues for each CPU elsewhere."""
    return SHADOWED_QUEUE if _function(device).tlb_refresh else FlushQueueOptions()


@hookimpl
def capable(device: Device, capability: str) -> bool:
    """Always coherent; interrupts are always isolated, which since 6.3 the architecture says in the driver's place."""
    if capability == "deferred_flush":
        return device.system.boot.era >= Era.V6_12 and _function(device).pft != PFT_ISM
    return capability in ("cache_coherency", "interrupt_remapping")


@hookimpl
def domain_alloc(device: Device, type: DomainType) -> Domain | None:
    """Translated domains; a static one to block since 6.12; identity since 7.2 where translation may be relaxed."""
    era = device.system.boot.era
    function = _function(device)
    if type.uses_dma_api or type is DomainType.UNMANAGED:
        if type is not DomainType.UNMANAGED and era is Era.V6_1:
            return None
        return _paging_domain(function, type, era)
    if era < Era.V6_12:
        return None
    if type is DomainType.BLOCKED:
        return function.domains.blocked
    if type is DomainType.IDENTITY and era >= Era.V7_2 and function.rtr:
        return function.domains.identity
    raise IommuError("EOPNOTSUPP")


def _paging_domain(function: Function, type: DomainType, era: Era) -> Domain:
    if era is Era.V6_1:
        domain = Domain(type, page_sizes=ANY_PAGE_SIZE)
    else:
        aperture = function.table_for_domain() if era >= Era.V7_2 else (0, SIZE_RT - 1)
        domain = Domain(type, aperture=aperture, page_sizes=PAGE)
    if function.hardware is None:
        return domain
    from iommukit_s390.tables import give_tables  # numpy is slow to import, and policy needs none of it

    return give_tables(domain, function.hardware.memory, era)


@hookimpl
def domain_free(domain: Domain) -> None:
    """Give the tables back, where the domain has any."""
    if type(domain) is not Domain:
        from iommukit_s390.tables import free_tables

        free_tables(domain)


@hookimpl
def attach_dev(domain: Domain, device: Device) -> None:
    """Check the domain's aperture against the function's range.

    6.1: the first function lends the domain its range, later ones must have the same.  Since then: the two must overlap.
    On hardware the domain's tables are then registered for the function.
    """
    function = _function(device)
    aperture = domain.aperture
    if not domain.static:
        span = (function.start_dma, function.end_dma)
        if device.system.boot.era is Era.V6_1:
            others = [other for other in device.system.devices.values() if other.attached is domain and other is not device]
            if others and domain.aperture != span:
                raise IommuError("EINVAL")
            aperture = span
        elif domain.aperture[0] > span[1] or domain.aperture[1] < span[0]:
            raise IommuError("EINVAL")
    if function.hardware is not None:
        from iommukit_s390.attachment import enter

        enter(function, domain)
    domain.aperture = aperture
    device.attached = domain


@hookimpl
def set_dev_blocked(device: Device) -> bool:
    """Since 6.12 a leaving function is blocked (``release_domain``); before that the core has to detach it."""
    release_device(device)
    if device.system.boot.era < Era.V6_12:
        return False
    device.attached = None
    return True


@hookimpl
def release_device(device: Device) -> None:
    """Let nothing through any more."""
    if device.unit is not None and _function(device).hardware is not None:
        from iommukit_s390.attachment import leave

        leave(_function(device))
