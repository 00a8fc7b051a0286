"""Fault recording (VT-d specification 7.2, 11.4.7): the records at CAP.FRO, FSTS and FECTL."""

from __future__ import annotations

from dataclasses import dataclass

from iommukit_intel_vtd.layout import (
    FECTL_IM,
    FECTL_IP,
    FRCD_F,
    FRCD_PASID,
    FRCD_PP,
    FRCD_READ,
    FRCD_REASON,
    FSTS_CLEARED_BY_ONE,
    FSTS_FRI,
    PAGE,
    Fsts,
    Reason,
)


@dataclass(slots=True)
class _Record:
    low: int = 0
    high: int = 0


class FaultLog:
    """``count`` records, which fill in order and are emptied by software."""

    def __init__(self, count: int) -> None:
        self._records = [_Record() for _ in range(count)]
        self._next = 0
        self._status = 0
        self._first = 0
        self.control = FECTL_IM
        """FECTL as read; masked after a reset."""

    # ---- the unit's side ---------------------------------------------------------------------------------------------

    @property
    def overflowed(self) -> bool:
        """A fault was lost (PFO); none is recorded until software clears that."""
        return bool(self._status & Fsts.PFO)

    @property
    def queue_error(self) -> bool:
        """The invalidation queue has stopped (IQE)."""
        return bool(self._status & Fsts.IQE)

    def record(self, reason: Reason, requester: int, address: int, *, write: bool, pasid: int | None) -> None:
        """Record a fault, unless one is lost already or the requester has one pending: those fall together (7.2.1)."""
        if self._status & Fsts.PFO:
            return
        if any(record.high & FRCD_F and record.high & 0xFFFF == requester for record in self._records):
            return
        record = self._records[self._next]
        if record.high & FRCD_F:
            self._raise(Fsts.PFO)
            return
        record.low = address & -PAGE
        record.high = FRCD_F | (0 if write else FRCD_READ) | reason << FRCD_REASON | requester
        if pasid is not None:
            record.high |= FRCD_PP | pasid << FRCD_PASID
        if not self.pending:
            self._first = self._next
        self._next = (self._next + 1) % len(self._records)
        self._raise(Fsts.PPF)

    def set_queue_error(self) -> None:
        """The invalidation queue has met a descriptor that it cannot do."""
        self._raise(Fsts.IQE)

    def _raise(self, status: int) -> None:
        self._status |= status & FSTS_CLEARED_BY_ONE
        if self.control & FECTL_IM:
            self.control |= FECTL_IP

    # ---- software's side ---------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """A record is filled (PPF)."""
        return any(record.high & FRCD_F for record in self._records)

    @property
    def status(self) -> int:
        """FSTS as read."""
        return self._status | (Fsts.PPF | self._first << FSTS_FRI if self.pending else 0)

    def clear_status(self, ones: int) -> None:
        """A write of FSTS: ones clear."""
        self._status &= ~(ones & FSTS_CLEARED_BY_ONE)
        self._settle()

    def set_control(self, value: int) -> None:
        """A write of FECTL: unmasking lets the interrupt go."""
        self.control = value & FECTL_IM | (self.control & FECTL_IP if value & FECTL_IM else 0)

    def read(self, offset: int) -> int:
        """The 64-bit word at an offset into the records (bytes)."""
        record = self._records[offset // 16]
        return record.high if offset & 8 else record.low

    def write(self, offset: int, value: int) -> None:
        """Write the 64-bit word at an offset into the records: F is cleared by a one, the rest is read-only."""
        if offset & 8 and value & FRCD_F:
            self._records[offset // 16].high &= ~FRCD_F
            while self.pending and not self._records[self._first].high & FRCD_F:
                self._first = (self._first + 1) % len(self._records)
            self._settle()

    def _settle(self) -> None:
        """Without a reason for it no interrupt stays pending."""
        if not self._status and not self.pending:
            self.control &= ~FECTL_IP
