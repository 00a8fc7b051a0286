"""A driver's whole use of DMA: a buffer is mapped, the device reads and writes it, and the mapping is taken back."""

from __future__ import annotations

import numpy as np

from iommukit.device import Device
from iommukit.dma.api import Direction, dma_map, dma_unmap
from iommukit.hw.memory import PAGE, PhysicalMemory
from iommukit.hw.platform import Initiator

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
    buffer = memory.pages.alloc(PAGE, room // PAGE)
    try:
        address = dma_map(device, buffer, size, way)
        try:
            initiator = platform.initiator(device)
            arrived = way is Direction.FROM_DEVICE or _read(initiator, memory, buffer, address, size)
            return arrived and (way is Direction.TO_DEVICE or _written(initiator, memory, buffer, address, size))
        finally:
            dma_unmap(device, address)
    finally:
        memory.pages.free(buffer, room)


def _ends(size: int) -> list[tuple[int, int]]:
    """Offset and length of what is moved at each end."""
    length = min(size, SPAN)
    return [(0, length), (size - length, length)] if size > length else [(0, length)]


def _pattern(offset: int, length: int) -> bytes:
    return bytes((offset * 7 + number * 13 + 1) % 255 + 1 for number in range(length))


def _read(initiator: Initiator, memory: PhysicalMemory, buffer: int, address: int, size: int) -> bool:
    for offset, length in _ends(size):
        memory.write(buffer + offset, _pattern(offset, length))
        initiator.poke(0, bytes(length))
        initiator.load(address + offset, length)
        if initiator.peek(0, length) != _pattern(offset, length):
            return False
    starts = np.arange(PAGE, size - 7, PAGE, dtype=np.uint64)
    memory.words[(starts + np.uint64(buffer - memory.base)) >> np.uint64(3)] = starts
    return bool((initiator.load_words(starts + np.uint64(address)) == starts).all())


def _written(initiator: Initiator, memory: PhysicalMemory, buffer: int, address: int, size: int) -> bool:
    for offset, length in _ends(size):
        memory.write(buffer + offset, bytes(length))
        initiator.poke(0, _pattern(offset, length))
        initiator.store(address + offset, length)
        if memory.read(buffer + offset, length) != _pattern(offset, length):
            return False
    return True
