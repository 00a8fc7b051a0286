"""One unit at work, as the driver drives it through its registers (``dmar.c``, ``iommu.c``)."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from iommukit.dma.mapping import choose_pages
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import IommuError
from iommukit.hw.fault import Fault, FaultKind
from iommukit.policy import Era
from iommukit_intel_vtd.attachment import Attachments, LegacyEntries, ScalableEntries, Target
from iommukit_intel_vtd.capabilities import (
    CM,
    FRO,
    MAMV,
    ND,
    NFR,
    PHMR,
    PLMR,
    PSI,
    PT,
    QI,
    RWBF,
    SAGAW,
    Capabilities,
    common,
    large_pages,
)
from iommukit_intel_vtd.domains import PagingDomain
from iommukit_intel_vtd.invalidation import (
    Invalidation,
    QueuedInvalidation,
    RegisterInvalidation,
    context_global,
    iotlb_global,
    pasid_cache_global,
)
from iommukit_intel_vtd.layout import (
    FRCD_F,
    FRCD_READ,
    FRCD_REASON,
    FSTS_FRI,
    ONE_SHOT,
    PAGE,
    RECORD,
    RTADDR_TTM,
    TTM_SCALABLE,
    Fsts,
    Gcmd,
    Reason,
    Reg,
)
from iommukit_intel_vtd.space import AddressSpace

if TYPE_CHECKING:
    from iommukit.device import Device
    from iommukit.hw.bus import Bus
    from iommukit_intel_vtd.remapping import RemappingUnit

PASS_THROUGH_NUMBER = 1
"""The domain id of pass-through (``FLPT_DEFAULT_DID``); 0 is that of cached absent entries."""
FIRST_STAGE_LEVELS = 4
"""The fewest levels that the first stage has."""

REASONS: dict[FaultKind, frozenset[Reason]] = {
    FaultKind.BLOCKED: frozenset(
        {
            Reason.ROOT_ABSENT,
            Reason.CONTEXT_ABSENT,
            Reason.SM_ROOT_ABSENT,
            Reason.SM_CONTEXT_ABSENT,
            Reason.SM_DIRECTORY_ABSENT,
            Reason.SM_PASID_ABSENT,
            Reason.SM_PASID_DISABLED,
            Reason.SM_NO_PASID_IN_LEGACY,
        }
    ),
    FaultKind.OUT_OF_RANGE: frozenset(
        {
            Reason.BEYOND_WIDTH,
            Reason.SM_BEYOND_WIDTH,
            Reason.FS_NOT_CANONICAL,
            Reason.INTERRUPT_RANGE,
            Reason.SM_INTERRUPT_RANGE,
        }
    ),
    FaultKind.NOT_MAPPED: frozenset({Reason.FS_ABSENT}),
    FaultKind.PERMISSION: frozenset({Reason.NO_WRITE, Reason.NO_READ, Reason.SM_NO_WRITE, Reason.SM_NO_READ, Reason.FS_SUPERVISOR}),
    FaultKind.BAD_TABLE: frozenset(
        {
            Reason.TABLE_ACCESS,
            Reason.ENTRY_RESERVED,
            Reason.FS_ACCESS,
            Reason.FS_RESERVED,
            Reason.SS_ACCESS,
            Reason.SS_RESERVED,
            Reason.FS_ACCESSED_UNSNOOPED,
        }
    ),
}
"""What the unit's reasons mean; all others are bad device entries."""

_KINDS = {int(reason): kind for kind, reasons in REASONS.items() for reason in reasons}


class DomainNumbers:
    """A unit's domain ids: as many as CAP.ND says, the first two reserved."""

    def __init__(self, words: Capabilities) -> None:
        self._limit = 1 << 4 + 2 * words.get(ND)
        self._next = PASS_THROUGH_NUMBER + 1
        self._free: list[int] = []

    def take(self) -> int:
        """The lowest free id.  Raises ``IommuError("ENOSPC")``."""
        if self._free:
            return heapq.heappop(self._free)
        if self._next == self._limit:
            raise IommuError("ENOSPC", "the unit has no free domain id")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Take an id back."""
        heapq.heappush(self._free, number)


class RunningUnit:
    """A unit whose translation is on (``struct intel_iommu``).

    Starting it raises ``IommuError``: ``ENODEV`` where the registers are not what the machine says, ``ENOMEM``.
    """

    def __init__(self, unit: RemappingUnit, bus: Bus, era: Era) -> None:
        self.unit, self.bus, self.words, self.era = unit, bus, unit.capabilities, era
        self.base = unit.drhd.address
        self.numbers = DomainNumbers(self.words)
        self.largest_mask = self.words.get(MAMV) if self.words.has(PSI) else -1
        """The largest address mask of a page-selective invalidation; -1 where there is none."""
        self.caching_mode = self.words.has(CM)
        self._needs_write_flush = self.words.has(RWBF) or unit.platform.quirks.write_buffer_flush
        self._check()
        self._root = bus.memory.pages.alloc(PAGE)
        self._protect_nothing()
        mode = TTM_SCALABLE if unit.scalable else 0
        bus.write(self.base + Reg.RTADDR, 8, self._root | mode << RTADDR_TTM)
        self.command(Gcmd.SRTP)
        self.invalidation: Invalidation
        if self.words.has(QI):
            self.invalidation = QueuedInvalidation(self, unit.scalable)
        else:
            self.invalidation = RegisterInvalidation(self, self.words)
        pasids = (pasid_cache_global(),) if unit.scalable else ()
        self.invalidation.submit(context_global(), *pasids, iotlb_global())
        entries = ScalableEntries if unit.scalable else LegacyEntries
        self.attachments: Attachments = entries(self, self._root)
        bus.write(self.base + Reg.FECTL, 4, 0)
        self.command(Gcmd.TE)

    def _check(self) -> None:
        for name, register, expected in (("CAP", Reg.CAP, self.words.cap), ("ECAP", Reg.ECAP, self.words.ecap)):
            found = self.bus.read(self.base + register, 8)
            if found != expected:
                raise IommuError("ENODEV", f"{self.unit.name}: {name} is {found:#x}, the machine says {expected:#x}")

    def _protect_nothing(self) -> None:
        """Switch off the memory protection that firmware may have left on (``iommu_disable_protect_mem_regions``)."""
        if self.words.has(PLMR) or self.words.has(PHMR):
            self.bus.write(self.base + Reg.PMEN, 4, 0)

    # ---- commands ----------------------------------------------------------------------------------------------------

    def command(self, bit: int) -> None:
        """Give one global command, with all states as they are, and see that it is done.  Raises ``IommuError("EIO")``."""
        kept = self.bus.read(self.base + Reg.GSTS, 4) & ~ONE_SHOT
        self.bus.write(self.base + Reg.GCMD, 4, kept | bit)
        status = self.bus.read(self.base + Reg.GSTS, 4)
        if bool(status & bit) == (bit == Gcmd.WBF):
            raise IommuError("EIO", f"{self.unit.name}: the unit does not obey the global command {bit:#x}")

    def flush_write_buffer(self) -> None:
        """Push writes of table entries out to where the unit sees them, for chipsets that need it."""
        if self._needs_write_flush:
            self.command(Gcmd.WBF)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def attach(self, device: Device, domain: Domain) -> None:
        """Send a device's requests through a domain.

        Raises ``IommuError`` with all as it was: ``ENOMEM``, ``ENOSPC`` without a free domain id, ``EINVAL`` for tables that the
        unit cannot walk.
        """
        requesters = self.unit.platform.requesters_of(device)
        if domain.type is DomainType.BLOCKED:
            self.attachments.clear(device)
            return
        space = self._space(domain)
        if space is None:
            self.attachments.prepare(device, requesters)
            target = Target(None, PASS_THROUGH_NUMBER, self.unit.levels)
            self.attachments.put(device, requesters, target)
            return
        if not self._walks(space):
            raise IommuError("EINVAL", f"{self.unit.name} cannot walk tables of {space.levels} levels")
        number = space.join(self)
        try:
            self.attachments.prepare(device, requesters)
        except IommuError:
            space.leave(self)
            raise
        over = space.trim(self.unit.levels)
        self.attachments.put(device, requesters, Target(space, number, space.levels))
        for running in space.uses if over else ():
            running.attachments.refresh(space)
        for address, size in over:
            self.bus.memory.pages.free(address, size)

    def _space(self, domain: Domain) -> AddressSpace | None:
        """The domain's tables; ``None`` for pass-through, which before 6.12 becomes a 1:1 map where the unit cannot do it."""
        if domain.type is not DomainType.IDENTITY:
            assert isinstance(domain, PagingDomain)
            assert isinstance(domain.space, AddressSpace)
            return domain.space
        platform = self.unit.platform
        if common((unit.capabilities for unit in platform.active()), PT):
            return None
        if self.era >= Era.V6_12:
            raise IommuError("EINVAL", f"{self.unit.name} has no pass-through")
        if platform.one_to_one is None:
            platform.one_to_one = self._one_to_one()
        space = platform.one_to_one
        assert isinstance(space, AddressSpace)
        return space

    def _one_to_one(self) -> AddressSpace:
        """Tables that map all of memory to itself (``si_domain``), by the largest pages that all units have."""
        memory, active = self.bus.memory, self.unit.platform.active()
        levels = min(unit.levels for unit in active)
        space = AddressSpace(memory, first_stage=False, levels=levels, whole=True)
        large = large_pages(frozenset(unit.capabilities for unit in active), False) if self.unit.platform.options.superpages else 0
        at, end = memory.base, min(memory.end, space.table.span)
        try:
            while at < end:
                size, count = choose_pages(PAGE | large, at, at, end - at)
                at += space.map(at, at, size, count, Prot.READ | Prot.WRITE)
        except IommuError:
            space.free()
            raise
        return space

    def _walks(self, space: AddressSpace) -> bool:
        """Whether the unit can walk an address space's tables, once they are trimmed to it."""
        levels = min(space.levels, self.unit.levels)
        if space.first_stage:
            return levels >= FIRST_STAGE_LEVELS
        return bool(self.words.get(SAGAW) >> levels - 2 & 1)

    # ---- faults ------------------------------------------------------------------------------------------------------

    def take_faults(self) -> list[Fault]:
        """Read the fault records, oldest first, and empty them (``dmar_fault``)."""
        bus, base, found = self.bus, self.base, []
        status = bus.read(base + Reg.FSTS, 4)
        if status & Fsts.PPF:
            count = self.words.get(NFR) + 1
            at = status >> FSTS_FRI & 0xFF
            records = base + self.words.get(FRO) * 16
            for _ in range(count):
                record = records + at % count * RECORD
                high = bus.read(record + 8, 8)
                if not high & FRCD_F:
                    break
                found.append(self._fault(bus.read(record, 8), high))
                bus.write(record + 12, 4, FRCD_F >> 32)
                at += 1
        if status & (Fsts.PPF | Fsts.PFO):
            bus.write(base + Reg.FSTS, 4, Fsts.PFO | Fsts.PPF)
        return found

    def _fault(self, low: int, high: int) -> Fault:
        requester, reason = high & 0xFFFF, high >> FRCD_REASON & 0xFF
        kind = _KINDS.get(reason, FaultKind.BAD_ENTRY)
        iova = low & -PAGE
        if kind is FaultKind.PERMISSION and not self.attachments.maps(requester, iova):
            # The unit has one reason for an entry that allows nothing and for one that allows something else.
            kind = FaultKind.NOT_MAPPED
        return Fault(kind, requester, iova, not high & FRCD_READ, reason)
