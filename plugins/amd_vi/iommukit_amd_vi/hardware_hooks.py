"""The hooks of the hardware itself: the model, bringing it up, its faults, dumps of its tables, QEMU's machine, and mistakes.

What they need is imported when they are called: policy alone needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from iommukit.hookspecs import Emulation, Mistake, hookimpl

if TYPE_CHECKING:
    from iommukit.device import Unit
    from iommukit.hw.bus import ModelBus
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import TableReader
    from iommukit.hw.platform import UnitModel
    from iommukit.hw.walk import Walk


@hookimpl
def create_unit(bus: ModelBus, unit: Unit) -> UnitModel:
    """The hardware model of an IOMMU."""
    from iommukit_amd_vi.model.unit import AmdModel

    return AmdModel(bus, unit.state.iommu)


@hookimpl
def start_unit(unit: Unit) -> None:
    """Bring an IOMMU's hardware up."""
    from iommukit_amd_vi.start import start

    assert unit.bus is not None
    start(unit.state, unit.bus)


@hookimpl
def take_faults(unit: Unit) -> Sequence[Fault]:
    """Read the event log."""
    from iommukit_amd_vi.start import take_events

    hardware = unit.state.hardware
    return take_events(hardware) if hardware is not None else ()


@hookimpl
def table_roots() -> Mapping[str, str]:
    """The device table's base register."""
    from iommukit_amd_vi.dump import ROOTS

    return ROOTS


@hookimpl
def walk_tables(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterable[Walk]:
    """Go through the device table."""
    from iommukit_amd_vi.dump import walks

    return walks(memory, roots, requester, iova)


@hookimpl
def mistakes() -> Sequence[Mistake]:
    """Mistakes with device table entries, commands and levels."""
    from iommukit_amd_vi.wrong_use import MISTAKES

    return MISTAKES


@hookimpl
def emulation(version: tuple[int, int]) -> Emulation | None:
    """QEMU's q35 with an ``amd-iommu``."""
    from iommukit_amd_vi.emulated import emulated_machine

    return emulated_machine(version)
