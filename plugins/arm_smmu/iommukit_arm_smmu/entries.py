"""Stream table entries and context descriptors as the driver makes them, and how it changes one that hardware is using."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iommukit.hw.memory import PhysicalMemory
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.tables import MAIR, Lpae

Words = tuple[int, ...]
"""Eight words of 64 bits."""
NOTHING: Words = (0,) * 8

GRANULE_CODES = {12: 0b00, 14: 0b10, 16: 0b01}
"""TG0 and S2TG by log2 of the granule's bytes."""
_WALK_CACHED = (bits.WRITE_BACK, bits.WRITE_BACK, bits.INNER_SHAREABLE)


def address_code(width: int) -> int:
    """IPS or S2PS for a width in bits."""
    return bits.ADDRESS_SIZES.index(width)


# ---- stream table entries --------------------------------------------------------------------------------------------


def _entry(config: int, *words: int, first: int = 0) -> Words:
    rest = words + (0,) * (7 - len(words))
    return bits.STE_V.put(1) | bits.STE_CONFIG.put(config) | first, *rest


def abort_entry() -> Words:
    """Nothing passes."""
    return _entry(bits.CONFIG_ABORT)


def bypass_entry() -> Words:
    """Everything passes as it is."""
    return _entry(bits.CONFIG_BYPASS, bits.STE_SHCFG.put(bits.SHCFG_INCOMING))


def first_stage_entry(context: int) -> Words:
    """Stage 1 by the context descriptor at an address."""
    second = (
        bits.STE_S1DSS.put(bits.S1DSS_SUBSTREAM_0)
        | bits.STE_S1CIR.put(bits.WRITE_BACK)
        | bits.STE_S1COR.put(bits.WRITE_BACK)
        | bits.STE_S1CSH.put(bits.INNER_SHAREABLE)
    )
    return _entry(bits.CONFIG_S1, second, first=context)


def second_stage_entry(root: int, format: Lpae, vmid: int) -> Words:
    """Stage 2 by the tables at an address."""
    level = (2 if format.granule == 12 else 3) - format.start
    inner, outer, shareable = _WALK_CACHED
    third = (
        bits.STE_S2VMID.put(vmid)
        | bits.STE_S2T0SZ.put(64 - format.input_bits)
        | bits.STE_S2SL0.put(level)
        | bits.STE_S2IR0.put(inner)
        | bits.STE_S2OR0.put(outer)
        | bits.STE_S2SH0.put(shareable)
        | bits.STE_S2TG.put(GRANULE_CODES[format.granule])
        | bits.STE_S2PS.put(address_code(format.output_bits))
        | bits.STE_S2AA64.put(1)
        | bits.STE_S2PTW.put(1)
        | bits.STE_S2R.put(1)
    )
    return _entry(bits.CONFIG_S2, bits.STE_SHCFG.put(bits.SHCFG_INCOMING), third, root)


def entry_used(entry: Words) -> Words:
    """The bits that hardware looks at in an entry (``arm_smmu_get_ste_used``)."""
    used = [0] * 8
    used[0] = bits.STE_V.mask
    if not bits.STE_V.of(entry[0]):
        return tuple(used)
    config = bits.STE_CONFIG.of(entry[0])
    used[0] |= bits.STE_CONFIG.mask
    if config == bits.CONFIG_BYPASS:
        used[1] |= bits.STE_SHCFG.mask
    if config in (bits.CONFIG_S1, bits.CONFIG_NESTED):
        used[0] |= bits.STE_S1FMT.mask | bits.STE_S1CONTEXTPTR | bits.STE_S1CDMAX.mask
        first = (bits.STE_S1DSS, bits.STE_S1CIR, bits.STE_S1COR, bits.STE_S1CSH, bits.STE_S1STALLD, bits.STE_EATS, bits.STE_STRW)
        used[1] |= sum(field.mask for field in first)
        used[2] |= bits.STE_S2VMID.mask
    if config in (bits.CONFIG_S2, bits.CONFIG_NESTED):
        used[1] |= bits.STE_EATS.mask | bits.STE_SHCFG.mask
        used[2] = (1 << 64) - 1
        used[3] |= bits.STE_S2TTB
    return tuple(used)


# ---- context descriptors ---------------------------------------------------------------------------------------------


def context_descriptor(root: int, format: Lpae, asid: int, output_bits: int) -> Words:
    """Tables for the lower addresses; none for the upper ones."""
    inner, outer, shareable = _WALK_CACHED
    first = (
        bits.CD_TSZ[0].put(64 - format.input_bits)
        | bits.CD_TG[0].put(GRANULE_CODES[format.granule])
        | bits.CD_IR[0].put(inner)
        | bits.CD_OR[0].put(outer)
        | bits.CD_SH[0].put(shareable)
        | bits.CD_EPD[1].put(1)
        | bits.CD_V.put(1)
        | bits.CD_IPS.put(address_code(output_bits))
        | bits.CD_AA64.put(1)
        | bits.CD_R.put(1)
        | bits.CD_A.put(1)
        | bits.CD_ASET.put(1)
        | bits.CD_ASID.put(asid)
    )
    return first, root, 0, MAIR, 0, 0, 0, 0


def context_used(entry: Words) -> Words:
    """The bits that hardware looks at in a descriptor (``arm_smmu_get_cd_used``)."""
    return (bits.CD_V.mask, *(0,) * 7) if not bits.CD_V.of(entry[0]) else ((1 << 64) - 1,) * 8


# ---- changing one ----------------------------------------------------------------------------------------------------


def read_words(memory: PhysicalMemory, address: int) -> Words:
    """The eight words at an address."""
    at = address - memory.base >> 3
    return tuple(memory.quads[at : at + 8].tolist())


def _put(memory: PhysicalMemory, address: int, target: Sequence[int], indices: Sequence[int]) -> bool:
    """Write some words; False where all were so already."""
    at = address - memory.base >> 3
    changed = False
    for index in indices:
        if memory.quads[at + index] != target[index]:
            memory.quads[at + index] = target[index]
            changed = True
    return changed


def change_entry(
    memory: PhysicalMemory, address: int, target: Words, used: Callable[[Words], Words], sync: Callable[[], None]
) -> None:
    """Make an entry ``target``, without a gap where one word tells the old from the new, else through an invalid one.

    Since 6.9 (``arm_smmu_write_entry``).  ``used`` names the bits that matter in an entry; ``sync`` makes hardware read it again.
    """
    current = read_words(memory, address)
    # What becomes of the entry when all bits are changed that hardware does not look at now.
    prepared = tuple(
        (now & busy) | (wanted & (1 << 64) - 1 & ~busy) for now, wanted, busy in zip(current, target, used(current), strict=True)
    )
    critical = [index for index, wanted in enumerate(used(target)) if prepared[index] & wanted != target[index]]

    def put(words: Words, indices: Sequence[int]) -> None:
        if _put(memory, address, words, indices):
            sync()

    if len(critical) == 1:
        put(prepared, [index for index in range(8) if index not in critical])
        put(target, critical)
    elif critical:
        # Too much changes at once: nothing may look at it meanwhile.
        put((0,), [0])
        put(target, range(1, 8))
    put(target, range(8))


def replace_entry(memory: PhysicalMemory, address: int, target: Words, sync: Callable[[], None]) -> None:
    """Make an entry ``target``: one without tables at once, one with tables in the place of one without, its first word last.

    Before 6.9 (``arm_smmu_write_strtab_ent``, ``arm_smmu_write_ctx_desc``).
    """
    if target in (abort_entry(), bypass_entry()):
        _put(memory, address, target, range(8))
    else:
        _put(memory, address, target, range(1, 8))
        sync()
        _put(memory, address, target, [0])
    sync()
