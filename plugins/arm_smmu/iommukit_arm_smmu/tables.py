"""The tables that the driver writes: LPAE descriptors for stage 1 and stage 2 (``io-pgtable-arm``)."""

from __future__ import annotations

from abc import abstractmethod

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level
from iommukit_arm_smmu import layout as bits

MAIR = 0xF4_04_FF_44
"""Memory attributes by index: normal uncached, write-back, device, and outer cacheable alone."""
UNCACHED, CACHED, DEVICE = 0, 1, 2
S2_UNCACHED, S2_CACHED, S2_DEVICE = 0b0101, 0b1111, 0b0001

_VALID, _TABLE = bits.PTE_VALID.mask, bits.PTE_TABLE.mask
_ALWAYS = _VALID | bits.PTE_AF.mask


class Lpae(Format):
    """Long descriptors of a granule (``shift``: log2 of its bytes) for ``input_bits`` of address and ``output_bits`` of output.

    ``concatenated``: stage 2 joins up to sixteen tables to one root where that saves a level.
    """

    def __init__(self, shift: int, input_bits: int, output_bits: int, *, concatenated: bool = False) -> None:
        stride = shift - 3
        count = -(-(input_bits - shift) // stride)
        root = input_bits - shift - stride * (count - 1)
        if concatenated and count > 1 and root <= 4:
            count, root = count - 1, root + stride
        self.granule = shift
        self.input_bits = input_bits
        self.output_bits = output_bits
        self.start = 4 - count
        """The root's level, as the architecture counts: the leaves are at 3."""
        self.levels = tuple(Level(shift + stride * n, stride if n < count - 1 else root) for n in range(count))
        self._address = (1 << 48) - 1 & -(1 << shift)
        self._split = shift == 16 and output_bits > 48
        """Bits 51 to 48 of an address stand in bits 15 to 12."""
        self._leaves: dict[tuple[bool, int], int] = {}
        """Attributes by whether it is a block, and protection."""

    def present(self, entry: Entry, level: int) -> Entry:
        """Bit 0."""
        return entry & _VALID != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """A block: bit 1 clear."""
        return entry & _TABLE == 0

    def address(self, entry: Entry, level: int) -> Entry:
        """Bits 47 down to the granule, and above where they are split off."""
        address = entry & self._address
        return address | (entry & 0xF000) << 36 if self._split else address

    def encode_address(self, paddr: Entry) -> Entry:
        """As it is, or split for 52 bits."""
        if self._split:
            return paddr & self._address | paddr >> 36 & 0xF000
        return paddr & self._address

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        """The level of a page or block."""
        level, repeat = super().leaf_level(pgsize)
        if level > (2 if self.granule == 12 or self._split else 1):
            raise IommuError("EINVAL", f"no block has {pgsize:#x} bytes")
        return level, repeat

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """Attributes of a page (level 0) or block."""
        key = level > 0, prot
        found = self._leaves.get(key)
        if found is None:
            if not prot & (Prot.READ | Prot.WRITE):
                raise IommuError("EINVAL", "a mapping that can be neither read nor written")
            found = self._leaves[key] = self.attributes(prot) | _ALWAYS | (0 if level else _TABLE)
        return found

    @abstractmethod
    def attributes(self, prot: int) -> int:
        """What stage 1 and stage 2 say differently (``arm_lpae_prot_to_pte``)."""

    def table(self, level: int) -> int:
        """A table descriptor without restrictions."""
        return _VALID | _TABLE

    def smaller(self, entry: int, level: int) -> int:
        """The same attributes one level below, where a page has bit 1 set."""
        rest = entry & ~self._address & ~(0xF000 if self._split else 0)
        return rest if level > 1 else rest | _TABLE


class StageOne(Lpae):
    """Stage 1 (``arm_64_lpae_alloc_pgtable_s1``).  There are no write-only pages: what can be written can be read."""

    def attributes(self, prot: int) -> int:
        """Not global, unprivileged, read-only without WRITE."""
        access = bits.AP_UNPRIVILEGED | (0 if prot & Prot.WRITE else bits.AP_READ_ONLY)
        index = DEVICE if prot & Prot.MMIO else CACHED if prot & Prot.CACHE else UNCACHED
        never = bits.PTE_XN.mask | bits.PTE_PXN.mask if prot & Prot.NOEXEC else 0
        return bits.PTE_NG.mask | bits.PTE_AP.put(access) | bits.PTE_ATTRINDX.put(index) | _shareable(prot) | never


class StageTwo(Lpae):
    """Stage 2 (``arm_64_lpae_alloc_pgtable_s2``): reading and writing have a bit each."""

    def attributes(self, prot: int) -> int:
        """S2AP and the memory type."""
        access = (bits.S2AP_READ if prot & Prot.READ else 0) | (bits.S2AP_WRITE if prot & Prot.WRITE else 0)
        kind = S2_DEVICE if prot & Prot.MMIO else S2_CACHED if prot & Prot.CACHE else S2_UNCACHED
        never = bits.PTE_XN.mask if prot & Prot.NOEXEC else 0
        return bits.S2_AP.put(access) | bits.S2_MEMATTR.put(kind) | _shareable(prot) | never


def _shareable(prot: int) -> int:
    return bits.PTE_SH.put(bits.INNER_SHAREABLE if prot & Prot.CACHE else bits.OUTER_SHAREABLE)
