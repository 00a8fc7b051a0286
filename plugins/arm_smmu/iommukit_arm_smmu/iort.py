"""A machine that carries an IORT: what the table maps has an IOMMU, nothing else (``drivers/acpi/arm64/iort.c``)."""

from __future__ import annotations

from iommukit.device import Device
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.machine.model import Machine
from iommukit.regions import RegionType, ReservedRegion
from iommukit_arm_smmu.described import Master, UnitFacts, aligned, reads_memory_ranges, written_regions
from iommukit_arm_smmu.firmware import Iort, ItsGroup, Mapped, Pmcg, Smmu, SmmuFlags, SmmuV3, SmmuV3Flags, SmmuV3Model
from iommukit_arm_smmu.options import Hardware
from iommukit_arm_smmu.streams import requester_ids

MEMORY_RANGES_SINCE = 5
"""The first revision of the table whose reserved memory ranges Linux reads (DEN 0049E.d)."""

TRANSLATER = 0x1_0000
"""Where in an interrupt translation service, and how long, the page is that devices write to (bytes)."""


def _facts(node: Smmu | SmmuV3, index: int) -> UnitFacts:
    if isinstance(node, SmmuV3):
        coherent = SmmuV3Flags.COHACC_OVERRIDE in node.flags
        return UnitFacts(3, node.base_address, f"arm-smmu-v3.{index}.auto", coherent)
    return UnitFacts(2, node.base_address, f"arm-smmu.{index}.auto", SmmuFlags.COHERENT_WALK in node.flags)


def _reject_contradictions(machine: Machine, hardware: Hardware, versions: set[int]) -> None:
    """What the table says cannot be said again in another way."""
    source = machine.source
    for key in ("base", "coherent_walk"):
        if key in machine.hardware:
            raise InputError("the IORT says this of each SMMU", source=source, place=f"hardware.{key}")
    if versions and hardware.version not in versions and "version" in machine.hardware:
        found = " and ".join(f"SMMUv{version}" for version in sorted(versions))
        raise InputError(f"the IORT has {found}", source=source, place="hardware.version")
    for index, spec in enumerate(machine.devices):
        if "stream_ids" in spec.attributes:
            place = f"devices[{index}].attributes.stream_ids"
            raise InputError("the IORT says which ids a device has", source=source, place=place)
    if hardware.legacy_binding or hardware.described_by == "dt":
        raise NotApplicable("an IORT is ACPI's, not a device tree's")


class IortDescription:
    """What an IORT says of a machine."""

    acpi = True

    def __init__(self, table: Iort, machine: Machine, hardware: Hardware) -> None:
        self.sid_bits = hardware.sid_bits or 32
        self._table = table
        self._hardware = hardware
        self._nodes = table.smmus
        # The kernel numbers the platform devices that it makes of nodes, whatever their kind.
        numbered = [node for node in table.nodes if isinstance(node, Smmu | SmmuV3 | Pmcg)]
        self.units = tuple(_facts(node, index) for index, node in enumerate(numbered) if not isinstance(node, Pmcg))
        _reject_contradictions(machine, hardware, {unit.version for unit in self.units})

    def master(self, device: Device) -> Master | None:
        """The first SMMU that a device's ids lead to, and all ids there.

        PCI: the root complex of the segment maps the requester ids.  Platform devices: a named component of that path.  Raises
        ``IommuError`` (``EINVAL``) where ids lead to different SMMUs.
        """
        arrived = self._pci(device) if device.facts.pci is not None else self._component(device)
        if not arrived:
            return None
        node = arrived[0].node
        if any(mapped.node is not node for mapped in arrived):
            raise IommuError("EINVAL")
        unit = next(at for at, other in enumerate(self._nodes) if other is node)
        return Master(unit, tuple(mapped.id for mapped in arrived))

    def _pci(self, device: Device) -> list[Mapped[Smmu | SmmuV3]]:
        """All requester ids must be mapped, or the device has no IOMMU (``iort_pci_iommu_init``)."""
        assert device.facts.pci is not None
        segment = device.facts.pci.segment
        arrived = [self._table.map_rid(segment, rid) for rid in requester_ids(device)]
        return [mapped for mapped in arrived if mapped] if all(arrived) else []

    def _component(self, device: Device) -> list[Mapped[Smmu | SmmuV3]]:
        path = device.facts.attributes.get("acpi_path", device.label)
        component = self._table.named_component(str(path))
        return list(self._table.streams(component)) if component else []

    def regions(self, device: Device, master: Master) -> list[ReservedRegion]:
        """Interrupt translation services where the SMMU needs it, and reserved memory: the table's and the machine file's."""
        node = self._nodes[master.unit]
        written = written_regions(device, acpi=True, preserve_config=self._hardware.preserve_config)
        return [*self._interrupt_pages(node, master), *self._memory_ranges(device, node, master), *written]

    def _interrupt_pages(self, node: Smmu | SmmuV3, master: Master) -> list[ReservedRegion]:
        """HiSilicon's first SMMUv3 cannot translate interrupts (``iort_iommu_msi_get_resv_regions``)."""
        if not isinstance(node, SmmuV3) or node.model != SmmuV3Model.HISILICON_HI161X:
            return []
        arrived = (self._table.follow(node, sid, (ItsGroup,)) for sid in master.ids)
        group = next((mapped.node for mapped in arrived if mapped), None)
        bases = [self._hardware.its[its] for its in group.identifiers if its in self._hardware.its] if group else []
        return [ReservedRegion(base + TRANSLATER, base + 2 * TRANSLATER - 1, RegionType.MSI) for base in bases]

    def _memory_ranges(self, device: Device, node: Smmu | SmmuV3, master: Master) -> list[ReservedRegion]:
        """The ranges of every RMR node that names one of the device's ids (``iort_get_rmrs``)."""
        keep = self._hardware.preserve_config
        if self._table.revision < MEMORY_RANGES_SINCE or not reads_memory_ranges(device, keep):
            return []
        nodes = {id(rmr): rmr for sid in master.ids for rmr in self._table.reserved_memory(node, sid)}
        return [
            aligned(
                ReservedRegion(
                    part.base,
                    part.base + part.size - 1,
                    RegionType.DIRECT_RELAXABLE if rmr.remapping_permitted else RegionType.DIRECT,
                )
            )
            for rmr in nodes.values()
            for part in rmr.ranges
            if part.size
        ]
