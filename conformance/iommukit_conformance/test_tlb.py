"""Invalidation: what was unmapped is reached no longer, and everything else still is.

Each case lets the device use what is to go beforehand, so that the hardware has cached it.
"""

from __future__ import annotations

from iommukit.device import Device, DmaOps
from iommukit.dma.api import Direction, dma_map, dma_unmap
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import NotApplicable
from iommukit.hookspecs import FlushQueueOptions, Gather
from iommukit_conformance.case import Findings, hold
from iommukit_conformance.ground import SIZE
from iommukit_conformance.hardware import on_hardware, open_rig, with_lab
from iommukit_conformance.lab import Lab
from iommukit_conformance.rig import READ_WRITE, Rig

ROUNDS = 1100
"""More invalidations than a usual queue has room for."""
AFTER = " after it was unmapped"


def _each(rig: Rig, device: Device, iova: int, size: int, physical: int, *, there: bool, when: str) -> Findings:
    """Every smallest page of a range, by itself."""
    for offset in range(0, size, 0x1000):
        at, here = physical + offset, iova + offset
        yield from rig.expect(device, here, 0x1000, at if there else None, when, was=at)


def _comes_and_goes(rig: Rig, domain: Domain, iova: int, physical: int, size: int, what: str) -> Findings:
    """A mapped range is used, unmapped as a whole while the device goes on using it, and used in vain."""
    yield from _each(rig, rig.nic, iova, size, physical, there=True, when=f", {what}")
    with rig.busy(rig.nic, *range(iova, iova + size, 0x1000)):
        done = rig.unmap(domain, iova, size)
    yield hold(done == size, f"of {what} {done:#x} bytes are unmapped")
    yield from _each(rig, rig.nic, iova, size, physical, there=False, when=f"{AFTER}, {what}")


@on_hardware("TLB-01")
def test_a_page_is_gone(rig: Rig) -> Findings:
    """For reads, and for writes."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, granule)
    yield from _comes_and_goes(rig, domain, iova, physical, granule, "a page")
    iova, physical = rig.buffer(domain, granule)
    yield from rig.expect_write(rig.nic, iova, physical, lands=True)
    rig.unmap(domain, iova, granule)
    yield from rig.expect_write(rig.nic, iova, physical, lands=False, when=AFTER)


@on_hardware("TLB-02")
def test_a_range_is_gone(rig: Rig) -> Findings:
    """Aligned powers of two, which one command may cover."""
    domain = rig.domain()
    granule = rig.granule(domain)
    for pages in (2, 4, 16, 32):
        physical, iova = rig.frames(pages * granule, granule), rig.iovas(domain, pages * granule, pages * granule)
        rig.map(domain, iova, physical, pages * granule)
        yield from _comes_and_goes(rig, domain, iova, physical, pages * granule, f"{pages} pages")


@on_hardware("TLB-03")
def test_an_odd_range_is_gone(rig: Rig) -> Findings:
    """Odd numbers of pages, off any border."""
    domain = rig.domain()
    granule = rig.granule(domain)
    for pages, offset in ((3, 1), (5, 3), (7, 1), (13, 6), (31, 17)):
        physical, iova = rig.frames(pages * granule, granule), rig.iovas(domain, 64 * granule, 64 * granule)
        iova += offset * granule
        rig.map(domain, iova, physical, pages * granule)
        yield from _comes_and_goes(rig, domain, iova, physical, pages * granule, f"{pages} pages from page {offset} of 64 on")


@on_hardware("TLB-04")
def test_a_larger_page_is_gone(rig: Rig) -> Findings:
    """All over it."""
    domain = rig.domain()
    if not rig.larger(domain):
        raise NotApplicable("there are no larger pages")
    for large in rig.larger(domain):
        physical, iova = rig.frames(large, large), rig.iovas(domain, large, large)
        rig.map_pages(domain, iova, physical, large)
        yield from rig.expect(rig.nic, iova, large, physical, f" in a page of {large:#x}")
        with rig.busy(rig.nic, *(iova + offset for offset in rig.spots(large))):
            rig.unmap(domain, iova, large)
        yield from rig.expect(rig.nic, iova, large, None, f"{AFTER} with its page of {large:#x}", was=physical)


@on_hardware("TLB-05")
def test_a_range_across_borders_is_gone(rig: Rig) -> Findings:
    """A few pages around a border of tables of every level; then so many that whole tables go with them."""
    domain = rig.domain()
    granule = rig.granule(domain)
    border = rig.border(domain, 8 * granule) - 5 * granule
    physical = rig.frames(13 * granule, granule)
    rig.map(domain, border, physical, 13 * granule)
    yield from _comes_and_goes(rig, domain, border, physical, 13 * granule, "13 pages across a border")
    size = _whole_tables(rig, domain)
    iova, physical = rig.iovas(domain, 2 * size, size) + size // 2, rig.frames(size, granule)
    rig.map_pages(domain, iova, physical, granule, size // granule)
    yield from rig.expect(rig.nic, iova, size, physical, f", {size:#x} bytes of small pages")
    with rig.busy(rig.nic, *(iova + offset for offset in rig.spots(size))):
        rig.unmap(domain, iova, size)
    yield from rig.expect(rig.nic, iova, size, None, f"{AFTER}, {size:#x} bytes of small pages with their tables", was=physical)


def _whole_tables(rig: Rig, domain: Domain) -> int:
    """Bytes of small pages that fill two tables: a table seldom has more than 512 entries, or 2048 of larger granules."""
    granule = rig.granule(domain)
    return 1024 * granule if granule == 0x1000 else 2048 * granule


@on_hardware("TLB-06")
def test_several_unmaps_and_one_sync(rig: Rig) -> Findings:
    """Adjoining ones, in both directions, and ones far apart."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, 8 * granule)
    far, other = rig.buffer(domain, 2 * granule, align=64 * granule)
    last, third = rig.border(domain, 4 * granule), rig.frames(granule, granule)
    rig.map(domain, last, third, granule)
    parts = [
        (iova + 4 * granule, 2 * granule, physical + 4 * granule),
        (iova + 6 * granule, granule, physical + 6 * granule),
        (iova + 2 * granule, 2 * granule, physical + 2 * granule),
        (far, 2 * granule, other),
        (iova, granule, physical),
        (last, granule, third),
    ]
    for start, size, frame in parts:
        yield from _each(rig, rig.nic, start, size, frame, there=True, when="")
    gather = Gather()
    for start, size, _ in parts:
        rig.gather(domain, start, size, gather)
    rig.sync(domain, gather)
    for start, size, frame in parts:
        yield from _each(rig, rig.nic, start, size, frame, there=False, when=f"{AFTER}, one of several")


@on_hardware("TLB-07")
def test_the_others_go_on(rig: Rig) -> Findings:
    """Neighbours and distant mappings, between unmap_pages and iotlb_sync and afterwards."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, 12 * granule)
    far, other = rig.buffer(domain, granule)
    kept = [(iova, 4 * granule, physical), (iova + 7 * granule, 5 * granule, physical + 7 * granule), (far, granule, other)]
    for start, size, frame in kept:
        yield from _each(rig, rig.nic, start, size, frame, there=True, when="")
    gather = rig.gather(domain, iova + 4 * granule, 3 * granule)
    for start, size, frame in kept:
        yield from _each(rig, rig.nic, start, size, frame, there=True, when=" while others are unmapped")
    rig.sync(domain, gather)
    for start, size, frame in kept:
        yield from _each(rig, rig.nic, start, size, frame, there=True, when=" after others were unmapped")


@on_hardware("TLB-08")
def test_an_address_used_again(rig: Rig) -> Findings:
    """Another page at once, several times; small pages and larger ones."""
    domain = rig.domain()
    for size in (rig.granule(domain), *rig.larger(domain)[:1]):
        iova = rig.iovas(domain, size, size)
        for _ in range(4):
            physical = rig.frames(size, size)
            rig.map_pages(domain, iova, physical, size)
            yield from rig.expect(rig.nic, iova, size, physical, ", used again")
            yield from rig.expect_write(rig.nic, iova, physical, lands=True, when=", used again")
            rig.unmap_pages(domain, iova, size)


@on_hardware("TLB-09")
def test_all_of_it_is_flushed(rig: Rig) -> Findings:
    """Several ranges, unmapped as for a flush queue."""
    domain = rig.domain()
    granule = rig.granule(domain)
    parts = [(*rig.buffer(domain, pages * granule), pages * granule) for pages in (1, 3, 16)]
    parts += [(*rig.buffer(domain, large, align=large), large) for large in rig.larger(domain)[:1]]
    kept, frame = rig.buffer(domain, granule)
    for iova, physical, size in parts:
        yield from rig.expect(rig.nic, iova, size, physical)
    gathers = []
    for iova, _, size in parts:
        gathers.append(rig.gather(domain, iova, size, Gather(queued=True)))
    for gather in gathers:
        rig.flush(domain, gather)
    for iova, physical, size in parts:
        yield from rig.expect(rig.nic, iova, size, None, " after flush_iotlb_all", was=physical)
    yield from rig.expect(rig.nic, kept, granule, frame, " after flush_iotlb_all of others")


@on_hardware("TLB-10")
def test_domains_do_not_disturb_each_other(rig: Rig) -> Findings:
    """Equal addresses in two domains; one is unmapped, or flushed, then the other."""
    one, two = rig.domain(rig.nic), rig.domain(rig.second)
    granule = rig.granule(one)
    for everything in (False, True):
        iova = rig.iovas(one, 2 * granule)
        first, second = rig.frames(2 * granule, granule), rig.frames(2 * granule, granule)
        rig.map(one, iova, first, 2 * granule)
        rig.map(two, iova, second, 2 * granule)
        yield from rig.expect(rig.nic, iova, 2 * granule, first)
        yield from rig.expect(rig.second, iova, 2 * granule, second)
        _unmap(rig, one, iova, 2 * granule, everything)
        yield from rig.expect(rig.nic, iova, 2 * granule, None, AFTER, was=first)
        yield from rig.expect(rig.second, iova, 2 * granule, second, " after another domain was invalidated")
        _unmap(rig, two, iova, 2 * granule, everything)
        yield from rig.expect(rig.second, iova, 2 * granule, None, AFTER, was=second)


def _unmap(rig: Rig, domain: Domain, iova: int, size: int, everything: bool) -> None:
    if everything:
        rig.flush(domain, rig.gather(domain, iova, size, Gather(queued=True)))
    else:
        rig.unmap(domain, iova, size)


# ---- tables ----------------------------------------------------------------------------------------------------------


def _with_tables(rig: Rig, domain: Domain) -> tuple[int, int, int]:
    """A range of small pages that fills tables: I/O address, physical address, size."""
    size, granule = _whole_tables(rig, domain), rig.granule(domain)
    iova, physical = rig.iovas(domain, size, size), rig.frames(size, granule)
    rig.map_pages(domain, iova, physical, granule, size // granule)
    return iova, physical, size


@on_hardware("TLB-11")
def test_tables_wait_for_the_invalidation(rig: Rig) -> Findings:
    """As a strict unmap does it, and as a queue does."""
    domain = rig.domain()
    for queued in (False, True):
        iova, physical, size = _with_tables(rig, domain)
        yield from rig.expect(rig.nic, iova, size, physical)
        before = rig.pages.outstanding
        gather = rig.gather(domain, iova, size, Gather(queued=queued))
        given = before - rig.pages.outstanding
        yield hold(given <= 0, f"{given:#x} bytes of tables are given back by unmap_pages, before the invalidation")
        if queued:
            rig.flush(domain, gather)
        else:
            rig.sync(domain, gather)


@on_hardware("TLB-12")
def test_tables_come_back_with_the_invalidation(rig: Rig) -> Findings:
    """What the list names, and no more."""
    domain = rig.domain()
    iova, _, size = _with_tables(rig, domain)
    before = rig.pages.outstanding
    gather = rig.gather(domain, iova, size)
    waiting = sum(length for _, length in gather.freed)
    rig.sync(domain, gather)
    given = before - rig.pages.outstanding
    yield hold(not gather.freed, f"iotlb_sync leaves {len(gather.freed)} tables in gather.freed")
    yield hold(given == waiting, f"{waiting:#x} bytes of tables wait in gather.freed, and iotlb_sync gives {given:#x} back")


@on_hardware("TLB-13")
def test_new_mappings_are_seen(rig: Rig) -> Findings:
    """Where the device was before there was anything: pages, a range, larger pages, beside a mapping and in new tables."""
    domain = rig.domain()
    granule = rig.granule(domain)
    for size, align in ((granule, 0), (5 * granule, 0), *((large, large) for large in rig.larger(domain)[:2])):
        iova, physical = rig.iovas(domain, size, align), rig.frames(size, align or granule)
        yield from rig.expect(rig.nic, iova, size, None, " before it is mapped")
        rig.map(domain, iova, physical, size)
        yield from rig.expect(rig.nic, iova, size, physical, " where the device has been before it was mapped")


@on_hardware("TLB-14")
def test_fewer_rights(rig: Rig) -> Findings:
    """Read-only where it was writable."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, granule)
    yield from rig.expect_write(rig.nic, iova, physical, lands=True)
    rig.unmap(domain, iova, granule)
    rig.map(domain, iova, physical, granule, Prot.READ)
    yield from rig.expect_write(rig.nic, iova, physical, lands=False, when=" after it was mapped again read-only")
    yield from rig.expect(rig.nic, iova, granule, physical, " after it was mapped again read-only")


@on_hardware("TLB-15")
def test_more_rights(rig: Rig) -> Findings:
    """Writable where it was read-only, and used so."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, granule, prot=Prot.READ)
    yield from rig.expect(rig.nic, iova, granule, physical)
    yield from rig.expect_write(rig.nic, iova, physical, lands=False, when=", read-only")
    rig.unmap(domain, iova, granule)
    rig.map(domain, iova, physical, granule, READ_WRITE)
    yield from rig.expect_write(rig.nic, iova, physical, lands=True, when=" after it was mapped again for writing")


@on_hardware("TLB-16")
def test_every_device_forgets(rig: Rig) -> Findings:
    """Two devices in one domain, attached in either order."""
    for order in ((rig.nic, rig.second), (rig.second, rig.nic)):
        domain = rig.domain(*order)
        granule = rig.granule(domain)
        for everything in (False, True):
            iova, physical = rig.buffer(domain, 3 * granule)
            for device in order:
                yield from rig.expect(device, iova, 3 * granule, physical)
            _unmap(rig, domain, iova, 3 * granule, everything)
            for device in order:
                yield from rig.expect(device, iova, 3 * granule, None, AFTER, was=physical)


@on_hardware("TLB-17")
def test_a_domain_in_the_place_of_another(rig: Rig) -> Findings:
    """One that is given back with its mappings cached, and one that is allocated next."""
    home = rig.domain()
    for device in (rig.nic, rig.second):
        domain = rig.domain(rig.nic)
        granule = rig.granule(domain)
        iova, physical = rig.buffer(domain, 3 * granule)
        yield from rig.expect(rig.nic, iova, 3 * granule, physical)
        rig.drop(domain, rig.nic, to=home)
        heir = rig.domain(device)
        yield from rig.expect(device, iova, 3 * granule, None, " in a domain that has taken another's place", was=physical)
        other = rig.frames(granule, granule)
        rig.map(heir, iova, other, granule)
        yield from rig.expect(device, iova, granule, other, " in a domain that has taken another's place")
        rig.drop(heir, device, to=home)


@on_hardware("TLB-18")
def test_larger_and_smaller_in_turn(rig: Rig) -> Findings:
    """A larger page where small ones were, and small ones where it was."""
    domain = rig.domain()
    granule = rig.granule(domain)
    # Filling anything larger takes too long.
    sizes = [size for size in rig.larger(domain) if size <= 1024 * granule and size <= 1 << 26]
    if not sizes:
        raise NotApplicable("there are no larger pages in the place of one table")
    for large in sizes:
        iova = rig.iovas(domain, large, large)
        small, big = rig.frames(large, granule), rig.frames(large, large)
        for _ in range(2):
            rig.map_pages(domain, iova, small, granule, large // granule)
            yield from rig.expect(rig.nic, iova, large, small, f" in small pages in the place of one of {large:#x}")
            rig.unmap(domain, iova, large)
            yield from rig.expect(rig.nic, iova, large, None, AFTER, was=small)
            rig.map_pages(domain, iova, big, large)
            yield from rig.expect(rig.nic, iova, large, big, f" in a page of {large:#x} in the place of small ones")
            rig.unmap(domain, iova, large)
            yield from rig.expect(rig.nic, iova, large, None, AFTER, was=big)


@on_hardware("TLB-19")
def test_the_thousandth_invalidation(rig: Rig) -> Findings:
    """A page comes, is used, and goes."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.iovas(domain, granule), rig.frames(granule, granule)
    device = rig.initiator(rig.nic)
    for number in range(ROUNDS):
        rig.map(domain, iova, physical, granule)
        look = number % 100 == 0 or number > ROUNDS - 4
        if look:
            yield from rig.expect(rig.nic, iova, granule, physical, f" in round {number}")
        elif not rig.emulated or number % 10 == 0:
            device.load(iova, SIZE)
        rig.unmap(domain, iova, granule)
        if look:
            yield from rig.expect(rig.nic, iova, granule, None, f"{AFTER} in round {number}", was=physical)


# ---- the DMA API -----------------------------------------------------------------------------------------------------


def _default_domain(rig: Rig) -> Domain:
    """The group's own, with the device's windows open."""
    group = rig.nic.group
    domain = group.default_domain if group is not None else None
    if domain is None or rig.nic.dma_ops is not DmaOps.IOMMU:
        raise NotApplicable(f"{rig.system.vendor.name} has no DMA API over domains in {rig.system.kernel.name}")
    rig.open_windows(rig.nic, domain)
    return domain


@on_hardware("TLB-20")
def test_strict_means_at_once(rig: Rig) -> Findings:
    """Buffers of several sizes, all directions."""
    domain = _default_domain(rig)
    granule = rig.granule(domain)
    for size in (granule, 3 * granule, 100, 40 * granule):
        for direction in (Direction.TO_DEVICE, Direction.BIDIRECTIONAL):
            physical = rig.frames(-(-size // granule) * granule, granule)
            iova = dma_map(rig.nic, physical, size, direction)
            length = -(-size // 0x1000) * 0x1000
            yield from rig.expect(rig.nic, iova, length, physical, " mapped with the DMA API")
            dma_unmap(rig.nic, iova)
            yield from rig.expect(rig.nic, iova, length, None, " after dma_unmap in a strict domain", was=physical)


@with_lab("TLB-21")
def test_lazy_means_not_before(lab: Lab, variant: str) -> Findings:
    """An old buffer's address is given to a new one only after a flush, which time or a full queue brings."""
    with open_rig(lab, variant, kconfig="lazy") as rig:
        domain = _default_domain(rig)
        if domain.type is not DomainType.DMA_FQ or not isinstance(domain.flush_queue, FlushQueueOptions):
            raise NotApplicable(f"{lab.vendor.name} has no flush queue in {lab.kernel.name}")
        granule = rig.granule(domain)
        tables = _whole_tables(rig, domain)
        big = dma_map(rig.nic, rig.frames(tables + granule, tables) + granule, tables, Direction.BIDIRECTIONAL)
        physical = rig.frames(granule, granule)
        old = dma_map(rig.nic, physical, granule, Direction.BIDIRECTIONAL)
        yield from rig.expect(rig.nic, old, granule, physical)
        before = rig.pages.outstanding
        dma_unmap(rig.nic, old)
        dma_unmap(rig.nic, big)
        given = before - rig.pages.outstanding
        yield hold(given <= 0, f"{given:#x} bytes of tables are given back by an unmap in a lazy domain, before any flush")
        other = rig.frames(granule, granule)
        for _ in range(8):
            new = dma_map(rig.nic, other, granule, Direction.BIDIRECTIONAL)
            yield from rig.expect(rig.nic, new, granule, other, " of a lazy domain")
            yield hold(new != old, f"{old:#x} is used again before its old mapping is flushed")
            dma_unmap(rig.nic, new)
        rig.platform.bus.clock.advance(2 * domain.flush_queue.timeout_ns)
        yield from rig.expect(rig.nic, old, granule, None, " after the flush queue's time", was=physical)
        new = dma_map(rig.nic, other, granule, Direction.BIDIRECTIONAL)
        yield from rig.expect(rig.nic, new, granule, other, " after the flush queue's time")
