"""Decoding a memory as an SMMUv3 would: streams, their entries, and the tables behind them (``iommukit walk``)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from iommukit.errors import InputError
from iommukit.hw.decode import READ, WRITE, Decoded, Kind, TableFormat, TableLevel, pages
from iommukit.hw.memory import TableReader, Words
from iommukit.hw.walk import Leaf, Mode, Step, Walk
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.configuration import Config, Configuration, Features, Regime, Stream
from iommukit_arm_smmu.model.events import Stopped

ROOTS = {
    "strtab_base": "SMMU_STRTAB_BASE (offset 0x80): the stream table's address",
    "strtab_base_cfg": "SMMU_STRTAB_BASE_CFG (offset 0x88): its size and format; absent: two levels, split 8, 2^16 streams",
}
DEFAULT_FORMAT = bits.STRTAB_FMT.put(bits.FMT_TWO_LEVEL) | bits.STRTAB_SPLIT.put(8) | bits.STRTAB_LOG2SIZE.put(16)
ANY_SMMU = Features(frozenset({1, 2}), frozenset({12, 14, 16}), 52, 32, True, True)
"""A dump does not say what the hardware could do: everything."""

REASONS = {
    bits.C_BAD_STREAMID: "C_BAD_STREAMID: the stream table has no entry for it",
    bits.F_STE_FETCH: "F_STE_FETCH: no memory for the entry",
    bits.C_BAD_STE: "C_BAD_STE: the entry is not valid, or cannot be what it says",
    bits.F_CD_FETCH: "F_CD_FETCH: no memory for the context descriptor",
    bits.C_BAD_CD: "C_BAD_CD: the context descriptor is not valid, or cannot be what it says",
}
CONFIGS = {
    bits.CONFIG_BYPASS: "bypass",
    bits.CONFIG_S1: "stage 1",
    bits.CONFIG_S2: "stage 2",
    bits.CONFIG_NESTED: "stage 1 and stage 2",
}


def walks(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterator[Walk]:
    """See the hook ``walk_tables``."""
    dump = Dump(memory, roots["strtab_base"], roots.get("strtab_base_cfg", DEFAULT_FORMAT))
    for stream in dump.streams() if requester is None else (requester,):
        yield dump.walk(stream, iova)


class Dump:
    """One SMMU's tables in a memory.  Raises ``InputError`` for a stream table that cannot be."""

    def __init__(self, memory: TableReader, base: int, format: int) -> None:
        if bits.STRTAB_FMT.of(format) > bits.FMT_TWO_LEVEL:
            raise InputError(f"{format:#x} names no format of stream tables", place="strtab_base_cfg")
        if bits.STRTAB_FMT.of(format) == bits.FMT_TWO_LEVEL and bits.STRTAB_SPLIT.of(format) not in bits.SPLITS:
            raise InputError(f"a split of 6, 8 or 10 was expected, got {bits.STRTAB_SPLIT.of(format)}", place="strtab_base_cfg")
        if bits.STRTAB_LOG2SIZE.of(format) > ANY_SMMU.stream_bits:
            raise InputError(f"2^{bits.STRTAB_LOG2SIZE.of(format)} streams are too many", place="strtab_base_cfg")
        self._memory = memory
        self._configuration = Configuration(memory, ANY_SMMU, _as_it_is)
        self._configuration.strtab_base, self._configuration.strtab_cfg = base, format

    # ---- streams -----------------------------------------------------------------------------------------------------

    def streams(self) -> Iterator[int]:
        """The streams that do anything: those whose entry is valid and does not stop them."""
        format = self._configuration.strtab_cfg
        size = bits.STRTAB_LOG2SIZE.of(format)
        if bits.STRTAB_FMT.of(format) == bits.FMT_LINEAR:
            yield from self._live(0, self._configuration.strtab_base & bits.BASE_ADDRESS & -(bits.STE_SIZE << size), 1 << size)
            return
        split = bits.STRTAB_SPLIT.of(format)
        count = 1 << max(size - split, 0)
        first = self._configuration.strtab_base & bits.BASE_ADDRESS & -max(bits.STE_SIZE, bits.L1STD_SIZE * count)
        descriptors = self._memory.table(first, count)
        for index in np.flatnonzero(descriptors & np.uint64(bits.L1STD_SPAN.mask)).tolist():
            try:
                table, entries = self._configuration.second_level(index << split)
            except Stopped:
                continue
            try:
                yield from self._live(index << split, table, entries)
            except InputError:
                # One stream tells that the table is missing.
                yield index << split

    def _live(self, first: int, table: int, count: int) -> Iterator[int]:
        words = self._memory.table(table, bits.STE_WORDS * count)[:: bits.STE_WORDS]
        live = (words & np.uint64(bits.STE_V.mask) != 0) & (
            words >> np.uint64(bits.STE_CONFIG.low) & np.uint64(7) >= bits.CONFIG_BYPASS
        )
        yield from (first + index for index in np.flatnonzero(live).tolist())

    def walk(self, number: int, iova: int | None) -> Walk:
        """One stream, its entries and pages."""
        steps: list[Step] = []
        try:
            address = self._configuration.stream_address(number)
            steps.append(self._step("STE", address, _explain_stream))
            stream = self._configuration.stream(number)
            if stream.bad is not None:
                raise Stopped(stream.bad)
            if stream.config is not Config.TRANSLATE:
                return Walk(number, Mode.BLOCKED if stream.config is Config.ABORT else Mode.PASS_THROUGH, tuple(steps))
            regimes = self._regimes(number, stream, steps)
        except Stopped as stopped:
            return Walk(number, Mode.BAD, tuple(steps), reason=REASONS[stopped.event.type])
        if isinstance(regimes, str):
            return Walk(number, Mode.TRANSLATED, tuple(steps), reason=regimes, domain=stream.vmid)
        tag = regimes[0].vmid if regimes and regimes[0].asid is None else regimes[0].asid if regimes else None
        return Walk(number, Mode.TRANSLATED, tuple(steps), self._pages(regimes, iova), domain=tag)

    def _regimes(self, number: int, stream: Stream, steps: list[Step]) -> Sequence[Regime] | str:
        if stream.context is None:
            assert stream.second is not None
            return (stream.second,)
        if stream.second is not None:
            return "stage 1 behind stage 2 is not decoded"
        steps.append(self._step("CD", stream.context, _explain_context))
        context = self._configuration.context(number, stream)
        if context.bad is not None:
            raise Stopped(context.bad)
        return context.regimes

    def _pages(self, regimes: Iterable[Regime], iova: int | None) -> Iterator[Leaf]:
        chosen = [regime for regime in regimes if iova is None or regime.holds(iova)]
        if iova is not None and not chosen:
            return iter((Leaf(iova, 0, 0, False, False, reason=f"{iova:#x} is outside what the tables translate"),))
        return itertools.chain.from_iterable(_tables(self._memory, regime, iova) for regime in chosen)

    def _step(self, name: str, address: int, explain: Callable[[list[int]], str]) -> Step:
        """An entry of eight words."""
        try:
            words = self._memory.table(address, bits.STE_WORDS).tolist()
        except InputError:
            return Step(name, address, 0, "outside the memory")
        return Step(name, address, sum(word << 64 * index for index, word in enumerate(words)), explain(words))


def _as_it_is(address: int, regime: Regime) -> int:
    """Context descriptors behind stage 2 are not looked for."""
    return address


def _explain_stream(words: list[int]) -> str:
    if not bits.STE_V.of(words[0]):
        return "V 0"
    return f"V 1, Config {CONFIGS.get(bits.STE_CONFIG.of(words[0]), 'abort')}"


def _explain_context(words: list[int]) -> str:
    if not bits.CD_V.of(words[0]):
        return "V 0"
    return f"V 1, ASID {bits.CD_ASID.of(words[0])}, T0SZ {bits.CD_TSZ[0].of(words[0])}, TTB0 {words[1] & bits.CD_TTB:#x}"


# ---- tables ----------------------------------------------------------------------------------------------------------


class Descriptors(TableFormat):
    """Descriptors of one regime (DDI 0487 D8.3).  Levels count from the leaves: 0 is the architecture's level 3."""

    def __init__(self, regime: Regime) -> None:
        self._regime = regime
        stride = regime.granule - 3
        self.levels = {3 - level: TableLevel(f"level {level}", regime.shift(level), stride) for level in range(regime.start, 4)}
        self._blocks = {12: (1, 2), 14: (1,), 16: (1, 2) if regime.output_bits == 52 else (1,)}[regime.granule]

    def decode(self, level: int, entries: Words) -> Decoded:
        """Valid bit, type bit, output address, AP or S2AP and, in tables, APTable."""
        regime = self._regime
        kind = entries & np.uint64(3)
        found = np.full(len(entries), Kind.ABSENT, dtype=np.uint8)
        if level:
            found[kind == 3] = Kind.TABLE
            found[kind == 1] = Kind.PAGE if level in self._blocks else Kind.BAD
        else:
            found[kind == 3] = Kind.PAGE
            found[kind == 1] = Kind.BAD
        address = entries & np.uint64((1 << 48) - (1 << regime.granule))
        if regime.output_bits == 52:
            address |= (entries & np.uint64(0xF000)) << np.uint64(36)
        if level:
            block = found == Kind.PAGE
            address[block] &= np.uint64((1 << 64) - (1 << regime.shift(3 - level)))
        page = found == Kind.PAGE
        if regime.access_flag:
            found[page & (entries & np.uint64(bits.PTE_AF.mask) == 0)] = Kind.BAD
        return Decoded(found, address, self._rights(entries, page))

    def _rights(
        self, entries: Words, page: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        access = (entries >> np.uint64(bits.PTE_AP.low) & np.uint64(3)).astype(np.uint8)
        if self._regime.stage == 2:
            return np.where(page, access, READ | WRITE).astype(np.uint8)
        limits = (entries >> np.uint64(bits.TABLE_AP.low) & np.uint64(3)).astype(np.uint8) * np.uint8(self._regime.hierarchical)
        # APTable takes unprivileged access away with its lower bit, AP gives it.
        barred = np.where(page, access & 1 == 0, limits & 1 != 0)
        read_only = np.where(page, access, limits) & 2 != 0
        return np.where(barred, 0, np.where(read_only, READ, READ | WRITE)).astype(np.uint8)

    def explain(self, level: int, value: int) -> str:
        """The bits of one descriptor."""
        if not value & 1:
            return "valid 0"
        if level and value & 2:
            return f"table, APTable {bits.TABLE_AP.of(value)}"
        what = "page" if not level else "block"
        access = f"S2AP {bits.S2_AP.of(value)}" if self._regime.stage == 2 else f"AP {bits.PTE_AP.of(value)}"
        return f"{what}, {access}, AF {bits.PTE_AF.of(value)}, SH {bits.PTE_SH.of(value)}"

    def fault(self, level: int, value: int) -> str:
        """F_ACCESS, or a descriptor that is none."""
        if value & 3 == (1 if level else 3) and (not level or level in self._blocks):
            return "F_ACCESS: the access flag is clear"
        return "F_TRANSLATION: reserved descriptor" if not level else "F_TRANSLATION: no block at this level"


def _tables(memory: TableReader, regime: Regime, iova: int | None) -> Iterator[Leaf]:
    """The pages of one regime."""
    base = (1 << 64) - (1 << regime.input_bits) if regime.upper else 0
    count = 1 << regime.input_bits - regime.shift(regime.start)
    return pages(memory, Descriptors(regime), regime.root, 3 - regime.start, iova=iova, base=base, count=count)
