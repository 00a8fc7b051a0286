"""The hooks that meet hardware, whether the model or QEMU, and those that only look at its memory.

What they need is imported when they are called: numpy is slow to import, and policy needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from iommukit.device import Device, Unit
from iommukit.errors import IommuError
from iommukit.hookspecs import Emulation, Mistake, hookimpl
from iommukit_s390.functions import Function

if TYPE_CHECKING:
    from iommukit.hw.bus import ModelBus
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import TableReader
    from iommukit.hw.walk import Walk
    from iommukit_s390.model.unit import FunctionModel


@hookimpl
def create_unit(bus: ModelBus, unit: Unit) -> FunctionModel:
    """A function of the machine's facility, which the first one brings."""
    from iommukit_s390.model.facility import Facility

    if bus.instructions is None:
        bus.instructions = Facility(bus.memory)
    if not isinstance(bus.instructions, Facility):
        raise IommuError("ENODEV", "the machine's PCI instructions are another model's")
    return bus.instructions.add(unit.state)


@hookimpl
def start_unit(unit: Unit) -> None:
    """Enable the function, if CLP tells of it what the machine says."""
    from iommukit_s390.zpci import enable

    assert unit.bus is not None
    enable(unit.state, unit.bus)


@hookimpl
def requester(device: Device) -> int:
    """The function id: events name it, and unlike the handle it stays."""
    assert device.unit is not None
    function: Function = device.unit.state
    return function.fid


@hookimpl
def take_faults(unit: Unit) -> Sequence[Fault]:
    """The function's error events; it is brought back from the error state."""
    function: Function = unit.state
    if function.hardware is None:
        return ()
    from iommukit_s390 import events

    return events.take_faults(function)


@hookimpl
def table_roots() -> Mapping[str, str]:
    """The anchor of one function: there is no table of functions in memory."""
    return {"iota": "the function's I/O translation anchor: the root's address, its designation type and T (0x800)"}


@hookimpl
def walk_tables(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterable[Walk]:
    """One walk, from the anchor."""
    from iommukit_s390.dump import walk

    return (walk(memory, roots["iota"], requester, iova),)


@hookimpl
def emulation(version: tuple[int, int]) -> Emulation | None:
    """QEMU's emulated functions."""
    from iommukit_s390.emulated import emulated_machine

    return emulated_machine(version)


@hookimpl
def mistakes() -> Sequence[Mistake]:
    """What goes wrong with RPCIT, entries and anchors."""
    from iommukit_s390.wrong_use import MISTAKES

    return MISTAKES
