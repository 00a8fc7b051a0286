"""A small honest driver for tests of the core."""

from __future__ import annotations

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.hookspecs import CAPABILITIES, FlushQueueOptions, VendorDeclaration, hookimpl
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import ReservedRegion
from iommukit.vendors import Vendor, VendorRegistry

ANSWERS = {"identity": DmaApiPolicy.IDENTITY, "strict": DmaApiPolicy.STRICT, "lazy": DmaApiPolicy.LAZY}


class Toy:
    """Answers what a device's attributes say: ``requires``, ``queue: false``, ``deferred: true``."""

    def __init__(self, *, identity: bool = True, queue: bool = True, units: int = 1) -> None:
        self.identity = identity
        self.queue = queue
        self.units = units

    @hookimpl
    def declare(self) -> VendorDeclaration:
        return VendorDeclaration("toy", ("x86_64", "aarch64", "s390x"), frozenset(CAPABILITIES))

    @hookimpl
    def discover(self) -> list[Unit]:
        return [Unit(f"toy{number}", "toy") for number in range(self.units)]

    @hookimpl
    def probe_device(self, device: Device, units: list[Unit]) -> Unit:
        return units[device.facts.attributes.get("unit", 0)]

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        return ANSWERS.get(device.facts.attributes.get("requires", ""), DmaApiPolicy.ANY)

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        return self.queue and bool(device.facts.attributes.get("queue", True))

    @hookimpl
    def flush_queue_options(self) -> FlushQueueOptions:
        return FlushQueueOptions()

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        if type is DomainType.BLOCKED:
            return None
        if type is DomainType.IDENTITY and not self.identity:
            return None
        if type is DomainType.DMA_FQ and not self.queue:
            return None
        return Domain(type, aperture=(0, (1 << 48) - 1))

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        device.attached = domain

    @hookimpl
    def get_resv_regions(self, device: Device) -> tuple[ReservedRegion, ...]:
        return device.facts.reserved

    @hookimpl
    def is_attach_deferred(self, device: Device) -> bool:
        return bool(device.facts.attributes.get("deferred")) and device.attached is None

    @hookimpl
    def probe_finalize(self, device: Device) -> None:
        if device.system.boot.era < Era.V6_12:
            iommu_setup_dma_ops(device)


def toy_registry(toy: Toy | None = None) -> tuple[VendorRegistry, Vendor]:
    registry = VendorRegistry()
    return registry, registry.register(toy or Toy(), "toy")
