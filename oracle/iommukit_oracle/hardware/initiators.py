"""PCI devices of QEMU that do DMA when told: ``edu`` for single accesses, ``lsi53c895a`` for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses, Window, WindowClosed
from iommukit_oracle.hardware.qtest import Qtest


@dataclass(frozen=True, slots=True)
class PciModel:
    """A device of QEMU: its name with properties, its first register, its base address registers: number to bytes."""

    option: str
    ids: int
    bars: dict[int, int]


EDU = PciModel("edu,dma_mask=0xffffffffffffffff", 0x11E8_1234, {0: 1 << 20})
LSI = PciModel("lsi53c895a", 0x0012_1000, {1: 0x400, 2: 0x2000})

POISON = (b"\xa5", b"\x5a")


class EduInitiator:
    """``edu``, the educational device (QEMU's docs/specs/edu.txt): one transfer at a time between memory and its buffer.

    The transfer is a timer of 100 ms, which takes half a millisecond where virtual time jumps.  The buffer has 4096 bytes; the
    last is left alone, since QEMU 7.2 aborts where a transfer reaches it.
    """

    WINDOW = 0x1000
    SIZE = 0xFFF
    _SOURCE, _TARGET, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
    _START, _TO_MEMORY = 1, 2
    _BUFFER = 0x40000
    _WORDS = 256
    """Words that ``load_words`` collects in the buffer before it looks at them."""

    def __init__(self, qtest: Qtest, memory: PhysicalMemory, bars: dict[int, int], window: Window) -> None:
        self.windows: Sequence[Window] = (window,)
        self.reach = 1 << 64
        self._qtest = qtest
        self._memory = memory
        self._registers = bars[0]
        self._window = window

    def _transfer(self, source: int, target: int, size: int, direction: int) -> None:
        base = self._registers
        settings = (
            (self._SOURCE, source),
            (self._TARGET, target),
            (self._COUNT, size),
            (self._COMMAND, self._START | direction),
        )
        look = f"readq {base + self._COMMAND:#x}"
        busy = self._qtest.batch([*(f"writeq {base + offset:#x} {value:#x}" for offset, value in settings), look])[-1]
        while int(busy, 16) & self._START:
            busy = self._qtest.command(look)

    def load(self, iova: int, size: int, at: int = 0) -> None:
        """Read memory into the buffer."""
        self._check(size, at)
        self._transfer(iova, self._BUFFER + at, size, 0)

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Write the buffer to memory."""
        self._check(size, at)
        self._transfer(self._BUFFER + at, iova, size, self._TO_MEMORY)

    def _check(self, size: int, at: int) -> None:
        if not 0 <= at <= self.SIZE - size:
            raise ValueError(f"{size} bytes at {at:#x} are not in the buffer of {self.SIZE} bytes")

    def peek(self, at: int, size: int) -> bytes:
        """The buffer's contents, by DMA to the window.  Raises ``WindowClosed`` where that does not arrive."""
        window = self._window
        for poison in POISON:
            unseen = poison * size
            self._memory.write(window.physical, unseen)
            self.store(window.iova, size, at)
            seen = self._memory.read(window.physical, size)
            if seen != unseen:
                return seen
        raise WindowClosed(f"the device does not reach its window at {window.iova:#x}")

    def poke(self, at: int, data: bytes) -> None:
        """Fill the buffer, by DMA from the window; where that is stopped the buffer is as after any load that is."""
        self._memory.write(self._window.physical, data)
        self.load(self._window.iova, len(data), at)

    def load_words(self, iovas: Addresses) -> Addresses:
        """The words at many addresses: a thousand a second."""
        words = np.full(iovas.shape, UNMAPPED)
        for start in range(0, len(iovas), self._WORDS):
            part = iovas[start : start + self._WORDS]
            try:
                self.poke(0, bytes(8 * len(part)))
                for number, iova in enumerate(part.tolist()):
                    self.load(iova, 8, 8 * number)
                words[start : start + len(part)] = np.frombuffer(self.peek(0, 8 * len(part)), dtype="<u8")
            except WindowClosed:
                continue
        words[words == 0] = UNMAPPED
        return words


class LsiInitiator:
    """``lsi53c895a``, a SCSI controller whose processor copies memory by a script (LSI53C895A manual, 5.7: memory move).

    A script runs within the write to the register that starts it, so no timer is waited for.  Script and buffer lie in the
    window, and reaching them takes DMA too.  Addresses have 32 bits.
    """

    MOVES = 95
    """Instructions in a script: QEMU stops a script of a hundred, which it takes for an endless loop."""
    SCRIPTS = 32
    """Scripts that are prepared at once."""
    WINDOW = 0x20000
    _STRIDE = 0x800
    """Bytes from one script to the next."""
    _RESULTS = 0x10000
    _BUFFER = 0x1F000
    _STATUS, _START, _SCRIPT_END = 0x14, 0x2C, 0x30
    """ISTAT0, DSP: writing it starts a script, DSPS: what the script's last instruction left."""
    _RESET = 0x40
    """Software reset, in ISTAT0."""
    _MOVE, _INTERRUPT = 0xC000_0000, 0x9808_0000

    def __init__(self, qtest: Qtest, memory: PhysicalMemory, bars: dict[int, int], window: Window) -> None:
        self.windows: Sequence[Window] = (window,)
        self.reach = 1 << 32
        self._qtest = qtest
        self._memory = memory
        self._registers = bars[1]
        self._window = window
        self._ends = 0

    def _run(self, count: int) -> None:
        """Run the prepared scripts.

        A script that cannot be fetched reads as zeros, on which the processor would march for ever: it is reset.
        """
        scripts = [self._window.iova + number * self._STRIDE for number in range(count)]
        start, ended = self._registers + self._START, self._registers + self._SCRIPT_END
        answers = self._qtest.batch([*(f"writel {start:#x} {script:#x}" for script in scripts), f"readl {ended:#x}"])
        if int(answers[-1], 16) != self._ends:
            self._qtest.write(self._registers + self._STATUS, 1, self._RESET)
            self._qtest.write(self._registers + self._STATUS, 1, 0)

    def _prepare(self, number: int, moves: NDArray[np.uint32]) -> None:
        """Write a script: ``moves`` are rows of length, source and target."""
        self._ends = (self._ends + 1) & 0xFFFF
        moves[:, 0] |= self._MOVE
        end = np.array([self._INTERRUPT, self._ends], dtype="<u4")
        self._memory.write(self._window.physical + number * self._STRIDE, moves.astype("<u4").tobytes() + end.tobytes())

    def _copy(self, source: int, target: int, size: int) -> None:
        if max(source, target) + size > self.reach:
            raise ValueError(f"{max(source, target):#x} is beyond the device's 32 bits")
        self._prepare(0, np.array([[size, source, target]], dtype=np.uint32))
        self._run(1)

    def load(self, iova: int, size: int, at: int = 0) -> None:
        """Read memory into the buffer."""
        self._copy(iova, self._window.iova + self._BUFFER + at, size)

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Write the buffer to memory."""
        self._copy(self._window.iova + self._BUFFER + at, iova, size)

    def peek(self, at: int, size: int) -> bytes:
        """The buffer's contents; it lies in memory."""
        return self._memory.read(self._window.physical + self._BUFFER + at, size)

    def poke(self, at: int, data: bytes) -> None:
        """Fill the buffer."""
        self._memory.write(self._window.physical + self._BUFFER + at, data)

    def load_words(self, iovas: Addresses) -> Addresses:
        """The words at many addresses: hundreds of thousands a second.  Raises ``ValueError`` for an address beyond 32 bits."""
        if len(iovas) and int(iovas.max()) >= self.reach:
            raise ValueError(f"{int(iovas.max()):#x} is beyond the device's 32 bits")
        words = np.full(iovas.shape, UNMAPPED)
        each = self.MOVES * self.SCRIPTS
        for start in range(0, len(iovas), each):
            part = iovas[start : start + each]
            words[start : start + len(part)] = self._load(part)
        words[words == 0] = UNMAPPED
        return words

    def _load(self, iovas: Addresses) -> Addresses:
        results = self._memory.table(self._window.physical + self._RESULTS, len(iovas))
        results[:] = UNMAPPED
        moves = np.empty((len(iovas), 3), dtype=np.uint32)
        moves[:, 0] = 8
        moves[:, 1] = iovas
        moves[:, 2] = self._window.iova + self._RESULTS + 8 * np.arange(len(iovas), dtype=np.uint32)
        scripts = range(0, len(iovas), self.MOVES)
        for number, first in enumerate(scripts):
            self._prepare(number, moves[first : first + self.MOVES])
        self._run(len(scripts))
        return results.copy()
