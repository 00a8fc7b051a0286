"""Mistakes in using hardware that every driver can make, as hook wrappers around a right one.

A slip stands between the core and the driver: it lets a call pass, changes what follows, or answers in the driver's place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import Gather, Mistake, hookimpl
from iommukit.hw.bus import Bus
from iommukit.hw.fault import Fault
from iommukit.hw.platform import UNMAPPED, Addresses

Wrapper = Generator[None, Any, Any]
DONE = True
"""The answer of a hook that answers nothing: the driver is then not asked."""


class Slip:
    """A mistake; ``committed`` counts how often it has come about, which some drivers give no occasion for."""

    def __init__(self) -> None:
        self.committed = 0
        self.bus: Bus | None = None
        self._inside = False

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Wrapper:
        """Remember the hardware."""
        self.bus = unit.bus
        return (yield)

    def free(self, gather: Gather) -> None:
        """Give gathered tables back."""
        assert self.bus is not None
        for address, size in gather.freed:
            self.bus.memory.pages.free(address, size)
        gather.freed.clear()

    def also_map(self, domain: Domain, iova: int, paddr: int, pgsize: int, prot: int) -> bool:
        """Map one more page, so that hardware sees it; whether it was free."""
        page = {"iova": iova, "paddr": paddr, "pgsize": pgsize, "pgcount": 1, "prot": prot}
        try:
            self.again(domain.ops.map_pages, domain=domain, **page)
        except IommuError:
            return False
        self.again(domain.ops.iotlb_sync_map, domain=domain, iova=iova, size=pgsize)
        return True

    def again(self, hook: Callable[..., Any], **arguments: Any) -> Any:
        """Call a hook from within, unharmed."""
        self._inside = True
        try:
            return hook(**arguments)
        finally:
            self._inside = False


# ---- page tables -----------------------------------------------------------------------------------------------------


class ForgetsTheLastPage(Slip):
    """A loop that ends one early."""

    @hookimpl(tryfirst=True)
    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int | None:
        """One page fewer, and the answer for all."""
        if self._inside or pgcount < 2:
            return None
        self.committed += 1
        fewer = pgcount - 1
        done = self.again(domain.ops.unmap_pages, domain=domain, iova=iova, pgsize=pgsize, pgcount=fewer, gather=gather)
        return int(done) + (pgsize if done == fewer * pgsize else 0)


class UnmapsTheNeighbour(Slip):
    """A loop that ends one late."""

    @hookimpl(wrapper=True)
    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> Wrapper:
        """The next page as well."""
        done = yield
        if not self._inside and domain.covers(iova + done, iova + done + pgsize - 1):
            self.committed += 1
            self.again(domain.ops.unmap_pages, domain=domain, iova=iova + done, pgsize=pgsize, pgcount=1, gather=gather)
        return done


class MapsOneMore(Slip):
    """The same when mapping."""

    @hookimpl(wrapper=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> Wrapper:
        """The next page as well, if it is free."""
        done = yield
        if not self._inside:
            self.committed += 1
            self.also_map(domain, iova + done, paddr + done, pgsize, prot)
        return done


class AlwaysWritable(Slip):
    """A bit that is always set."""

    @hookimpl(tryfirst=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int | None:
        """Writing is allowed whatever was asked for."""
        if self._inside or prot & Prot.WRITE:
            return None
        self.committed += 1
        wider = {"iova": iova, "paddr": paddr, "pgsize": pgsize, "pgcount": pgcount, "prot": prot | Prot.WRITE}
        return int(self.again(domain.ops.map_pages, domain=domain, **wider))


class IgnoresTheOffset(Slip):
    """The entry's address, and no more."""

    @hookimpl(wrapper=True)
    def iova_to_phys(self, domain: Domain, iova: Addresses) -> Wrapper:
        """The page's beginning."""
        found = yield
        self.committed += 1
        return np.where(found == UNMAPPED, found, found & ~np.uint64(0xFFF))


class LeavesHalfAMap(Slip):
    """No way back."""

    @hookimpl(wrapper=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> Wrapper:
        """What could be mapped before the refusal stays mapped."""
        try:
            return (yield)
        except IommuError:
            for done in range(0, 0 if self._inside else pgcount * pgsize, pgsize):
                self.committed += 1
                if not self.also_map(domain, iova + done, paddr + done, pgsize, prot):
                    break
            raise


class KeepsWhatItTook(Slip):
    """Half of a table is a table too."""

    @hookimpl(wrapper=True)
    def map_pages(self) -> Wrapper:
        """A table that was made before memory ran out is forgotten."""
        try:
            return (yield)
        except IommuError as error:
            if error.name == "ENOMEM" and self.bus is not None:
                self.committed += 1
                self.bus.memory.pages.alloc(0x1000)
            raise


class ReplacesMappings(Slip):
    """Whoever comes last is right."""

    @hookimpl(wrapper=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> Wrapper:
        """What is in the way is unmapped."""
        try:
            return (yield)
        except IommuError as error:
            if self._inside or error.name != "EEXIST":
                raise
            self.committed += 1
            gather = Gather()
            for done in range(0, pgcount * pgsize, pgsize):
                part = {"iova": iova + done, "pgsize": pgsize, "pgcount": 1, "gather": gather}
                self.again(domain.ops.unmap_pages, domain=domain, **part)
            self.again(domain.ops.iotlb_sync, domain=domain, gather=gather)
            whole = {"iova": iova, "paddr": paddr, "pgsize": pgsize, "pgcount": pgcount, "prot": prot}
            return self.again(domain.ops.map_pages, domain=domain, **whole)


class ForgetsItsTables(Slip):
    """A domain is only an object."""

    @hookimpl(tryfirst=True)
    def domain_free(self, domain: Domain) -> bool:
        """Nothing is given back."""
        self.committed += 1
        return DONE


# ---- invalidation ----------------------------------------------------------------------------------------------------


class NeverSyncs(Slip):
    """It works without."""

    @hookimpl(tryfirst=True)
    def iotlb_sync(self, domain: Domain, gather: Gather) -> bool:
        """The tables are freed, and the hardware is told nothing."""
        self.committed += 1
        self.free(gather)
        return DONE


class SyncsTooEarly(Slip):
    """First the invalidation, then the entries."""

    @hookimpl(wrapper=True)
    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> Wrapper:
        """Nothing is left for ``iotlb_sync``."""
        self.committed += 1
        early = Gather(iova, iova + pgsize * pgcount - 1, pgsize)
        self.again(domain.ops.iotlb_sync, domain=domain, gather=early)
        done = yield
        gather.start, gather.end, gather.pgsize = Gather().start, 0, 0
        self.free(gather)
        return done

    @hookimpl(tryfirst=True)
    def iotlb_sync(self) -> bool | None:
        """It has been done, also for a driver that never looks at what was gathered."""
        return None if self._inside else DONE


class SyncsHalf(Slip):
    """A length in the wrong unit."""

    @hookimpl(wrapper=True)
    def iotlb_sync(self, domain: Domain, gather: Gather) -> Wrapper:
        """The first half of the range."""
        granule = domain.page_sizes & -domain.page_sizes
        if not gather.empty and gather.end + 1 - gather.start >= 2 * granule:
            self.committed += 1
            pages = (gather.end + 1 - gather.start) // granule
            gather.end = gather.start + pages // 2 * granule - 1
        return (yield)


class FlushesNothing(Slip):
    """A queue that only frees."""

    @hookimpl(tryfirst=True)
    def flush_iotlb_all(self, domain: Domain) -> bool:
        """The hardware is told nothing."""
        self.committed += 1
        return DONE


class FreesTablesEarly(Slip):
    """They are empty, after all."""

    @hookimpl(wrapper=True)
    def unmap_pages(self, gather: Gather) -> Wrapper:
        """While hardware may be walking them."""
        done = yield
        self.committed += len(gather.freed)
        self.free(gather)
        return done


class NeverFreesTables(Slip):
    """A list that nobody reads."""

    @hookimpl(wrapper=True)
    def iotlb_sync(self, gather: Gather) -> Wrapper:
        """The list is emptied, the tables are not given back."""
        self.committed += len(gather.freed)
        gather.freed.clear()
        return (yield)


# ---- attachment ------------------------------------------------------------------------------------------------------


class AttachesLater(Slip):
    """Puts the work into a queue, and does not wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: tuple[Domain, Device] | None = None

    def _catch_up(self) -> None:
        if self._waiting is not None:
            domain, device = self._waiting
            self._waiting = None
            self.again(device.system.vendor.ops.attach_dev, domain=domain, device=device)

    @hookimpl(tryfirst=True)
    def attach_dev(self, domain: Domain, device: Device) -> bool | None:
        """Said to be done; the next fault or mapping finds it done."""
        if self._inside:
            return None
        self._catch_up()
        if device.attached is None:
            return None
        self.committed += 1
        self._waiting = domain, device
        device.attached = domain
        return DONE

    @hookimpl(wrapper=True)
    def take_faults(self, unit: Unit) -> Wrapper:
        """By now."""
        self._catch_up()
        return (yield)


class OnlyTheFirstDevice(Slip):
    """A domain that is set up is set up."""

    def __init__(self) -> None:
        super().__init__()
        self._known: list[tuple[Domain, Device]] = []

    @hookimpl(tryfirst=True)
    def attach_dev(self, domain: Domain, device: Device) -> bool | None:
        """Further devices are taken for attached."""
        if any(known is domain and user is not device for known, user in self._known):
            self.committed += 1
            device.attached = domain
            return DONE
        self._known.append((domain, device))
        return None


class BlocksOnPaper(Slip):
    """Nobody will try."""

    @hookimpl(tryfirst=True)
    def attach_dev(self, domain: Domain, device: Device) -> bool | None:
        """The device's entry stays what it was."""
        if domain.type is not DomainType.BLOCKED:
            return None
        self.committed += 1
        device.attached = domain
        return DONE


class LetsTheReleasedGoOn(BlocksOnPaper):
    """It is gone, after all."""

    @hookimpl(tryfirst=True)
    def release_device(self, device: Device) -> bool:
        """The entry stays."""
        self.committed += 1
        device.attached = None
        return DONE

    @hookimpl(tryfirst=True)
    def set_dev_blocked(self, device: Device) -> bool:
        """And here."""
        device.attached = None
        return True


class MapsDirectRegionsLate(Slip):
    """Maps when somebody is attached."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[Domain, dict[str, int]]] = []
        self._used: list[Domain] = []

    @hookimpl(tryfirst=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int | None:
        """Into a domain that nobody is in: later."""
        if self._inside or domain in self._used:
            return None
        self.committed += 1
        self._waiting.append((domain, {"iova": iova, "paddr": paddr, "pgsize": pgsize, "pgcount": pgcount, "prot": prot}))
        return pgcount * pgsize

    @hookimpl(wrapper=True)
    def attach_dev(self, domain: Domain) -> Wrapper:
        """Somebody comes."""
        answer = yield
        self._used.append(domain)
        return answer

    @hookimpl(wrapper=True)
    def probe_finalize(self) -> Wrapper:
        """Now is the time."""
        waiting, self._waiting = self._waiting, []
        for domain, arguments in waiting:
            self.again(domain.ops.map_pages, domain=domain, **arguments)
        return (yield)


class NeverReadsFaults(Slip):
    """Nobody looks at the log anyway."""

    @hookimpl(tryfirst=True)
    def take_faults(self, unit: Unit) -> Sequence[Fault]:
        """None."""
        self.committed += 1
        return ()


ONLY_MODEL = "between two steps of a switch only the model can be looked at"


def _slip(rule: str, kind: type[Slip], sentence: str, unseen: str = "") -> Mistake:
    name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).lstrip("-")
    return Mistake(name, sentence, rule, kind, unseen)


SLIPS: tuple[Mistake, ...] = (
    _slip("PT-04", ForgetsTheLastPage, "It leaves the last page of a range mapped, and says that it is gone."),
    _slip("PT-08", UnmapsTheNeighbour, "It unmaps the page behind a range as well."),
    _slip("PT-03", MapsOneMore, "It maps the page behind a range as well."),
    _slip("PT-10", AlwaysWritable, "It lets devices write where only reading was asked for."),
    _slip("PT-02", IgnoresTheOffset, "Its iova_to_phys answers the page's beginning for every address in it."),
    _slip("PT-17", KeepsWhatItTook, "It finds no memory for a table, and keeps those that it has made for the same range."),
    _slip("PT-09", LeavesHalfAMap, "It refuses to map over a mapping, and leaves the pages before it mapped."),
    _slip("PT-09", ReplacesMappings, "It silently replaces what is mapped."),
    _slip("PT-15", ForgetsItsTables, "It does not give back a domain's tables with the domain."),
    _slip("TLB-01", NeverSyncs, "It does not invalidate after an unmap."),
    _slip("TLB-02", SyncsTooEarly, "It invalidates before it clears the entries."),
    _slip("TLB-02", SyncsHalf, "It invalidates half of the range."),
    _slip("TLB-09", FlushesNothing, "Its flush of a whole domain does nothing."),
    _slip("TLB-11", FreesTablesEarly, "It gives tables back before the invalidation."),
    _slip("TLB-12", NeverFreesTables, "It never gives back the tables that an unmap has emptied."),
    _slip("ATTACH-06", AttachesLater, "It does not wait until the device uses the new domain."),
    _slip("ATTACH-08", OnlyTheFirstDevice, "It attaches a domain's first device only."),
    _slip("ATTACH-01", BlocksOnPaper, "It says that a device is blocked, and leaves its entry as it was."),
    _slip("ATTACH-03", LetsTheReleasedGoOn, "It leaves a released device's entry as it was."),
    _slip("ATTACH-10", MapsDirectRegionsLate, "It maps direct regions after the switch to the new domain.", ONLY_MODEL),
    _slip("FAULT-01", NeverReadsFaults, "It never reads the faults."),
)
"""All of them."""
