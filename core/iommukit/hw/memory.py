"""Physical memory: one mapping, committed page by page as it is touched, seen as bytes and as 64-bit words."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import InputError
from iommukit.hw.pages import PageAllocator

PAGE = 0x1000
HUGE_PAGE = 2 << 20
DEFAULT_SIZE = 64 << 30
_NORESERVE = 0x4000
"""``MAP_NORESERVE`` on Linux; the standard library has no name for it before 3.13."""

_LITTLE = struct.Struct("<Q")
_BIG = struct.Struct(">Q")

Words = NDArray[np.uint64]


class TableReader(Protocol):
    """What a walk of tables reads from: a machine's memory, or a dump of it.  Addresses are physical, in bytes."""

    def word(self, address: int) -> int:
        """The little-endian 64-bit word at an aligned address.  Raises ``InputError`` outside the memory."""

    def big_word(self, address: int) -> int:
        """The big-endian 64-bit word at an aligned address.  Raises ``InputError`` outside the memory."""

    def table(self, address: int, count: int) -> Words:
        """``count`` little-endian words from an aligned address.  Raises ``InputError`` outside the memory."""

    def big_table(self, address: int, count: int) -> Words:
        """``count`` big-endian words, as native numbers: a copy.  Raises ``InputError`` outside the memory."""


class PhysicalMemory:
    """``size`` bytes of memory from the physical address ``base``.

    ``bytes`` and ``words`` are numpy views of all of it, indexed from ``base`` (``words`` in units of 8 bytes, little-endian).
    ``pages`` hands out the pages that an operating system takes for its tables: the upper half.  With ``file``, a descriptor
    of a shared file, the memory is that file's, as another process maps it.
    """

    def __init__(self, size: int = DEFAULT_SIZE, base: int = 0, *, file: int | None = None) -> None:
        self.base = base
        self.size = size
        self._last = size - 8
        if file is None:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        else:
            self._map = mmap.mmap(file, size, flags=mmap.MAP_SHARED)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._huge_from = self.bytes.ctypes.data % HUGE_PAGE if file is None else None
        """How far the mapping begins behind the border of a huge page; ``None`` for a file's."""
        self.words: Words = np.frombuffer(self._map, dtype="<u8")
        self.big_words: NDArray[np.uint64] = np.frombuffer(self._map, dtype=">u8")
        self.quads = memoryview(self._map).cast("Q")
        """The words again, for one at a time: a good deal faster than numpy's."""
        self.pages = PageAllocator(self, base + size // 2, base + size)

    def expect_much(self, address: int, size: int) -> None:
        """``size`` bytes from ``address`` are about to be filled: huge pages make the first touch cheaper.

        Not for all of memory: a small machine would pay 2 MiB for each of its few tables.
        """
        if self._huge_from is None:
            return
        # Huge pages are aligned in this process's addresses: all those that the bytes lie in, as far as the mapping goes.
        at = address - self.base + self._huge_from
        first = max(0, (at & -HUGE_PAGE) - self._huge_from)
        last = min(self.size, -(-(at + size) // HUGE_PAGE) * HUGE_PAGE - self._huge_from)
        with contextlib.suppress(OSError):  # the machine may have no huge pages: memory then comes page by page
            self._map.madvise(mmap.MADV_HUGEPAGE, first, last - first)

    def close(self) -> None:
        """Give the memory back at once; where somebody still has a view of it, with the last view."""
        self.bytes = np.empty(0, dtype=np.uint8)
        self.words = self.big_words = np.empty(0, dtype=np.uint64)
        with contextlib.suppress(BufferError):
            self.quads.release()
            self._map.close()

    @property
    def end(self) -> int:
        """The first address beyond the memory."""
        return self.base + self.size

    def holds(self, address: int, size: int = 1) -> bool:
        """Whether ``size`` bytes from ``address`` lie in the memory."""
        return self.base <= address and address + size <= self.end

    def _offset(self, address: int, size: int) -> int:
        if not self.base <= address <= self.end - size:
            raise InputError(f"no memory at {address:#x}: it lies from {self.base:#x} to {self.end - 1:#x}")
        return address - self.base

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes out.  Raises ``InputError`` outside the memory."""
        at = self._offset(address, size)
        return self._map[at : at + size]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in.  Raises ``InputError`` outside the memory."""
        at = self._offset(address, len(data))
        self._map[at : at + len(data)] = bytes(data)

    def word(self, address: int) -> int:
        """The little-endian word at an aligned address."""
        at = address - self.base
        if not 0 <= at <= self._last:
            self._offset(address, 8)
        return _LITTLE.unpack_from(self._map, at)[0]  # type: ignore[no-any-return]

    def set_word(self, address: int, value: int) -> None:
        """Write a little-endian word at an aligned address, at once."""
        at = address - self.base
        if not 0 <= at <= self._last:
            self._offset(address, 8)
        _LITTLE.pack_into(self._map, at, value)

    def big_word(self, address: int) -> int:
        """The big-endian word at an aligned address."""
        at = address - self.base
        if not 0 <= at <= self._last:
            self._offset(address, 8)
        return _BIG.unpack_from(self._map, at)[0]  # type: ignore[no-any-return]

    def set_big_word(self, address: int, value: int) -> None:
        """Write a big-endian word at an aligned address, at once."""
        at = address - self.base
        if not 0 <= at <= self._last:
            self._offset(address, 8)
        _BIG.pack_into(self._map, at, value)

    def accessors(self, big_endian: bool) -> tuple[Callable[[int], int], Callable[[int, int], None]]:
        """The fastest functions to read and write the word at an index (from ``base``, in units of 8 bytes), unchecked."""
        if not big_endian:
            return self.quads.__getitem__, self.quads.__setitem__
        unpack, pack, whole = _BIG.unpack_from, _BIG.pack_into, self._map
        return lambda index: unpack(whole, index << 3)[0], lambda index, value: pack(whole, index << 3, value)

    def table(self, address: int, count: int) -> Words:
        """A view of ``count`` little-endian words; writing to it writes to memory."""
        at = self._offset(address, 8 * count) >> 3
        return self.words[at : at + count]

    def big_table(self, address: int, count: int) -> Words:
        """``count`` big-endian words as native numbers: a copy."""
        at = self._offset(address, 8 * count) >> 3
        return self.big_words[at : at + count].astype(np.uint64)
