"""The same bytes before two hardwares: a vendor's model and QEMU's device, which must answer alike.

Neither table nor command is written by a driver.  ``Twins`` writes every word and register twice, has both devices do the same DMA
and compares all that can be seen: the memory afterwards, and the registers that the vendor's test names.

``DIFFERENTIAL_EXAMPLES=5000`` in the environment makes a search of that many new examples out of each test.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis import strategies as st

from iommukit.hookspecs import Emulation
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Initiator, UnitModel
from iommukit_oracle.hardware.platform import QemuPlatform
from iommukit_oracle.hardware.qemu import find

from .conftest import need

PAGE = 0x1000
SIZE = 256 << 20
"""Bytes of memory, from 0 on: on either side."""
ARENA, PAGES = 0x0C00_0000, 64
"""Where everything lies that an example writes, and how many pages that is.

Two bits of its address above 2 MiB are set: an entry with two wrong bits does not lead to the holes of a PC's first MiB.
"""
DATA = ARENA + 48 * PAGE
"""The last pages of it hold data: every word says where it is."""
NO_MEMORY = ((0xA_0000, 0x10_0000), (0xE000_0000, 1 << 32))
"""Where a PC has firmware and devices: an example that leads there is given up."""
SID = 3 << 3
"""The requester: slot 3 of bus 0."""
TOKENS = 500
"""Words in the device's buffer, no two alike: what it stores."""
LOADED = 8 * (TOKENS + 4)
"""Where in its buffer the device loads to."""


def arena(page: int) -> int:
    """The address of one of its pages."""
    return ARENA + page * PAGE


def thorough(examples: int) -> settings:
    """So many examples, always the same; or a search for new ones."""
    wanted = os.environ.get("DIFFERENTIAL_EXAMPLES")
    return settings(
        max_examples=int(wanted or examples),
        derandomize=wanted is None,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def flips(low: int = 0, high: int = 63, most: int = 3) -> st.SearchStrategy[int]:
    """A word with few bits set, mostly none or one: what goes wrong in an entry that was right."""
    bit = st.integers(low, high).map(lambda at: 1 << at)
    several = st.lists(bit, min_size=2, max_size=most).map(lambda bits: int(np.bitwise_or.reduce(np.array(bits, np.uint64))))
    return st.one_of(st.just(0), bit, bit, several)


class Twins:
    """An emulated machine and a model in the same state.

    ``base`` is where the registers lie, ``marker`` a register (by offset) that keeps an address and is 0 after a reset.
    """

    def __init__(self, machine: Emulation, base: int, marker: int) -> None:
        need(machine.binary)
        self.platform = QemuPlatform(machine)
        self.base = base
        self._marker = marker
        self.qemu = self.platform.bus
        self.memory = PhysicalMemory(SIZE)
        self.unit: Any = None
        self._device: Initiator = self.platform.engine("nic")
        self._tokens = struct.pack(f"<{TOKENS}Q", *(0x5EED_0000_0000_0000 + number for number in range(TOKENS)))
        self._device.poke(0, self._tokens)
        self._next = 0
        self._loaded = bytes(8)
        self.translated = False
        """Whether the model let the last request through, to memory or to where there is none."""

    def close(self) -> None:
        """End QEMU, give the memory back."""
        self.platform.close()
        self.memory.close()

    def reset(self, model: Any) -> None:
        """Both as after a reset; ``model`` is the new model, its registers by offset.  Memory is empty but for the data."""
        self.qemu.write(self.base + self._marker, 8, PAGE)
        self.platform.qemu.monitor.ask("system_reset")
        while self.qemu.read(self.base + self._marker, 8):
            pass
        self.platform._initiators.clear()  # its base address registers are gone
        self._device = self.platform.engine("nic")
        self.unit = model
        blank = np.zeros(PAGES * PAGE // 8, np.uint64)
        first = (DATA - ARENA) // 8
        blank[first:] = np.arange(DATA, ARENA + PAGES * PAGE, 8, dtype=np.uint64) | np.uint64(0x1A7A << 48)
        for memory in (self.memory, self.qemu.memory):
            memory.words[ARENA // 8 : ARENA // 8 + len(blank)] = blank

    # ---- what is written

    def put(self, address: int, *words: int) -> None:
        """Write words to memory."""
        data = struct.pack(f"<{len(words)}Q", *words)
        self.memory.write(address, data)
        self.qemu.memory.write(address, data)

    def flip(self, address: int, bits: int) -> None:
        """Change some bits of a word."""
        self.put(address, self.memory.word(address) ^ bits)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        self.unit.write(offset, size, value)
        self.qemu.write(self.base + offset, size, value)

    # ---- what is compared

    def registers(self, wanted: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
        """What registers hold: each by name as offset, size and the bits that are compared.  Both must hold the same."""
        letters = {4: "l", 8: "q"}
        commands = [f"read{letters[size]} {self.base + offset:#x}" for offset, size, _ in wanted.values()]
        answers = self.platform.qemu.qtest.batch(commands)
        there = {name: int(answer, 16) & mask for (name, (_, _, mask)), answer in zip(wanted.items(), answers, strict=True)}
        here = {name: self.unit.read(offset, size) & mask for name, (offset, size, mask) in wanted.items()}
        wrong = [
            f"{name} is {here[name]:#x} in the model, {there[name]:#x} in QEMU" for name in wanted if here[name] != there[name]
        ]
        assert not wrong, "; ".join(wrong)
        return here

    def same_memory(self, *others: int) -> None:
        """The memory of both must be the same, in the arena and at other addresses."""
        first, last = ARENA // 8, ARENA // 8 + PAGES * PAGE // 8
        here, there = self.memory.words[first:last], self.qemu.memory.words[first:last]
        if not np.array_equal(here, there):
            at = int(np.flatnonzero(here != there)[0])
            raise AssertionError(f"at {ARENA + 8 * at:#x}: model {here[at]:#x}, QEMU {there[at]:#x}")
        for address in others:
            here_word, there_word = self.memory.word(address), self.qemu.memory.word(address)
            assert here_word == there_word, f"at {address:#x}: model {here_word:#x}, QEMU {there_word:#x}"

    def store(self, iova: int, *, many: bool = False) -> int | None:
        """A store of a word that was never stored before.  It is undone once it has been compared; answers where it went."""
        at = 8 * self._next
        self._next = (self._next + 1) % TOKENS
        return self._store(iova, at, self._tokens[at : at + 8], many)

    def _store(self, iova: int, at: int, token: bytes, many: bool) -> int | None:
        reached = self._reach(iova, True, many)
        old = None
        if reached is not None:
            old = self.memory.read(reached, 8)
            self.memory.write(reached, token)
        self._device.store(iova, 8, at)
        self.same_memory(*([] if reached is None else [reached & -8]))
        if reached is not None and old is not None:
            self.memory.write(reached, old)
            self.qemu.memory.write(reached, old)
        return reached

    def load(self, iova: int, *, many: bool = False) -> int | None:
        """A load; answers where it came from."""
        reached = self._reach(iova, False, many)
        self._loaded = bytes(8) if reached is None else self.memory.read(reached, 8)
        self._device.load(iova, 8, LOADED)
        return reached

    def view(self, window: int, *, many: bool = False) -> int | None:
        """Store what was loaded through a window, which is compared like any store."""
        return self._store(window, LOADED, self._loaded, many)

    def stores(self, iova: int) -> tuple[bool, bool]:
        """Whether a store reaches the arena: in the model, in QEMU.  For what they are known to differ in."""
        reached = self._reach(iova, True, False)
        first, last = ARENA, ARENA + PAGES * PAGE
        before = self.qemu.memory.read(first, last - first)
        at = 8 * self._next
        self._next = (self._next + 1) % TOKENS
        self._device.store(iova, 8, at)
        changed = self.qemu.memory.read(first, last - first) != before
        self.qemu.memory.write(first, before)
        return reached is not None and first <= reached < last, changed

    def _reach(self, iova: int, write: bool, many: bool) -> int | None:
        """Where in memory the model lets a request go; ``None`` for none, and for an address without memory."""
        unit: UnitModel = self.unit
        reached: int | None
        if many:
            found = unit.translate_many(SID, np.full(64, iova, np.uint64), write=write)
            assert (found == found[0]).all()
            reached = None if found[0] == UNMAPPED else int(found[0])
        else:
            reached = unit.translate(SID, iova, write=write)
        self.translated = reached is not None
        if reached is not None and any(first <= reached < last for first, last in NO_MEMORY):
            reject()
        return reached if reached is not None and self.memory.holds(reached, 8) else None


Case = Callable[[Any], tuple[Any, Any]]
"""Brings about a known deviation; answers with what the model and what QEMU makes of it."""


def machine(*arguments: str) -> Emulation:
    """A PC with the device in slot 3."""
    return Emulation("x86_64", ("-M", "q35", *arguments), {"devices": [{"name": "nic", "address": "0000:00:03.0"}]})


def only_on_7_2(binary: str) -> None:
    """Skip what is said of QEMU 7.2 alone: a later one may have mended it."""
    version = find(binary).version
    if version >= (8, 0):
        pytest.skip(f"the deviations are those of QEMU 7.2; this is {version[0]}.{version[1]}")
