"""The driver's side of the command buffer and of the device table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit_amd_vi.layout import (
    ALL_PAGES,
    COMMAND_DEVICE,
    COMMAND_DOMAIN,
    DTE_SIZE,
    DTE_TV,
    DTE_V,
    OPCODE,
    PAGES_GN,
    PAGES_PDE,
    PAGES_S,
    RING_ENTRY,
    RING_LENGTH,
    WAIT_STORE,
    Command,
    Register,
)

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus

PAGE = 0x1000
LENGTH = 9
"""The command buffer and the event log hold 512 entries, 8 KiB (``CMD_BUFFER_SIZE``, ``EVT_BUFFER_SIZE``)."""
RING_BYTES = RING_ENTRY << LENGTH
RING_BITS = RING_LENGTH.of(LENGTH)

EVERYTHING = 1 << 64
"""A range's size that stands for all addresses."""

COMMAND = tuple[int, int]


def invalidate_entry(device: int) -> COMMAND:
    """INVALIDATE_DEVTAB_ENTRY (``build_inv_dte``)."""
    return OPCODE.of(Command.INVALIDATE_DEVTAB_ENTRY) | COMMAND_DEVICE.of(device), 0


def invalidate_pages(domain: int, start: int, size: int, *, guest: bool = False) -> COMMAND:
    """INVALIDATE_IOMMU_PAGES, directories too (``build_inv_iommu_pages``); ``guest``: addresses of PASID 0's guest table."""
    address = inv_address(start, size) | PAGES_PDE.mask | (PAGES_GN.mask if guest else 0)
    return OPCODE.of(Command.INVALIDATE_IOMMU_PAGES) | COMMAND_DOMAIN.of(domain), address


def inv_address(start: int, size: int) -> int:
    """Address and S bit of the smallest aligned power of two that covers a range (``build_inv_address``).

    The highest bit in which the first and the last address differ becomes the zero that codes the size, and all bits below
    it one.  Where it is bit 52 or higher everything is invalidated.
    """
    last = start + size - 1
    if start >> 12 == last >> 12:
        return start & -PAGE
    highest = (start ^ last).bit_length() - 1
    if highest > 51:
        return ALL_PAGES | PAGES_S.mask
    return (start | (1 << highest) - 1) & -PAGE | PAGES_S.mask


INVALIDATE_ALL: COMMAND = (OPCODE.of(Command.INVALIDATE_IOMMU_ALL), 0)


class CommandQueue:
    """An IOMMU's command buffer, with the word in memory that COMPLETION_WAIT stores to.

    Raises ``IommuError("ENOMEM")`` without memory for them.
    """

    def __init__(self, bus: Bus, base: int) -> None:
        self._bus = bus
        self._memory = bus.memory
        self.ring = bus.memory.pages.alloc(RING_BYTES)
        self._semaphore = bus.memory.pages.alloc(PAGE)
        self._tail_register = base + Register.COMMAND_TAIL
        self._tail = 0
        self._sequence = 0
        self._unwaited = 0
        self.timeouts = 0
        """How often a completion never came, and the driver went on (``Completion-Wait loop timed out``)."""

    def send(self, commands: Iterable[COMMAND]) -> None:
        """Put commands into the buffer and wait until all are carried out (``iommu_queue_command``, ``iommu_completion_wait``)."""
        quads, start = self._memory.quads, self.ring - self._memory.base >> 3
        tail = self._tail
        for first, second in commands:
            if self._unwaited == (1 << LENGTH) - 2:
                self._complete(tail)
                tail = self._tail
            at = start + (tail >> 3)
            quads[at] = first
            quads[at + 1] = second
            tail = tail + RING_ENTRY & RING_BYTES - 1
            self._unwaited += 1
        self._complete(tail)

    def _complete(self, tail: int) -> None:
        """COMPLETION_WAIT with a store, at the end of what is in the buffer."""
        memory = self._memory
        self._sequence += 1
        at = self.ring - memory.base + tail >> 3
        memory.quads[at] = OPCODE.of(Command.COMPLETION_WAIT) | self._semaphore | WAIT_STORE.mask
        memory.quads[at + 1] = self._sequence
        self._tail = tail + RING_ENTRY & RING_BYTES - 1
        self._bus.write(self._tail_register, 4, self._tail)
        self._unwaited = 0
        if memory.quads[self._semaphore - memory.base >> 3] != self._sequence:
            self.timeouts += 1


@dataclass(slots=True)
class DeviceTable:
    """The device table of a PCI segment (2.2.2): entries of 256 bits, one for each of ``entries`` requester ids."""

    bus: Bus
    address: int
    entries: int
    _view: int = field(init=False)

    def __post_init__(self) -> None:
        self._view = self.address - self.bus.memory.base >> 3

    @property
    def size(self) -> int:
        """Bytes, whole pages."""
        return -(-self.entries * DTE_SIZE // PAGE) * PAGE

    def clear(self) -> None:
        """Let all entries block: valid, with translation and no permission (``init_device_table_dma``)."""
        words = self.bus.memory.table(self.address, self.size >> 3)
        words[:] = 0
        words[::4] = DTE_V.mask | DTE_TV.mask

    def write(self, device: int, bits: int) -> None:
        """Write an entry: the upper half first, so that the lower half with V makes all of it valid (``write_dte_…128``)."""
        if device >= self.entries:
            return
        quads, at = self.bus.memory.quads, self._view + device * 4
        for word in (2, 3, 1, 0):
            quads[at + word] = bits >> 64 * word & (1 << 64) - 1
