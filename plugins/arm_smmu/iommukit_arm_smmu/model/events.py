"""The event queue (IHI 0070 7): what the hardware tells of requests that it does not let through."""

from __future__ import annotations

from dataclasses import dataclass

from iommukit.hw.memory import PhysicalMemory
from iommukit_arm_smmu import layout as bits


@dataclass(frozen=True, slots=True)
class Event:
    """Why a request was stopped, before it is known which request it was.

    ``type`` is the event's number (7.3), ``address`` what a fetch or a walk wanted (bytes), ``ipa`` the intermediate address that
    stage 2 stopped.  ``told`` is False where a context descriptor or an entry asks for silence (CD.R, STE.S2R).
    """

    type: int
    address: int = 0
    stage: int = 1
    cause: int = bits.CLASS_INPUT
    ipa: int = 0
    told: bool = True


class Stopped(Exception):
    """A request goes no further."""

    def __init__(self, event: Event) -> None:
        self.event = event
        super().__init__(f"event {event.type:#x}")


_WITHOUT_ADDRESS = frozenset({bits.C_BAD_STREAMID, bits.C_BAD_STE, bits.C_BAD_CD, bits.C_BAD_SUBSTREAMID, bits.F_STREAM_DISABLED})
_FETCHES = frozenset({bits.F_STE_FETCH, bits.F_CD_FETCH})


def record(event: Event, stream: int, address: int, *, write: bool, substream: int | None) -> tuple[int, int, int, int]:
    """The four words of an event's record (7.3)."""
    word0 = bits.EVENT_TYPE.put(event.type) | bits.EVENT_SID.put(stream)
    if substream is not None:
        word0 |= bits.EVENT_SSV.put(1) | bits.EVENT_SSID.put(substream)
    if event.type in _WITHOUT_ADDRESS:
        return word0, 0, 0, 0
    if event.type in _FETCHES:
        return word0, 0, 0, event.address & bits.EVENT_ADDRESS
    word1 = bits.EVENT_READ.put(not write) | bits.EVENT_S2.put(event.stage == 2) | bits.EVENT_CLASS.put(event.cause)
    word3 = event.address & bits.EVENT_ADDRESS if event.type == bits.F_WALK_EABT else event.ipa & bits.EVENT_IPA
    return word0, word1, address, word3


class EventQueue:
    """The queue in memory: PROD is the hardware's index, CONS the software's (3.5.1, 7.4)."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.base = 0
        """SMMU_EVENTQ_BASE."""
        self.prod = 0
        """SMMU_EVENTQ_PROD, with OVFLG."""
        self.cons = 0
        """SMMU_EVENTQ_CONS, with OVACKFLG."""

    @property
    def log2size(self) -> int:
        """Log2 of the entries."""
        return min(bits.QUEUE_LOG2SIZE.of(self.base), bits.QUEUE_BITS)

    @property
    def room(self) -> int:
        """Entries that are free."""
        size = 1 << self.log2size
        return size - (self.prod - self.cons & 2 * size - 1)

    def append(self, words: tuple[int, int, int, int]) -> bool:
        """Write a record, or note the overflow where the queue is full (7.4).  False where there is no memory to write to."""
        if self.room <= 0:
            if not (self.prod ^ self.cons) & bits.EVENTQ_OVERFLOW.mask:
                self.prod ^= bits.EVENTQ_OVERFLOW.mask
            return True
        size = 1 << self.log2size
        # The address is aligned to the queue's size (6.3.29).
        address = (self.base & bits.QUEUE_ADDRESS & -(bits.EVENT_SIZE * size)) + bits.EVENT_SIZE * (self.prod & size - 1)
        if not self._memory.holds(address, bits.EVENT_SIZE):
            return False
        at = address - self._memory.base >> 3
        quads = self._memory.quads
        for index, word in enumerate(words):
            quads[at + index] = word
        index = (self.prod & 2 * size - 1) + 1 & 2 * size - 1
        self.prod = self.prod & bits.EVENTQ_OVERFLOW.mask | index
        return True
