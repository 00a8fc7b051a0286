"""``virtio-blk-pci`` behind a zPCI function: a disk that reads memory and writes it.

The device's rings lie behind the IOMMU as well.  What it reads from memory ends up on its disk, which is a file that this process
maps: the disk is the buffer.  The layout is virtio 1.1's: 2.6 (split queues), 4.1.4.3 (common configuration), 5.2 (block device).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence

import numpy as np

from iommukit.hw.bus import PciInstructions
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses, Window
from iommukit_oracle.hardware.qemu import PATIENCE, Qemu

SECTOR = 512
DISK = 1 << 20

COMMON, CONFIGURATION = 4, 15
"""Address spaces of the function: QEMU has all of virtio in base address register 4; 15 is configuration space."""
NOTIFY = 0x3000
"""Where in space 4 a queue's number is written when there is something in it."""

DRIVER_FEATURE_SELECT, DRIVER_FEATURE, STATUS, QUEUE, QUEUE_SIZE, QUEUE_ENABLE = 0x08, 0x0C, 0x14, 0x16, 0x18, 0x1C
DESCRIPTORS, AVAILABLE, USED = 0x20, 0x28, 0x30
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40
VERSION_1_AND_ACCESS_PLATFORM = 3
"""Feature bits 32 and 33, as the upper word of features has them."""

NEXT, WRITE = 1, 2
"""Flags of a descriptor."""
READ_DISK, WRITE_DISK = 0, 1
RING = 256

LIST_PCI, RESET_ERROR = 2, 7
"""A CLP command and an operation control of MPCIFC."""
RESPONSE_OK = 0x10
LOOKS = 8
"""How often the answer to a request is looked for before the device is."""
ENTRY = 16
"""Bytes of a function in the answer to List PCI Functions."""


class VirtioBlkInitiator:
    """One function's disk.

    A fault blocks the function until its error state is reset, and leaves the virtio device in need of a reset.  The first is done
    at once, as the function's driver would do it on the error event, the second before the next request; the event is left to
    the IOMMU's driver.  Where the function is not enabled, or no tables are registered, nothing happens.  ``name`` is the
    device's in QEMU, ``disk`` its file.
    """

    WINDOW = 0x6000
    _AVAILABLE, _USED, _HEADER, _STATUS, _PAD = 0x1000, 0x2000, 0x3000, 0x3010, 0x4000
    _WORDS = 128
    """Words in a request of ``load_words``: whole sectors, and no more segments than the device takes."""
    _WORDS_AT = 0x10000
    """Where on the disk they go."""

    def __init__(self, qemu: Qemu, instructions: PciInstructions, name: str, fid: int, disk: int, window: Window) -> None:
        self.windows: Sequence[Window] = (window,)
        self.reach = 1 << 64
        self._qemu = qemu
        self._path = f"/machine/peripheral/{name}/virtio-backend"
        self._memory: PhysicalMemory = qemu.memory
        self._instructions = instructions
        self._fid = fid
        self._disk = disk
        self._window = window
        self._handle = 0
        self._up = False
        self._requests = 0

    # ---- the function ------------------------------------------------------------------------------------------------

    def _find(self) -> int:
        """The function's handle as it is now (CLP List PCI Functions); 0 where there is none."""
        room = 32 + 64 * ENTRY
        request = struct.pack(">HHI24xHH", 32, LIST_PCI, 0, room, 0)
        _, answer = self._instructions.clp(request)
        length, code = struct.unpack_from(">HH", answer)
        if code == RESPONSE_OK:
            for at in range(32, length, ENTRY):
                fid, handle = struct.unpack_from(">8xII", answer, at)
                if fid == self._fid:
                    return int(handle)
        return 0

    def _store(self, offset: int, value: int, size: int, space: int = COMMON) -> bool:
        swapped = int.from_bytes(value.to_bytes(size, "little"))
        done = self._instructions.store(self._handle, space, offset, swapped, size)
        return done.cc == 0 and not done.interruption

    def _load(self, offset: int, size: int) -> int | None:
        done = self._instructions.load(self._handle, COMMON, offset, size)
        if done.cc or done.interruption:
            return None
        return int.from_bytes(done.result.to_bytes(8)[8 - size :], "little")

    def _working(self) -> bool:
        status = self._load(STATUS, 1)
        return status is not None and status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    def _unblock(self) -> None:
        self._up = False
        self._instructions.modify_controls(self._handle, RESET_ERROR, 0, b"")

    def _ready(self) -> bool:
        """Bring the device up, if it is not; False where the function does not answer."""
        if self._up and self._working():
            return True
        self._handle = self._find()
        window, self._requests = self._window, 0
        self._memory.write(window.physical, bytes(self._HEADER))
        if not self._store(0x04, 0b110, 2, CONFIGURATION):  # memory space, bus master
            return False
        rings = ((DESCRIPTORS, 0), (AVAILABLE, self._AVAILABLE), (USED, self._USED))
        steps = (
            *((STATUS, value, 1) for value in (0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER)),
            *((DRIVER_FEATURE_SELECT, 1, 4), (DRIVER_FEATURE, VERSION_1_AND_ACCESS_PLATFORM, 4)),
            *((DRIVER_FEATURE_SELECT, 0, 4), (DRIVER_FEATURE, 0, 4)),
            (STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1),
            *((QUEUE, 0, 2), (QUEUE_SIZE, RING, 2)),
            *((register, window.iova + offset & 0xFFFF_FFFF, 4) for register, offset in rings),
            *((register + 4, window.iova + offset >> 32, 4) for register, offset in rings),
            (QUEUE_ENABLE, 1, 2),
            (STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1),
        )
        self._up = all(self._store(*step) for step in steps) and self._working()
        return self._up

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _request(self, kind: int, sector: int, segments: Sequence[tuple[int, int]]) -> bool:
        """Have the device serve one request over segments (address and bytes); False where it was stopped."""
        if not self._ready():
            return False
        self._queue(kind, sector, segments)
        if self._store(NOTIFY, 0, 2) and self._served():
            return True
        self._unblock()
        return False

    def _queue(self, kind: int, sector: int, segments: Sequence[tuple[int, int]]) -> None:
        memory, window = self._memory, self._window
        memory.write(window.physical + self._HEADER, struct.pack("<IIQB", kind, 0, sector, 0xFF))
        flags = WRITE if kind == READ_DISK else 0
        chain = [(window.iova + self._HEADER, 16, 0), *((iova, size, flags) for iova, size in segments if size)]
        chain.append((window.iova + self._STATUS, 1, WRITE))
        last = len(chain) - 1
        descriptors = b"".join(
            struct.pack("<QIHH", iova, size, flag | (NEXT if number < last else 0), number + 1 if number < last else 0)
            for number, (iova, size, flag) in enumerate(chain)
        )
        memory.write(window.physical, descriptors)
        self._requests = self._requests + 1 & 0xFFFF
        available = window.physical + self._AVAILABLE
        memory.write(available + 4 + 2 * ((self._requests - 1) % RING), struct.pack("<H", 0))
        memory.write(available + 2, struct.pack("<H", self._requests))

    def _served(self) -> bool:
        """Wait until QEMU's own thread has served the request, or has given the device up, or has found no request.

        The last is what a device does that reads zeros from its rings, since nothing of its memory is mapped.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for _ in range(LOOKS):
                if self._answered():
                    return self._memory.read(self._window.physical + self._STATUS, 1) == b"\0"
                time.sleep(0)
            if not self._working():
                return False
            # QEMU has answered one question since it was told of the request, so it knows by the second.
            if not self._busy() and not self._busy() and not self._answered():
                return False
        raise self._qemu.process.lost(f"leaves a request of function {self._fid} unserved")

    def _answered(self) -> bool:
        used = self._memory.read(self._window.physical + self._USED + 2, 2)
        return int.from_bytes(used, "little") == self._requests

    def _busy(self) -> bool:
        """Whether the device has taken a request and not answered it yet."""
        status = self._qemu.monitor.ask("x-query-virtio-queue-status", path=self._path, queue=0)
        return bool(status["inuse"])

    def _around(self, at: int, size: int) -> tuple[int, int, int]:
        """The first sector, and the bytes that are missing before and behind, of a piece of the disk."""
        before = at % SECTOR
        return at // SECTOR, before, -(at + size) % SECTOR

    def load(self, iova: int, size: int, at: int = 0) -> None:
        """Read memory to the disk; the rest of the sectors that it touches is read from the window."""
        sector, before, behind = self._around(at, size)
        pad = self._window.iova + self._PAD
        self._memory.write(self._window.physical + self._PAD, self.peek(at - before, before))
        self._memory.write(self._window.physical + self._PAD + SECTOR, self.peek(at + size, behind))
        self._request(WRITE_DISK, sector, ((pad, before), (iova, size), (pad + SECTOR, behind)))

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Write the disk to memory; the rest of the sectors goes to the window."""
        sector, before, behind = self._around(at, size)
        pad = self._window.iova + self._PAD
        self._request(READ_DISK, sector, ((pad, before), (iova, size), (pad + SECTOR, behind)))

    def peek(self, at: int, size: int) -> bytes:
        """The disk's contents."""
        return os.pread(self._disk, size, at)

    def poke(self, at: int, data: bytes) -> None:
        """Fill the disk."""
        os.pwrite(self._disk, data, at)

    def load_words(self, iovas: Addresses) -> Addresses:
        """The words at many addresses: hundreds of thousands a second while all of them are mapped."""
        words = np.full(iovas.shape, UNMAPPED)
        for start in range(0, len(iovas), self._WORDS):
            self._collect(iovas[start : start + self._WORDS].tolist(), words[start : start + self._WORDS])
        words[words == 0] = UNMAPPED
        return words

    def _collect(self, iovas: list[int], words: Addresses) -> None:
        """Read some words; where one is stopped all are, so look for it in either half."""
        size = 8 * len(iovas)
        pad = self._window.iova + self._PAD
        if self._request(WRITE_DISK, self._WORDS_AT // SECTOR, [*((iova, 8) for iova in iovas), (pad, -size % SECTOR)]):
            words[:] = np.frombuffer(self.peek(self._WORDS_AT, size), dtype="<u8")
        elif len(iovas) > 1:
            half = len(iovas) // 2
            self._collect(iovas[:half], words[:half])
            self._collect(iovas[half:], words[half:])
