"""A bus, and instructions, that pass on what they are given: what stands between driver and hardware is made of them."""

from __future__ import annotations

from iommukit.hw.bus import Bus, Completion, PciInstructions
from iommukit.hw.clock import Clock
from iommukit.hw.memory import PhysicalMemory


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
