"""What one remapping unit can do: the Capability and Extended Capability registers (VT-d specification 11.4.2, 11.4.3).

The two 64-bit words are the only truth; a machine file's options set bits in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

Word = Literal["cap", "ecap"]

SIZE_2M = 1 << 21
SIZE_1G = 1 << 30
ALL_ONES = (1 << 64) - 1
WIDTHS = (39, 48, 57)
"""The address widths (bits) of tables with three, four and five levels."""
DEFAULT_WIDTH = 57
"""The address width (bits) that a domain starts from; its tables are trimmed to what a unit can do when a device is attached."""


@dataclass(frozen=True, slots=True)
class Bits:
    """A field of one of the two words: lowest bit and width."""

    word: Word
    low: int
    width: int = 1

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        return ((1 << self.width) - 1) << self.low


ND = Bits("cap", 0, 3)
RWBF = Bits("cap", 4)
PLMR = Bits("cap", 5)
PHMR = Bits("cap", 6)
CM = Bits("cap", 7)
SAGAW = Bits("cap", 8, 5)
MGAW = Bits("cap", 16, 6)
FRO = Bits("cap", 24, 10)
SSLPS = Bits("cap", 34, 4)
PSI = Bits("cap", 39)
NFR = Bits("cap", 40, 8)
MAMV = Bits("cap", 48, 6)
FS1GP = Bits("cap", 56)
FS5LP = Bits("cap", 60)
ESRTPS = Bits("cap", 63)
QI = Bits("ecap", 1)
DT = Bits("ecap", 2)
IR = Bits("ecap", 3)
PT = Bits("ecap", 6)
SC = Bits("ecap", 7)
IRO = Bits("ecap", 8, 10)
SRS = Bits("ecap", 31)
PASID = Bits("ecap", 40)
PDS = Bits("ecap", 42)
SMTS = Bits("ecap", 43)
SSADS = Bits("ecap", 45)
SSTS = Bits("ecap", 46)
FSTS = Bits("ecap", 47)
SMPWC = Bits("ecap", 48)
RPS = Bits("ecap", 49)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The words of one unit and its version register.  The defaults are those of QEMU's emulated unit with 39 bits."""

    cap: int = 0x00D2_008C_2226_0206
    ecap: int = 0x0000_0000_00F0_0F4A
    version: tuple[int, int] = (1, 0)

    def get(self, bits: Bits) -> int:
        """A field's value."""
        word = self.cap if bits.word == "cap" else self.ecap
        return (word & bits.mask) >> bits.low

    def has(self, bits: Bits) -> bool:
        """Whether a field is not zero."""
        return self.get(bits) != 0

    def with_bits(self, bits: Bits, value: int) -> Capabilities:
        """The same words with one field changed."""
        inserted = value << bits.low & bits.mask
        if bits.word == "cap":
            return replace(self, cap=self.cap & ~bits.mask | inserted)
        return replace(self, ecap=self.ecap & ~bits.mask | inserted)

    def with_width(self, width: int) -> Capabilities:
        """The same words for an address width out of ``WIDTHS``: tables up to that depth, and MGAW to match."""
        deepest = (width - 30) // 9
        words = self.with_bits(SAGAW, (1 << deepest + 1) - 2).with_bits(MGAW, width - 1)
        return words.with_bits(FS5LP, int(width == WIDTHS[-1]))

    @property
    def absent(self) -> bool:
        """Nothing answers at the address."""
        return self.cap == ALL_ONES and self.ecap == ALL_ONES

    def scalable(self, allowed: bool) -> bool:
        """Whether the driver runs the unit in scalable mode (``sm_supported``)."""
        return allowed and self.has(SMTS)

    def levels(self, scalable_allowed: bool) -> int | None:
        """How many levels the deepest tables have that the driver can use; ``None`` without any (``iommu_calculate_agaw``)."""
        depths = self.get(SAGAW)
        first_stage = 1 << 2 | self.get(FS5LP) << 3
        if self.scalable(scalable_allowed) and self.has(FSTS):
            depths = depths & first_stage if self.has(SSTS) else first_stage
        depths &= 0b1111
        return depths.bit_length() + 1 if depths else None

    def address_width(self, scalable_allowed: bool) -> int | None:
        """Bits of I/O virtual address that the unit translates, ``None`` where it has no usable table depth; MGAW limits them."""
        levels = self.levels(scalable_allowed)
        return min(12 + 9 * levels, self.get(MGAW) + 1) if levels else None

    def translates(self) -> bool:
        """Whether the unit names any address width (``alloc_iommu``)."""
        return self.has(SAGAW) or (self.has(SMTS) and not self.has(SSTS))


@lru_cache(maxsize=256)
def large_pages(units: frozenset[Capabilities], first_stage: bool) -> int:
    """Bitmap of the sizes (bytes) above 4 KiB that all units can map (``domain_update_iommu_superpage``).

    As the driver has it: 1 GiB implies 2 MiB.
    """
    mask = 0b11
    for unit in units:
        mask &= (0b11 if unit.has(FS1GP) else 0b01) if first_stage else unit.get(SSLPS)
    return (0, SIZE_2M, SIZE_2M | SIZE_1G)[mask.bit_length()]


IRQ_AUDIT: tuple[tuple[str, Bits], ...] = (("pi_support", Bits("cap", 59)), ("eim_support", Bits("ecap", 4)))

DMA_AUDIT: tuple[tuple[str, Bits], ...] = (
    ("fl5lp_support", FS5LP),
    ("fl1gp_support", FS1GP),
    ("read_drain", Bits("cap", 55)),
    ("write_drain", Bits("cap", 54)),
    ("pgsel_inv", Bits("cap", 39)),
    ("zlr", Bits("cap", 22)),
    ("caching_mode", CM),
    ("phmr", Bits("cap", 6)),
    ("plmr", Bits("cap", 5)),
    ("rwbf", RWBF),
    ("afl", Bits("cap", 3)),
    ("rps", Bits("ecap", 49)),
    ("smpwc", Bits("ecap", 48)),
    ("flts", FSTS),
    ("slts", SSTS),
    ("nwfs", Bits("ecap", 33)),
    ("slads", SSADS),
    ("vcs", Bits("ecap", 44)),
    ("smts", SMTS),
    ("pds", PDS),
    ("dit", Bits("ecap", 41)),
    ("pasid", Bits("ecap", 40)),
    ("eafs", Bits("ecap", 34)),
    ("srs", Bits("ecap", 31)),
    ("ers", Bits("ecap", 30)),
    ("prs", Bits("ecap", 29)),
    ("nest", Bits("ecap", 26)),
    ("mts", Bits("ecap", 25)),
    ("sc_support", SC),
    ("pass_through", PT),
    ("dev_iotlb_support", DT),
    ("qis", QI),
    ("coherent", Bits("ecap", 0)),
)
"""What the driver compares between units, by the names that it prints, in its order (``cap_audit.c``)."""


def audit(units: list[Capabilities], features: tuple[tuple[str, Bits], ...]) -> Iterator[str]:
    """The log lines for features that are not the same in all units: each later unit against the first."""
    for unit in units[1:]:
        for name, bits in features:
            if units[0].get(bits) != unit.get(bits):
                yield f"DMAR: IOMMU feature {name} inconsistent"


def common(units: Iterable[Capabilities], bits: Bits) -> bool:
    """Whether every unit has a feature (the ``…_sanity`` words)."""
    return all(unit.has(bits) for unit in units)
