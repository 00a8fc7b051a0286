"""One running SMMU as its driver knows it, and the domains that it gives."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.kernel.boot import BootState
from iommukit.policy import Era
from iommukit_arm_smmu.described import Description, UnitFacts
from iommukit_arm_smmu.options import Hardware, unattached_streams_fault
from iommukit_arm_smmu.streams import StreamMap, StreamTable

if TYPE_CHECKING:
    from iommukit_arm_smmu.contexts import Context, Contexts
    from iommukit_arm_smmu.hardware import Running

VENDOR = "arm_smmu"

PAGE_SIZES = {
    "4K": 0x1000 | 1 << 21 | 1 << 30,
    "16K": 0x4000 | 1 << 25,
    "64K": 0x1_0000 | 1 << 29,
}
"""Pages and blocks (bytes) of each granule."""
BLOCK_4T = 1 << 42
"""The 64 KiB granule's third size, for output addresses above 48 bits."""
KERNEL_PAGES = {"ARM64_16K_PAGES": "16K", "ARM64_64K_PAGES": "64K"}
"""The page size that a build option gives the kernel; without one it is 4 KiB."""

QUEUE_LINES = ("allocated 65536 entries for cmdq", "allocated 32768 entries for evtq")
"""QEMU's queue sizes, as the driver prints them."""


@dataclass(frozen=True, slots=True)
class StaticDomains:
    """The driver's two domains that are never allocated (since 6.12)."""

    identity: Domain
    blocked: Domain

    @classmethod
    def fresh(cls) -> StaticDomains:
        """A pair for one running kernel."""
        return cls(Domain(DomainType.IDENTITY, static=True), Domain(DomainType.BLOCKED, static=True))


@dataclass(slots=True, eq=False)
class SmmuDomain(Domain):
    """An allocated domain.  The first unit that it meets settles its format, and it belongs to that unit from then on."""

    unit: Unit | None = field(default=None, repr=False)
    contexts: Contexts | None = field(default=None, repr=False)
    """Where that unit's hardware has the tables of domains, if there is any."""
    context: Context | None = field(default=None, repr=False)
    """The domain's own there; none for identity."""


@dataclass(slots=True)
class Numbers:
    """Numbers from 1 on, the lowest free first."""

    _fresh: int = 1
    _returned: list[int] = field(default_factory=list)

    def take(self, limit: int) -> int:
        """A number below ``limit``.  Raises ``ENOSPC``."""
        if self._returned and self._returned[0] < limit:
            return heapq.heappop(self._returned)
        if self._fresh >= limit:
            raise IommuError("ENOSPC", "all numbers are taken")
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        """Let a number be taken again."""
        heapq.heappush(self._returned, number)


@dataclass(slots=True, eq=False)
class Smmu:
    """The driver's view of one unit (``struct arm_smmu_device``)."""

    facts: UnitFacts
    hardware: Hardware
    description: Description
    streams: StreamTable | StreamMap
    domains: StaticDomains
    era: Era
    stops_unattached: bool
    """Streams without a domain are stopped."""
    asids: Numbers
    """Of all units together (``arm_smmu_asid_xa``)."""
    kernel_page: str = "4K"
    """The kernel's page size."""
    running: Running | None = None
    """The unit's hardware, once ``start_unit`` has brought it up."""

    @property
    def version(self) -> int:
        """2 or 3."""
        return self.facts.version

    @property
    def qcom(self) -> bool:
        """Qualcomm's hooks are in force."""
        return self.hardware.implementation == "qcom"

    @property
    def granule(self) -> str:
        """The granule of the tables: the kernel's page size, else the next smaller, else the smallest.

        As ``arm_lpae_restrict_pgsizes`` has it.
        """
        order = list(PAGE_SIZES)
        there = [name for name in order if name in self.hardware.granules]
        fitting = [name for name in there if order.index(name) <= order.index(self.kernel_page)]
        return fitting[-1] if fitting else there[0]

    @property
    def page_sizes(self) -> int:
        """Bitmap of the page sizes that a domain maps."""
        sizes = PAGE_SIZES[self.granule]
        return sizes | BLOCK_4T if self.granule == "64K" and self.hardware.oas > 48 else sizes

    @property
    def stage(self) -> int:
        """The stage that a domain uses: 1 where the hardware has it."""
        return 1 if 1 in self.hardware.stages else 2

    @property
    def input_bits(self) -> int:
        """Width of the addresses that a domain translates: stage 1's where the hardware has it, else stage 2's."""
        bits = self.hardware.va_bits if self.stage == 1 else self.hardware.ias
        return min(bits, 52 if self.granule == "64K" else 48)

    def settle(self, domain: SmmuDomain, unit: Unit) -> None:
        """Fix a domain's format to this unit (``arm_smmu_domain_finalise``, ``arm_smmu_init_domain_context``).

        Raises ``ENOMEM`` or ``ENOSPC``, with the domain as it was, where the hardware's part cannot be had.
        """
        if domain.type is not DomainType.IDENTITY:
            if self.running is not None:
                domain.context = self.running.contexts.new(self.granule, self.input_bits, self.stage)
                domain.contexts = self.running.contexts
            domain.aperture = (0, (1 << self.input_bits) - 1)
            domain.page_sizes = self.page_sizes
        domain.unit = unit

    def lines(self, era: Era) -> list[str]:
        """What the driver prints when it finds the unit; SMMUv2's longer list has no part here."""
        if self.version == 2:
            return []
        prefix = f"{self.facts.driver} {self.facts.device}: "
        widths = f"oas {self.hardware.oas}-bit (features {self._features(era):#010x})"
        lines = ["option mask 0x0"] if self.description.acpi else []
        lines.append(widths if era >= Era.V7_2 else f"ias {self.hardware.ias}-bit, {widths}")
        return [prefix + line for line in (*lines, *QUEUE_LINES)]

    def _features(self, era: Era) -> int:
        """``ARM_SMMU_FEAT_…``: two-level stream tables, little endian and range invalidation as QEMU has them, and the options."""
        bits = {0, 2, 15, *(8 + stage for stage in self.hardware.stages)}
        if self.facts.coherent_walk:
            bits.add(8)
        if era >= Era.V7_2:
            bits.add(24)  # block sizes may change without break-before-make: printed since the driver knows it
        return sum(1 << bit for bit in bits)


def start_units(description: Description, hardware: Hardware, boot: BootState) -> list[Unit]:
    """The units of a machine, and their lines in the log."""
    # Before 7.2 firmware is asked at bind; only the legacy binding is read when a unit registers.
    at_bind = boot.era < Era.V7_2 and not hardware.legacy_binding
    domains, asids = StaticDomains.fresh(), Numbers()
    kernel_page = next((size for option, size in KERNEL_PAGES.items() if boot.config.get(option)), "4K")
    units = []
    for facts in description.units:
        streams: StreamTable | StreamMap
        if facts.version == 3:
            streams = StreamTable(description.sid_bits, _grouped if at_bind else _present)
        else:
            streams = StreamMap(hardware.mapping_groups, description.sid_bits, _grouped if at_bind else _present)
        stops = unattached_streams_fault(boot, facts.version)
        smmu = Smmu(facts, hardware, description, streams, domains, boot.era, stops, asids, kernel_page)
        boot.log.extend(smmu.lines(boot.era))
        units.append(Unit(facts.name, VENDOR, probes_at_bind=at_bind, state=smmu))
    return units


def _grouped(device: Device) -> bool:
    return device.present and device.group is not None


def _present(device: Device) -> bool:
    return device.present


def smmu_of(device: Device) -> Smmu:
    """The SMMU that translates for a device."""
    assert device.unit is not None
    smmu: Smmu = device.unit.state
    return smmu
