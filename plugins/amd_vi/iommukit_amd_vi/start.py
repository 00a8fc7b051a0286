"""Bringing an IOMMU's hardware up, and reading what it has logged (``init.c``, ``iommu_poll_events``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.errors import IommuError
from iommukit.hw.fault import Fault, FaultKind
from iommukit_amd_vi.layout import (
    CMD_BUF_EN,
    COHERENT,
    DTE_SIZE,
    EVENT_CODE,
    EVENT_DEVICE,
    EVENT_DOMAIN,
    EVENT_GN,
    EVENT_INT_EN,
    EVENT_LOG_EN,
    EVENT_LOG_INT,
    EVENT_OVERFLOW,
    EVENT_PE,
    EVENT_PR,
    EVENT_RW,
    GT_EN,
    GT_SUP,
    IA_SUP,
    IOMMU_EN,
    RING_ENTRY,
    Event,
    Register,
)
from iommukit_amd_vi.queue import (
    EVERYTHING,
    INVALIDATE_ALL,
    PAGE,
    RING_BITS,
    RING_BYTES,
    CommandQueue,
    DeviceTable,
    invalidate_entry,
    invalidate_pages,
)
from iommukit_amd_vi.setup import MAX_DOMAINS, AmdUnit

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus


@dataclass(slots=True)
class Running:
    """An IOMMU that is running: its bus, the address of its registers, and what the driver gave it."""

    bus: Bus
    base: int
    table: DeviceTable
    queue: CommandQueue
    events: int
    """The address of the event log."""
    control: int = 0
    """What was last written to the control register."""

    def write(self, register: Register, value: int) -> None:
        """Write a register of 64 bits."""
        self.bus.write(self.base + register, 8, value)

    def read(self, register: Register) -> int:
        """Read a register of 64 bits."""
        return self.bus.read(self.base + register, 8)

    def enable(self, bits: int) -> None:
        """Switch features on (``iommu_feature_enable``)."""
        self.control |= bits
        self.write(Register.CONTROL, self.control)

    def disable(self, bits: int) -> None:
        """Switch features off."""
        self.control &= ~bits
        self.write(Register.CONTROL, self.control)


def start(state: AmdUnit, bus: Bus) -> None:
    """Bring an IOMMU up (``early_enable_iommu``): everything blocks until a device is attached.

    Raises ``IommuError``: ``ENODEV`` where its features are not those that the machine was said to have, ``ENOMEM``.
    """
    iommu, driver = state.iommu, state.driver
    found = bus.read(iommu.base + Register.EXTENDED_FEATURE, 8)
    if found != iommu.efr:
        raise IommuError("ENODEV", f"{iommu.label} has the features {found:#x}, not {iommu.efr:#x}")
    segment = driver.platform.segment(iommu.segment)
    table = driver.device_tables.get(iommu.segment)
    if table is None:
        table = _device_table(bus, segment.last_devid + 1)
        driver.device_tables[iommu.segment] = table
    hardware = Running(bus, iommu.base, table, CommandQueue(bus, iommu.base), bus.memory.pages.alloc(RING_BYTES))
    hardware.disable(0)
    hardware.write(Register.DEVICE_TABLE_BASE, table.address | (table.size >> 12) - 1)
    hardware.write(Register.COMMAND_BUFFER_BASE, hardware.queue.ring | RING_BITS)
    hardware.write(Register.COMMAND_HEAD, 0)
    hardware.write(Register.COMMAND_TAIL, 0)
    hardware.enable(CMD_BUF_EN.mask)
    hardware.write(Register.EVENT_LOG_BASE, hardware.events | RING_BITS)
    hardware.write(Register.EVENT_HEAD, 0)
    hardware.write(Register.EVENT_TAIL, 0)
    hardware.enable(EVENT_LOG_EN.mask)
    hardware.enable(COHERENT.mask | (GT_EN.mask if GT_SUP.get(iommu.efr) else 0))
    hardware.enable(EVENT_INT_EN.mask)
    hardware.enable(IOMMU_EN.mask)
    hardware.queue.send((INVALIDATE_ALL,) if IA_SUP.get(iommu.efr) else _one_by_one(table.entries))
    state.hardware = hardware


def _device_table(bus: Bus, entries: int) -> DeviceTable:
    """A device table, all blocked, in pages whose number is a power of two (``tbl_size``)."""
    bytes_needed = max(entries * DTE_SIZE, PAGE)
    size = 1 << (bytes_needed - 1).bit_length()
    table = DeviceTable(bus, bus.memory.pages.alloc(size), size // DTE_SIZE)
    table.clear()
    return table


def _one_by_one(devices: int) -> Iterator[tuple[int, int]]:
    """Invalidate everything without IASup (``amd_iommu_flush_dte_all``, ``amd_iommu_flush_tlb_all``)."""
    for device in range(devices):
        yield invalidate_entry(device)
    for domain in range(MAX_DOMAINS):
        yield invalidate_pages(domain, 0, EVERYTHING)


# ---- faults ----------------------------------------------------------------------------------------------------------


def take_events(hardware: Running) -> Sequence[Fault]:
    """Read the event log up to its tail, and restart it if it has overflowed (``amd_iommu_restart_event_logging``)."""
    faults = []
    memory = hardware.bus.memory
    head, tail = hardware.read(Register.EVENT_HEAD), hardware.read(Register.EVENT_TAIL)
    while head != tail:
        address = hardware.events + head
        fault = _fault(memory.word(address), memory.word(address + 8))
        if fault is not None:
            faults.append(fault)
        memory.set_word(address, 0)
        memory.set_word(address + 8, 0)
        head = head + RING_ENTRY & RING_BYTES - 1
    hardware.write(Register.EVENT_HEAD, head)
    status = hardware.read(Register.STATUS)
    hardware.write(Register.STATUS, status & (EVENT_LOG_INT.mask | EVENT_OVERFLOW.mask))
    if status & EVENT_OVERFLOW.mask:
        hardware.disable(EVENT_LOG_EN.mask)
        hardware.enable(EVENT_LOG_EN.mask)
    return faults


_OTHER_KINDS = {
    Event.ILLEGAL_DEV_TABLE_ENTRY: FaultKind.BAD_ENTRY,
    Event.DEV_TAB_HARDWARE_ERROR: FaultKind.BAD_ENTRY,
    Event.PAGE_TAB_HARDWARE_ERROR: FaultKind.BAD_TABLE,
}


def _fault(first: int, second: int) -> Fault | None:
    """An event as a fault; ``None`` for one that no device is to blame for.

    The specification defines RW only for what is present; hardware sets it for all requests, as logs show.
    """
    code = EVENT_CODE.get(first)
    if code == Event.IO_PAGE_FAULT:
        kind = _kind_of_page_fault(first)
    elif code in _OTHER_KINDS:
        kind = _OTHER_KINDS[Event(code)]
    else:
        return None
    return Fault(kind, EVENT_DEVICE.get(first), second, bool(first & EVENT_RW.mask), code)


def _kind_of_page_fault(first: int) -> FaultKind:
    """The driver gives no domain the id 0: a request under it was blocked by the device's entry."""
    if first & EVENT_PR.mask:
        return FaultKind.PERMISSION if first & EVENT_PE.mask else FaultKind.BAD_TABLE
    blocked = not first & EVENT_GN.mask and not EVENT_DOMAIN.get(first)
    return FaultKind.BLOCKED if blocked else FaultKind.NOT_MAPPED
