"""How the kernel learns which unit translates for which device: the part that device tree and ACPI have in common.

A machine without an IORT is described here as QEMU's virt machine is: one SMMU for each PCI segment, which sees requester ids as
stream ids, and platform devices behind the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from iommukit.device import Device
from iommukit.errors import InputError, NotApplicable
from iommukit.machine.model import Machine
from iommukit.policy import Era
from iommukit.regions import RegionType, ReservedRegion
from iommukit_arm_smmu.options import Hardware
from iommukit_arm_smmu.streams import requester_ids

SOFTWARE_MSI = ReservedRegion(0x0800_0000, 0x080F_FFFF, RegionType.SW_MSI)
"""Where the driver maps interrupt doorbells (``MSI_IOVA_BASE``, ``MSI_IOVA_LENGTH``)."""

RMR_ALIGNMENT = 0x1_0000
PAGE = 0x1000
IORT_REGIONS_SINCE = (6, 0)
"""The release that began to read reserved memory ranges from IORT."""


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """One SMMU as firmware describes it."""

    version: int
    base: int
    """Address of its registers."""
    device: str
    """``dev_name()`` of the SMMU itself."""
    coherent_walk: bool

    @property
    def name(self) -> str:
        """The name below ``/sys/class/iommu``."""
        return f"{'smmu3' if self.version == 3 else 'smmu'}.{self.base:#018x}"

    @property
    def driver(self) -> str:
        """The name of the driver."""
        return "arm-smmu-v3" if self.version == 3 else "arm-smmu"


@dataclass(frozen=True, slots=True)
class Master:
    """A device as a unit knows it: the unit's index and the device's stream ids."""

    unit: int
    ids: tuple[int, ...]


class Description(Protocol):
    """What firmware says of a machine's SMMUs."""

    @property
    def acpi(self) -> bool:
        """ACPI or a device tree."""

    @property
    def sid_bits(self) -> int:
        """Bits of a stream id."""

    @property
    def units(self) -> Sequence[UnitFacts]:
        """The SMMUs in the order in which they are probed."""

    def master(self, device: Device) -> Master | None:
        """Which unit translates for a device and under which ids; ``None`` where firmware names none.

        Raises ``IommuError`` where firmware contradicts itself.
        """

    def regions(self, device: Device, master: Master) -> list[ReservedRegion]:
        """The device's regions from firmware."""


class Synthetic:
    """A machine without an IORT (see the module)."""

    def __init__(self, machine: Machine, hardware: Hardware) -> None:
        self.acpi = described_by(machine, hardware) == "acpi"
        self.sid_bits = hardware.sid_bits or 16
        self._version = hardware.version
        self._preserve = hardware.preserve_config
        numbers = {spec.name: spec.pci_numbers() for spec in machine.devices}
        self._segments = sorted({number[0] for number in numbers.values() if number}) or [0]
        self._platform = _platform_ids(machine, self.sid_bits, {n[1] << 8 | n[2] << 3 | n[3] for n in numbers.values() if n})
        self.units = tuple(
            UnitFacts(hardware.version, base, self._device_name(base, index), hardware.coherent_walk)
            for index, base in enumerate(hardware.base + 0x2_0000 * index for index in range(len(self._segments)))
        )

    def _device_name(self, base: int, index: int) -> str:
        if self.acpi:
            return f"{'arm-smmu-v3' if self._version == 3 else 'arm-smmu'}.{index}.auto"
        return f"{base:x}.{'smmuv3' if self._version == 3 else 'smmu'}"

    def master(self, device: Device) -> Master | None:
        """Requester ids as they are, or what the machine file says in ``stream_ids``."""
        written = self._platform.get(device.name)
        address = device.facts.pci
        unit = self._segments.index(address.segment) if address and address.segment in self._segments else 0
        if written is not None:
            return Master(unit, written) if written else None
        if address is None:
            return None
        return Master(unit, tuple(requester_ids(device)))

    def regions(self, device: Device, master: Master) -> list[ReservedRegion]:
        """The regions that the machine file gives the device."""
        return written_regions(device, acpi=self.acpi, preserve_config=self._preserve)


def described_by(machine: Machine, hardware: Hardware) -> str:
    """``acpi`` or ``dt``.

    A machine that says neither is a device-tree one, as QEMU's is, unless it has direct regions: kernels read those from an
    IORT since 6.0, from device trees only since 6.12.  Raises ``NotApplicable`` for regions that the chosen one cannot express.
    """
    kinds = {region.type for spec in machine.devices for region in spec.reserved}
    direct = kinds & {"direct", "direct-relaxable"}
    chosen = hardware.described_by or ("acpi" if direct or "IORT" in machine.firmware else "dt")
    if "msi" in kinds:
        raise NotApplicable("neither IORT nor device tree gives a device an interrupt window of its own")
    if chosen == "acpi" and "reserved" in kinds:
        raise NotApplicable("IORT has direct regions only")
    return chosen


def written_regions(device: Device, *, acpi: bool, preserve_config: bool) -> list[ReservedRegion]:
    """The machine file's regions of a device, as the kernel reads them.

    ACPI: reserved memory ranges of an IORT, in the same way as a table's own.  Device tree: ``reserved-memory`` with
    ``iommu-addresses``, since 6.12.
    """
    boot = device.system.boot
    if not acpi:
        return list(device.facts.reserved) if boot.era >= Era.V6_12 else []
    if not reads_memory_ranges(device, preserve_config):
        return []
    return [aligned(region) for region in device.facts.reserved]


def reads_memory_ranges(device: Device, preserve_config: bool) -> bool:
    """Whether the kernel takes reserved memory ranges from IORT for a device (``iort_rmr_has_dev``).

    Not before 6.0, and not for PCI where bus numbers, and so stream ids, may have changed since firmware ran.
    """
    return device.system.boot.release >= IORT_REGIONS_SINCE and (preserve_config or device.facts.pci is None)


def aligned(region: ReservedRegion) -> ReservedRegion:
    """A range that is not aligned to 64 KiB is widened to pages (``iort_rmr_alloc``)."""
    if not region.start % RMR_ALIGNMENT and not (region.end + 1) % RMR_ALIGNMENT:
        return region
    return ReservedRegion(region.start // PAGE * PAGE, region.end | (PAGE - 1), region.type)


def _platform_ids(machine: Machine, sid_bits: int, taken: set[int]) -> dict[str, tuple[int, ...]]:
    """Stream ids by device name: those that the machine file writes, and one of its own for each other platform device.

    Own ids are given downward from the highest one that no PCI function has.
    """
    written: dict[str, tuple[int, ...]] = {}
    for index, spec in enumerate(machine.devices):
        if "stream_ids" in spec.attributes:
            written[spec.name] = _stream_ids(spec.attributes["stream_ids"], machine.source, index)
    taken = taken.union(*({packed & 0xFFFF for packed in ids} for ids in written.values()))
    free = (sid for sid in range((1 << sid_bits) - 1, -1, -1) if sid not in taken)
    for spec in machine.devices:
        if not spec.kind.is_pci and spec.name not in written:
            sid = next(free, None)
            if sid is None:
                raise InputError("no stream id is left", source=machine.source, place=f"device {spec.name}")
            written[spec.name] = (sid,)
    return written


def _stream_ids(value: object, source: str, index: int) -> tuple[int, ...]:
    numbers = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 32 for number in numbers):
        place = f"devices[{index}].attributes.stream_ids"
        raise InputError(f"a list of 32-bit numbers was expected, got {value!r}", source=source, place=place)
    return tuple(numbers)
