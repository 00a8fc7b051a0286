"""The two rings of an IOMMU in memory, as the hardware keeps them: the command buffer (2.4) and the event log (2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit_amd_vi.layout import BASE_ADDRESS, RING_ENTRY, RING_LENGTH, RING_LENGTH_MIN, RING_POINTER

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory


@dataclass(slots=True)
class Ring:
    """A ring of entries of two words; ``head`` and ``tail`` are offsets in bytes, empty where they are equal."""

    memory: PhysicalMemory
    register: int = 0
    """The base register: address and length."""
    head: int = 0
    tail: int = 0
    running: bool = False
    base: int = 0
    """The address of the first entry."""
    size: int = RING_ENTRY << RING_LENGTH_MIN
    """Its length in bytes."""

    def set_base(self, register: int) -> None:
        """Write the base register, which resets both pointers (MMIO Offset 0008h, 0010h).

        Lengths below 256 entries are reserved and count as 256.
        """
        self.register = register & (BASE_ADDRESS.mask | RING_LENGTH.mask)
        self.base = register & BASE_ADDRESS.mask
        self.size = RING_ENTRY << max(RING_LENGTH.get(register), RING_LENGTH_MIN)
        self.head = self.tail = 0

    def set_head(self, value: int) -> None:
        """Write the head pointer."""
        self.head = value & RING_POINTER.mask & self.size - 1

    def set_tail(self, value: int) -> None:
        """Write the tail pointer."""
        self.tail = value & RING_POINTER.mask & self.size - 1

    def entry(self, offset: int) -> tuple[int, int] | None:
        """The two words at an offset; ``None`` where there is no memory."""
        address = self.base + offset
        memory = self.memory
        if not memory.holds(address, RING_ENTRY):
            return None
        at = address - memory.base >> 3
        return memory.quads[at], memory.quads[at + 1]

    def after(self, offset: int) -> int:
        """The next offset."""
        return offset + RING_ENTRY & self.size - 1

    def push(self, first: int, second: int) -> bool:
        """Write an entry at the tail.  False where the ring is full or is not in memory."""
        following = self.after(self.tail)
        address = self.base + self.tail
        if following == self.head or not self.memory.holds(address, RING_ENTRY):
            return False
        self.memory.set_word(address, first)
        self.memory.set_word(address + 8, second)
        self.tail = following
        return True
