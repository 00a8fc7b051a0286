"""An SMMUv3 model and QEMU's, which are given the same words, commands and requests.

What QEMU 7.2 is known to do otherwise than the specification is *bent* into the model's copy of the words: with
``bend`` the model must answer as QEMU does, without it (``bend=False``) it answers as the specification has it.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED
from iommukit_arm_smmu.emulated import MEMORY_BASE, emulated_machine
from iommukit_arm_smmu.model.configuration import Features
from iommukit_arm_smmu.model.unit import SmmuUnit
from iommukit_oracle.hardware.platform import QemuPlatform

from .conftest import need
from .differential import only_on_7_2

REGISTERS = 0x0905_0000
SIZE = 32 << 20
STREAMS, FIRST_LEVEL, CONTEXTS, COMMANDS, EVENTS, SCRATCH, TABLES, FRAMES = (
    MEMORY_BASE + offset for offset in (0x10_0000, 0x11_0000, 0x12_0000, 0x13_0000, 0x14_0000, 0x15_0000, 0x20_0000, 0x180_0000)
)
"""Where things lie; ``TABLES`` are slots of 64 KiB.  Each word of 4 bytes of the frames says where it is."""
FRAMES_SIZE = 6 << 20
SIDS = {24: "nic", 32: "second"}
QUEUE = 5
"""Log2 of the entries of both queues, unless a test chooses otherwise."""

CR0, CR0ACK, CR2, GERROR, GERRORN = 0x20, 0x24, 0x2C, 0x60, 0x64
STRTAB_BASE, STRTAB_CFG, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x80, 0x88, 0x90, 0x98, 0x9C
EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0x1_00A8, 0x1_00AC
SMMUEN, QUEUES = 1, 0b1100

AF, AP_USER, AP_READ_ONLY, TABLE_USER, TABLE_READ_ONLY = 1 << 10, 1 << 6, 1 << 7, 1 << 61, 1 << 62
PAGE = 0xF43
"""A good page: not global, AF, outer shareable, AP[1]."""
CFGI_STE, CFGI_RANGE, CFGI_CD, CFGI_CD_ALL, SYNC = 3, 4, 5, 6, 0x46
TLBI_VA, TLBI_VAA = 0x12, 0x13
ILLEGAL_HERE = (0x18, 0x1A, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2A, 0x40, 0x41, 0x44, 0x45)
"""Commands for stage 2, EL2, EL3, ATS, PRI and stalls."""
OUTPUT = (32, 36, 40, 42, 44, 48, 52, 52)
"""Bits of addresses by IPS."""
BLOCKS = {12: (1, 2), 14: (2,), 16: (2,)}

DEVIATIONS: dict[str, str] = {
    "access flag": "QEMU 7.2 does not look at AF (DDI 0487 D8.3): a page without it is reached",
    "unprivileged": "QEMU takes every request for a privileged one, so that AP[1] and APTable[0] say nothing (IHI 0070 13.1)",
    "output size": "QEMU 7.2 does not hold output addresses against IPS and the OAS (IHI 0070 5.4, 3.4)",
    "table rights": "QEMU stops a write at the first table with APTable[1], before it sees what is below (DDI 0487 D8.4)",
    "wide block": "QEMU takes blocks at level 0 with 4 KiB, and at level 1 with 16 and 64 KiB granules (D8.3.1)",
    "upper table": "QEMU 7.2 looks for zeros above TTB1's range, where ones belong: low addresses get there (5.4)",
    "class": "QEMU 7.2 leaves CLASS 0 in events of a translation (7.3.13 ff.)",
    "fetch address": "F_CD_FETCH has the address of the descriptor where the input address belongs (7.3.10)",
    "full queue": "QEMU reports an event queue that is full as EVENTQ_ABT_ERR and has no OVFLG (7.4)",
    "unknown stream": "QEMU reports C_BAD_STREAMID whether CR2.RECINVSID asks for it or not (7.3.3)",
    "bypass size": "QEMU lets addresses beyond the OAS pass in bypass (3.4)",
    "span": "QEMU takes L1STD.Span for log2 of the entries, of which it is one more, and any of 5 bits (5.1)",
    "outside the span": "QEMU reports C_BAD_STE there, not C_BAD_STREAMID (7.3.3)",
    "split": "QEMU takes any STRTAB_BASE_CFG.SPLIT as it is; reserved ones are 6 (6.3.25)",
    "unaligned table": "QEMU clears one bit too few of the stream table's address (6.3.24)",
    "unaligned queue": "QEMU does not align the queues' addresses to their sizes (6.3.26)",
    "commands for absent features": "QEMU passes over commands of stage 2, EL2, EL3, ATS, PRI and stalls (4.1.3)",
    "reserved sync": "QEMU takes CMD_SYNC with CS 0b11 (4.7.3)",
    "reserved range": "QEMU takes a range with a granule and neither TTL, NUM nor SCALE (4.4.1.1)",
    "secure prefetch": "QEMU takes prefetches with SSec set on the non-secure queue (4.1.6)",
    "at once": "QEMU invalidates before CMD_SYNC; the model with it, which both may",
    "level hint": "QEMU invalidates by addresses where TTL names another level: more than it must",
    "whole configuration": "QEMU forgets the stream table entry with CMD_CFGI_CD, and streams by 16 bits: more than it must",
}


class SmmuTwins:
    """The pair.  ``two_level``: QEMU 7.2 never leaves a two-level stream table again, so that machine is another."""

    def __init__(self) -> None:
        need("aarch64")
        only_on_7_2("aarch64")  # what is bent here is what that QEMU does
        emulation = emulated_machine((7, 2))
        assert emulation is not None
        self.platform = QemuPlatform(dataclasses.replace(emulation, memory_size=SIZE))
        self.there = self.platform.bus.memory
        self.here = PhysicalMemory(SIZE, MEMORY_BASE)
        self.bend = True
        self._devices = {sid: self.platform.engine(name) for sid, name in SIDS.items()}
        self._tokens = [0xE000_0001 + 2 * number for number in range(400)]
        frames = np.arange(FRAMES, FRAMES + FRAMES_SIZE, 4, dtype="<u4").tobytes()
        for memory in (self.here, self.there):
            memory.write(FRAMES, frames)
        data = struct.pack(f"<{len(self._tokens)}I", *self._tokens)
        self.there.write(SCRATCH, data)
        for device in self._devices.values():
            device.load(SCRATCH, len(data), 0)
        self.here.bytes[:] = self.there.bytes
        self._next, self._slot = 0, dict.fromkeys(SIDS, 0)
        self._there = self.there.bytes.view("<u4")
        self.unit = SmmuUnit(self.here, self.features())

    def close(self) -> None:
        self.platform.close()
        self.here.close()

    def features(self) -> Features:
        return Features(frozenset({1}), frozenset({12, 14, 16}), 48 if self.bend else 44, 16, False, True)

    # ---- registers ---------------------------------------------------------------------------------------------------

    def set(self, offset: int, value: int, size: int = 4) -> None:
        self.unit.write(offset, size, value)
        self.platform.bus.write(REGISTERS + offset, size, value)

    def raw(self, *writes: tuple[int, int]) -> None:
        """QEMU's registers alone."""
        self.platform.qemu.qtest.batch([f"writel {REGISTERS + offset:#x} {value:#x}" for offset, value in writes])

    def begin(self, *, bend: bool = True, strtab: int = STREAMS, cfg: int = 8, on: bool = True) -> None:
        """Both as after a reset, with queues, and with two tables' worth of zeros."""
        self.bend = bend
        self.unit = SmmuUnit(self.here, self.features())
        for memory in (self.here, self.there):
            memory.write(STREAMS, bytes(0x5_0000))
            for slot in range(12):
                if memory.words[(TABLES - MEMORY_BASE + (slot << 16)) // 8 :][:8192].any():
                    memory.write(TABLES + (slot << 16), bytes(0x1_0000))
        self.there.write(COMMANDS, struct.pack("<6Q", CFGI_RANGE, 31, 0x30, 0, SYNC, 0))
        error = self.platform.bus.read(REGISTERS + GERROR, 4)
        self.raw(
            *((CR0, 0), (GERRORN, error), (CMDQ_PROD, 0), (CMDQ_CONS, 0), (EVENTQ_PROD, 0), (EVENTQ_CONS, 0)),
            *((CMDQ_BASE, COMMANDS | QUEUE), (CMDQ_BASE + 4, 0), (CR0, 0b1000), (CMDQ_PROD, 3), (CR0, 0)),
            *((CMDQ_PROD, 0), (CMDQ_CONS, 0)),
        )
        self.prod = 0
        self.set(CR2, 0b10)
        self.set(STRTAB_BASE, strtab, 8)
        self.set(STRTAB_CFG, cfg)
        self.set(CMDQ_BASE, COMMANDS | QUEUE, 8)
        self.set(EVENTQ_BASE, EVENTS | QUEUE, 8)
        self.set(CR0, QUEUES)
        if on:
            self.set(CR0, QUEUES | SMMUEN)

    def registers(self) -> dict[str, tuple[int, int]]:
        """What can be compared at any time: of the model, and of QEMU."""
        offsets = (CR0ACK, GERROR, GERRORN, CMDQ_PROD, CMDQ_CONS, EVENTQ_PROD, EVENTQ_CONS)
        answers = self.platform.qemu.qtest.batch([f"readl {REGISTERS + offset:#x}" for offset in offsets])

        wrap = (2 << min(self.unit.commands.base & 0x1F, 19)) - 1

        def seen(ack: int, error: int, known: int, prod: int, cons: int, *events: int) -> tuple[int, ...]:
            active = (error ^ known) & 0b101
            return ack & 0xD, active, prod & 0xFFFFF, cons & (wrap | 0x7F00_0000 if active & 1 else wrap), *events

        names = ("CR0ACK", "active errors", "CMDQ_PROD", "CMDQ_CONS", "EVENTQ_PROD", "EVENTQ_CONS")
        here = seen(*(self.unit.read(offset, 4) for offset in offsets))
        there = seen(*(int(answer, 16) for answer in answers))
        return dict(zip(names, zip(here, there, strict=True), strict=True))

    def agree(self) -> None:
        wrong = {name: (hex(here), hex(there)) for name, (here, there) in self.registers().items() if here != there}
        assert not wrong, f"model and QEMU: {wrong}"

    # ---- memory ------------------------------------------------------------------------------------------------------

    def words(self, address: int, words: list[int], bent: list[int] | None = None) -> None:
        """Words for both; ``bent``: what QEMU makes of them."""
        self.there.write(address, struct.pack(f"<{len(words)}Q", *words))
        mine = words if bent is None or not self.bend else bent
        self.here.write(address, struct.pack(f"<{len(mine)}Q", *mine))

    def ste(self, sid: int, words: list[int], table: int = STREAMS) -> None:
        self.words(table + 64 * sid, words, [words[0] & ~(0xF << 48), *words[1:]])

    def cd(self, words: list[int], at: int = CONTEXTS) -> None:
        self.words(at, words, bent_context(words))

    def first_level(self, index: int, word: int, split: int) -> None:
        span = word & 0x1F
        wide = min(span, split) + 1 if span else 0
        self.words(FIRST_LEVEL + 8 * index, [word], [word & ~0x1F | wide])

    def descriptor(self, address: int, word: int, level: int) -> int:
        """A table's entry; answers the word as it was written."""
        word = past_devices(word)
        is_table = level < 3 and word & 3 == 3
        self.words(address, [word], [word & ~TABLE_USER if is_table else word | AF | AP_USER])
        return word

    # ---- commands ----------------------------------------------------------------------------------------------------

    def command(self, *commands: tuple[int, int], sync: bool = True) -> None:
        for first, second in (*commands, *([(SYNC, 0)] if sync else [])):
            self.words(COMMANDS + 16 * (self.prod & (1 << QUEUE) - 1), [first, second], list(bent_command(first, second)))
            self.prod = self.prod + 1 & (2 << QUEUE) - 1
        self.set(CMDQ_PROD, self.prod)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def probe(self, sid: int, iova: int, write: bool) -> tuple[object, object]:
        """One request of 4 bytes: what came of it in the model and in QEMU, with the events."""
        if self.bend:  # QEMU keeps no tables
            for tlb in self.unit.walker.tables.values():
                tlb.clear()
        physical = self._translate(sid, iova, write)
        reached = physical is not None and self.here.holds(physical, 4)
        found: int | None
        if write:
            expected = physical if reached else None
            found = self._store(sid, iova)
        else:
            expected = int.from_bytes(self.here.read(physical, 4), "little") or None if reached and physical else None
            found = self._load(sid, iova)
        here = [bent_event(*event) if self.bend else event for event in self._events(self.here, self.unit.events.prod)]
        there = self._events(self.there, self.platform.bus.read(REGISTERS + EVENTQ_PROD, 4))
        return (expected, here), (found, there)

    def _translate(self, sid: int, iova: int, write: bool) -> int | None:
        """What the model answers: half of the addresses are asked for alone, half as one of many."""
        if not iova & 8:
            return self.unit.translate(sid, iova, write=write)
        found = int(self.unit.translate_many(sid, np.array([iova], dtype=np.uint64), write=write)[0])
        return None if found == int(UNMAPPED) else found

    def _events(self, memory: PhysicalMemory, prod: int) -> list[tuple[int, ...]]:
        cons, mask = self.unit.events.cons & 0xFFFFF, (1 << QUEUE) - 1
        found = []
        while cons != prod & 0xFFFFF:
            found.append(tuple(memory.table(EVENTS + 32 * (cons & mask), 4).tolist()))
            cons = cons + 1 & 2 * mask + 1
        return found

    def drain(self) -> None:
        """The events are seen."""
        self.set(EVENTQ_CONS, self.unit.events.prod)

    def _store(self, sid: int, iova: int) -> int | None:
        at, self._next = self._next, (self._next + 1) % len(self._tokens)
        self._devices[sid].store(iova, 4, 4 * at)
        places = np.flatnonzero(self._there == self._tokens[at]) * 4 + MEMORY_BASE
        hits = [int(place) for place in places if not SCRATCH <= place < SCRATCH + 0x1000]
        for place in hits:
            self.there.write(place, self.here.read(place, 4))
        assert len(hits) < 2
        return hits[0] if hits else None

    def _load(self, sid: int, iova: int) -> int | None:
        slot = self._slot[sid]
        self._slot[sid] = (slot + 1) % 400
        at = 2000 + 4 * slot
        device = self._devices[sid]
        self.raw((CR0, QUEUES))
        self.there.write(SCRATCH + 0x1000, bytes(4))
        device.load(SCRATCH + 0x1000, 4, at)
        self.raw((CR0, QUEUES | SMMUEN))
        device.load(iova, 4, at)
        self.raw((CR0, QUEUES))
        device.store(SCRATCH + 0x1000, 4, at)
        self.raw((CR0, QUEUES | SMMUEN))
        return int.from_bytes(self.there.read(SCRATCH + 0x1000, 4), "little") or None


def past_devices(word: int) -> int:
    """A word whose address (bits 47 to 12) does not lead to devices: those below memory, and PCI's window of 512 GiB."""
    if not word >> 30 & 0x3FFFF:
        word |= 1 << 30
    return word | 1 << 40 if word >> 39 & 0x1FF == 1 else word


# ---- as QEMU reads it ------------------------------------------------------------------------------------------------


def bent_context(words: list[int]) -> list[int]:
    """A context descriptor: sizes are not checked, except TTB's, of which bit 51 is not seen."""
    word0, *tables = words[:3]
    ips = word0 >> 32 & 7
    bent = [table & ~(1 << 51) for table in tables]
    used = [table & (1 << 52) - 1 for half, table in enumerate(bent) if not word0 >> 14 + 16 * half & 1]
    word0 &= ~(7 << 32)
    if not any(table >> min(44, OUTPUT[ips]) for table in used):
        word0 |= 5 << 32
    return [word0, *bent, *words[3:]]


def bent_command(first: int, second: int) -> tuple[int, int]:
    """A command: what QEMU passes over is a prefetch, and what it does more of is what it does."""
    opcode = first & 0xFF
    if opcode in ILLEGAL_HERE or opcode in (1, 2):
        return 1, 0
    if opcode == SYNC:
        return SYNC, 0
    if opcode in (CFGI_CD, CFGI_CD_ALL):
        opcode = CFGI_STE
    if opcode == CFGI_STE:
        return opcode | first & 0xFFFF << 32 | first & 1 << 10, second
    if opcode in (TLBI_VA, TLBI_VAA):
        if not first >> 12 & 0x1F and not first >> 20 & 0x1F and second >> 10 & 3 == 1:
            second &= ~(3 << 10)
        if first >> 12 & 0x1F or first >> 20 & 0x1F:
            second &= ~(3 << 8)
    return first, second


def bent_event(word0: int, word1: int, word2: int, word3: int) -> tuple[int, int, int, int]:
    """An event's record."""
    type = word0 & 0xFF
    if type == 9:
        return word0, word1, word3, 0
    if type != 0xB:
        word1 &= ~(3 << 40)
    return word0, word1, word2, word3
