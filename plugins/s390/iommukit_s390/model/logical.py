"""The hardware model: what CLP (Call Logical Processor) answers (``pci_clp.h``; ``clp_service_call`` of QEMU)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from iommukit_s390.layout import (
    CLP_ARGUMENT,
    CLP_HEADER,
    CLP_REQUEST,
    CONFIGURED,
    FUNCTION_EDMA,
    FUNCTION_GROUP,
    FUNCTION_ID,
    FUNCTION_SDMA,
    FUNCTION_TYPE,
    GROUP_FLAGS,
    GROUP_INTERRUPTIONS,
    GROUP_INTERVAL,
    GROUP_REFRESH,
    GROUP_RELAXED,
    GROUP_STORE_BLOCK,
    GROUP_TYPES,
    LIST_ENTRIES,
    LIST_ENTRY,
    LIST_ENTRY_SIZE,
    LIST_MOST,
    LIST_TOKEN,
    REQUEST_GROUP,
    REQUEST_OPERATION,
    REQUEST_SPACES,
    SET_DISABLE,
    SET_ENABLE,
    Command,
    Response,
)
from iommukit_s390.model.unit import FunctionModel, State

MOST_FUNCTIONS = 0xFFFF
_FUNCTION_ANSWER, _GROUP_ANSWER, _SET_ANSWER = 144, 64, 32
"""The shortest response that holds what is answered (bytes)."""


class Refused(Exception):
    """A command that is not done, and the response code."""

    def __init__(self, code: Response) -> None:
        super().__init__(code.name)
        self.code = code


class LogicalProcessor:
    """Commands about the functions of a machine.

    Each set of group attributes is a group; groups are numbered from 1 in the order of their first functions.
    """

    def __init__(self, functions: Sequence[FunctionModel]) -> None:
        self._functions = functions
        self._commands: dict[int, Callable[[bytes, bytearray], None]] = {
            Command.LIST: self._list,
            Command.QUERY_FUNCTION: self._query_function,
            Command.QUERY_GROUP: self._query_group,
            Command.SET_FUNCTION: self._set,
        }

    def call(self, block: bytes) -> bytes | None:
        """The response to a command block; ``None`` for an operand exception."""
        if len(block) < CLP_HEADER:
            return None
        length, command = struct.unpack_from(">HH", block)
        if length < CLP_HEADER or length > 8184 or length % 8 or len(block) < length + 2:
            return None
        (room,) = struct.unpack_from(">H", block, length)
        if room < 8 or room % 8 or length + room > 8192:
            return None
        answer = bytearray(room)
        try:
            if length != CLP_REQUEST:
                raise Refused(Response.LENGTH)
            if command not in self._commands:
                raise Refused(Response.COMMAND)
            if block[4] >> 4:
                raise Refused(Response.FORMAT)
            struct.pack_into(">H", answer, 0, room)
            self._commands[command](block, answer)
            code = Response.OK
        except Refused as refused:
            answer = bytearray(room)
            struct.pack_into(">H", answer, 0, room)
            code = refused.code
        struct.pack_into(">H", answer, 2, code)
        return bytes(answer)

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _list(self, request: bytes, answer: bytearray) -> None:
        """List PCI: from the function that the resume token names on, as many as there is room for."""
        if request[4] & 0xF or any(request[5:CLP_ARGUMENT]):
            raise Refused(Response.RESERVED)
        (token,) = struct.unpack_from(">Q", request, CLP_ARGUMENT)
        if token > len(self._functions):
            raise Refused(Response.TOKEN)
        if len(answer) < LIST_ENTRIES + LIST_ENTRY:
            raise Refused(Response.ROOM)
        if (len(answer) - LIST_ENTRIES) % LIST_ENTRY:
            raise Refused(Response.LENGTH)
        start = max(token - 1, 0)
        room = (len(answer) - LIST_ENTRIES) // LIST_ENTRY
        shown = self._functions[start : start + room]
        for at, function in enumerate(shown):
            facts = function.facts
            configured = 0 if function.state is State.STANDBY else CONFIGURED
            entry = (facts.device_id, facts.vendor_id, configured, facts.fid, function.handle)
            struct.pack_into(">HHIII", answer, LIST_ENTRIES + LIST_ENTRY * at, *entry)
        more = start + len(shown)
        struct.pack_into(">Q", answer, LIST_TOKEN, more + 1 if more < len(self._functions) else 0)
        struct.pack_into(">H", answer, LIST_MOST, MOST_FUNCTIONS)
        answer[LIST_ENTRY_SIZE] = LIST_ENTRY
        struct.pack_into(">H", answer, 0, LIST_ENTRIES + LIST_ENTRY * len(shown))

    def _query_function(self, request: bytes, answer: bytearray) -> None:
        """Query PCI Function."""
        function = self._named(request)
        _room(answer, _FUNCTION_ANSWER)
        facts = function.facts
        answer[FUNCTION_GROUP] = self._groups().index(self._attributes(function)) + 1
        struct.pack_into(">I", answer, FUNCTION_ID, facts.fid)
        answer[FUNCTION_TYPE] = facts.pft
        struct.pack_into(">QQ", answer, FUNCTION_SDMA, facts.sdma, facts.edma)
        assert FUNCTION_EDMA == FUNCTION_SDMA + 8

    def _query_group(self, request: bytes, answer: bytearray) -> None:
        """Query PCI Function Group."""
        groups = self._groups()
        number = request[REQUEST_GROUP]
        if not 1 <= number <= len(groups):
            raise Refused(Response.GROUP)
        _room(answer, _GROUP_ANSWER)
        refresh, relaxed, types = groups[number - 1]
        struct.pack_into(">H", answer, GROUP_INTERRUPTIONS, 128)
        answer[GROUP_FLAGS] = (GROUP_REFRESH if refresh else 0) | (GROUP_RELAXED if relaxed else 0)
        struct.pack_into(">HH", answer, GROUP_STORE_BLOCK, 128, 4000)
        assert GROUP_INTERVAL == GROUP_STORE_BLOCK + 2
        answer[GROUP_TYPES] = types

    def _set(self, request: bytes, answer: bytearray) -> None:
        """Set PCI Function: enable or disable it."""
        function = self._named(request)
        _room(answer, _SET_ANSWER)
        operation = request[REQUEST_OPERATION]
        if function.state is State.PERMANENT_ERROR:
            raise Refused(Response.ERROR_STATE)
        off = function.state is State.DISABLED
        if operation == SET_ENABLE and request[REQUEST_SPACES] != 1:
            raise Refused(Response.RESOURCES if request[REQUEST_SPACES] else Response.DMA_SPACES)
        if operation == SET_ENABLE and off:
            function.enable()
        elif operation == SET_DISABLE and not off and function.state is not State.STANDBY:
            function.disable()
        else:
            raise Refused(Response.OPERATION)
        struct.pack_into(">I", answer, CLP_ARGUMENT, function.handle)

    # ---- functions and groups ----------------------------------------------------------------------------------------

    def _named(self, request: bytes) -> FunctionModel:
        (handle,) = struct.unpack_from(">I", request, CLP_ARGUMENT)
        for function in self._functions:
            if function.handle == handle:
                return function
        raise Refused(Response.HANDLE)

    def _attributes(self, function: FunctionModel) -> tuple[bool, bool, int]:
        facts = function.facts
        return facts.tlb_refresh, facts.rtr, facts.dtsm

    def _groups(self) -> list[tuple[bool, bool, int]]:
        return list(dict.fromkeys(self._attributes(function) for function in self._functions))


def _room(answer: bytearray, least: int) -> None:
    if len(answer) < least:
        raise Refused(Response.LENGTH)
