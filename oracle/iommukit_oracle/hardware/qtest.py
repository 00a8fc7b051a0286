"""QEMU's qtest protocol: one command a line, one answer a line; and the bus that a driver sees through it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from iommukit.errors import HardwareLost
from iommukit.hw.bus import PciInstructions
from iommukit.hw.clock import Clock
from iommukit.hw.memory import PhysicalMemory

BATCH = 256
"""Commands in flight at once: few enough for the answers to fit into the socket."""

_LETTER = {1: "b", 2: "w", 4: "l", 8: "q"}


class Qtest:
    """A client of the protocol.  Addresses are physical, in bytes.

    All methods raise ``HardwareLost``, as ``lost`` words it, where QEMU has died or does not answer.
    """

    def __init__(self, connection: socket.socket, lost: Callable[[str], HardwareLost]) -> None:
        self._connection = connection
        self._answers = connection.makefile("rb")
        self._lost = lost

    def _send(self, text: str) -> None:
        try:
            self._connection.sendall(text.encode())
        except OSError as error:
            raise self._lost("does not listen") from error

    def _answer(self, command: str) -> str:
        while True:
            try:
                line = self._answers.readline()
            except OSError as error:
                raise self._lost(f"does not answer {command}") from error
            if not line:
                raise self._lost(f"closed the connection at {command}")
            word, _, rest = line.decode().rstrip("\n").partition(" ")
            if word == "IRQ":
                continue
            if word != "OK":
                raise ValueError(f"qtest: {command!r} is answered {line!r}")
            return rest

    def command(self, text: str) -> str:
        """One command, and what follows ``OK`` in its answer."""
        self._send(text + "\n")
        return self._answer(text)

    def batch(self, commands: Sequence[str]) -> list[str]:
        """Many commands without waiting for each: some twenty times as fast."""
        answers = []
        for start in range(0, len(commands), BATCH):
            part = commands[start : start + BATCH]
            self._send("\n".join(part) + "\n")
            answers += [self._answer(text) for text in part]
        return answers

    def read(self, address: int, size: int) -> int:
        """A register of 1, 2, 4 or 8 bytes."""
        return int(self.command(f"read{_LETTER[size]} {address:#x}"), 16)

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register; what the write sets off in QEMU's own thread is done when it returns."""
        self.command(f"write{_LETTER[size]} {address:#x} {value:#x}")

    def read_port(self, port: int) -> int:
        """Four bytes from an I/O port of x86."""
        return int(self.command(f"inl {port:#x}"), 16)

    def write_port(self, port: int, value: int) -> None:
        """Write four bytes to an I/O port of x86."""
        self.command(f"outl {port:#x} {value:#x}")

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._connection.close()


class QemuBus:
    """The bus of an emulated machine: registers by qtest, memory through the shared mapping."""

    def __init__(self, qtest: Qtest, memory: PhysicalMemory, instructions: PciInstructions | None) -> None:
        self.memory = memory
        self.clock = Clock()
        self.instructions = instructions
        self._qtest = qtest

    def read(self, address: int, size: int) -> int:
        """Read a register of 4 or 8 bytes."""
        return self._qtest.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register of 4 or 8 bytes."""
        self._qtest.write(address, size, value)
