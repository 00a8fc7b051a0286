"""PCI configuration space, and giving a function its addresses, as firmware would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from iommukit_oracle.hardware.qtest import Qtest

COMMAND = 0x04
MEMORY_SPACE, BUS_MASTER = 1 << 1, 1 << 2
FIRST_BAR = 0x10

PORT_ADDRESS, PORT_DATA = 0xCF8, 0xCFC
PORT_ENABLE = 1 << 31


class ConfigSpace(Protocol):
    """Configuration space; ``function`` is bus, device and function as a 16-bit requester id, registers are 4 bytes."""

    def read(self, function: int, offset: int) -> int:
        """A register; all ones where no function is."""

    def write(self, function: int, offset: int, value: int) -> None:
        """Write a register."""


class Ports:
    """By the two I/O ports of x86 (PCI local bus 3.0, 3.2.2.3.2)."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest

    def read(self, function: int, offset: int) -> int:
        """A register."""
        self._qtest.write_port(PORT_ADDRESS, PORT_ENABLE | function << 8 | offset)
        return self._qtest.read_port(PORT_DATA)

    def write(self, function: int, offset: int, value: int) -> None:
        """Write a register."""
        self._qtest.write_port(PORT_ADDRESS, PORT_ENABLE | function << 8 | offset)
        self._qtest.write_port(PORT_DATA, value)


class Ecam:
    """By memory (PCI Express 7.2.2)."""

    def __init__(self, qtest: Qtest, base: int) -> None:
        self._qtest = qtest
        self._base = base

    def read(self, function: int, offset: int) -> int:
        """A register."""
        return self._qtest.read(self._base + (function << 12) + offset, 4)

    def write(self, function: int, offset: int, value: int) -> None:
        """Write a register."""
        self._qtest.write(self._base + (function << 12) + offset, 4, value)


def place(config: ConfigSpace, function: int, ids: int, bars: Mapping[int, int]) -> None:
    """Give a function its memory addresses, by number of the base address register, and let it do DMA.

    ``ids`` is what its first register must hold.  Raises ``ValueError`` for another function.
    """
    found = config.read(function, 0)
    if found != ids:
        raise ValueError(f"at {function:#06x} is {found:#010x} and not {ids:#010x}")
    for number, address in bars.items():
        config.write(function, FIRST_BAR + 4 * number, address)
    config.write(function, COMMAND, MEMORY_SPACE | BUS_MASTER)
