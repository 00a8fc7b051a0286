"""The hardware model: the PCI instructions of one machine (``pci_insn.h``; ``s390-pci-inst.c`` of QEMU).

A table says for each instruction in which state of a function it is refused, and how; what an instruction does is below it.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from iommukit.hw.bus import Completion
from iommukit.hw.memory import PhysicalMemory
from iommukit_s390.layout import (
    CC_DONE,
    CC_ERROR,
    CC_HANDLE,
    CONFIGURATION_SPACE,
    CONTENT_ERROR,
    FIB_BASE,
    FIB_FORMAT,
    FIB_IOTA,
    FIB_LIMIT,
    FIB_MEASUREMENT,
    FIB_SIZE,
    MEASUREMENT_KEY,
    OPERAND_EXCEPTION,
    PAGE_FRAME,
    SEI_CONTENT,
    SEI_HEADER,
    SEI_TYPE,
    Control,
    EventCode,
    Status,
)
from iommukit_s390.model.logical import LogicalProcessor
from iommukit_s390.model.unit import FunctionModel, State
from iommukit_s390.model.walker import TableError

if TYPE_CHECKING:
    from iommukit_s390.functions import Function

DONE = Completion(CC_DONE)
INVALID_HANDLE = Completion(CC_HANDLE)
OPERAND = Completion(CC_DONE, interruption=OPERAND_EXCEPTION)


def _error(status: Status) -> Completion:
    return Completion(CC_ERROR, status)


_OFF = dict.fromkeys((State.STANDBY, State.DISABLED, State.PERMANENT_ERROR), INVALID_HANDLE)

REFUSED: dict[str, dict[State, Completion]] = {
    "access": _OFF | {State.ERROR: _error(Status.BLOCKED), State.PERMANENT_ERROR: _error(Status.BLOCKED)},
    "refresh": _OFF | {State.ERROR: _error(Status.RECOVERY)},
    "modify": _OFF,
}
"""How PCI Load and Store, Refresh PCI Translations and Modify PCI Function Controls end in states in which they do nothing."""

RESETS: dict[tuple[Control, State], State] = {
    (Control.RESET_BLOCK, State.ERROR): State.BLOCKED,
    (Control.RESET_ERROR, State.ERROR): State.ENABLED,
    (Control.RESET_ERROR, State.BLOCKED): State.ENABLED,
}
"""What the two resets make of a function's state; in other states they are out of sequence."""

_LAST = (1 << 64) - 1


class Facility:
    """A machine's PCI functions behind its instructions: the bus's ``instructions``."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._functions: list[FunctionModel] = []
        self._events: deque[bytes] = deque()
        self._logical = LogicalProcessor(self._functions)

    def add(self, facts: Function) -> FunctionModel:
        """Put a function into the machine, configured and disabled."""
        model = FunctionModel(facts, len(self._functions) + 1, self._memory, self._events.append)
        self._functions.append(model)
        return model

    def _select(self, handle: int, instruction: str) -> FunctionModel | Completion:
        """The function that a handle names, or how the instruction ends without doing anything."""
        number = (handle & 0xFFFF) - 1
        if not 0 <= number < len(self._functions):
            return INVALID_HANDLE
        function = self._functions[number]
        if function.handle != handle:
            return INVALID_HANDLE
        return REFUSED[instruction].get(function.state, function)

    # ---- instructions ------------------------------------------------------------------------------------------------

    def clp(self, request: bytes) -> tuple[Completion, bytes]:
        """Call Logical Processor."""
        answer = self._logical.call(request)
        return (OPERAND, b"") if answer is None else (DONE, answer)

    def load(self, handle: int, space: int, offset: int, size: int) -> Completion:
        """PCI Load: configuration space, whose bytes fill the register from the left of its last ``size`` bytes."""
        function = self._select(handle, "access")
        if isinstance(function, Completion):
            return function
        refused = self._access(function, space, offset, size)
        if refused is not None:
            return refused
        return Completion(CC_DONE, result=int.from_bytes(function.configuration[offset : offset + size], "big"))

    def store(self, handle: int, space: int, offset: int, value: int, size: int) -> Completion:
        """PCI Store: configuration space.  The ids cannot be written; all else is kept as it is written."""
        function = self._select(handle, "access")
        if isinstance(function, Completion):
            return function
        refused = self._access(function, space, offset, size)
        if refused is None and offset >= 4:
            function.configuration[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
        return refused or DONE

    def _access(self, function: FunctionModel, space: int, offset: int, size: int) -> Completion | None:
        if space != CONFIGURATION_SPACE:
            return _error(Status.ADDRESS_SPACE)
        # An access lies within a word; it need not be aligned to its size.
        fits = size in (1, 2, 4) and offset % 4 + size <= 4 and 0 <= offset <= len(function.configuration) - size
        return None if fits else OPERAND

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Refresh PCI Translations.  A wrong table puts the function into the error state."""
        function = self._select(handle, "refresh")
        if isinstance(function, Completion):
            return function
        registration = function.registration
        last = min(address + max(size, 1) - 1, _LAST)
        if registration is None:
            function.error(EventCode.ADDRESS_SPACE, address)
            return _error(Status.IN_ERROR)
        if last < registration.base or address > registration.limit:
            function.error(EventCode.OUT_OF_RANGE, address)
            return _error(Status.IN_ERROR)
        if size <= 0:
            return DONE
        try:
            complete = registration.translation.refresh(address & PAGE_FRAME, min(last, registration.limit))
        except TableError as error:
            function.error(error.code, error.iova)
            return _error(Status.IN_ERROR)
        return DONE if complete else _error(Status.RESOURCES)

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Modify PCI Function Controls."""
        function = self._select(handle, "modify")
        if isinstance(function, Completion):
            return function
        if len(block) != FIB_SIZE or block[FIB_FORMAT] or operation not in Control.__members__.values():
            return OPERAND
        control = Control(operation)
        if (control, function.state) in RESETS:
            function.state = RESETS[control, function.state]
            return DONE
        match control:
            case Control.REGISTER_TRANSLATION | Control.REREGISTER_TRANSLATION | Control.DEREGISTER_TRANSLATION:
                return self._translation(function, control, space, block)
            case Control.REGISTER_INTERRUPTIONS | Control.DEREGISTER_INTERRUPTIONS:
                wanted = control is Control.REGISTER_INTERRUPTIONS
                if function.interruptions is wanted:
                    return _error(Status.SEQUENCE)
                function.interruptions = wanted
                return DONE
            case Control.SET_MEASUREMENT:
                return self._measure(function, block)
        return _error(Status.SEQUENCE)

    def _translation(self, function: FunctionModel, control: Control, space: int, block: bytes) -> Completion:
        if space:
            return _error(Status.DMA_ADDRESS_SPACE)
        if (function.registration is None) is not (control is Control.REGISTER_TRANSLATION):
            return _error(Status.SEQUENCE)
        if control is Control.DEREGISTER_TRANSLATION:
            function.registration = None
            return DONE
        base = _field(block, FIB_BASE) & PAGE_FRAME
        limit = _field(block, FIB_LIMIT) | ~PAGE_FRAME & _LAST
        anchor = function.designation(_field(block, FIB_IOTA))
        if anchor is None or not function.facts.sdma <= base <= limit <= (function.facts.edma | ~PAGE_FRAME & _LAST):
            return OPERAND
        function.register(base, limit, anchor)
        return DONE

    def _measure(self, function: FunctionModel, block: bytes) -> Completion:
        address = _field(block, FIB_MEASUREMENT)
        if address & MEASUREMENT_KEY:
            # Measurement ends; the function goes on, and there is no status: the event tells.
            function.measurement = 0
            function.tell(EventCode.MEASUREMENT, address)
            return Completion(CC_ERROR)
        function.measurement = address
        return DONE

    def store_event(self) -> bytes | None:
        """Store Event Information: the oldest error event."""
        if not self._events:
            return None
        description = self._events.popleft()
        header = bytearray(SEI_HEADER)
        struct.pack_into(">HH", header, 0, SEI_HEADER + len(description), 1)
        header[SEI_TYPE] = 2
        header[SEI_CONTENT] = CONTENT_ERROR
        return bytes(header) + description


def _field(block: bytes, offset: int) -> int:
    return int.from_bytes(block[offset : offset + 8], "big")
