"""What the hardware makes of a stream table entry and a context descriptor (IHI 0070 5), and what it keeps of them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

from iommukit.errors import InputError
from iommukit.hw.memory import TableReader
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.events import Event, Stopped


@dataclass(frozen=True, slots=True)
class Features:
    """What this SMMU implements, as its identification registers say (6.3.1 to 6.3.6)."""

    stages: frozenset[int]
    granules: frozenset[int]
    """Log2 of bytes."""
    output_bits: int
    stream_bits: int
    large_addresses: bool
    """Inputs of 52 bits with 64 KiB granules (IDR5.VAX)."""
    coherent: bool


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """One set of tables: where they begin, how wide they are, and under which name their translations are kept."""

    stage: int
    root: int
    granule: int
    """Log2 of bytes."""
    input_bits: int
    start: int
    """The level of the root table: 0 to 3."""
    output_bits: int
    vmid: int
    asid: int | None
    """``None`` at stage 2."""
    upper: bool = False
    """TTB1: addresses whose upper bits are ones."""
    hierarchical: bool = True
    """Table descriptors restrict what is below (CD.HADx clear)."""
    access_flag: bool = True
    """A clear access flag stops the request (AFFD clear)."""
    told: bool = True
    """Faults are recorded (CD.R, STE.S2R)."""

    def holds(self, address: int) -> bool:
        """Whether an input address belongs to these tables."""
        return address >> self.input_bits == ((1 << 64 - self.input_bits) - 1 if self.upper else 0)

    def shift(self, level: int) -> int:
        """Log2 of the bytes that one entry of a level covers."""
        return self.granule + (self.granule - 3) * (3 - level)


class Config(enum.Enum):
    """STE.Config (5.2)."""

    ABORT = "abort"
    BYPASS = "bypass"
    TRANSLATE = "translate"


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream table entry, decoded.  ``bad`` is the event of an entry that cannot be used."""

    config: Config
    bad: Event | None = None
    context: int | None = None
    """Address of the context descriptor, where stage 1 translates."""
    vmid: int = 0
    second: Regime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A context descriptor, decoded: the tables for the lower and the upper addresses."""

    bad: Event | None = None
    regimes: tuple[Regime, ...] = ()
    """For lower and upper addresses, those that are enabled."""
    told: bool = True


@dataclass(slots=True)
class Caches:
    """Configuration caches (4.3): kept until the matching CFGI command."""

    first_level: dict[int, tuple[int, int]]
    """By index: address and entries of a second-level table."""
    streams: dict[int, Stream]
    contexts: dict[int, Context]
    """By stream id: only substream 0 exists here."""


class Configuration:
    """Finds and decodes configuration.  ``strtab_base`` and ``strtab_cfg`` are the registers."""

    def __init__(self, memory: TableReader, features: Features, fetch: Callable[[int, Regime], int]) -> None:
        self._memory = memory
        self._features = features
        self._fetch = fetch
        """Where stage 2 puts the address of a context descriptor."""
        self.strtab_base = 0
        self.strtab_cfg = 0
        self.caches = Caches({}, {}, {})

    # ---- lookups -----------------------------------------------------------------------------------------------------

    def stream(self, stream: int) -> Stream:
        """The entry of a stream.  Raises ``Stopped`` where there is none to be had: those are not kept."""
        found = self.caches.streams.get(stream)
        if found is None:
            found = self.caches.streams[stream] = self._decode_stream(self._words(self.stream_address(stream), bits.F_STE_FETCH))
        return found

    def context(self, number: int, stream: Stream) -> Context:
        """The context descriptor of a stream that stage 1 translates."""
        found = self.caches.contexts.get(number)
        if found is None:
            assert stream.context is not None
            address = stream.context
            if stream.second is not None:
                address = self._fetch(address, stream.second)
            found = self.caches.contexts[number] = self._decode_context(self._words(address, bits.F_CD_FETCH), stream)
        return found

    def _words(self, address: int, failure: int) -> list[int]:
        if address >> self._features.output_bits:
            raise Stopped(Event(failure, address))
        return self._fetched(address, bits.STE_WORDS, failure)

    def _fetched(self, address: int, count: int, failure: int) -> list[int]:
        try:
            words: list[int] = self._memory.table(address, count).tolist()
        except InputError:
            raise Stopped(Event(failure, address)) from None
        return words

    def stream_address(self, stream: int) -> int:
        """Where the entry of a stream is, in a linear or a two-level table (3.3.1, 5.1).  Raises ``Stopped``."""
        log2size = min(bits.STRTAB_LOG2SIZE.of(self.strtab_cfg), self._features.stream_bits)
        base = self.strtab_base & bits.BASE_ADDRESS
        if stream >> log2size:
            raise Stopped(Event(bits.C_BAD_STREAMID))
        if bits.STRTAB_FMT.of(self.strtab_cfg) != bits.FMT_TWO_LEVEL:
            return (base & -(bits.STE_SIZE << log2size)) + bits.STE_SIZE * stream
        address, entries = self.second_level(stream)
        offset = stream & (1 << self._split) - 1
        if offset >= entries:
            raise Stopped(Event(bits.C_BAD_STREAMID))
        return address + bits.STE_SIZE * offset

    @property
    def _split(self) -> int:
        """How many bits of a stream id the second level resolves; reserved values are 6 (6.3.25)."""
        split = bits.STRTAB_SPLIT.of(self.strtab_cfg)
        return split if split in bits.SPLITS else bits.SPLITS[0]

    def second_level(self, stream: int) -> tuple[int, int]:
        """Address and entries of the second-level table for a stream (5.1).  Raises ``Stopped``."""
        split = self._split
        index = stream >> split
        known = self.caches.first_level.get(index)
        if known is not None:
            return known
        count = 1 << max(bits.STRTAB_LOG2SIZE.of(self.strtab_cfg) - split, 0)
        base = self.strtab_base & bits.BASE_ADDRESS & -max(bits.STE_SIZE, bits.L1STD_SIZE * count)
        address = base + bits.L1STD_SIZE * index
        word = self._fetched(address, 1, bits.F_STE_FETCH)[0]
        span = bits.L1STD_SPAN.of(word)
        # A span of 0 says that there is no table; reserved values and more than the split do as well (5.1).
        if not 0 < span <= split + 1:
            raise Stopped(Event(bits.C_BAD_STREAMID))
        entries = 1 << span - 1
        # Drivers fill a descriptor whose span was 0 without telling; so only usable ones are kept.
        found = self.caches.first_level[index] = (word & bits.L1STD_L2PTR & -(bits.STE_SIZE * entries), entries)
        return found

    # ---- stream table entries (5.2, 5.2.2) ---------------------------------------------------------------------------

    def _decode_stream(self, words: list[int]) -> Stream:
        bad = Stream(Config.ABORT, Event(bits.C_BAD_STE))
        word0 = words[0]
        if not bits.STE_V.of(word0):
            return bad
        config = bits.STE_CONFIG.of(word0)
        if config < bits.CONFIG_BYPASS:
            return Stream(Config.ABORT)
        if config == bits.CONFIG_BYPASS:
            return Stream(Config.BYPASS)
        first, second = config & 1, config & 2
        if (first and 1 not in self._features.stages) or (second and 2 not in self._features.stages):
            return bad
        # Stalling is not implemented (STALL_MODEL 0b01), and neither are substreams (IDR1.SSIDSIZE 0).
        if first and (bits.STE_S1STALLD.of(words[1]) or bits.STE_S1CDMAX.of(word0)):
            return bad
        vmid = bits.STE_S2VMID.of(words[2]) if 2 in self._features.stages else 0
        regime = None
        if second:
            regime = self._second_stage(words[2], words[3], vmid)
            if regime is None:
                return bad
        return Stream(Config.TRANSLATE, context=word0 & bits.STE_S1CONTEXTPTR if first else None, vmid=vmid, second=regime)

    def _second_stage(self, word2: int, word3: int, vmid: int) -> Regime | None:
        """The fields of stage 2; ``None`` where they cannot be (5.2)."""
        unsupported = (bits.STE_S2ENDI, bits.STE_S2HD, bits.STE_S2HA, bits.STE_S2S)
        granule = bits.TG0.get(bits.STE_S2TG.of(word2), 0)
        if any(field.of(word2) for field in unsupported) or not bits.STE_S2AA64.of(word2) or granule not in self._features.granules:
            return None
        input_bits = 64 - bits.STE_S2T0SZ.of(word2)
        if not 25 <= input_bits <= min(self._features.output_bits, 48 if granule < 16 else 52):
            return None
        level = bits.STE_S2SL0.of(word2)
        start = (2 if granule == 12 else 3) - level
        regime = Regime(
            2, word3 & bits.STE_S2TTB, granule, input_bits, start, self._output_bits(bits.STE_S2PS.of(word2), granule), vmid, None,
            access_flag=not bits.STE_S2AFFD.of(word2), told=bool(bits.STE_S2R.of(word2)),
        )  # fmt: skip
        # Up to sixteen tables may lie side by side at the first level that is used (D8.2.2).
        if start < 0 or not 0 < input_bits - regime.shift(start) <= granule - 3 + 4:
            return None
        return None if regime.root >> regime.output_bits else _aligned(regime)

    def _output_bits(self, size: int, granule: int) -> int:
        """IPS and S2PS, capped to what is implemented; 52 bits need 64 KiB granules (5.4)."""
        chosen = bits.ADDRESS_SIZES[min(size, len(bits.ADDRESS_SIZES) - 1)]
        return min(chosen, self._features.output_bits, 52 if granule == 16 else 48)

    # ---- context descriptors (5.4, 5.4.1) ----------------------------------------------------------------------------

    def _decode_context(self, words: list[int], stream: Stream) -> Context:
        bad = Context(Event(bits.C_BAD_CD))
        word0 = words[0]
        # AArch64 tables only (TTF), faults terminate (TERM_MODEL 1, STALL_MODEL 0b01), little endian, no HTTU.
        required = bits.CD_V.mask | bits.CD_AA64.mask | bits.CD_A.mask
        refused = bits.CD_S.mask | bits.CD_HA.mask | bits.CD_HD.mask | bits.CD_ENDI.mask
        if word0 & required != required or word0 & refused:
            return bad
        regimes = []
        for half, sizes in enumerate((bits.TG0, bits.TG1)):
            if not bits.CD_EPD[half].of(word0):
                regime = self._first_stage(word0, words[1 + half], half, sizes, stream.vmid)
                if regime is None:
                    return bad
                regimes.append(regime)
        return Context(None, tuple(regimes), bool(bits.CD_R.of(word0)))

    def _first_stage(self, word0: int, ttb: int, half: int, sizes: dict[int, int], vmid: int) -> Regime | None:
        granule = sizes.get(bits.CD_TG[half].of(word0), 0)
        if granule not in self._features.granules:
            return None
        input_bits = 64 - bits.CD_TSZ[half].of(word0)
        if not 25 <= input_bits <= (52 if granule == 16 and self._features.large_addresses else 48):
            return None
        levels = -(-(input_bits - granule) // (granule - 3))
        regime = Regime(
            1, ttb & bits.CD_TTB, granule, input_bits, 4 - levels, self._output_bits(bits.CD_IPS.of(word0), granule),
            vmid, bits.CD_ASID.of(word0), upper=bool(half), hierarchical=not bits.CD_HAD.of(ttb),
            access_flag=not bits.CD_AFFD.of(word0), told=bool(bits.CD_R.of(word0)),
        )  # fmt: skip
        return None if regime.root >> regime.output_bits else _aligned(regime)


def _aligned(regime: Regime) -> Regime:
    """The same with the root's address cut to the alignment of its table (5.4: TTB0; 5.2: S2TTB).

    That is its size; tables of fewer than 8 entries are aligned to 64 bytes only where addresses have 52 bits (DDI 0487 D8.2.5).
    """
    least = 6 if regime.output_bits > 48 else 4
    size = max(least, regime.input_bits - regime.shift(regime.start) + 3)
    root = regime.root & -(1 << size)
    return regime if root == regime.root else replace(regime, root=root)
