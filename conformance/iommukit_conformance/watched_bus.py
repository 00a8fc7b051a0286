"""A platform whose bus tells somebody after each register write: between two of them hardware goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iommukit.device import Device, Unit
from iommukit.hookspecs import Emulation
from iommukit.hw.bus import Bus, Completion, PciInstructions
from iommukit.hw.passing import PassingBus, PassingInstructions
from iommukit.hw.platform import Initiator, Platform


class WatchedBus(PassingBus):
    """A bus with an ear: ``after`` is called when a register write, or an instruction that changes something, is done."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        if bus.instructions is not None:
            self.instructions = WatchedInstructions(bus.instructions, self)
        self.after: Callable[[], None] | None = None

    def tell(self) -> None:
        """Something was done to the hardware."""
        if self.after is not None:
            self.after()

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register."""
        super().write(address, size, value)
        self.tell()


class WatchedInstructions(PassingInstructions):
    """The PCI instructions of such a bus."""

    def __init__(self, instructions: PciInstructions, bus: WatchedBus) -> None:
        super().__init__(instructions)
        self._bus = bus

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Passed on and told."""
        answer = super().refresh_translations(handle, address, size)
        self._bus.tell()
        return answer

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Passed on and told."""
        answer = super().modify_controls(handle, operation, space, block)
        self._bus.tell()
        return answer


class WatchedPlatform:
    """A platform with such a bus."""

    def __init__(self, platform: Any) -> None:
        self.platform: Platform = platform
        self.name: str = platform.name
        self.is_model = platform.name == "model"
        self.emulation: Emulation | None = platform.emulation
        self.buffers: range = platform.buffers
        self._bus: WatchedBus | None = None

    @property
    def bus(self) -> WatchedBus:
        """The bus, watched; PCI instructions are there once the units are."""
        if self._bus is None or (self._bus.instructions is None and self.platform.bus.instructions is not None):
            self._bus = WatchedBus(self.platform.bus)
        return self._bus

    def install(self, units: Sequence[Unit], ops: Any) -> bool:
        """Make the units' hardware."""
        return self.platform.install(units, ops)

    def initiator(self, device: Device) -> Initiator:
        """The device's DMA."""
        return self.platform.initiator(device)

    def close(self) -> None:
        """Give everything back."""
        self.platform.close()

    def __enter__(self) -> WatchedPlatform:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
