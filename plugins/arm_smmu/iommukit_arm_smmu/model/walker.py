"""How the hardware walks tables, and what it keeps of walks: VMSAv8-64 descriptors (DDI 0487 D8; IHI 0070 3.4, 13).

Translations are kept by level, because an invalidation may name the level (IHI 0070 4.4.1.1), and so are the addresses of
tables.  A translation that stage 1 and stage 2 have made together is kept as one, under stage 1's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit.hw.tlb import Tlb
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.configuration import Regime
from iommukit_arm_smmu.model.events import Event, Stopped

GLOBAL, STAGE_2 = -1, -2
"""In a tag, in place of an ASID: translations of every ASID (nG clear), and of stage 2."""
Tag = tuple[int, int]
"""VMID and ASID."""

READ, WRITE = 1, 2
"""Rights at stage 1; at stage 2 the same, shifted by two."""
BOTH = READ | WRITE
SECOND = 2
BLOCK_LEVELS = {12: (1, 2), 14: (2,), 16: (2,)}
"""Levels at which a descriptor may be a block, by granule (D8.3.1); 64 KiB with 52-bit addresses has level 1 too."""
LEAVES, TABLES = 4096, 2048
"""Translations of a level, and tables of a level, that are kept."""
CHUNK = 1 << 16
"""So many requests are looked at at once."""


class Walker:
    """Translates addresses by the tables of a regime."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.leaves = {level: Tlb(LEAVES) for level in (3, 2, 1)}
        """Translations, by the level of their descriptor."""
        self.tables = {level: Tlb(TABLES) for level in (3, 2, 1)}
        """Addresses of tables, by the table's level: for what the entry above it covers."""

    # ---- one address -------------------------------------------------------------------------------------------------

    def translate(self, regime: Regime, second: Regime | None, address: int, write: bool) -> int:
        """The physical address of an input address.  Raises ``Stopped``."""
        physical, rights = self._kept(regime, address) or self._walk(regime, second, address, bits.CLASS_INPUT)
        return _permitted(physical, rights, regime, second, address, write, bits.CLASS_INPUT)

    def fetch(self, ipa: int, second: Regime, cause: int = bits.CLASS_CD) -> int:
        """Where stage 2 puts something that the hardware itself reads.  Raises ``Stopped``."""
        physical, rights = self._kept(second, ipa) or self._walk(second, None, ipa, cause)
        return _permitted(physical, rights, second, None, ipa, False, cause)

    def _kept(self, regime: Regime, address: int) -> tuple[int, int] | None:
        for name in _names(regime):
            for tlb in self.leaves.values():
                found = tlb.lookup(name, address)
                if found is not None:
                    return found
        return None

    def _walk(self, regime: Regime, second: Regime | None, address: int, cause: int) -> tuple[int, int]:
        """Physical address and rights, by the tables in memory (D8.2.1)."""
        told, stage = regime.told, regime.stage
        ipa = address if stage == 2 else 0

        def stopped(type: int) -> Stopped:
            return Stopped(Event(type, 0, stage, cause, ipa, told))

        if not regime.holds(address):
            raise stopped(bits.F_TRANSLATION)
        tag = _tag(regime)
        wanted = address & (1 << regime.input_bits) - 1
        level, table, limits = self._deepest(regime, tag, address)
        mask, words, base, end = (1 << regime.granule - 3) - 1, self._memory.quads, self._memory.base, self._memory.end
        while True:
            shift = regime.shift(level)
            index = wanted >> shift if level == regime.start else wanted >> shift & mask
            at = table + 8 * index
            if second is not None:
                at = self.fetch(at, second, bits.CLASS_TABLE)
            if not base <= at < end:
                # Not a fault of translation: CD.R and STE.S2R have no say. At stage 1 a table was wanted (7.3.12).
                raise Stopped(Event(bits.F_WALK_EABT, at, stage, bits.CLASS_TABLE if stage == 1 else cause))
            word = words[at - base >> 3]
            if not word & 1 or (level == 3 and not word & 2):
                raise stopped(bits.F_TRANSLATION)
            output = _output(word, regime)
            if level == 3 or not word & 2:
                break
            if output >> regime.output_bits:
                raise stopped(bits.F_ADDR_SIZE)
            if regime.hierarchical and stage == 1:
                limits |= bits.TABLE_AP.of(word)
            level, table = level + 1, output
            self.tables[level].insert(tag, address & -(1 << shift), shift, table, limits)
        if level < 3 and level not in _block_levels(regime):
            raise stopped(bits.F_TRANSLATION)
        physical = output & -(1 << shift) | wanted & (1 << shift) - 1
        if physical >> regime.output_bits:
            raise stopped(bits.F_ADDR_SIZE)
        if regime.access_flag and not bits.PTE_AF.of(word):
            raise stopped(bits.F_ACCESS)
        rights = _rights(bits.PTE_AP.of(word), limits, stage)
        if second is not None and rights & BOTH:
            physical, beyond = self._kept(second, physical) or self._walk(second, None, physical, bits.CLASS_INPUT)
            rights = rights & BOTH | beyond & BOTH << SECOND
            shift = 12
        if stage == 1 and not bits.PTE_NG.of(word):
            tag = (regime.vmid, GLOBAL)
        start = -(1 << shift)
        self.leaves[level].insert(tag, address & start, shift, physical & start, rights)
        return physical, rights

    def _deepest(self, regime: Regime, tag: Tag, address: int) -> tuple[int, int, int]:
        """Where a walk begins: level, table and the limits on the way there."""
        for level in range(3, regime.start, -1):
            found = self.tables[level].lookup(tag, address)
            if found is not None:
                return level, found[0] - (address & (1 << regime.shift(level - 1)) - 1), found[1]
        return regime.start, regime.root, 0

    # ---- many addresses ----------------------------------------------------------------------------------------------

    def translate_many(self, regime: Regime, second: Regime | None, addresses: Addresses, write: bool) -> Addresses:
        """The same for many addresses; ``UNMAPPED`` where a request is stopped."""
        physical = np.full(len(addresses), UNMAPPED)
        for at in range(0, len(addresses), CHUNK):
            late = len(addresses) - at - CHUNK < LEAVES
            found, rights = self._many(regime, second, addresses[at : at + CHUNK], keep=late)
            needed = np.uint8(_right(write) | _right(write) << SECOND)
            np.copyto(physical[at : at + CHUNK], found, where=rights & needed == needed)
        return physical

    def _many(
        self, regime: Regime, second: Regime | None, addresses: Addresses, *, keep: bool
    ) -> tuple[Addresses, NDArray[np.uint8]]:
        """Physical addresses and rights (none where there is no translation).

        Without ``keep`` translations are not kept: others follow in the same batch that would push them out.
        """
        physical = np.zeros(len(addresses), dtype=np.uint64)
        rights = np.zeros(len(addresses), dtype=np.uint8)
        missing = np.arange(len(addresses))
        for name in _names(regime):
            for tlb in self.leaves.values():
                if len(tlb) and len(missing):
                    hits, found, allowed = tlb.lookup_many(name, addresses[missing])
                    if hits.any():
                        which = missing[hits]
                        physical[which], rights[which] = found[hits], allowed[hits]
                        missing = missing[~hits]
        top = np.uint64(_upper_bits(regime))
        inside = addresses[missing] >> np.uint64(regime.input_bits) == top
        self._walk_many(regime, second, addresses, missing if inside.all() else missing[inside], physical, rights, keep)
        return physical, rights

    def _walk_many(
        self,
        regime: Regime,
        second: Regime | None,
        addresses: Addresses,
        which: NDArray[np.int64],
        physical: Addresses,
        rights: NDArray[np.uint8],
        keep: bool,
    ) -> None:
        """Walk for the addresses ``which``, level by level, and fill in what is found."""
        tag = _tag(regime)
        waiting: dict[int, list[tuple[NDArray[np.int64], Addresses, NDArray[np.uint8]]]] = {}
        for level in range(3, regime.start, -1):
            if len(self.tables[level]) and len(which):
                hits, found, limits = self.tables[level].lookup_many(tag, addresses[which])
                if hits.any():
                    some = which[hits]
                    offset = addresses[some] & np.uint64((1 << regime.shift(level - 1)) - 1)
                    waiting.setdefault(level, []).append((some, found[hits] - offset, limits[hits]))
                    which = which[~hits]
        if len(which):
            root = np.full(len(which), np.uint64(regime.root))
            waiting.setdefault(regime.start, []).append((which, root, np.zeros(len(which), dtype=np.uint8)))
        for level in range(regime.start, 4):
            for some, tables, limits in waiting.pop(level, ()):
                below = self._step(regime, second, level, addresses, some, tables, limits, physical, rights, keep)
                if len(below[0]):
                    waiting.setdefault(level + 1, []).append(below)

    def _step(
        self,
        regime: Regime,
        second: Regime | None,
        level: int,
        addresses: Addresses,
        which: NDArray[np.int64],
        tables: Addresses,
        limits: NDArray[np.uint8],
        physical: Addresses,
        rights: NDArray[np.uint8],
        keep: bool,
    ) -> tuple[NDArray[np.int64], Addresses, NDArray[np.uint8]]:
        """One level: fills in what ends here, and answers what goes on below."""
        shift = regime.shift(level)
        wanted = addresses[which]
        width = regime.input_bits - shift if level == regime.start else regime.granule - 3
        entries, there = self._read(tables + (wanted >> np.uint64(shift) & np.uint64((1 << width) - 1)) * np.uint64(8), second)
        kind = entries & np.uint64(3)
        output = _output_many(entries, regime)
        goes_on = np.zeros(len(which), dtype=np.bool_)
        if level < 3:
            goes_on = there & (kind == 3)
            ends = there & (kind == 1) if level in _block_levels(regime) else np.zeros(len(which), dtype=np.bool_)
        else:
            ends = there & (kind == 3)
        if ends.any():
            some, words = (which, entries) if ends.all() else (which[ends], entries[ends])
            found = (output if ends.all() else output[ends]) & np.uint64(-(1 << shift) & (1 << 64) - 1)
            self._finish(regime, second, level, addresses, some, words, found, limits[ends], physical, rights, keep)
        goes_on &= output >> np.uint64(regime.output_bits) == 0
        which, tables, limits = which[goes_on], output[goes_on], limits[goes_on]
        if regime.hierarchical and regime.stage == 1:
            limits |= (entries[goes_on] >> np.uint64(bits.TABLE_AP.low) & np.uint64(3)).astype(np.uint8)
        if len(which):
            late = slice(-2 * TABLES, None)
            starts = addresses[which[late]] & np.uint64(-(1 << shift) & (1 << 64) - 1)
            self.tables[level + 1].insert_many(_tag(regime), shift, starts, tables[late], limits[late])
        return which, tables, limits

    def _finish(
        self,
        regime: Regime,
        second: Regime | None,
        level: int,
        addresses: Addresses,
        which: NDArray[np.int64],
        entries: Addresses,
        pages: Addresses,
        limits: NDArray[np.uint8],
        physical: Addresses,
        rights: NDArray[np.uint8],
        keep: bool,
    ) -> None:
        """Fill in pages and blocks, and keep them."""
        shift = regime.shift(level)
        good = pages >> np.uint64(regime.output_bits) == 0
        if regime.access_flag:
            good &= entries >> np.uint64(bits.PTE_AF.low) & np.uint64(1) != 0
        if not good.all():
            which, entries, pages, limits = which[good], entries[good], pages[good], limits[good]
        wanted = addresses[which]
        access = (entries >> np.uint64(bits.PTE_AP.low) & np.uint64(3)).astype(np.uint8)
        allowed = _RIGHTS[regime.stage][access | limits << np.uint8(2)]
        found = pages | wanted & np.uint64((1 << shift) - 1)
        if second is not None:
            found, beyond = self._many(second, None, found, keep=keep)
            allowed = np.where(beyond != 0, allowed & np.uint8(BOTH) | beyond & np.uint8(BOTH << SECOND), np.uint8(0))
            shift = 12
        physical[which], rights[which] = found, allowed
        if not keep:
            return
        late = slice(-2 * LEAVES, None)
        start = np.uint64(-(1 << shift) & (1 << 64) - 1)
        shared = entries[late] >> np.uint64(bits.PTE_NG.low) & np.uint64(1) == 0
        if regime.stage == 2:
            shared[:] = False
        for tag, some in ((_tag(regime), ~shared), ((regime.vmid, GLOBAL), shared)):
            if some.any():
                tlb = self.leaves[level]
                tlb.insert_many(tag, shift, wanted[late][some] & start, found[late][some] & start, allowed[late][some])

    def _read(self, at: Addresses, second: Regime | None) -> tuple[Addresses, NDArray[np.bool_]]:
        """Descriptors at many addresses, and whether there was memory; through stage 2 where there is one."""
        memory = self._memory
        if second is not None:
            at, rights = self._many(second, None, at, keep=True)
            needed = np.uint8(READ | READ << SECOND)
            at = np.where(rights & needed == needed, at, UNMAPPED)
        there = (at >= np.uint64(memory.base)) & (at < np.uint64(memory.end))
        if there.all():
            return memory.words.take((at - np.uint64(memory.base) >> np.uint64(3)).view(np.int64)), there
        words = np.zeros(len(at), dtype=np.uint64)
        words[there] = memory.words[at[there] - np.uint64(memory.base) >> np.uint64(3)]
        return words, there

    # ---- forgetting --------------------------------------------------------------------------------------------------

    def forget(
        self,
        matches: Tag | Callable[[Any], bool],
        first: int = 0,
        last: int = (1 << 64) - 1,
        *,
        leaf: bool = False,
        level: int = 0,
    ) -> None:
        """Drop translations that overlap the bytes ``first``..``last``, and without ``leaf`` the tables on the way to them.

        ``level``: of the translations only those of this level; 0: of all.
        """
        for at, tlb in self.leaves.items():
            if at == level or not level:
                tlb.invalidate(matches, first, last)
        if not leaf:
            for tlb in self.tables.values():
                tlb.invalidate(matches, first, last)


# ---- descriptors -----------------------------------------------------------------------------------------------------


def _tag(regime: Regime) -> Tag:
    return regime.vmid, STAGE_2 if regime.asid is None else regime.asid


def _names(regime: Regime) -> tuple[Tag, ...]:
    """The tags under which a regime's translations may be kept."""
    return (_tag(regime),) if regime.asid is None else (_tag(regime), (regime.vmid, GLOBAL))


def _upper_bits(regime: Regime) -> int:
    return (1 << 64 - regime.input_bits) - 1 if regime.upper else 0


def _block_levels(regime: Regime) -> tuple[int, ...]:
    return (1, 2) if regime.granule == 16 and regime.output_bits == 52 else BLOCK_LEVELS[regime.granule]


def _output(word: int, regime: Regime) -> int:
    """The output address in a descriptor, down to the granule (D8.3.1)."""
    address = word & bits.PTE_ADDRESS & -(1 << regime.granule)
    return address | bits.PTE_HIGH_ADDRESS.of(word) << 48 if regime.output_bits == 52 else address


def _output_many(words: Addresses, regime: Regime) -> Addresses:
    address = words & np.uint64(bits.PTE_ADDRESS & -(1 << regime.granule))
    if regime.output_bits == 52:
        address |= (words >> np.uint64(bits.PTE_HIGH_ADDRESS.low) & np.uint64(0xF)) << np.uint64(48)
    return address


def _right(write: bool) -> int:
    return WRITE if write else READ


def _rights(access: int, limits: int, stage: int) -> int:
    """What AP and the tables' APTable allow a device, whose requests are unprivileged data accesses (D8.4; IHI 0070 13.1)."""
    if stage == 2:
        return BOTH | (access & BOTH) << SECOND
    if not access & bits.AP_UNPRIVILEGED or limits & bits.AP_UNPRIVILEGED:
        return BOTH << SECOND
    read_only = (access | limits) & bits.AP_READ_ONLY
    return (READ if read_only else BOTH) | BOTH << SECOND


_RIGHTS = {stage: np.array([_rights(index & 3, index >> 2, stage) for index in range(16)], dtype=np.uint8) for stage in (1, 2)}
"""By stage: rights, indexed by AP and, shifted by two, APTable."""


def _permitted(physical: int, rights: int, regime: Regime, second: Regime | None, address: int, write: bool, cause: int) -> int:
    """The physical address, where the rights are enough.  Raises ``Stopped``: stage 1 first."""
    right = _right(write)
    if regime.stage == 1 and not rights & right:
        raise Stopped(Event(bits.F_PERMISSION, cause=cause, told=regime.told))
    beyond = regime if regime.stage == 2 else second
    if beyond is not None and not rights & right << SECOND:
        ipa = address if regime.stage == 2 else 0  # what stage 1 and stage 2 made together does not remember it
        raise Stopped(Event(bits.F_PERMISSION, stage=2, cause=cause, ipa=ipa, told=beyond.told))
    return physical
