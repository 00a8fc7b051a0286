"""What becomes of requests, and what a unit remembers of earlier ones (VT-d specification 3.14, 6.2, 6.5).

The context and PASID caches, the IOTLB and the paging-structure caches keep all that they may keep, until they are told to forget
it or run out of room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit.hw.tlb import LAST, Tlb
from iommukit_intel_vtd.capabilities import CM, MAMV, MGAW, PSI, Capabilities
from iommukit_intel_vtd.layout import (
    IH,
    INTERRUPT_WINDOW,
    PAGE,
    PAGE_BITS,
    Granularity,
    PasidGranularity,
    PasidIotlbGranularity,
    Reason,
)
from iommukit_intel_vtd.model.contexts import ContextCache, DeviceTables, Route, Use, tag_of
from iommukit_intel_vtd.model.faultlog import FaultLog
from iommukit_intel_vtd.model.translation import Translator
from iommukit_intel_vtd.model.walker import DIRTY, READ, WRITE, Stages, Stopped

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory

CAPACITY = 4096
"""Translations in the IOTLB, and upper entries in the paging-structure caches."""
FIRST_INTERRUPT, LAST_INTERRUPT = INTERRUPT_WINDOW


class BadRequest(Exception):
    """An invalidation that the unit cannot carry out."""


class Remapper:
    """The translating part of a unit; ``root`` is RTADDR as it was when SRTP was written."""

    def __init__(self, memory: PhysicalMemory, words: Capabilities, address_bits: int, faults: FaultLog) -> None:
        self.root = 0
        self._faults = faults
        self._entries = DeviceTables(memory, words, address_bits)
        self._stages = Stages(words, address_bits)
        self._translator = Translator(memory, self._stages, CAPACITY)
        self._contexts = ContextCache(words.has(CM))
        self._iotlb = Tlb(CAPACITY)
        self._tags: dict[int, set[int]] = {}
        """Which tags a domain has."""
        self._caching_mode = words.has(CM)
        self._page_selective = words.has(PSI)
        self._largest_mask = words.get(MAMV)
        self._limit = 1 << words.get(MGAW) + 1

    # ---- invalidation ------------------------------------------------------------------------------------------------

    def forget_everything(self) -> None:
        """Empty all caches."""
        self._contexts.clear()
        self.invalidate_iotlb(Granularity.GLOBAL)

    def _forget(self, tag: int, first: int = 0, last: int = LAST, *, leaves_only: bool = False) -> None:
        self._iotlb.invalidate(tag, first, last)
        if not leaves_only:
            self._translator.structures.invalidate(tag, first, last)

    def invalidate_contexts(self, granularity: int, domain: int = 0, requester: int = 0, mask: int = 0) -> None:
        """Context-cache invalidation (6.5.2.1).  Raises ``BadRequest``."""
        match granularity:
            case Granularity.GLOBAL:
                self._contexts.clear()
            case Granularity.DOMAIN:
                self._contexts.forget_domain(domain)
            case Granularity.SELECTIVE:
                self._contexts.forget_devices(domain, requester, mask)
            case _:
                raise BadRequest

    def invalidate_iotlb(self, granularity: int, domain: int = 0, address: int = 0) -> None:
        """IOTLB invalidation (6.5.2.3): all, a domain, or second-stage pages of a domain.

        ``address`` holds the address mask (AM) and the invalidation hint (IH) too.  Raises ``BadRequest``.
        """
        match granularity:
            case Granularity.GLOBAL:
                self._iotlb.clear()
                self._translator.structures.clear()
            case Granularity.SELECTIVE if self._page_selective:
                first, last = self._range(address)
                self._forget(tag_of(domain), first, last, leaves_only=bool(address & IH))
            case Granularity.DOMAIN | Granularity.SELECTIVE:
                for tag in self._tags.get(domain, ()):
                    self._forget(tag)
            case _:
                raise BadRequest

    def _range(self, address: int) -> tuple[int, int]:
        """The bytes that an address with its mask (AM) stands for."""
        mask = address & 0x3F
        if mask > self._largest_mask:
            raise BadRequest
        size = PAGE << mask
        first = address & -PAGE & -size
        return first, first + size - 1

    def invalidate_pasid_iotlb(self, granularity: int, domain: int, pasid: int, address: int) -> None:
        """PASID-based IOTLB invalidation (6.5.2.4): first-stage translations of a PASID, or pages of it.  Raises ``BadRequest``."""
        tag = tag_of(domain, pasid)
        match granularity:
            case PasidIotlbGranularity.PASID:
                self._forget(tag)
            case PasidIotlbGranularity.PAGES:
                first, last = self._range(address)
                self._forget(tag, first, last, leaves_only=bool(address & IH))
            case _:
                raise BadRequest

    def invalidate_pasids(self, granularity: int, domain: int, pasid: int) -> None:
        """PASID-cache invalidation (6.5.2.2).  Raises ``BadRequest``."""
        match granularity:
            case PasidGranularity.GLOBAL:
                self._contexts.forget_pasids()
            case PasidGranularity.DOMAIN:
                self._contexts.forget_pasid(domain, None)
            case PasidGranularity.PASID:
                self._contexts.forget_pasid(domain, pasid)
            case _:
                raise BadRequest

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _route(self, requester: int, pasid: int | None) -> Route:
        """What the requester's entries say, from the caches or from memory."""
        route = self._contexts.get(requester, pasid)
        if route is None:
            route = self._entries.route(self.root, requester, pasid)
            self._contexts.keep(requester, pasid, route)
            self._tags.setdefault(route.domain, set()).add(route.tag)
        return route

    def _keeps_absent(self, route: Route) -> bool:
        """Whether absent and bad page-table entries are remembered: with caching mode those of the second stage (6.1)."""
        return self._caching_mode and route.use is Use.SECOND

    def _outside(self, route: Route, iova: int) -> Reason | None:
        """Why an address cannot be translated at all: not canonical, or beyond the tables or the unit (3.6, 3.7)."""
        bits = PAGE_BITS + 9 * route.levels
        if route.use is Use.FIRST:
            return None if iova >> bits - 1 in (0, (1 << 65 - bits) - 1) else Reason.FS_NOT_CANONICAL
        if iova < min(1 << bits, self._limit):
            return None
        return Reason.BEYOND_WIDTH if route.legacy else Reason.SM_BEYOND_WIDTH

    def _stop(self, route: Route, reason: int, requester: int, iova: int, write: bool, pasid: int | None) -> None:
        if not route.quiet:
            self._faults.record(Reason(reason), requester, iova, write=write, pasid=pasid)

    def translate(self, requester: int, iova: int, write: bool, pasid: int | None) -> int | None:
        """Where a request goes; ``None`` where it reaches no memory: it is stopped, or is an interrupt.

        Requests without a PASID to the interrupt window are never translated (3.14).
        """
        window = FIRST_INTERRUPT <= iova <= LAST_INTERRUPT
        if window and pasid is None:
            return None
        route = self._route(requester, pasid)
        reason: int | None = route.reason
        if route.use is Use.PASS:
            if not window:
                return iova
            reason = Reason.SM_INTERRUPT_RANGE
        elif route.use is not Use.STOP:
            hit = self._iotlb.lookup(route.tag, iova)
            if hit is not None:
                physical, allowed = hit
                if allowed & (WRITE if write else READ):
                    if not write or allowed & DIRTY:
                        return physical
                else:
                    # What is kept decides, whatever the tables say by now; an absent entry is kept with its reason.
                    reason = self._stages.of(route).refused[write] if allowed else physical >> PAGE_BITS
            if reason is None:
                reason = self._outside(route, iova)
            if reason is None:
                try:
                    physical, allowed, shift = self._translator.walk(route, iova, write)
                except Stopped as stopped:
                    reason = stopped.reason
                    if self._keeps_absent(route) and stopped.absent:
                        self._iotlb.insert(route.tag, iova & -PAGE, PAGE_BITS, reason << PAGE_BITS, 0)
                else:
                    if not FIRST_INTERRUPT <= physical <= LAST_INTERRUPT:
                        size = 1 << shift
                        self._iotlb.insert(route.tag, iova & -size, shift, physical & -size, allowed)
                        return physical
                    reason = _interrupt_reason(route)
        assert reason is not None
        self._stop(route, reason, requester, iova, write, pasid)
        return None

    def translate_many(self, requester: int, iovas: Addresses, write: bool, pasid: int | None) -> Addresses:
        """Where requests that are made together go; ``UNMAPPED`` where one reaches no memory."""
        route = self._route(requester, pasid)
        windows = pasid is not None and route.use is Use.FIRST
        inside = np.flatnonzero(_interrupts(iovas)) if not windows else np.empty(0, dtype=np.int64)
        if route.use is Use.PASS and not len(inside):
            return iovas.copy()
        if route.use in (Use.PASS, Use.STOP) or (len(inside) and pasid is not None):
            return self._one_by_one(requester, iovas, write, pasid)
        hits, physical, allowed = self._iotlb.lookup_many(route.tag, iovas)
        needed = np.uint8(WRITE if write else READ)
        refused = hits & (allowed & needed == 0)
        missed = ~hits
        if write:
            missed |= hits & (allowed & np.uint8(DIRTY) == 0) & ~refused
        bits = PAGE_BITS + 9 * route.levels
        if route.use is Use.FIRST:
            top = iovas >> np.uint64(bits - 1)
            outside = (top != 0) & (top != np.uint64((1 << 65 - bits) - 1))
        else:
            outside = iovas >= np.uint64(min(1 << bits, self._limit, LAST))
        reasons = np.zeros(len(iovas), dtype=np.uint8)
        if refused.any():
            kept = np.where(allowed[refused] != 0, self._stages.of(route).refused[write], physical[refused] >> np.uint64(PAGE_BITS))
            reasons[refused] = kept.astype(np.uint8)
        if outside.any():
            reason = Reason.FS_NOT_CANONICAL if route.use is Use.FIRST else self._outside(route, LAST)
            assert reason is not None
            reasons[outside & missed] = reason
            missed &= ~outside
        missed[inside] = False
        which = np.flatnonzero(missed)
        if len(which):
            self._walk_many(route, iovas, which, write, physical, reasons)
        physical[reasons != 0] = UNMAPPED
        physical[inside] = UNMAPPED
        reasons[inside] = 0
        if reasons.any():
            stopped = int(np.flatnonzero(reasons)[0])
            # All come from one requester, so that the others would fall together with the first.
            self._stop(route, int(reasons[stopped]), requester, int(iovas[stopped]), write, pasid)
        return physical

    def _walk_many(
        self, route: Route, iovas: Addresses, which: NDArray[np.int64], write: bool, physical: Addresses, reasons: NDArray[np.uint8]
    ) -> None:
        """Walk the tables for some of the addresses, and keep what was found."""
        wanted = iovas if len(which) == len(iovas) else iovas[which]
        answers = self._translator.walk_many(route, wanted, write)
        physical[which] = answers.physical
        good = answers.reasons == 0
        interrupts = _interrupts(answers.physical) & good
        if interrupts.any():
            answers.reasons[interrupts] = _interrupt_reason(route)
            good &= ~interrupts
        reasons[which] = answers.reasons
        for shift in np.unique(answers.shifts[good]).tolist():
            some = good & (answers.shifts == shift)
            pages = np.uint64((1 << 64) - (1 << shift))
            self._iotlb.insert_many(
                route.tag, shift, wanted[some] & pages, answers.physical[some] & pages, answers.permissions[some]
            )
        absent = answers.absent != 0
        if self._keeps_absent(route) and absent.any():
            kept = answers.reasons[absent].astype(np.uint64) << np.uint64(PAGE_BITS)
            pages = wanted[absent] & np.uint64((1 << 64) - PAGE)
            self._iotlb.insert_many(route.tag, PAGE_BITS, pages, kept, np.zeros(len(kept), dtype=np.uint8))

    def _one_by_one(self, requester: int, iovas: Addresses, write: bool, pasid: int | None) -> Addresses:
        found = (self.translate(requester, iova, write, pasid) for iova in iovas.tolist())
        return np.fromiter((int(UNMAPPED) if at is None else at for at in found), dtype=np.uint64, count=len(iovas))


def _interrupts(addresses: Addresses) -> NDArray[np.bool_]:
    """Which addresses lie in the interrupt window."""
    found: NDArray[np.bool_] = addresses >> np.uint64(20) == np.uint64(FIRST_INTERRUPT >> 20)
    return found


def _interrupt_reason(route: Route) -> Reason:
    """For a translation that leads to the interrupt window."""
    return Reason.INTERRUPT_RANGE if route.legacy else Reason.SM_INTERRUPT_RANGE
