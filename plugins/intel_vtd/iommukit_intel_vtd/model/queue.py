"""The invalidation queue (VT-d specification 6.5.2, 11.4.9): software writes descriptors, the unit carries them out in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from iommukit_intel_vtd.layout import EVENT_IM, EVENT_IP, ICS_IWC, IQA_DW, IQA_QS, PAGE, WAIT_IF, WAIT_PD, WAIT_SW, Descriptor

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory

Words = tuple[int, ...]
"""A descriptor: two or four 64-bit words."""

RESERVED: Mapping[Descriptor, Words] = {
    Descriptor.CONTEXT: (0xFFFC_0000_0000_F1C0, ~0),
    Descriptor.IOTLB: (0xFFFF_FFFF_0000_F100, 0xF80),
    Descriptor.DEVICE_TLB: (0x000F_0000_FFE0_01F0, 0xFFE),
    Descriptor.INTERRUPT_ENTRY: (0xFFFF_0000_07FF_F1E0, ~0),
    Descriptor.WAIT: (0xFFFF_F100, 0x3),
    Descriptor.PASID_IOTLB: (0xFFF0_0000_0000_F1C0, 0xF80),
    Descriptor.PASID_CACHE: (0xFFF0_0000_0000_F1C0, ~0),
    Descriptor.PASID_DEVICE_TLB: (0, 0x7FE),
}
"""By type, the bits of the lower two words that must be zero."""

WIDE_ONLY = frozenset({Descriptor.PASID_IOTLB, Descriptor.PASID_CACHE, Descriptor.PASID_DEVICE_TLB})
"""Descriptors that a queue of 128-bit descriptors does not take."""

BAD_TAIL, BAD_TYPE, BAD_RESERVED, BAD_WIDTH, UNALIGNED_TAIL = 1, 3, 4, 5, 6
"""Why the queue stopped (IQERCD.IQEI)."""


class BadDescriptor(Exception):
    """A descriptor that cannot be carried out: the queue stops at it (6.5.2.11)."""

    def __init__(self, code: int) -> None:
        self.code = code


class CompletionEvent:
    """That an invalidation wait descriptor with IF is done: ICS and IECTL (11.4.9.4, 11.4.9.5)."""

    def __init__(self) -> None:
        self.status = 0
        """ICS."""
        self.control = EVENT_IM
        """IECTL as read; masked after a reset."""

    def happen(self) -> None:
        """A descriptor is done.  While an earlier one has not been taken note of, this is no further event."""
        if not self.status:
            self.status = ICS_IWC
            if self.control & EVENT_IM:
                self.control |= EVENT_IP

    def clear(self, ones: int) -> None:
        """A write of ICS: a one clears, and no interrupt stays pending."""
        if ones & ICS_IWC:
            self.status = 0
            self.control &= ~EVENT_IP

    def set_control(self, value: int) -> None:
        """A write of IECTL: unmasking lets the interrupt go."""
        self.control = value & EVENT_IM | (self.control & EVENT_IP if value & EVENT_IM else 0)


class InvalidationQueue:
    """One unit's queue.

    ``actions`` carries out descriptors by type; ``drains``: a wait may ask for page requests to be drained (ECAP.PDS);
    ``stopped`` is called when a descriptor cannot be carried out, and raises FSTS.IQE.  While ``blocked()``, that is until software
    clears IQE, nothing is fetched.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        actions: Mapping[Descriptor, Callable[[Words], None]],
        drains: bool,
        stopped: Callable[[], None],
        blocked: Callable[[], bool],
    ) -> None:
        self._memory = memory
        self._actions: dict[int, tuple[Callable[[Words], None], int, int]] = {}
        for type_, action in actions.items():
            reserved = RESERVED[type_][0] | (WAIT_PD if type_ is Descriptor.WAIT and not drains else 0)
            self._actions[int(type_)] = (action, reserved, RESERVED[type_][1])
        self._stopped = stopped
        self._blocked = blocked
        self.address = 0
        """IQA as written."""
        self.head = 0
        self.tail = 0
        """Bytes from the queue's base."""
        self.enabled = False
        self.error = 0
        """IQERCD."""
        self.completion = CompletionEvent()

    @property
    def size(self) -> int:
        """Bytes of the ring: 2**QS pages."""
        return PAGE << (self.address & IQA_QS)

    def enable(self, on: bool) -> None:
        """A change of GCMD.QIE; while the queue is off the head is 0 (11.4.9.1)."""
        if not on:
            self.head = 0
        self.enabled = on
        self.run()

    def ring(self, tail: int) -> None:
        """A write of IQT."""
        self.tail = tail & 0x7FFF0
        self.run()

    def run(self) -> None:
        """Carry out what lies between head and tail."""
        if not self.enabled or self.head == self.tail or self._blocked():
            return
        step = 32 if self.address & IQA_DW else 16
        base, size = self.address & -PAGE, self.size
        word = self._memory.word
        try:
            if self.tail >= size:
                raise BadDescriptor(BAD_TAIL)
            if self.tail % step:
                raise BadDescriptor(UNALIGNED_TAIL)
            while self.head != self.tail:
                at = base + self.head
                low, high = word(at), word(at + 8)
                kind = low & 0xF | low >> 5 & 0x70
                known = self._actions.get(kind)
                if known is None:
                    raise BadDescriptor(BAD_TYPE)
                action, reserved_low, reserved_high = known
                if low & reserved_low or high & reserved_high:
                    raise BadDescriptor(BAD_RESERVED)
                if step == 16:
                    if kind in WIDE_ONLY:
                        raise BadDescriptor(BAD_WIDTH)
                elif word(at + 16) or word(at + 24):
                    raise BadDescriptor(BAD_RESERVED)
                action((low, high))
                self.head = (self.head + step) % size
        except BadDescriptor as bad:
            self.error = bad.code
            self._stopped()

    def wait(self, descriptor: Words) -> None:
        """Invalidation wait: all before it is done, as all is done in order.  Write the status and tell, as it is asked for."""
        low, high = descriptor
        if low & WAIT_SW:
            if not self._memory.holds(high & -4, 4):
                raise BadDescriptor(BAD_RESERVED)
            self._memory.write(high & -4, (low >> 32).to_bytes(4, "little"))
        if low & WAIT_IF:
            self.completion.happen()
