"""The command queue as the hardware reads it (IHI 0070 4): which commands there are, and what each invalidates.

An invalidation is only known to be done once a later CMD_SYNC is (4.7.3): this model begins none before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iommukit.hw.memory import PhysicalMemory
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.configuration import Caches, Features
from iommukit_arm_smmu.model.walker import GLOBAL, STAGE_2, Walker

Work = Callable[["CommandQueue", int, int], None]
"""Does what a command says, given its two words."""


class CommandQueue:
    """The queue in memory: PROD is the software's index, CONS the hardware's (3.5.1, 4.1)."""

    def __init__(self, memory: PhysicalMemory, features: Features, walker: Walker, caches: Caches) -> None:
        self._memory = memory
        self._quads = memory.quads
        self._walker = walker
        self._caches = caches
        self._vmids = 0xFFFF if 2 in features.stages else 0
        """VMID is ignored without stage 2 (4.4.1)."""
        self._known = {opcode: work for opcode, (needs, work) in COMMANDS.items() if not needs or needs & features.stages}
        self._pending: list[tuple[Work, int, int]] = []
        self.base = 0
        """SMMU_CMDQ_BASE."""
        self.prod = 0
        """SMMU_CMDQ_PROD."""
        self.cons = 0
        """SMMU_CMDQ_CONS, with the error code."""

    def consume(self) -> bool:
        """Go through what has been queued.  False where a command stops the queue: the reason is in CONS (4.1.1)."""
        log2size = min(bits.QUEUE_LOG2SIZE.of(self.base), bits.QUEUE_BITS)
        wrap = (2 << log2size) - 1
        start = (self.base & bits.QUEUE_ADDRESS & -max(32, bits.COMMAND_SIZE << log2size)) - self._memory.base
        at, prod = self.cons & wrap, self.prod & wrap
        known, quads, pending = self._known, self._quads, self._pending
        error = bits.CERROR_NONE
        end = self._memory.size - bits.COMMAND_SIZE
        while at != prod:
            entry = start + bits.COMMAND_SIZE * (at & wrap >> 1)
            if not 0 <= entry <= end:
                error = bits.CERROR_ABT
                break
            first, second = quads[entry >> 3], quads[(entry >> 3) + 1]
            opcode = first & 0xFF
            if opcode == bits.SYNC and bits.SYNC_CS.of(first) != 0b11:
                for work, earlier, address in pending:
                    work(self, earlier, address)
                pending.clear()
            else:
                known_work = known.get(opcode)
                if known_work is None or (opcode in CHECKED and not CHECKED[opcode](first, second)):
                    error = bits.CERROR_ILL
                    break
                pending.append((known_work, first, second))
            at = at + 1 & wrap
        self.cons = at | bits.CMDQ_ERR.put(error)
        return error == bits.CERROR_NONE

    # ---- configuration (4.3) -----------------------------------------------------------------------------------------

    def ste(self, first: int, second: int) -> None:
        """CMD_CFGI_STE: an entry and the context descriptors found through it; without Leaf, the first level's descriptor too."""
        stream = bits.COMMAND_SID.of(first)
        self._caches.streams.pop(stream, None)
        self._caches.contexts.pop(stream, None)
        if not bits.CFGI_LEAF.of(second):
            self._caches.first_level.clear()

    def ste_range(self, first: int, second: int) -> None:
        """CMD_CFGI_STE_RANGE: 2^(Range+1) entries; 31, CMD_CFGI_ALL, is all."""
        size = bits.CFGI_RANGE.of(second) + 1
        start = bits.COMMAND_SID.of(first) >> size << size
        for kept in (self._caches.streams, self._caches.contexts):
            for stream in [stream for stream in kept if start <= stream < start + (1 << size)]:
                del kept[stream]
        self._caches.first_level.clear()

    def context(self, first: int, second: int) -> None:
        """CMD_CFGI_CD and CMD_CFGI_CD_ALL: a stream's context descriptors, of which there is one."""
        self._caches.contexts.pop(bits.COMMAND_SID.of(first), None)

    # ---- translations (4.4) ------------------------------------------------------------------------------------------

    def _vmid(self, first: int) -> int:
        return bits.TLBI_VMID.of(first) & self._vmids

    def everything(self, first: int, second: int) -> None:
        """CMD_TLBI_NSNH_ALL."""
        for tlb in (*self._walker.leaves.values(), *self._walker.tables.values()):
            tlb.clear()

    def all_first(self, first: int, second: int) -> None:
        """CMD_TLBI_NH_ALL: stage 1 of a VMID."""
        vmid = self._vmid(first)
        self._walker.forget(_first_stage_of(vmid))

    def asid(self, first: int, second: int) -> None:
        """CMD_TLBI_NH_ASID: what is not global of an ASID."""
        self._walker.forget((self._vmid(first), bits.TLBI_ASID.of(first)))

    def address(self, first: int, second: int) -> None:
        """CMD_TLBI_NH_VA: addresses of an ASID, and what is global there."""
        vmid = self._vmid(first)
        start, last, leaf, level = _range(first, second)
        for name in (bits.TLBI_ASID.of(first), GLOBAL):
            self._walker.forget((vmid, name), start, last, leaf=leaf, level=level)

    def address_of_all(self, first: int, second: int) -> None:
        """CMD_TLBI_NH_VAA: addresses of every ASID."""
        vmid = self._vmid(first)
        start, last, leaf, level = _range(first, second)
        self._walker.forget(_first_stage_of(vmid), start, last, leaf=leaf, level=level)

    def machine(self, first: int, second: int) -> None:
        """CMD_TLBI_S12_VMALL: both stages of a VMID."""
        vmid = self._vmid(first)
        self._walker.forget(_machine(vmid))

    def intermediate(self, first: int, second: int) -> None:
        """CMD_TLBI_S2_IPA: intermediate addresses at stage 2; what both stages made together stays."""
        start, last, leaf, level = _range(first, second)
        self._walker.forget((self._vmid(first), STAGE_2), start, last, leaf=leaf, level=level)

    def nothing(self, first: int, second: int) -> None:
        """A prefetch, which this model does not make use of."""


def _machine(vmid: int) -> Callable[[Any], bool]:
    return lambda tag: bool(tag[0] == vmid)


def _first_stage_of(vmid: int) -> Callable[[Any], bool]:
    return lambda tag: tag[0] == vmid and tag[1] != STAGE_2


_FIRST, _SECOND = frozenset({1}), frozenset({2})
_ANY: frozenset[int] = frozenset()

COMMANDS: dict[int, tuple[frozenset[int], Work]] = {
    bits.PREFETCH_CONFIG: (_ANY, CommandQueue.nothing),
    bits.PREFETCH_ADDR: (_ANY, CommandQueue.nothing),
    bits.CFGI_STE: (_ANY, CommandQueue.ste),
    bits.CFGI_STE_RANGE: (_ANY, CommandQueue.ste_range),
    bits.CFGI_CD: (_FIRST, CommandQueue.context),
    bits.CFGI_CD_ALL: (_FIRST, CommandQueue.context),
    bits.TLBI_NH_ALL: (_FIRST, CommandQueue.all_first),
    bits.TLBI_NH_ASID: (_FIRST, CommandQueue.asid),
    bits.TLBI_NH_VA: (_FIRST, CommandQueue.address),
    bits.TLBI_NH_VAA: (_FIRST, CommandQueue.address_of_all),
    bits.TLBI_S12_VMALL: (_SECOND, CommandQueue.machine),
    bits.TLBI_S2_IPA: (_SECOND, CommandQueue.intermediate),
    bits.TLBI_NSNH_ALL: (_ANY, CommandQueue.everything),
}
"""By opcode: the stages one of which is needed, and what is done.  All else is CERROR_ILL here: EL2 (IDR0.HYP 0) and EL3
(non-secure queue), ATC_INV (IDR0.ATS 0), PRI_RESP (IDR0.PRI 0), RESUME and STALL_TERM (STALL_MODEL 0b01)."""


def _is_non_secure(first: int, second: int) -> bool:
    """SSec has to be clear in the non-secure queue (4.1.6)."""
    return not bits.COMMAND_SSEC.of(first)


def _range_can_be(first: int, second: int) -> bool:
    """Whether a range's fields are not reserved (4.4.1.1): some of TTL, NUM and SCALE with a granule; no TTL 1 with 16 KiB."""
    granule = bits.TLBI_TG.of(second)
    if not granule:
        return True
    level = bits.TLBI_TTL.of(second)
    if granule == 0b10 and level == 1:
        return False
    return bool(level or bits.TLBI_NUM.of(first) or bits.TLBI_SCALE.of(first))


_STREAM_COMMANDS = (
    bits.PREFETCH_CONFIG, bits.PREFETCH_ADDR, bits.CFGI_STE, bits.CFGI_STE_RANGE, bits.CFGI_CD, bits.CFGI_CD_ALL,
)  # fmt: skip
CHECKED: dict[int, Callable[[int, int], bool]] = {
    **dict.fromkeys(_STREAM_COMMANDS, _is_non_secure),
    **dict.fromkeys((bits.TLBI_NH_VA, bits.TLBI_NH_VAA, bits.TLBI_S2_IPA), _range_can_be),
}
"""By opcode: whether the fields of a command can be; those that cannot are CERROR_ILL."""


def _range(first: int, second: int) -> tuple[int, int, bool, int]:
    """First and last byte, Leaf, and the level that TTL names (0: any) (4.4.1.1)."""
    leaf = bool(bits.TLBI_LEAF.of(second))
    start = second & bits.TLBI_ADDRESS
    granule = bits.TLBI_TG.of(second)
    if not granule:
        return start, start + 0xFFF, leaf, 0
    shift = 10 + 2 * granule
    start = start >> shift << shift
    size = bits.TLBI_NUM.of(first) + 1 << bits.TLBI_SCALE.of(first) + shift
    return start, start + size - 1, leaf, bits.TLBI_TTL.of(second)
