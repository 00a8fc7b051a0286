"""What the kernel makes of PCI events (``pci_event.c``): faults to tell of, and functions to bring back from the error state."""

from __future__ import annotations

import struct

from iommukit.hw.fault import Fault, FaultKind
from iommukit_s390.functions import Function, Hardwired
from iommukit_s390.layout import (
    CCDF_ADDRESS,
    CCDF_CODE,
    CCDF_FUNCTION,
    CCDF_HANDLE,
    CCDF_QUALIFIER,
    CCDF_SIZE,
    CONTENT_ERROR,
    QUALIFIED,
    QUALIFIER_WRITE,
    SEI_CONTENT,
    SEI_HEADER,
    Control,
    EventCode,
)
from iommukit_s390.tables import PagingDomain
from iommukit_s390.zpci import modify

KINDS = {
    EventCode.ADDRESS_SPACE: FaultKind.BLOCKED,
    EventCode.OUT_OF_RANGE: FaultKind.OUT_OF_RANGE,
    EventCode.DESIGNATION: FaultKind.BAD_ENTRY,
    EventCode.TRANSLATION: FaultKind.NOT_MAPPED,
    EventCode.TABLE_ENTRY: FaultKind.BAD_TABLE,
    EventCode.TABLE_LENGTH: FaultKind.BAD_TABLE,
    EventCode.TABLE_TYPE: FaultKind.BAD_TABLE,
}
"""What each event code says, in common words.  Codes that are not here tell of no request."""


def handle_events(function: Function) -> bool:
    """Read all pending events of the machine; remember the faults, and reset the functions' errors.

    Returns whether one was this function's.  A driver that can recover is assumed for every function
    (``zpci_event_attempt_error_recovery``): first loads and stores are unblocked, then DMA.
    """
    hardware = function.hardware
    assert hardware is not None
    mine = False
    while (notification := hardware.instructions.store_event()) is not None:
        if len(notification) < SEI_HEADER + CCDF_SIZE or notification[SEI_CONTENT] != CONTENT_ERROR:
            continue
        event = notification[SEI_HEADER : SEI_HEADER + CCDF_SIZE]
        handle, fid, qualifier = (struct.unpack_from(">I", event, at)[0] for at in (CCDF_HANDLE, CCDF_FUNCTION, CCDF_QUALIFIER))
        (iova,) = struct.unpack_from(">Q", event, CCDF_ADDRESS)
        (code,) = struct.unpack_from(">H", event, CCDF_CODE)
        failed = next((other for other in function.siblings if other.fid == fid), None)
        # An event with another handle is of a time before the function was last enabled.
        if failed is None or failed.hardware is None or failed.hardware.handle != handle:
            continue
        mine |= failed is function
        modify(failed.hardware, Control.RESET_BLOCK)
        modify(failed.hardware, Control.RESET_ERROR)
        if code in KINDS:
            write = bool(qualifier & QUALIFIER_WRITE) if qualifier & QUALIFIED else None
            failed.faults.append(Fault(_kind(EventCode(code), failed.hardware, iova), fid, iova, write, code))
    return mine


def _kind(code: EventCode, hardware: Hardwired, iova: int) -> FaultKind:
    """One code stands for an entry that is not there and for one that may not be written: the tables tell which."""
    domain = hardware.domain
    if code is EventCode.TRANSLATION and isinstance(domain, PagingDomain) and domain.table.lookup(iova) is not None:
        return FaultKind.PERMISSION
    return KINDS[code]


def take_faults(function: Function) -> list[Fault]:
    """The function's faults since the last call, oldest first."""
    handle_events(function)
    faults, function.faults = function.faults, []
    return faults
