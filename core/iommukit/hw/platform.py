"""Platforms: what a kernel runs on.  A platform has a bus, and devices that do DMA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.bus import Bus, ModelBus
from iommukit.hw.memory import DEFAULT_SIZE, PAGE, PhysicalMemory

if TYPE_CHECKING:
    from iommukit.device import Device, Unit
    from iommukit.hookspecs import Emulation

Addresses = NDArray[np.uint64]

UNMAPPED = np.uint64((1 << 64) - 1)
"""In an array of physical addresses: no translation."""

LOW = 1 << 20
"""The first MiB of memory is full of holes and firmware on some machines: nobody's buffers lie there."""


class UnitModel(Protocol):
    """A unit's hardware model, as ``create_unit`` returns it: what becomes of a device's request.

    ``requester`` is the hardware's name for the device.  A request that is stopped is recorded by the unit as its
    architecture does.
    """

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """The physical address that a request for one address (bytes) reaches; ``None`` where it is stopped."""

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """The same for many addresses; ``UNMAPPED`` where a request is stopped."""


@dataclass(frozen=True, slots=True)
class Window:
    """Memory that a device needs mapped in its domain before it can do any DMA at all: its own rings and the like (bytes)."""

    iova: int
    physical: int
    size: int


class WindowClosed(Exception):
    """A device does not reach its own window, so nobody can tell what is in its buffer."""


class Initiator(Protocol):
    """A device that does DMA when told: it has a buffer, loads memory into it and stores it to memory.

    A store that the IOMMU stops leaves the memory as it was.  A load that it stops brings nothing of the memory: the buffer is
    as it was, or zero.  Nobody is told, as with real devices.
    """

    windows: Sequence[Window]
    """To be mapped, for reading and writing, in any domain in which the device is to be used; addresses that no test may use."""
    reach: int
    """The first address (bytes) that is too high for the device."""

    def load(self, iova: int, size: int, at: int = 0) -> None:
        """Read ``size`` bytes (at most 2048) of memory into the buffer from offset ``at``."""

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Write ``size`` bytes (at most 2048) of the buffer from offset ``at`` to memory."""

    def peek(self, at: int, size: int) -> bytes:
        """The buffer's contents.  It may take DMA through a window to look: raises ``WindowClosed`` where that is stopped."""

    def poke(self, at: int, data: bytes) -> None:
        """Fill the buffer.  It may take DMA through a window."""

    def load_words(self, iovas: Addresses) -> Addresses:
        """The 64-bit word (little-endian) that the device reads at each address; ``UNMAPPED`` where nothing came.

        Addresses are aligned to 8 bytes.  An emulated device that is stopped may read zeros, so there a zero counts as nothing:
        fill the memory with something else.  A device that is blocked by its first fault, as on s390, is unblocked on the way.
        """


class Platform(Protocol):
    """What a kernel runs on."""

    name: str
    """``model``, or the emulator with its version."""
    emulation: Emulation | None
    """The emulator's machine; ``None`` on the model."""

    @property
    def bus(self) -> Bus:
        """All that a driver may touch."""

    def install(self, units: Sequence[Unit], ops: Any) -> bool:
        """Make the hardware of the units that a driver has discovered.  False where there is none to be had."""

    def initiator(self, device: Device) -> Initiator:
        """The device's DMA.  Raises ``NotApplicable`` for a device that cannot be told to do any."""

    def close(self) -> None:
        """Give everything back."""

    def __enter__(self) -> Self:
        """The platform itself, to be closed at the end of the block."""

    def __exit__(self, *_: object) -> None:
        """Close it."""


class ModelPlatform:
    """The plugins' own hardware models, around 64 GiB of memory or as much as is asked for."""

    name = "model"
    emulation: Emulation | None = None

    def __init__(self, size: int = DEFAULT_SIZE, base: int = 0) -> None:
        self.bus: ModelBus = ModelBus(PhysicalMemory(size, base))
        self.buffers = range(base + LOW, self.bus.memory.pages.start)
        self._models: dict[int, UnitModel] = {}

    def install(self, units: Sequence[Unit], ops: Any) -> bool:
        """Ask the vendor for a model of each unit."""
        for unit in units:
            model = ops.create_unit(bus=self.bus, unit=unit)
            if model is None:
                return False
            self._models[id(unit)] = model
        return bool(units)

    def model(self, device: Device) -> UnitModel | None:
        """The model of the unit that sits above a device; ``None`` where none does."""
        return self._models.get(id(device.unit)) if device.unit is not None else None

    def initiator(self, device: Device) -> Initiator:
        """A device that does what it is told."""
        return ModelInitiator(self, device)

    def close(self) -> None:
        """Forget the models and give the memory back."""
        self._models.clear()
        self.bus.memory.close()

    def __enter__(self) -> Self:
        """The platform itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class ModelInitiator:
    """A DMA engine with a buffer of one page."""

    windows: Sequence[Window] = ()
    reach = 1 << 64

    def __init__(self, platform: ModelPlatform, device: Device) -> None:
        self._platform = platform
        self._device = device
        self._buffer = bytearray(PAGE)
        self._model: UnitModel | None = None
        self._requester = 0

    def _unit(self) -> UnitModel | None:
        """The unit above the device, once the kernel has found it; it stays there whatever the kernel does to the device."""
        if self._model is None:
            self._model = self._platform.model(self._device)
            if self._model is not None:
                self._requester = self._device.system.vendor.ops.requester(device=self._device)
        return self._model

    def _reach(self, iova: int, write: bool) -> int | None:
        model = self._unit()
        return iova if model is None else model.translate(self._requester, iova, write=write)

    def _pieces(self, iova: int, size: int, write: bool) -> list[tuple[int, int, int]]:
        """Offset, physical address and size of each piece that is let through; pieces end at 4 KiB borders."""
        pieces, done = [], 0
        memory = self._platform.bus.memory
        while done < size:
            length = min(size - done, PAGE - (iova + done) % PAGE)
            physical = self._reach(iova + done, write)
            if physical is not None and memory.holds(physical, length):
                pieces.append((done, physical, length))
            done += length
        return pieces

    def load(self, iova: int, size: int, at: int = 0) -> None:
        """Read memory into the buffer."""
        for offset, physical, length in self._pieces(iova, size, write=False):
            self._buffer[at + offset : at + offset + length] = self._platform.bus.memory.read(physical, length)

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Write the buffer to memory."""
        for offset, physical, length in self._pieces(iova, size, write=True):
            self._platform.bus.memory.write(physical, self._buffer[at + offset : at + offset + length])

    def peek(self, at: int, size: int) -> bytes:
        """The buffer's contents."""
        return bytes(self._buffer[at : at + size])

    def poke(self, at: int, data: bytes) -> None:
        """Fill the buffer."""
        self._buffer[at : at + len(data)] = data

    def load_words(self, iovas: Addresses) -> Addresses:
        """The words at many addresses, which must be aligned to 8 bytes."""
        memory = self._platform.bus.memory
        model = self._unit()
        physical = iovas if model is None else model.translate_many(self._requester, iovas, write=False)
        there = (physical >= np.uint64(memory.base)) & (physical < np.uint64(memory.end))
        words = np.full(iovas.shape, UNMAPPED)
        words[there] = memory.words[(physical[there] - np.uint64(memory.base)) >> np.uint64(3)]
        return words
