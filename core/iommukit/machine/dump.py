"""Dumps of a machine's memory: an ELF core with physical addresses, or the plain bytes of its RAM.

ELF cores come from ``dump-guest-memory``, ``virsh dump --memory-only``, ``/proc/vmcore`` and ``makedumpfile -E``: 64-bit, of either
byte order, each PT_LOAD segment with its physical address.  The file is mapped, never read as a whole.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import InputError

if TYPE_CHECKING:
    from iommukit.hw.memory import Words

MACHINES = {62: "x86_64", 183: "aarch64", 22: "s390x", 243: "riscv64"}
"""e_machine, as machine files call the architectures."""

OTHER_FORMATS = {
    b"KDUMP   ": "a kdump-compressed dump; makedumpfile -E writes ELF, as does dump-guest-memory without a format",
    b"DISKDUMP": "a diskdump; makedumpfile -E writes ELF",
    b"makedumpfile": "makedumpfile's flattened format; makedumpfile -R puts it together",
    b"EMiL": "a LiME dump",
    b"QEVM": "a migration stream of QEMU, not a dump",
    b"\x1f\x8b": "compressed by gzip",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x04\x22\x4d\x18": "compressed by lz4",
}
"""How files begin that are no ELF core."""

ELF = b"\x7fELF"
ET_CORE = 4
PT_LOAD = 1
PN_XNUM = 0xFFFF
"""e_phnum where the number of program headers is in sh_info of the first section header."""
COMPARED = 1 << 28
"""Segments that overlap are compared up to so many bytes."""
LEAST_EFFORT = 4096
"""What a comparison counts for at least (bytes)."""

_HEADER = struct.Struct("16sHHIQQQIHHHHHH")
_SECTION_INFO = struct.Struct("IIQQQQII")


@dataclass(frozen=True, slots=True)
class Segments:
    """Pieces of memory by rising physical address: where each begins and how many bytes of it the file holds from ``offset`` on."""

    start: NDArray[np.uint64]
    size: NDArray[np.uint64]
    offset: NDArray[np.uint64]


class Dump:
    """A memory dump as a ``TableReader``; all addresses are physical, in bytes.

    With ``base`` the file is RAM from that address on; without, it is an ELF core.  ``arch`` is the architecture that an ELF core
    names, as machine files call it.  Raises ``InputError``, naming the file, for anything that is not such a file.
    """

    def __init__(self, path: str | Path, base: int | None = None) -> None:
        self.source = str(path)
        self.arch: str | None = None
        try:
            if not _can_be_mapped(os.stat(path).st_mode):
                raise InputError("cannot be read as a dump: a file was expected, not a pipe or device", source=self.source)
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if not size:
                    raise InputError("the file is empty", source=self.source)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise InputError(f"cannot be read as a dump: {reason or error}", source=self.source) from error
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        if base is None:
            segments, self.arch = _read_elf(self._map, self.source)
        else:
            if base % 8 or not 0 <= base < 1 << 64:
                raise InputError(f"memory cannot begin at {base:#x}: a multiple of 8 below 2^64 was expected", source=self.source)
            segments = Segments(*(np.array([number], dtype=np.uint64) for number in (base, size, 0)))
        self.segments = segments
        self._last = (0, 0, 0)
        """The segment of the last read: its first address, the first beyond it, its offset in the file."""

    @property
    def size(self) -> int:
        """Bytes of memory in the dump."""
        return int(self.segments.size.sum())

    def _find(self, address: int) -> tuple[int, int, int]:
        start, end, offset = self._last
        if start <= address < end:
            return self._last
        where = self.segments
        if 0 <= address < 1 << 64:
            index = int(np.searchsorted(where.start, np.uint64(address), side="right")) - 1
            if index >= 0:
                start, size, offset = int(where.start[index]), int(where.size[index]), int(where.offset[index])
                if address < start + size:
                    self._last = (start, start + size, offset)
                    return self._last
        raise InputError(f"no memory at {address:#x} in the dump", source=self.source)

    def _bytes(self, address: int, size: int) -> NDArray[np.uint8]:
        start, end, offset = self._find(address)
        if address + size <= end:
            at = address - start + offset
            return self.bytes[at : at + size]
        # Table pages may lie on both sides of a border between segments.
        pieces = []
        while size > 0:
            start, end, offset = self._find(address)
            length = min(size, end - address)
            pieces.append(self.bytes[address - start + offset : address - start + offset + length])
            address, size = address + length, size - length
        return np.concatenate(pieces)

    def word(self, address: int) -> int:
        """The little-endian 64-bit word at an address.  Raises ``InputError`` where the dump has none."""
        return int.from_bytes(self._bytes(address, 8).tobytes(), "little")

    def big_word(self, address: int) -> int:
        """The big-endian 64-bit word at an address.  Raises ``InputError`` where the dump has none."""
        return int.from_bytes(self._bytes(address, 8).tobytes(), "big")

    def table(self, address: int, count: int) -> Words:
        """``count`` little-endian words: a view that cannot be written.  Raises ``InputError`` where the dump lacks one of them."""
        return self._bytes(address, 8 * count).view("<u8")

    def big_table(self, address: int, count: int) -> Words:
        """``count`` big-endian words as native numbers: a copy.  Raises ``InputError`` where the dump lacks one of them."""
        return self._bytes(address, 8 * count).view(">u8").astype(np.uint64)


def _can_be_mapped(mode: int) -> bool:
    """Whether a file of this ``st_mode`` is a dump or, as a folder, has an error of its own; opening a pipe may take for ever."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)


# ---- ELF -------------------------------------------------------------------------------------------------------------


def _read_elf(data: mmap.mmap, source: str) -> tuple[Segments, str]:
    """The segments of an ELF core, and its architecture.  System V ABI, chapter 4 and 5."""

    def bad(message: str) -> InputError:
        return InputError(message, source=source)

    for begin, what in OTHER_FORMATS.items():
        if data[: len(begin)] == begin:
            raise bad(f"is {what}")
    if data[:4] != ELF:
        raise bad("is no ELF file; --base says where plain memory begins")
    if len(data) < _HEADER.size:
        raise bad(f"the ELF header is cut: {len(data)} of {_HEADER.size} bytes")
    if data[4] != 2:
        raise bad("a 64-bit ELF core was expected; this one is not")
    if data[5] not in (1, 2):
        raise bad(f"the byte order in the ELF header is {data[5]}: 1 or 2 was expected")
    order = "<" if data[5] == 1 else ">"
    header = struct.unpack_from(order + _HEADER.format, data)
    kind, machine, headers_at, sections_at, header_size, count = header[1], header[2], header[5], header[6], header[9], header[10]
    if kind != ET_CORE:
        raise bad(f"a core (ELF type {ET_CORE}) was expected, not ELF type {kind}")
    if machine not in MACHINES:
        known = ", ".join(f"{number} ({name})" for number, name in MACHINES.items())
        raise bad(f"dumps of machine {machine} are not understood; known are {known}")
    if count == PN_XNUM:
        if sections_at + _SECTION_INFO.size > len(data):
            raise bad("the section header with the number of program headers lies beyond the end of the file")
        count = struct.unpack_from(order + _SECTION_INFO.format, data, sections_at)[7]
    layout = _program_header(order)
    if count and header_size != layout.itemsize:
        raise bad(f"program headers have {header_size} bytes: {layout.itemsize} were expected")
    if headers_at + count * layout.itemsize > len(data):
        raise bad(f"{count} program headers from {headers_at:#x} on end beyond the file's {len(data)} bytes")
    headers = np.frombuffer(data, dtype=layout, count=count, offset=headers_at)
    return _segments(headers, data, source), MACHINES[machine]


def _program_header(order: str) -> np.dtype[np.void]:
    """Elf64_Phdr."""
    words = ("offset", "vaddr", "paddr", "filesz", "memsz", "align")
    return np.dtype([("type", f"{order}u4"), ("flags", f"{order}u4"), *((name, f"{order}u8") for name in words)])


def _segments(headers: NDArray[np.void], data: mmap.mmap, source: str) -> Segments:
    """The PT_LOAD segments that hold something, sorted; what several hold is taken from the first."""
    loads = headers[(headers["type"] == PT_LOAD)]
    if not len(loads):
        raise InputError("has no PT_LOAD segment, so no memory", source=source)
    start, size, offset = (loads[name].astype(np.uint64) for name in ("paddr", "filesz", "offset"))
    for broken, message in (
        (offset + size < offset, "has an offset and a size whose sum is beyond 2^64"),
        (start + size < start, "goes on beyond the physical address 2^64"),
        (offset + size > np.uint64(len(data)), f"ends beyond the file's {len(data)} bytes: the dump is cut"),
    ):
        if broken.any():
            first = int(np.flatnonzero(broken)[0])
            place = (
                f"PT_LOAD {first} (physical {int(start[first]):#x}, offset {int(offset[first]):#x}, {int(size[first]):#x} bytes)"
            )
            raise InputError(message, source=source, place=place)
    order = np.argsort(start, kind="stable")
    order = order[size[order] > 0]
    if not len(order):
        raise InputError("no PT_LOAD segment holds any bytes", source=source)
    found = Segments(start[order], size[order], offset[order])
    ends = found.start + found.size
    reach = np.maximum.accumulate(ends)
    if not (found.start[1:] < reach[:-1]).any():
        return found
    return _without_overlaps(found, data, source)


def _without_overlaps(found: Segments, data: mmap.mmap, source: str) -> Segments:
    """Leave out what a segment repeats of those before it.

    A vmcore has the kernel's text twice, in a segment of its own and in that of the RAM around it; the bytes must be the same.
    """
    kept: list[tuple[int, int, int]] = []
    effort = 0
    rows = zip(found.start.tolist(), found.size.tolist(), found.offset.tolist(), strict=True)
    for start, size, offset in rows:
        end = start + size
        for old_start, old_size, old_offset in reversed(kept):
            # What was kept is apart and rises.
            if old_start + old_size <= start:
                break
            first, last = max(start, old_start), min(end, old_start + old_size)
            mine, other, length = first - start + offset, first - old_start + old_offset, last - first
            effort += max(length, LEAST_EFFORT)
            if effort > COMPARED:
                raise InputError("PT_LOAD segments overlap too much to be compared", source=source)
            if length > 0 and mine != other and data[mine : mine + length] != data[other : other + length]:
                raise InputError(f"two PT_LOAD segments hold different bytes from {first:#x} on", source=source)
        reach = max(start, kept[-1][0] + kept[-1][1]) if kept else start
        if end > reach:
            kept.append((reach, end - reach, offset + reach - start))
    arrays = np.array(kept, dtype=np.uint64).reshape(-1, 3)
    return Segments(*(np.ascontiguousarray(arrays[:, column]) for column in range(3)))
