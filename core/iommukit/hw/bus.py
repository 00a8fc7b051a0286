"""The bus: all that a driver may touch of the hardware, whether a model or QEMU stands behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from iommukit.hw.clock import Clock
from iommukit.hw.memory import PhysicalMemory

ABSENT = (1 << 64) - 1
"""What a read of an address returns at which nothing answers."""


class Registers(Protocol):
    """A block of memory-mapped registers."""

    def read(self, offset: int, size: int) -> int:
        """The register at a byte offset; ``size`` is 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register at a byte offset; what the write sets off is done when it returns."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How an instruction ended: condition code, status byte, result (a register), program interruption code (0: none)."""

    cc: int
    status: int = 0
    result: int = 0
    interruption: int = 0


class PciInstructions(Protocol):
    """The PCI instructions of z/Architecture.  ``handle`` is a function handle; addresses are physical, in bytes."""

    def clp(self, request: bytes) -> tuple[Completion, bytes]:
        """Call Logical Processor (CLP).

        ``request`` is the request block and, right behind it, the header of the response block: each begins with its own length
        (bytes, big-endian halfword).  Answers the response block, as long as its header said.
        """

    def load(self, handle: int, space: int, offset: int, size: int) -> Completion:
        """PCI Load (PCILG)."""

    def store(self, handle: int, space: int, offset: int, value: int, size: int) -> Completion:
        """PCI Store (PCISTG)."""

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Refresh PCI Translations (RPCIT): ``size`` bytes of I/O addresses from ``address``."""

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Modify PCI Function Controls (MPCIFC): operation control, DMA address space, and the function information block (FIB)."""

    def store_event(self) -> bytes | None:
        """The next PCI event, ``None`` where none is pending.

        It is the response block of CHSC Store Event Information for notification type 2: its length (halfword), the response
        code 1 (halfword), 4 bytes of which the last is the notification type, 4 bytes of which the last is the content code
        (1: an error event, 2: an availability event), and from byte 64 on the event itself.
        """


class Bus(Protocol):
    """Physical memory, registers, and on s390 the PCI instructions."""

    memory: PhysicalMemory
    clock: Clock
    instructions: PciInstructions | None
    """``None`` except on s390."""

    def read(self, address: int, size: int) -> int:
        """Read a register of 4 or 8 bytes; ``ABSENT`` (cut to ``size``) where nothing answers."""

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register of 4 or 8 bytes; what the write sets off is done when it returns."""


class ModelBus:
    """A bus whose registers belong to models."""

    def __init__(self, memory: PhysicalMemory | None = None) -> None:
        self.memory = memory or PhysicalMemory()
        self.clock = Clock()
        self.instructions: PciInstructions | None = None
        self._blocks: list[tuple[int, int, Registers]] = []

    def attach(self, base: int, size: int, registers: Registers) -> None:
        """Let a block of registers answer at the addresses ``base``..``base+size-1``."""
        self._blocks.append((base, base + size, registers))

    def read(self, address: int, size: int) -> int:
        """Read a register."""
        for base, end, registers in self._blocks:
            if base <= address < end:
                return registers.read(address - base, size)
        return ABSENT >> 64 - 8 * size

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register; a write to nobody is lost."""
        for base, end, registers in self._blocks:
            if base <= address < end:
                registers.write(address - base, size, value)
                return
