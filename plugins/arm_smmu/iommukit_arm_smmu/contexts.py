"""What the driver's domains have on hardware: tables, numbers, context descriptors; and what it invalidates of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iommukit.errors import IommuError
from iommukit.hookspecs import Gather
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit.hw.radix import PageTable, Partial
from iommukit.policy import Era
from iommukit_arm_smmu import commands, entries
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.smmu import Numbers
from iommukit_arm_smmu.tables import Lpae, StageOne, StageTwo

DESCRIPTOR_SIZE = 0x400
"""Memory for a context descriptor (bytes)."""
FEW = 8
"""Up to so many addresses are looked up one by one."""
GRANULES = {"4K": 12, "16K": 14, "64K": 16}
"""Log2 of bytes."""


@dataclass(slots=True, eq=False)
class Context:
    """What a domain has in memory: its tables, and the number that tags its translations."""

    table: PageTable
    format: Lpae
    stage: int
    number: int
    """ASID or VMID."""
    descriptor: int | None = None
    """Before 6.9: the domain's own context descriptor."""


class Contexts:
    """The contexts of one unit.

    ``limits``: by stage, one more than the highest ASID or VMID; ``ranges``: whether invalidations may name ranges (IDR3.RIL).
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        ring: commands.CommandRing,
        era: Era,
        output_bits: int,
        asids: Numbers,
        limits: dict[int, int],
        *,
        ranges: bool,
    ) -> None:
        self._memory = memory
        self._ring = ring
        self._era = era
        self._output_bits = output_bits
        self._numbers = {1: asids, 2: Numbers()}
        self.limits = limits
        self.ranges = ranges

    def new(self, granule: str, input_bits: int, stage: int) -> Context:
        """Tables and a number for a domain (``arm_smmu_domain_finalise``).  Raises ``ENOMEM``, ``ENOSPC``."""
        shift = GRANULES[granule]
        output_bits = self._output_bits if shift == 16 else min(self._output_bits, 48)
        format: Lpae
        if stage == 1:
            format = StageOne(shift, input_bits, output_bits)
        else:
            format = StageTwo(shift, input_bits, output_bits, concatenated=True)
        table = PageTable(format, self._memory)
        numbers, limit = self._numbers[stage], self.limits[stage]
        try:
            context = Context(table, format, stage, numbers.take(limit))
        except IommuError:
            table.free()
            raise
        if stage == 1 and self._era < Era.V6_12:
            try:
                context.descriptor = self._memory.pages.alloc(DESCRIPTOR_SIZE)
            except IommuError:
                numbers.give_back(context.number)
                table.free()
                raise
            entries.replace_entry(self._memory, context.descriptor, self.words(context), lambda: None)
        return context

    def words(self, context: Context) -> entries.Words:
        """A domain's context descriptor."""
        return entries.context_descriptor(context.table.root, context.format, context.number, context.format.output_bits)

    def free(self, context: Context) -> None:
        """Give a domain's tables and number back, once nothing is cached of them (``arm_smmu_domain_free``)."""
        self.forget_all(context)
        context.table.free()
        if context.descriptor is not None:
            self._memory.pages.free(context.descriptor, DESCRIPTOR_SIZE)
        self._numbers[context.stage].give_back(context.number)

    def map(self, context: Context, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
        """See the hook ``map_pages``."""
        freed: list[tuple[int, int]] = []
        done = context.table.map(iova, paddr, pgsize, pgcount, prot, freed)
        if freed:
            self._forget(context, iova, done, 0, leaf=False)
            self._give_back(freed)
        return done

    def unmap(self, context: Context, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
        """See the hook ``unmap_pages``; what does not belong to the same page size and range is invalidated first."""
        size = pgsize * pgcount
        # A longer range may hold larger pages; then the level is not told (``Gather.pgsize`` 0).
        larger = [level.shift for level in context.format.levels if 1 << level.shift > pgsize]
        known = pgsize if not larger or size < 1 << larger[0] else 0
        if not gather.queued and not gather.empty and (gather.pgsize != known or gather.apart(iova, size)):
            self.sync(context, gather)
        split: list[tuple[int, int]] = []
        partial = Partial.SPLIT if self._era < Era.V7_2 else Partial.REFUSE
        done = context.table.unmap(iova, pgsize, pgcount, partial=partial, freed=gather.freed, split=split)
        for start, length in split:
            # A cached larger page is not the level that the gathered range will name.
            self._forget(context, start, length, length, leaf=True)
        if done:
            gather.add(iova, done, known)
        return done

    def look_up(self, context: Context, iovas: Addresses) -> Addresses:
        """See the hook ``iova_to_phys``."""
        if len(iovas) > FEW:
            return context.table.lookup_many(iovas)
        found = [context.table.lookup(iova) for iova in iovas.tolist()]
        return np.array([UNMAPPED if physical is None else physical for physical in found], dtype=np.uint64)

    def sync(self, context: Context, gather: Gather) -> None:
        """Invalidate what was gathered, tables on the way to it as well where some went, and give those back."""
        if not gather.empty:
            self._forget(context, gather.start, gather.end - gather.start + 1, gather.pgsize, leaf=not gather.freed)
        self._give_back(gather.freed)
        gather.start, gather.end, gather.pgsize = (1 << 64) - 1, 0, 0

    def _give_back(self, freed: list[tuple[int, int]]) -> None:
        for address, size in freed:
            self._memory.pages.free(address, size)
        freed.clear()

    def _forget(self, context: Context, start: int, size: int, pgsize: int, *, leaf: bool) -> None:
        if context.stage == 1:
            tag = bits.OPCODE.put(bits.TLBI_NH_VA) | bits.TLBI_ASID.put(context.number)
        else:
            tag = bits.OPCODE.put(bits.TLBI_S2_IPA) | bits.TLBI_VMID.put(context.number)
        shift = context.format.granule
        self._ring.issue(commands.tlbi_range(tag, start, size, shift, pgsize, leaf=leaf, ranges=self.ranges))

    def forget_all(self, context: Context) -> None:
        """Invalidate everything of a domain (``arm_smmu_tlb_inv_context``)."""
        number = context.number
        self._ring.issue((commands.tlbi_asid(number) if context.stage == 1 else commands.tlbi_vmid(number),))
