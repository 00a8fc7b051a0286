"""A bus, and instructions, that pass on what they are given: what stands between driver and hardware is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iommukit.domain import Domain
from iommukit.hookspecs import hookimpl
from iommukit.hw.bus import Bus, Completion, PciInstructions
from iommukit.hw.clock import Clock
from iommukit.hw.memory import PhysicalMemory

if TYPE_CHECKING:
    from iommukit.device import Unit


class PassingBus:
    """Another bus, as it is."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.memory: PhysicalMemory = bus.memory
        self.clock: Clock = bus.clock
        self.instructions: PciInstructions | None = bus.instructions

    def read(self, address: int, size: int) -> int:
        """Read a register."""
        return self.bus.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register."""
        self.bus.write(address, size, value)


class PassingInstructions:
    """Other instructions, as they are."""

    def __init__(self, real: PciInstructions) -> None:
        self.real = real

    def clp(self, request: bytes) -> tuple[Completion, bytes]:
        """Call Logical Processor."""
        return self.real.clp(request)

    def load(self, handle: int, space: int, offset: int, size: int) -> Completion:
        """PCI Load."""
        return self.real.load(handle, space, offset, size)

    def store(self, handle: int, space: int, offset: int, value: int, size: int) -> Completion:
        """PCI Store."""
        return self.real.store(handle, space, offset, value, size)

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Refresh PCI Translations."""
        return self.real.refresh_translations(handle, address, size)

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Modify PCI Function Controls."""
        return self.real.modify_controls(handle, operation, space, block)

    def store_event(self) -> bytes | None:
        """Store Event Information."""
        return self.real.store_event()


class MeddlingBus(PassingBus):
    """A bus that changes something on the way; while ``mute``, it rings for nothing: what that means is the maker's to say."""

    mute = False


class OnTheBus(ABC):
    """Hook wrappers that put a bus of their own between the driver and each unit's: for mistakes in using hardware."""

    def __init__(self) -> None:
        self.meddlers: list[MeddlingBus] = []

    @abstractmethod
    def meddler(self, unit: Unit, bus: Bus) -> MeddlingBus:
        """The bus that a unit's driver gets."""

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Generator[None, Any, Any]:
        """The unit's bus is another now."""
        assert unit.bus is not None
        unit.bus = self.meddler(unit, unit.bus)
        self.meddlers.append(unit.bus)
        return (yield)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Nothing is rung for."""
        for meddler in self.meddlers:
            meddler.mute = True
        try:
            yield
        finally:
            for meddler in self.meddlers:
                meddler.mute = False


class QuietSync(OnTheBus):
    """What ``iotlb_sync`` asks for is prepared, and not rung for: the next one to ring has it carried out."""

    @hookimpl(wrapper=True)
    def iotlb_sync(self, domain: Domain) -> Generator[None, Any, Any]:
        """Muted."""
        with self.muted():
            return (yield)


class QuietSyncMap(OnTheBus):
    """The same of ``iotlb_sync_map``: as if a new entry needed no invalidation."""

    @hookimpl(wrapper=True)
    def iotlb_sync_map(self, domain: Domain) -> Generator[None, Any, Any]:
        """Muted."""
        with self.muted():
            return (yield)
