"""How the kernel uses a PCI function: CLP, and the instructions that register and refresh its translation (``arch/s390/pci``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from iommukit.errors import IommuError
from iommukit_s390.functions import Function, Hardwired
from iommukit_s390.layout import (
    CC_BUSY,
    CC_ERROR,
    CLP_ARGUMENT,
    CLP_REQUEST,
    FIB_BASE,
    FIB_IOTA,
    FIB_LIMIT,
    FIB_SIZE,
    FUNCTION_EDMA,
    FUNCTION_GROUP,
    FUNCTION_SDMA,
    FUNCTION_TYPE,
    GROUP_FLAGS,
    GROUP_REFRESH,
    GROUP_RELAXED,
    GROUP_TYPES,
    HANDLE_ENABLED,
    LIST_ENTRIES,
    LIST_ENTRY,
    LIST_TOKEN,
    REQUEST_GROUP,
    REQUEST_OPERATION,
    REQUEST_SPACES,
    SET_DISABLE,
    SET_ENABLE,
    Command,
    Control,
    Response,
    Status,
)

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus, Completion, PciInstructions

RESPONSE = 4096 - CLP_REQUEST
"""Room for a response: request and response fill a page (``CLP_BLK_SIZE``)."""
TRIES = 100
"""How often a busy instruction is tried; the kernel tries for ever."""


# ---- Call Logical Processor (pci_clp.c) ------------------------------------------------------------------------------


def _call(instructions: PciInstructions, command: Command, argument: bytes) -> bytes:
    """The response of a command.  Raises ``ENODEV`` unless it was done."""
    request = struct.pack(">HH12x", CLP_REQUEST, command) + argument.ljust(CLP_REQUEST - CLP_ARGUMENT, b"\0")
    completion, answer = instructions.clp(request + struct.pack(">HH", RESPONSE, 0))
    if completion.cc or completion.interruption:
        raise IommuError("ENODEV", f"CLP ends with condition code {completion.cc}, interruption {completion.interruption:#x}")
    (code,) = struct.unpack_from(">H", answer, 2)
    if code != Response.OK:
        raise IommuError("ENODEV", f"CLP command {command.name} answers {code:#x}")
    return answer


def handles(instructions: PciInstructions) -> Iterator[tuple[int, int]]:
    """Function id and handle of each function of the machine (``clp_list_pci``)."""
    token = 0
    while True:
        answer = _call(instructions, Command.LIST, struct.pack(">Q", token))
        (length,) = struct.unpack_from(">H", answer)
        for at in range(LIST_ENTRIES, length, LIST_ENTRY):
            yield struct.unpack_from(">II", answer, at + 8)
        (token,) = struct.unpack_from(">Q", answer, LIST_TOKEN)
        if not token:
            return


def _attributes(instructions: PciInstructions, handle: int) -> dict[str, int | bool]:
    """What CLP tells of a function and its group, by the names of ``FunctionAttributes``."""
    answer = _call(instructions, Command.QUERY_FUNCTION, struct.pack(">I", handle))
    sdma, edma = (struct.unpack_from(">Q", answer, at)[0] for at in (FUNCTION_SDMA, FUNCTION_EDMA))
    number = bytes(REQUEST_GROUP - CLP_ARGUMENT) + answer[FUNCTION_GROUP : FUNCTION_GROUP + 1]
    group = _call(instructions, Command.QUERY_GROUP, number)
    return {
        "pft": answer[FUNCTION_TYPE],
        "sdma": sdma,
        "edma": edma,
        "tlb_refresh": bool(group[GROUP_FLAGS] & GROUP_REFRESH),
        "rtr": bool(group[GROUP_FLAGS] & GROUP_RELAXED),
        "dtsm": group[GROUP_TYPES],
    }


def _set(instructions: PciInstructions, handle: int, operation: int) -> int:
    """Enable or disable a function (``clp_set_pci_fn``).  Returns its new handle."""
    argument = bytearray(CLP_REQUEST - CLP_ARGUMENT)
    struct.pack_into(">I", argument, 0, handle)
    argument[REQUEST_OPERATION - CLP_ARGUMENT] = operation
    argument[REQUEST_SPACES - CLP_ARGUMENT] = operation == SET_ENABLE
    answer = _call(instructions, Command.SET_FUNCTION, bytes(argument))
    return int.from_bytes(answer[CLP_ARGUMENT : CLP_ARGUMENT + 4], "big")


def enable(function: Function, bus: Bus) -> None:
    """Find a function, compare what CLP tells with what the machine said, and enable it (``zpci_enable_device``).

    Raises ``ENODEV`` where it is not there, is another one, or cannot be enabled.
    """
    instructions = bus.instructions
    if instructions is None:
        raise IommuError("ENODEV", "the machine has no PCI instructions")
    handle = next((handle for fid, handle in handles(instructions) if fid == function.fid), None)
    if handle is None:
        raise IommuError("ENODEV", f"CLP lists no function {function.fid:#x}")
    for name, value in _attributes(instructions, handle).items():
        expected = getattr(function, name)
        if value != expected:
            raise IommuError("ENODEV", f"function {function.fid:#x}: CLP says {name} {value:#x}, the machine {expected:#x}")
    if handle & HANDLE_ENABLED:
        handle = _set(instructions, handle, SET_DISABLE)
    function.hardware = Hardwired(instructions, bus.memory, _set(instructions, handle, SET_ENABLE))


# ---- the other instructions (pci_insn.c) -----------------------------------------------------------------------------


def modify(hardware: Hardwired, control: Control, base: int = 0, limit: int = 0, iota: int = 0) -> Completion:
    """Modify PCI Function Controls, again while it is busy (``zpci_mod_fc``)."""
    block = bytearray(FIB_SIZE)
    struct.pack_into(">Q", block, FIB_BASE, base)
    struct.pack_into(">Q", block, FIB_LIMIT, limit)
    struct.pack_into(">Q", block, FIB_IOTA, iota)
    for _ in range(TRIES):
        completion = hardware.instructions.modify_controls(hardware.handle, control, 0, bytes(block))
        if completion.cc != CC_BUSY:
            break
    return completion


def register(function: Function, iota: int) -> None:
    """Register a translation for the function's DMA range (``zpci_register_ioat``).  Raises ``EIO``."""
    hardware = function.hardware
    assert hardware is not None
    completion = modify(hardware, Control.REGISTER_TRANSLATION, function.start_dma, function.end_dma, iota)
    if completion.cc or completion.interruption:
        raise IommuError("EIO", f"no translation can be registered: {_ending(completion)}")


def deregister(function: Function) -> None:
    """Let no request of the function through (``zpci_unregister_ioat``)."""
    hardware = function.hardware
    assert hardware is not None
    modify(hardware, Control.DEREGISTER_TRANSLATION)


def refresh(function: Function, iova: int, size: int) -> None:
    """Refresh PCI Translations for ``size`` bytes (``zpci_refresh_trans``).

    Where an error of the function stands in the way its event is handled first, as the kernel has done by then.  Raises
    ``ENOMEM`` where the hypervisor can shadow no more, ``EIO`` for anything else.
    """
    hardware = function.hardware
    assert hardware is not None
    completion = _refresh(hardware, iova, size)
    if completion.cc == CC_ERROR and completion.status in (Status.IN_ERROR, Status.RECOVERY):
        from iommukit_s390.events import handle_events

        if handle_events(function):
            completion = _refresh(hardware, iova, size)
    if not completion.cc and not completion.interruption:
        return
    if completion.cc == CC_ERROR and completion.status in (Status.NOT_ENABLED, Status.RESOURCES):
        raise IommuError("ENOMEM", "the hypervisor cannot shadow any more")
    raise IommuError("EIO", f"translations are not refreshed: {_ending(completion)}")


def refresh_all(function: Function) -> None:
    """Refresh all of the function's DMA range (``zpci_refresh_all``).  Raises as ``refresh``."""
    refresh(function, function.start_dma, function.end_dma - function.start_dma + 1)


def _refresh(hardware: Hardwired, iova: int, size: int) -> Completion:
    for _ in range(TRIES):
        completion = hardware.instructions.refresh_translations(hardware.handle, iova, size)
        if completion.cc != CC_BUSY:
            break
    return completion


def _ending(completion: Completion) -> str:
    return f"condition code {completion.cc}, status {completion.status}, interruption {completion.interruption:#x}"
