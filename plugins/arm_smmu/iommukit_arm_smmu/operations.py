"""The hooks that are about hardware: units, page tables, the TLB, faults, walks of a memory.

Nothing here is called where a system decides policy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from iommukit.device import Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import Emulation, Gather, Mistake, hookimpl
from iommukit_arm_smmu.smmu import Smmu, SmmuDomain

if TYPE_CHECKING:
    from iommukit.hw.bus import ModelBus
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import TableReader
    from iommukit.hw.platform import Addresses, UnitModel
    from iommukit.hw.walk import Walk
    from iommukit_arm_smmu.contexts import Context, Contexts

# ---- the hardware itself ---------------------------------------------------------------------------------------------


@hookimpl
def create_unit(bus: ModelBus, unit: Unit) -> UnitModel | None:
    """The hardware model of an SMMUv3; there is none of SMMUv2."""
    smmu: Smmu = unit.state
    if smmu.version == 2:
        return None
    from iommukit_arm_smmu.model.build import build_unit

    return build_unit(bus, smmu)


@hookimpl
def start_unit(unit: Unit) -> None:
    """Check what the registers say and bring the unit up (``arm_smmu_device_probe``)."""
    from iommukit_arm_smmu.hardware import Expected, Running

    smmu: Smmu = unit.state
    assert unit.bus is not None
    hardware = smmu.hardware
    expected = Expected(
        frozenset(hardware.stages),
        frozenset(hardware.granules),
        hardware.oas,
        smmu.facts.coherent_walk,
        smmu.description.sid_bits,
    )
    smmu.running = Running(unit.bus, smmu.facts.base, expected, smmu.era, smmu.asids, stop_unattached=smmu.stops_unattached)


@hookimpl
def take_faults(unit: Unit) -> Sequence[Fault]:
    """What the event queue holds."""
    smmu: Smmu = unit.state
    return smmu.running.take_faults() if smmu.running is not None else ()


@hookimpl
def table_roots() -> Mapping[str, str]:
    """STRTAB_BASE and STRTAB_BASE_CFG."""
    from iommukit_arm_smmu.dump import ROOTS

    return ROOTS


@hookimpl
def walk_tables(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterable[Walk]:
    """The streams of a stream table; the requester is a stream id."""
    from iommukit_arm_smmu.dump import walks

    return walks(memory, roots, requester, iova)


@hookimpl
def emulation(version: tuple[int, int]) -> Emulation | None:
    """QEMU's virt with ``iommu=smmuv3``."""
    from iommukit_arm_smmu.emulated import emulated_machine

    return emulated_machine(version)


@hookimpl
def mistakes() -> Sequence[Mistake]:
    """Mistakes in using an SMMUv3."""
    from iommukit_arm_smmu.wrong_use import MISTAKES

    return MISTAKES


# ---- page tables and TLB ----------------------------------------------------------------------------------------------


@hookimpl
def domain_free(domain: Domain) -> None:
    """Forget what is cached of a domain, then give its tables and its number back (``arm_smmu_domain_free``)."""
    if isinstance(domain, SmmuDomain) and domain.contexts is not None and domain.context is not None:
        domain.contexts.free(domain.context)
        domain.context = None


def _tables(domain: Domain) -> tuple[Contexts, Context]:
    assert isinstance(domain, SmmuDomain)
    if domain.contexts is None or domain.context is None:
        raise IommuError("ENODEV", "the domain has no tables")
    return domain.contexts, domain.context


@hookimpl
def map_pages(domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
    """Write descriptors (``arm_smmu_map_pages``)."""
    contexts, context = _tables(domain)
    return contexts.map(context, iova, paddr, pgsize, pgcount, prot)


@hookimpl
def unmap_pages(domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
    """Clear descriptors (``arm_smmu_unmap_pages``): parts of a block split it, since 6.13 they are refused."""
    contexts, context = _tables(domain)
    return contexts.unmap(context, iova, pgsize, pgcount, gather)


@hookimpl
def iova_to_phys(domain: Domain, iova: Addresses) -> Addresses:
    """By the tables; identity is itself (``arm_smmu_iova_to_phys``)."""
    if domain.type is DomainType.IDENTITY:
        return iova
    contexts, context = _tables(domain)
    return contexts.look_up(context, iova)


@hookimpl
def flush_iotlb_all(domain: Domain) -> None:
    """Everything of the domain's ASID or VMID (``arm_smmu_flush_iotlb_all``)."""
    if isinstance(domain, SmmuDomain) and domain.contexts is not None and domain.context is not None:
        domain.contexts.forget_all(domain.context)


@hookimpl
def iotlb_sync(domain: Domain, gather: Gather) -> None:
    """A range, in the pages' size (``arm_smmu_iotlb_sync``)."""
    if isinstance(domain, SmmuDomain) and domain.contexts is not None and domain.context is not None:
        domain.contexts.sync(domain.context, gather)
