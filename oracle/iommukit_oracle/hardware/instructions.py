"""The PCI instructions of z/Architecture, executed by a guest that shares its memory (``agent.py``)."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from iommukit.hw.bus import Completion
from iommukit.hw.memory import PhysicalMemory
from iommukit_oracle.hardware.agent import DONE, INSTRUCTION, INTERRUPTION, MAILBOX, REGISTERS, REQUEST
from iommukit_oracle.hardware.qemu import PATIENCE, Qemu

FIB, CLP, CHSC = 0x4000, 0x5000, 0x6000
"""Where operands in memory lie; each has a page."""

# Instructions on %r4 (first operand), %r5 (an address) and the pair %r6, %r7.
PCISTG = bytes.fromhex("b9d00046")
PCILG = bytes.fromhex("b9d20046")
RPCIT = bytes.fromhex("b9d30046")
MPCIFC = bytes.fromhex("e340500000d0")
CLP_R5 = bytes.fromhex("b9a02005")
CHSC_R4 = bytes.fromhex("b25f0040")

STORE_EVENT_INFORMATION = 0x000E
PCI_EVENTS = 1 << 61
"""Notification type 2 in the mask of Store Event Information."""

LOOKS = 30
"""How often an answer is looked for before the processor is left to others, among whom the guest may be."""


class Agent:
    """Has single instructions executed.  Raises ``HardwareLost`` where the guest does not answer."""

    def __init__(self, qemu: Qemu) -> None:
        self._process = qemu.process
        self._memory = qemu.memory

    def execute(self, code: bytes, registers: Sequence[int] = ()) -> tuple[int, Sequence[int], int]:
        """Execute an instruction with %r4 to %r9 as given; condition code, the registers afterwards, interruption code."""
        memory, words = self._memory, self._memory.quads
        number = words[MAILBOX + DONE >> 3] + 1
        memory.write(MAILBOX + INSTRUCTION, code.ljust(6, b"\0"))
        memory.write(MAILBOX + REGISTERS, struct.pack(">6Q", *registers, *(0,) * (6 - len(registers))))
        # The number is a token: its byte order is of no matter, but a half-written one would be a request of its own.
        words[MAILBOX + REQUEST >> 3] = number
        looks = 0
        until = 0.0
        while words[MAILBOX + DONE >> 3] != number:
            looks += 1
            if looks % LOOKS == 0:
                time.sleep(0)
                now = time.monotonic()
                until = until or now + PATIENCE
                if now > until or not self._process.running:
                    raise self._process.lost(f"does not execute {code.hex()}")
        *after, condition, interruption = struct.unpack(">8Q", memory.read(MAILBOX + REGISTERS, INTERRUPTION + 8 - REGISTERS))
        return condition, after, interruption


class AgentInstructions:
    """``iommukit.hw.bus.PciInstructions`` by the agent.  ``space`` is a number of a base address register, 15 for configuration."""

    def __init__(self, qemu: Qemu) -> None:
        self._agent = Agent(qemu)
        self._memory: PhysicalMemory = qemu.memory

    def clp(self, request: bytes) -> tuple[Completion, bytes]:
        """Call Logical Processor."""
        at = int.from_bytes(request[:2])
        length = int.from_bytes(request[at : at + 2])
        self._memory.write(CLP, request.ljust(0x1000, b"\0"))
        condition, _, interruption = self._agent.execute(CLP_R5, (0, CLP))
        return Completion(condition, interruption=interruption), self._memory.read(CLP + at, length)

    def load(self, handle: int, space: int, offset: int, size: int) -> Completion:
        """PCI Load: the register as the instruction leaves it, so what is little-endian on PCI is the other way round."""
        condition, after, interruption = self._agent.execute(PCILG, (0, 0, handle << 32 | space << 16 | size, offset))
        return Completion(condition, after[2] >> 24 & 0xFF, after[0], interruption)

    def store(self, handle: int, space: int, offset: int, value: int, size: int) -> Completion:
        """PCI Store."""
        condition, after, interruption = self._agent.execute(PCISTG, (value, 0, handle << 32 | space << 16 | size, offset))
        return Completion(condition, after[2] >> 24 & 0xFF, 0, interruption)

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Refresh PCI Translations."""
        condition, after, interruption = self._agent.execute(RPCIT, (handle << 32, 0, address, size))
        return Completion(condition, after[0] >> 24 & 0xFF, 0, interruption)

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Modify PCI Function Controls."""
        self._memory.write(FIB, block.ljust(0x100, b"\0"))
        condition, after, interruption = self._agent.execute(MPCIFC, (handle << 32 | space << 16 | operation, FIB))
        return Completion(condition, after[0] >> 24 & 0xFF, 0, interruption)

    def store_event(self) -> bytes | None:
        """CHSC Store Event Information, for notification type 2."""
        request = struct.pack(">HHIQ", 0x10, STORE_EVENT_INFORMATION, 0, PCI_EVENTS)
        self._memory.write(CHSC, request.ljust(0x1000, b"\0"))
        self._agent.execute(CHSC_R4, (CHSC,))
        response = self._memory.read(CHSC + 0x10, 0xFF0)
        length, code = struct.unpack_from(">HH", response)
        return response[:length] if code == 1 else None
