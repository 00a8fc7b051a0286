"""A driver that has everything: every capability, every role, in every generation.

Held against the scenarios it shows whether the kernels are right where no real driver has the device that it takes (a device that
requires translation, before 6.12).  ``hardware: {identity: false}`` and ``{queue: false}`` take abilities away again.
"""

from __future__ import annotations

from collections.abc import Sequence

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.hookspecs import CAPABILITIES, ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import RegionType, ReservedRegion

ANSWERS = {
    "identity-required": DmaApiPolicy.IDENTITY,
    "strict-required": DmaApiPolicy.STRICT,
    "lazy-preferred": DmaApiPolicy.LAZY,
}
REGIONS = {
    "direct-region": ReservedRegion(0x1FF0_0000, 0x1FF0_FFFF, RegionType.DIRECT),
    "relaxable-region": ReservedRegion(0x1FF0_0000, 0x1FF0_FFFF, RegionType.DIRECT_RELAXABLE),
}
INTERRUPTS = ReservedRegion(0xFEE0_0000, 0xFEEF_FFFF, RegionType.MSI)


@hookimpl
def declare() -> VendorDeclaration:
    return VendorDeclaration(
        title="a driver that has everything",
        arch=("x86_64", "aarch64", "s390x"),
        capabilities=frozenset(CAPABILITIES),
        hardware_options={"identity": "offers identity domains", "queue": "supports flush queues"},
    )


@hookimpl
def discover(machine: Machine, boot: BootState) -> Sequence[Unit]:
    if boot.no_iommu:
        return ()
    blocked = Domain(DomainType.BLOCKED, static=True)
    return [Unit("full0", "full", state=(dict(machine.hardware), blocked))]


@hookimpl
def example_device(role: str, boot: BootState) -> ExampleDevice | None:
    return ExampleDevice({}) if role in (*ANSWERS, *REGIONS, "no-lazy") else None


@hookimpl
def def_domain_type(device: Device) -> DmaApiPolicy:
    return ANSWERS.get(device.facts.role or "", DmaApiPolicy.ANY)


@hookimpl
def prefer_dma_api_fq(device: Device) -> bool:
    return device.facts.role != "no-lazy" and _hardware(device).get("queue", True)


@hookimpl
def capable(device: Device, capability: str) -> bool:
    return capability == "cache_coherency" or (capability == "deferred_flush" and prefer_dma_api_fq(device))


@hookimpl
def get_resv_regions(device: Device) -> Sequence[ReservedRegion]:
    own = REGIONS.get(device.facts.role or "")
    return [*device.facts.reserved, *([own] if own else []), INTERRUPTS]


@hookimpl
def domain_alloc(device: Device, type: DomainType) -> Domain | None:
    era = device.system.boot.era
    if type is DomainType.BLOCKED:
        blocked: Domain = _unit(device).state[1]
        return blocked if era >= Era.V6_12 else None
    if type is DomainType.IDENTITY and not _hardware(device).get("identity", True):
        return None
    if type is DomainType.DMA_FQ and not prefer_dma_api_fq(device):
        return None
    return Domain(type, aperture=(0, (1 << 48) - 1))


@hookimpl
def probe_finalize(device: Device) -> None:
    if device.system.boot.era < Era.V6_12:
        iommu_setup_dma_ops(device)


def _unit(device: Device) -> Unit:
    assert device.unit is not None
    return device.unit


def _hardware(device: Device) -> dict[str, bool]:
    hardware: dict[str, bool] = _unit(device).state[0]
    return hardware
