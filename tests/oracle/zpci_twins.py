"""PCI functions of s390 in the model and in QEMU, which are given the same tables and instructions.

What QEMU is known to do otherwise is *bent* into the model's copy of the table entries: with ``bend`` the model must do as QEMU
does, without it as the architecture has it.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from iommukit.hw.bus import Completion
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED
from iommukit.machine.model import Machine
from iommukit.policy import Era
from iommukit_oracle.hardware.platform import QemuPlatform
from iommukit_oracle.hardware.qemu import find
from iommukit_s390.emulated import emulated_machine
from iommukit_s390.functions import find_functions
from iommukit_s390.model.facility import Facility
from iommukit_s390.model.unit import FunctionModel

from .conftest import need

SIZE = 64 << 20
ROOT, WINDOW_SEGMENTS, WINDOW_PAGES, SEGMENTS, PAGES, FRAMES = 0x10_0000, 0x10_4000, 0x10_8000, 0x11_0000, 0x12_0000, 0x100_0000
"""The root; the window's tables; segment tables of 16 KiB; page tables of 2 KiB; frames, whose words say where they are."""
FRAMES_SIZE = 8 << 20
BASE = 0x1_8000_0000
"""I/O addresses of region 3; the devices' windows lie in region 2."""
SDMA, EDMA = 0x1_0000_0000, (1 << 57) - 1
REGION_THIRD = 0x804
WHOLE, PROTECT, INVALID, PAGE_INVALID, FRAME = 0x3, 0x200, 0x20, 0x400, 0x400

DEVIATIONS: dict[str, str] = {
    "handles": "QEMU gives a function the same handle each time it is enabled",
    "whole tables": "QEMU takes every region-table entry for an error that does not have TF 0 and TL 3, wherever the address lies",
    "region origin": "QEMU has segment tables begin at multiples of 16 KiB: two bits of the address count for nothing",
    "origin zero": "QEMU takes a valid entry without an address for one of another type (PEC 9), of zeros for an error (PEC 7)",
    "unaligned range": "an invalid table, or a frame, reaches its whole size beyond an unaligned start of RPCIT in QEMU",
    "unaligned page": "an unaligned start of RPCIT makes QEMU give a page its neighbour's frame",
    "beyond the limit": "QEMU walks for all of RPCIT's range, also beyond PAL, and reports errors from there",
    "end before the base": "QEMU lets RPCIT pass that ends right before PBA",
    "reach": "QEMU takes an address beyond what a region-third table holds by its lower bits",
    "silence": "QEMU has no event for requests beyond PAL and without a translation",
    "direction": "QEMU does not tell whether a request was a write",
    "blocked": "QEMU lets DMA through in the blocked state",
    "failed reregistration": "QEMU has deregistered when it refuses to register anew",
    "format": "QEMU looks at the format of List PCI Functions only, and at no other command's room for the answer",
    "list length": "QEMU ends CLP with condition code 3 where the room for a list is no multiple of an entry",
    "configuration": "QEMU reads ones beyond configuration space",
}


class ZpciTwins:
    """The pair, with two functions."""

    def __init__(self) -> None:
        need("s390x")
        self.emulation = dataclasses.replace(emulated_machine(find("s390x").version), memory_size=SIZE)
        self.platform = QemuPlatform(self.emulation)
        self.there = self.platform.bus.memory
        self.here = PhysicalMemory(SIZE)
        assert self.platform.bus.instructions is not None
        self.qemu = self.platform.bus.instructions
        self.devices = [self.platform.engine(name) for name in ("nic", "second")]
        for memory in (self.here, self.there):
            memory.words[FRAMES // 8 : (FRAMES + FRAMES_SIZE) // 8] = np.arange(FRAMES, FRAMES + FRAMES_SIZE, 8, dtype=np.uint64)
        self.bend = True
        self._mark = 0
        self.begin()

    def close(self) -> None:
        self.platform.close()
        self.here.close()

    def begin(self, *, bend: bool = True, enable: bool = True) -> None:
        """Both as after a reset, with tables in which only the windows are mapped."""
        self.bend = bend
        self.facility = Facility(self.here)
        document = Machine.model_validate(self.emulation.machine)
        self.models: list[FunctionModel] = [
            self.facility.add(function) for function in find_functions(document, factor=0, era=Era.V7_2)
        ]
        for index, handle in enumerate(self._handles()):
            if handle >> 31:
                self.set_function(handle, 1)
            if enable:
                self.set_function(self._handles()[index], 0)
                self._clp_here(5, struct.pack(">IHBBQ", self.models[index].handle, 0, 0, 1, 0), 32)
        self.events()
        self.there_handles = self._handles()
        empty = struct.pack(">Q", INVALID)
        for memory in (self.here, self.there):
            memory.write(ROOT, empty * 2048)
            memory.write(WINDOW_SEGMENTS, empty * 2048)
            memory.write(SEGMENTS, empty * 4096)
            memory.write(WINDOW_PAGES, struct.pack(">Q", PAGE_INVALID) * 256)
            memory.write(PAGES, struct.pack(">Q", PAGE_INVALID) * 256 * 8)
        self.region(2, WINDOW_SEGMENTS | 4 | WHOLE)
        for device in self.devices:
            for window in device.windows:
                self.put(WINDOW_SEGMENTS + 8 * (window.iova >> 20 & 2047), WINDOW_PAGES)
                for offset in range(0, window.size, 0x1000):
                    self.put(WINDOW_PAGES + 8 * (window.iova + offset >> 12 & 255), window.physical + offset)

    def windows(self, function: int) -> None:
        """Have a function's windows translated, in QEMU alone: the model's devices need none."""
        for window in self.devices[function].windows:
            assert self.qemu.refresh_translations(self.there_handles[function], window.iova, window.size).cc == 0

    def _handles(self) -> list[int]:
        _, answer = self.qemu.clp(struct.pack(">HHI24xHH", 32, 2, 0, 32 + 16 * 8, 0))
        length = struct.unpack_from(">H", answer)[0]
        entries = [struct.unpack_from(">8xII", answer, at) for at in range(32, length, 16)]
        return [handle for _, handle in sorted(entries)]

    def set_function(self, handle: int, operation: int) -> None:
        request = struct.pack(">HHI8xIHBBQHH", 32, 5, 0, handle, 0, operation, 1, 0, 32, 0)
        _, answer = self.qemu.clp(request)
        assert struct.unpack_from(">H", answer, 2)[0] == 0x10

    def _clp_here(self, command: int, argument: bytes, room: int) -> None:
        _, answer = self.facility.clp(struct.pack(">HHIQ", 32, command, 0, 0) + argument + struct.pack(">HH", room, 0))
        assert struct.unpack_from(">H", answer, 2)[0] == 0x10

    # ---- instructions ------------------------------------------------------------------------------------------------

    def handles(self, function: int, flip: int = 0) -> tuple[int, int]:
        """A function's handle as the model and as QEMU have it, with some bits flipped."""
        return self.models[function].handle ^ flip, self.there_handles[function] ^ flip

    def modify(self, handles: tuple[int, int], operation: int, space: int, block: bytes) -> tuple[object, object]:
        here, there = handles
        return ending(self.facility.modify_controls(here, operation, space, block)), ending(
            self.qemu.modify_controls(there, operation, space, block)
        )

    def refresh(self, handles: tuple[int, int], address: int, size: int) -> tuple[object, object]:
        here, there = handles
        return ending(self.facility.refresh_translations(here, address, size)), ending(
            self.qemu.refresh_translations(there, address, size)
        )

    def events(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """Code, function and address of the events since the last call; handles are those of the function."""
        found = []
        for side, take in enumerate((self.facility.store_event, self.qemu.store_event)):
            events = []
            while block := take():
                handle, fid = struct.unpack_from(">II", block, 64 + 4)
                assert handle in ([model.handle for model in self.models], getattr(self, "there_handles", [handle]))[side]
                events.append((struct.unpack_from(">H", block, 64 + 30)[0], fid, struct.unpack_from(">Q", block, 64 + 16)[0]))
            found.append(events)
        return found[0], found[1]

    def agree(self) -> list[tuple[int, int, int]]:
        here, there = self.events()
        assert here == there, f"events {show(here)} and {show(there)}"
        return here

    # ---- tables ------------------------------------------------------------------------------------------------------

    def put(self, address: int, word: int, bent: int | None = None) -> None:
        """A big-endian word for both; ``bent``: what QEMU makes of it."""
        self.there.set_big_word(address, word)
        self.here.set_big_word(address, bent if bent is not None and self.bend else word)

    def region(self, index: int, word: int) -> None:
        """An entry of the root."""
        bent = word & ~0x3000
        if word and not word & INVALID:
            if word & 3 != 3 or word & 0xC0:
                bent = bent & ~0xCF | 0xC4
            elif word & 0xC == 4 and not word >> 14:
                bent &= ~0xC
        self.put(ROOT + 8 * index, word, bent)

    def segment(self, table: int, index: int, word: int) -> None:
        """An entry of a segment table; a page table in memory is one of those that have entries ("origin zero")."""
        if not word & (INVALID | FRAME) and 0x800 <= word < SIZE:
            word = PAGES | word & 0x3FFF
        nowhere = word and not word & INVALID and not word >> 11
        self.put(SEGMENTS + 0x4000 * table + 8 * index, word, word | 4 if nowhere else word)

    def page(self, table: int, index: int, word: int) -> None:
        """An entry of a page table; it names no frame without an address ("origin zero")."""
        if not word & PAGE_INVALID and not word >> 12:
            word |= FRAMES
        self.put(PAGES + 0x800 * table + 8 * index, word)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def access(self, function: int, iova: int, write: bool) -> None:
        """One request of 8 bytes, compared: where it went, and the event of one that was stopped, which is then reset."""
        model, device = self.models[function], self.devices[function]
        physical = model.translate(model.facts.fid, iova, write=write) if iova & 8 else many(model, iova, write)
        if physical is not None and (physical < ROOT or not self.here.holds(physical, 8) or self._own(physical)):
            return  # the agent's memory, no memory, or what the devices themselves write
        self._mark += 1
        mark = struct.pack(">Q", 0xE000_0000_0000_0000 | self._mark)
        device.poke(0, mark)
        if write:
            device.store(iova, 8, 0)
            places = (np.flatnonzero(self.there.big_words == struct.unpack(">Q", mark)[0]) * 8).tolist()
            expected = [] if physical is None else [physical]
            outside = [place for place in places if not self._own(place)]
            for place in outside:
                self.there.write(place, self.here.read(place, 8))
            assert outside == expected, f"a write to {iova:#x} goes to {show(expected)}, in QEMU to {show(outside)}"
        else:
            device.load(iova, 8, 0)
            wanted = mark if physical is None else self.here.read(physical, 8)
            there = device.peek(0, 8)
            assert wanted == there, f"a read of {iova:#x} brings {wanted.hex()}, in QEMU {there.hex()}"
        events = self.agree()
        if events:
            assert self.facility.modify_controls(model.handle, 7, 0, bytes(80)).cc == 0

    def _own(self, place: int) -> bool:
        return any(w.physical <= place < w.physical + w.size for device in self.devices for w in device.windows)


def ending(completion: Completion) -> tuple[int, int, int]:
    """How an instruction ended; with an interruption there is nothing else."""
    return (0, 0, completion.interruption) if completion.interruption else (completion.cc, int(completion.status), 0)


def many(model: FunctionModel, iova: int, write: bool) -> int | None:
    """What a request reaches that is one of many."""
    found = model.translate_many(model.facts.fid, np.array([iova], dtype=np.uint64), write=write)[0]
    return None if found == UNMAPPED else int(found)


def fib(base: int = SDMA, limit: int = EDMA, iota: int = ROOT | REGION_THIRD, *, format: int = 0, measurement: int = 0) -> bytes:
    """A function information block."""
    return struct.pack(">10Q", format << 56, 0, base, limit, iota, 0, 0, 0, measurement, 0)


def show(found: object) -> str:
    return repr([tuple(map(hex, item)) if isinstance(item, tuple) else hex(item) for item in found])  # type: ignore[attr-defined]
