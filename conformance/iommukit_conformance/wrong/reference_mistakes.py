"""Mistakes in using the reference's own hardware, as a vendor would give them: wrappers that change what its driver writes."""

from __future__ import annotations

from typing import Any

from iommukit.device import Unit
from iommukit.hookspecs import Mistake, hookimpl
from iommukit_conformance import reference_layout as layout
from iommukit_conformance.reference_tables import Control, ReferenceDomain
from iommukit_conformance.wrong.slips import Wrapper


class Miswritten:
    """A driver whose unit is controlled by somebody else."""

    control: type[Control]

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Wrapper:
        """Replace what controls the unit."""
        answer = yield
        right: Control = unit.state.control
        unit.state.control = self.control(right.bus, right.devices, right.queue)
        return answer


class _NeverRings(Control):
    def _command(self, code: int, number: int, size: int = 0, address: int = 0) -> None:
        bus, self.bus = self.bus, _Mute(self.bus)
        super()._command(code, number, size, address)
        self.bus = bus


class _Mute:
    """A bus on which nobody hears writes."""

    def __init__(self, bus: Any) -> None:
        self.memory, self.clock, self.instructions, self.read = bus.memory, bus.clock, bus.instructions, bus.read

    def write(self, address: int, size: int, value: int) -> None:
        """Lost."""


class NeverRings(Miswritten):
    """A command is in the queue, and that is all."""

    control = _NeverRings


class _StaleEntry(Control):
    def set_entry(self, requester: int, entry: int) -> None:
        self.bus.memory.set_word(self.devices + 8 * requester, entry)


class StaleEntry(Miswritten):
    """The device table is memory."""

    control = _StaleEntry


class _OtherDomain(Control):
    def forget_pages(self, domain: ReferenceDomain, start: int, end: int) -> None:
        size = max(layout.PAGE_SHIFT, (start ^ end).bit_length())
        self._command(layout.FORGET_PAGES, domain.number + 1, size, start)


class OtherDomain(Miswritten):
    """Off by one."""

    control = _OtherDomain


class _BlockTooSmall(Control):
    def forget_pages(self, domain: ReferenceDomain, start: int, end: int) -> None:
        # The length's logarithm is enough for an aligned range only.
        size = max(layout.PAGE_SHIFT, (end - start).bit_length())
        self._command(layout.FORGET_PAGES, domain.number, size, start)


class BlockTooSmall(Miswritten):
    """As long as the range, aligned or not."""

    control = _BlockTooSmall


class _NumbersStayCached(Control):
    def strip(self, domain: ReferenceDomain) -> None:
        self.forget_domain = lambda domain: None  # type: ignore[method-assign]
        super().strip(domain)
        del self.forget_domain


class NumbersStayCached(Miswritten):
    """Whoever gets the number next will see."""

    control = _NumbersStayCached


class AbsentStaysAbsent:
    """Real units do not need it."""

    @hookimpl(tryfirst=True)
    def iotlb_sync_map(self) -> bool:
        """The emulated unit goes on believing that there is nothing."""
        return True


MISTAKES: tuple[Mistake, ...] = (
    Mistake("reference-never-rings", "It puts commands into the queue and does not write the doorbell.", "TLB-01", NeverRings),
    Mistake("reference-stale-entry", "It changes a device's entry without telling the unit.", "ATTACH-06", StaleEntry),
    Mistake("reference-other-domain", "It invalidates pages of the domain with the next number.", "TLB-01", OtherDomain),
    Mistake("reference-block-too-small", "It invalidates a block as long as the range, aligned or not.", "TLB-03", BlockTooSmall),
    Mistake("reference-numbers-stay-cached", "It gives a domain's number back while it is cached.", "TLB-17", NumbersStayCached),
    Mistake("reference-absent-stays-absent", "It does not tell an emulated unit of new mappings.", "TLB-13", AbsentStaysAbsent),
)
"""All of them."""
