"""The hardware model: one PCI function of a machine, its states, its registered translation and its errors."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit_s390.layout import (
    CCDF_ADDRESS,
    CCDF_CODE,
    CCDF_FUNCTION,
    CCDF_HANDLE,
    CCDF_QUALIFIER,
    CCDF_SIZE,
    DTSM_BIT,
    HANDLE_ENABLED,
    PAGE_FRAME,
    PROTECT,
    QUALIFIED,
    QUALIFIER_WRITE,
    EventCode,
    TableType,
)
from iommukit_s390.model.shadow import Buffer, Identity, Shadow, Translation
from iommukit_s390.model.walker import Anchor, TableError

if TYPE_CHECKING:
    from iommukit_s390.functions import Function

_OFFSET = ~PAGE_FRAME & (1 << 64) - 1


class State(enum.Enum):
    """States of a function (``ZpciState`` in QEMU); it does DMA in one of them."""

    STANDBY = "standby"
    DISABLED = "disabled"
    ENABLED = "enabled"
    ERROR = "error"
    """After an error: no DMA, no loads and stores, until the program resets both."""
    BLOCKED = "blocked"
    """Loads and stores are allowed again, for a look at what is wrong; DMA is not."""
    PERMANENT_ERROR = "permanent error"


@dataclass(frozen=True, slots=True)
class Registration:
    """What the program has registered for a function: first and last address (bytes) that can be translated, and the anchor."""

    base: int
    limit: int
    anchor: Anchor
    translation: Translation


class FunctionModel:
    """One function, switched off as after a reset.

    ``shadow_limit`` is how many pages a hypervisor can shadow for the function; ``None`` for any number.  ``report`` takes the
    description (CCDF) of an error event.
    """

    def __init__(self, facts: Function, index: int, memory: PhysicalMemory, report: Callable[[bytes], None]) -> None:
        self.facts = facts
        self.index = index
        self.state = State.DISABLED
        self.shadow_limit: int | None = None
        self.registration: Registration | None = None
        self.interruptions = False
        self.measurement = 0
        self.configuration = bytearray(256)
        struct.pack_into("<HH", self.configuration, 0, facts.vendor_id, facts.device_id)
        self._enablings = 0
        self._memory = memory
        self._report = report

    @property
    def handle(self) -> int:
        """The function's handle: another one each time that the function has been enabled."""
        enabled = self.state not in (State.STANDBY, State.DISABLED)
        return (HANDLE_ENABLED if enabled else 0) | (self._enablings & 0xFF) << 16 | self.index

    # ---- what the program asks for -----------------------------------------------------------------------------------

    def enable(self) -> None:
        """Let the function do something."""
        self._enablings += 1
        self.state = State.ENABLED

    def disable(self) -> None:
        """Reset the function: nothing stays registered."""
        self.state = State.DISABLED
        self.registration = None
        self.interruptions = False
        self.measurement = 0

    def designation(self, iota: int) -> Anchor | None:
        """The decoded anchor, if the function's group has what it designates."""
        anchor = Anchor.decode(iota)
        if not anchor.translate:
            return anchor if self.facts.rtr else None
        tables = anchor.type <= TableType.REGION_FIRST and self.facts.dtsm & DTSM_BIT >> anchor.type
        return anchor if tables else None

    def register(self, base: int, limit: int, anchor: Anchor) -> None:
        """Let an anchor answer the requests from ``base`` to ``limit``; nothing of an earlier one stays translated."""
        translation: Translation
        if anchor.translate:
            limit = min(limit, anchor.span - 1)
        if not anchor.translate:
            translation = Identity(self.facts.sdma)
        elif self.facts.tlb_refresh:
            translation = Shadow(self._memory, anchor, self.shadow_limit)
        else:
            translation = Buffer(self._memory, anchor)
        self.registration = Registration(base, limit, anchor, translation)

    def error(self, code: EventCode, iova: int, *, write: bool | None = None) -> None:
        """Put the function into the error state, and tell."""
        self.state = State.ERROR
        self.tell(code, iova, write=write)

    def tell(self, code: EventCode, address: int, *, write: bool | None = None) -> None:
        """Report an error event."""
        qualifier = 0 if write is None else QUALIFIED | (QUALIFIER_WRITE if write else 0)
        event = bytearray(CCDF_SIZE)
        struct.pack_into(">I", event, CCDF_HANDLE, self.handle)
        struct.pack_into(">I", event, CCDF_FUNCTION, self.facts.fid)
        struct.pack_into(">I", event, CCDF_QUALIFIER, qualifier)
        struct.pack_into(">Q", event, CCDF_ADDRESS, address)
        struct.pack_into(">H", event, CCDF_CODE, code)
        self._report(bytes(event))

    # ---- what the device does ----------------------------------------------------------------------------------------

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """What one request reaches; a request that is stopped puts the function into the error state.

        The function has one name and one address space: ``requester`` is its id, and there are no PASIDs.
        """
        if self.state is not State.ENABLED:
            return None
        registration = self.registration
        if registration is None:
            self.error(EventCode.ADDRESS_SPACE, iova, write=write)
            return None
        if not registration.base <= iova <= registration.limit:
            self.error(EventCode.OUT_OF_RANGE, iova, write=write)
            return None
        try:
            word = registration.translation.translate(iova)
        except TableError as error:
            self.error(error.code, iova, write=write)
            return None
        if not word or (write and word & PROTECT):
            self.error(EventCode.TRANSLATION, iova, write=write)
            return None
        return word & PAGE_FRAME | iova & _OFFSET

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """What many requests reach that are in flight together: all are answered before the first error stops the function."""
        if self.state is not State.ENABLED:
            return np.full(iovas.shape, UNMAPPED)
        registration = self.registration
        if registration is None:
            if len(iovas):
                self.error(EventCode.ADDRESS_SPACE, int(iovas[0]), write=write)
            return np.full(iovas.shape, UNMAPPED)
        words, errors = registration.translation.translate_many(iovas)
        outside = (iovas < np.uint64(registration.base)) | (iovas > np.uint64(registration.limit))
        stopped = outside | (words == 0)
        if write:
            stopped |= (words & np.uint64(PROTECT)) != 0
        physical = words & np.uint64(PAGE_FRAME) | iovas & np.uint64(_OFFSET)
        if stopped.any():
            physical[stopped] = UNMAPPED
            first = int(stopped.argmax())
            code = EventCode.OUT_OF_RANGE if outside[first] else EventCode(int(errors[first]) or EventCode.TRANSLATION)
            self.error(code, int(iovas[first]), write=write)
        return physical
