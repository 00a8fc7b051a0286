"""One remapping unit, as its registers and its answers to devices show it (VT-d specification 11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit_intel_vtd.capabilities import DT, ESRTPS, FRO, IR, IRO, NFR, PDS, PHMR, PLMR, QI, SMTS, Capabilities
from iommukit_intel_vtd.layout import (
    CCMD_CAIG,
    CCMD_CIRG,
    CCMD_ICC,
    IOTLB_DID,
    IOTLB_IAIG,
    IOTLB_IIRG,
    IOTLB_IVT,
    PAGE,
    RECORD,
    Descriptor,
    Gcmd,
    Reg,
)
from iommukit_intel_vtd.model.faultlog import FaultLog
from iommukit_intel_vtd.model.queue import BAD_RESERVED, BadDescriptor, InvalidationQueue, Words
from iommukit_intel_vtd.model.remapper import BadRequest, Remapper

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory

EPM, PRS = 1 << 31, 1
"""PMEN: protect the regions; they are protected."""
REGION_GRAIN = 0x1F_FFFF
WIDEST_ADDRESS = 52
WIDE = frozenset({Reg.CAP, Reg.ECAP, Reg.IQH, Reg.IQT, Reg.IQERCD})
"""Read-only registers of 64 bits, whose halves can be read."""


class VtdUnit:
    """A unit in its state after a reset: it translates nothing, and lets everything through.

    ``address_bits`` is the host address width, of which entries hold 52 at most; ``registers`` is how much of them lies at the
    unit's base (bytes).
    """

    def __init__(self, memory: PhysicalMemory, words: Capabilities, address_bits: int) -> None:
        self._words = words
        self._implemented = (1 << min(address_bits, WIDEST_ADDRESS)) - 1
        """Bits of RTADDR and IQA that there are: those from the host address width on are ignored (11.4.5, 11.4.9.3)."""
        self.faults = FaultLog(words.get(NFR) + 1)
        self.remapper = Remapper(memory, words, min(address_bits, WIDEST_ADDRESS), self.faults)
        self.queue = InvalidationQueue(
            memory, self._actions(), words.has(PDS), self.faults.set_queue_error, lambda: self.faults.queue_error
        )
        self._status = 0
        """GSTS."""
        self._records = words.get(FRO) * 16
        self._records_end = self._records + RECORD * (words.get(NFR) + 1)
        self._iva = words.get(IRO) * 16
        self.registers = max(PAGE, self._records_end, self._iva + 16)
        self._written: dict[int, int] = {}
        """What was written, by offset, in halves of 32 bits."""
        self._writers: dict[int, Callable[[int], None]] = {
            Reg.GCMD: self._command,
            Reg.CCMD + 4: self._context_command,
            Reg.FSTS: self._clear_status,
            Reg.FECTL: self.faults.set_control,
            Reg.IQT: self.queue.ring,
            Reg.ICS: self.queue.completion.clear,
            Reg.IECTL: self.queue.completion.set_control,
            Reg.IQA: self._place_queue,
            Reg.IQA + 4: self._place_queue,
            self._iva + 12: self._iotlb_command,
        }
        self._readers: dict[int, Callable[[], int]] = {
            Reg.VER: lambda: words.version[0] << 4 | words.version[1],
            Reg.CAP: lambda: words.cap,
            Reg.ECAP: lambda: words.ecap,
            Reg.GCMD: lambda: 0,
            Reg.GSTS: lambda: self._status,
            Reg.FSTS: lambda: self.faults.status,
            Reg.FECTL: lambda: self.faults.control,
            Reg.PMEN: lambda: self._written.get(Reg.PMEN, 0) & EPM | self._protecting,
            Reg.IQH: lambda: self.queue.head,
            Reg.IQT: lambda: self.queue.tail,
            Reg.ICS: lambda: self.queue.completion.status,
            Reg.IECTL: lambda: self.queue.completion.control,
            Reg.IQERCD: lambda: self.queue.error,
        }

    def _actions(self) -> dict[Descriptor, Callable[[Words], None]]:
        """What the queue's descriptors do; those of capabilities that the unit lacks are bad."""

        def nothing(descriptor: Words) -> None:
            """There are no caches of interrupt entries and no device TLBs."""

        actions: dict[Descriptor, Callable[[Words], None]] = {
            Descriptor.CONTEXT: self._context_descriptor,
            Descriptor.IOTLB: self._iotlb_descriptor,
            Descriptor.WAIT: lambda descriptor: self.queue.wait(descriptor),
        }
        if self._words.has(IR):
            actions[Descriptor.INTERRUPT_ENTRY] = nothing
        if self._words.has(DT):
            actions[Descriptor.DEVICE_TLB] = nothing
        if self._words.has(SMTS):
            actions[Descriptor.PASID_IOTLB] = self._pasid_iotlb_descriptor
            actions[Descriptor.PASID_CACHE] = self._pasid_cache_descriptor
            if self._words.has(DT):
                actions[Descriptor.PASID_DEVICE_TLB] = nothing
        return actions

    # ---- registers ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register; half of a 64-bit one is read at its own offset."""
        start = offset & -8
        if self._records <= start < self._records_end:
            value = self.faults.read(start - self._records)
        elif offset in self._readers:
            value, start = self._readers[offset](), offset
        elif start in self._readers and start in WIDE:
            value = self._readers[start]()
        else:
            value, start = self._written.get(offset, 0) | self._written.get(offset + 4, 0) << 32, offset
        return value >> 8 * (offset - start) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; what it sets off is done on return."""
        if self._records <= offset < self._records_end:
            at = offset - self._records
            self.faults.write(at & -8, value << 8 * (at & 7))
            return
        halves = [(offset, value & 0xFFFF_FFFF)]
        if size == 8:
            halves.append((offset + 4, value >> 32))
        for at, half in halves:
            self._written[at] = half
        for at, half in halves:
            writer = self._writers.get(at)
            if writer is not None:
                writer(half)

    def _wide(self, offset: int) -> int:
        return self._written.get(offset, 0) | self._written.get(offset + 4, 0) << 32

    def _set_wide(self, offset: int, value: int) -> None:
        self._written[offset], self._written[offset + 4] = value & 0xFFFF_FFFF, value >> 32

    def _command(self, value: int) -> None:
        """Global command (11.4.4): states that are kept, and SRTP, which takes up RTADDR."""
        kept = Gcmd.TE | Gcmd.QIE if self._words.has(QI) else Gcmd.TE
        if self._words.has(IR):
            kept |= Gcmd.IRE | Gcmd.CFI
        if value & Gcmd.SRTP:
            self.remapper.root = self._wide(Reg.RTADDR) & self._implemented
            if self._words.has(ESRTPS):
                self.remapper.forget_everything()
        done = self._status & (Gcmd.SRTP | Gcmd.SIRTP) | value & (Gcmd.SRTP | Gcmd.SIRTP)
        self._status = value & kept | done
        self.queue.enable(bool(self._status & Gcmd.QIE))

    def _clear_status(self, value: int) -> None:
        self.faults.clear_status(value)
        self.queue.run()  # the queue goes on once IQE is cleared

    def _place_queue(self, _: int) -> None:
        self.queue.address = self._wide(Reg.IQA) & self._implemented

    def _context_command(self, _: int) -> None:
        """Context command (11.4.6.1); refused, by an actual granularity of 0, while the queue is in use."""
        command = self._wide(Reg.CCMD)
        if not command & CCMD_ICC:
            return
        asked = command >> CCMD_CIRG & 3
        done = 0
        if not self._status & Gcmd.QIE and asked:
            self.remapper.invalidate_contexts(asked, command & 0xFFFF, command >> 16 & 0xFFFF, command >> 32 & 3)
            done = asked
        self._set_wide(Reg.CCMD, command & ~(CCMD_ICC | 3 << CCMD_CAIG) | done << CCMD_CAIG)

    def _iotlb_command(self, _: int) -> None:
        """IOTLB invalidate (11.4.6.2, 11.4.6.3), as above."""
        command, address = self._wide(self._iva + 8), self._wide(self._iva)
        if not command & IOTLB_IVT:
            return
        asked, done = command >> IOTLB_IIRG & 3, 0
        if not self._status & Gcmd.QIE and asked:
            done = asked
            try:
                self.remapper.invalidate_iotlb(asked, command >> IOTLB_DID & 0xFFFF, address)
            except BadRequest:
                done = 0
        self._set_wide(self._iva + 8, command & ~(IOTLB_IVT | 3 << IOTLB_IAIG) | done << IOTLB_IAIG)

    # ---- the queue's descriptors -------------------------------------------------------------------------------------

    def _obey(self, invalidate: Callable[..., None], *arguments: int) -> None:
        try:
            invalidate(*arguments)
        except BadRequest as error:
            raise BadDescriptor(BAD_RESERVED) from error

    def _context_descriptor(self, descriptor: Words) -> None:
        low = descriptor[0]
        self._obey(self.remapper.invalidate_contexts, low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFF, low >> 48 & 3)

    def _iotlb_descriptor(self, descriptor: Words) -> None:
        low, high = descriptor
        self._obey(self.remapper.invalidate_iotlb, low >> 4 & 3, low >> 16 & 0xFFFF, high)

    def _pasid_iotlb_descriptor(self, descriptor: Words) -> None:
        low, high = descriptor
        self._obey(self.remapper.invalidate_pasid_iotlb, low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFFF, high)

    def _pasid_cache_descriptor(self, descriptor: Words) -> None:
        low = descriptor[0]
        self._obey(self.remapper.invalidate_pasids, low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFFF)

    # ---- requests ----------------------------------------------------------------------------------------------------

    @property
    def _protecting(self) -> int:
        """PMEN.PRS: protected memory is protected."""
        offered = self._words.has(PLMR) or self._words.has(PHMR)
        return PRS if offered and self._written.get(Reg.PMEN, 0) & EPM else 0

    def _protected(self, address: int) -> bool:
        """Whether an address lies in protected memory (11.4.8)."""
        if not self._protecting:
            return False
        low = self._written.get(Reg.PLMBASE, 0), self._written.get(Reg.PLMLIMIT, 0) | REGION_GRAIN
        high = self._wide(Reg.PHMBASE), self._wide(Reg.PHMLIMIT) | REGION_GRAIN
        in_low = self._words.has(PLMR) and low[0] <= address <= low[1]
        return in_low or (self._words.has(PHMR) and high[0] <= address <= high[1])

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """Where a request goes; ``None`` where it reaches no memory."""
        if self._status & Gcmd.TE:
            return self.remapper.translate(requester, iova, write, pasid)
        return None if self._protected(iova) else iova

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """Where requests that are made together go; ``UNMAPPED`` where one reaches no memory."""
        if self._status & Gcmd.TE:
            return self.remapper.translate_many(requester, iovas, write, pasid)
        found = iovas.copy()
        if self._protecting:
            found[[self._protected(iova) for iova in iovas.tolist()]] = UNMAPPED
        return found
