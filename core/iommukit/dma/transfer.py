"""A driver's whole use of DMA: a buffer is mapped, the device reads and writes it, and the mapping is taken back."""

from __future__ import annotations

import numpy as np

from iommukit.device import Device
from iommukit.dma.api import Direction, dma_map, dma_unmap
from iommukit.errors import IommuError
from iommukit.hw.memory import PAGE, PhysicalMemory
from iommukit.hw.platform import Addresses, Initiator

SPAN = 64
"""Bytes that the device moves at the buffer's beginning and end."""


def transfer(device: Device, size: int, direction: str) -> bool:
    """Whether data arrives: at both ends of a buffer of ``size`` bytes and, read, in each page of it.

    ``direction``: ``to_device``, ``from_device`` or ``bidirectional``.  Raises the ``IommuError`` of a mapping that is refused, and
    ``ENOMEM`` for a buffer that memory has no room for.
    """
    platform = device.system.platform
    assert platform is not None
    memory = platform.bus.memory
    way = Direction[direction.upper()]
    room = -(-size // PAGE) * PAGE
    try:
        buffer = memory.pages.alloc(PAGE, room // PAGE)
    except IommuError as error:
        raise IommuError("ENOMEM", f"memory has no room for a buffer of {size:#x} bytes") from error
    try:
        starts = _fill(memory, buffer, size)
        address = dma_map(device, buffer, size, way)
        try:
            initiator = platform.initiator(device)
            if way is not Direction.FROM_DEVICE and not _reads(initiator, address, size, starts):
                return False
            if way is not Direction.TO_DEVICE:
                _write(initiator, address, size)
        finally:
            dma_unmap(device, address)
        # A driver looks at what its device has written once the mapping is gone.
        return way is Direction.TO_DEVICE or _arrived(memory, buffer, size)
    finally:
        memory.pages.free(buffer, room)


def _ends(size: int) -> list[tuple[int, int]]:
    """Offset and length of what is moved at each end; a small buffer is moved whole."""
    return [(0, SPAN), (size - SPAN, SPAN)] if size > 2 * SPAN else [(0, size)]


def _pattern(offset: int, length: int, salt: int) -> bytes:
    return bytes((offset * 7 + number * 13 + salt) % 255 + 1 for number in range(length))


def _fill(memory: PhysicalMemory, buffer: int, size: int) -> Addresses:
    """Fill both ends, and the beginning of each page between them; returns these pages' offsets, which are what is in them."""
    starts = np.arange(PAGE, max(size - SPAN - 7, 0), PAGE, dtype=np.uint64)
    memory.words[(starts + np.uint64(buffer - memory.base)) >> np.uint64(3)] = starts
    for offset, length in _ends(size):
        memory.write(buffer + offset, _pattern(offset, length, 0))
    return starts


def _reads(initiator: Initiator, address: int, size: int, starts: Addresses) -> bool:
    """Whether the device reads what is in the buffer."""
    for offset, length in _ends(size):
        initiator.poke(0, bytes(length))
        initiator.load(address + offset, length)
        if initiator.peek(0, length) != _pattern(offset, length, 0):
            return False
    return bool((initiator.load_words(starts + np.uint64(address)) == starts).all())


def _write(initiator: Initiator, address: int, size: int) -> None:
    """Let the device write both ends."""
    for offset, length in _ends(size):
        initiator.poke(0, _pattern(offset, length, 1))
        initiator.store(address + offset, length)


def _arrived(memory: PhysicalMemory, buffer: int, size: int) -> bool:
    """Whether both ends are as the device has written them."""
    return all(memory.read(buffer + offset, length) == _pattern(offset, length, 1) for offset, length in _ends(size))
