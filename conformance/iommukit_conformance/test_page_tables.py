"""Page tables: what is mapped is reached, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.domain import Domain, Prot
from iommukit.errors import IommuError, NotApplicable
from iommukit_conformance.case import Findings, Undecided, hold
from iommukit_conformance.hardware import on_hardware, open_rig, with_lab
from iommukit_conformance.lab import Lab
from iommukit_conformance.rig import READ_WRITE, Rig
from iommukit_conformance.shortage import Shortage

REFUSALS = ("EFAULT", "ERANGE", "EINVAL", "ENOMEM")
"""How an address beyond the aperture is refused; the last is some drivers' word for an address without a place in the tables."""

WIDEST = 1 << 52
"""No architecture's entries hold a physical address beyond this."""


def _all_sizes(rig: Rig, domain: Domain) -> list[int]:
    return [rig.granule(domain), *rig.larger(domain)]


@on_hardware("PT-01")
def test_any_sequence_agrees_with_an_abstract_map(rig: Rig) -> Findings:
    """Many short stories; the shortest bad one is told."""
    try:
        from iommukit_conformance.abstract_map import diverges
    except ModuleNotFoundError as error:
        raise Undecided(f"{error.name} is not installed (iommukit[conformance] has it)") from error
    yield diverges(rig) or None


@on_hardware("PT-02")
def test_the_driver_reads_its_tables_as_the_hardware_does(rig: Rig) -> Findings:
    """At odd offsets into pages of all sizes, and beside them."""
    domain = rig.domain()
    for size in _all_sizes(rig, domain):
        physical, iova = rig.frames(size, size), rig.iovas(domain, size, size)
        rig.map_pages(domain, iova, physical, size)
        yield from rig.expect(rig.nic, iova, size, physical, f" in a page of {size:#x}")
        for offset in (0, 0x123, size // 2 + 8, size - 1):
            answer = rig.table_answer(domain, iova + offset)
            text = f"iova_to_phys({iova + offset:#x}) answers {_shown(answer)}, and the hardware reaches {physical + offset:#x}"
            yield hold(answer == physical + offset, text)
        for outside in (iova - 1, iova + size):
            answer = rig.table_answer(domain, outside)
            yield hold(answer is None, f"iova_to_phys({outside:#x}), where nothing is mapped, answers {_shown(answer)}")


def _shown(physical: int | None) -> str:
    return "UNMAPPED" if physical is None else f"{physical:#x}"


@on_hardware("PT-03")
def test_as_many_pages_as_were_asked_for(rig: Rig) -> Findings:
    """One, three and twenty pages; what lies before and behind is not mapped."""
    domain = rig.domain()
    granule = rig.granule(domain)
    for size, count in [(granule, 1), (granule, 3), (granule, 20), *((size, 1) for size in rig.larger(domain))]:
        physical, iova = rig.frames(count * size, size), rig.iovas(domain, count * size, size)
        done = rig.map_pages(domain, iova, physical, size, count)
        text = f"map_pages of {count} x {size:#x} answers {done:#x} bytes"
        yield hold(done == count * size, text)
        yield from rig.expect(rig.nic, iova, count * size, physical)
        for offset in (-granule, count * size):
            where = f", beside {count} x {size:#x}"
            yield from rig.expect(rig.nic, iova + offset, granule, None, where, was=physical + offset)


@on_hardware("PT-04")
def test_as_many_pages_go_as_it_says(rig: Rig) -> Findings:
    """The first three of five; then a range with a hole."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, 5 * granule)
    done = rig.unmap_pages(domain, iova, granule, 3)
    yield hold(done == 3 * granule, f"unmap_pages of 3 x {granule:#x} answers {done:#x} bytes")
    yield from rig.expect(rig.nic, iova, 3 * granule, None, " after unmapping")
    yield from rig.expect(rig.nic, iova + 3 * granule, 2 * granule, physical + 3 * granule, " behind what was unmapped")
    iova, physical = rig.buffer(domain, 6 * granule)
    rig.unmap(domain, iova + 2 * granule, granule)
    done = rig.unmap_pages(domain, iova, granule, 6)
    text = f"unmap_pages of 6 x {granule:#x}, of which the third is a hole, answers {done:#x} bytes"
    yield hold(2 * granule <= done <= 6 * granule and not done % granule, text)
    yield from rig.expect(rig.nic, iova, done, None, f" after unmap_pages has answered {done:#x} bytes")
    if 3 * granule <= done < 6 * granule:
        yield from rig.expect(rig.nic, iova + done, 6 * granule - done, physical + done, " behind what it has answered")
    elif done < 3 * granule:
        yield from rig.expect(rig.nic, iova + 3 * granule, 3 * granule, physical + 3 * granule, " behind the hole")
    for size in rig.larger(domain):
        physical, iova = rig.frames(size, size), rig.iovas(domain, size, size)
        rig.map_pages(domain, iova, physical, size)
        done = rig.unmap_pages(domain, iova, size)
        yield hold(done == size, f"unmap_pages of 1 x {size:#x} answers {done:#x} bytes")
        yield from rig.expect(rig.nic, iova, size, None, f" after unmapping a page of {size:#x}")


@on_hardware("PT-05")
def test_every_page_size(rig: Rig) -> Findings:
    """Each by itself."""
    domain = rig.domain()
    for size in rig.sizes(domain):
        physical, iova = rig.frames(size, size), rig.iovas(domain, size, size)
        rig.map_pages(domain, iova, physical, size)
        yield from rig.expect(rig.nic, iova, size, physical, f" in a page of {size:#x}")
        rig.unmap_pages(domain, iova, size)
        yield from rig.expect(rig.nic, iova, size, None, f" after a page of {size:#x} was unmapped")


@on_hardware("PT-06")
def test_mixes_of_sizes_and_borders_of_tables(rig: Rig) -> Findings:
    """Ranges that begin and end off the larger pages' borders, and small pages across a border of tables of every level."""
    domain = rig.domain()
    granule = rig.granule(domain)
    border = rig.border(domain, 16 * granule)
    physical = rig.frames(14 * granule, granule)
    rig.map(domain, border - 6 * granule, physical, 14 * granule)
    yield from rig.expect(rig.nic, border - 6 * granule, 14 * granule, physical, f" across the border at {border:#x}")
    for large in rig.larger(domain):
        size = large + 5 * granule
        try:
            frame, iova = rig.frames(3 * large, large), rig.iovas(domain, 3 * large, large)
        except NotApplicable:
            continue
        if frame + 3 * large > WIDEST:
            continue
        frame, iova = frame + large - 2 * granule, iova + large - 2 * granule
        rig.map(domain, iova, frame, size)
        yield from rig.expect(rig.nic, iova, size, frame, f" in {size:#x} bytes around a page of {large:#x}")
        yield from rig.expect(rig.nic, iova - granule, granule, None, " before it")
        yield from rig.expect(rig.nic, iova + size, granule, None, " behind it")
        done = rig.unmap(domain, iova, size)
        yield hold(done == size, f"of {size:#x} bytes {done:#x} are unmapped")
        yield from rig.expect(rig.nic, iova, size, None, " after unmapping")


def _part(rig: Rig, domain: Domain, large: int, offset: int) -> tuple[int, int, range]:
    """Unmap one granule at an offset of a new larger page.  Returns I/O and physical address, and the bytes that are gone."""
    granule = rig.granule(domain)
    physical, iova = rig.frames(large, large), rig.iovas(domain, large, large)
    rig.map_pages(domain, iova, physical, large)
    done = rig.unmap(domain, iova + offset, granule)
    if not done:
        return iova, physical, range(0)
    if done == granule:
        return iova, physical, range(offset, offset + granule)
    if done == large or done == large - offset:
        return iova, physical, range(large)
    raise IommuError("EINVAL", f"unmapping {granule:#x} bytes at {offset:#x} of a page of {large:#x} answers {done:#x}")


def _parts(rig: Rig, domain: Domain) -> Iterator[tuple[int, int]]:
    granule = rig.granule(domain)
    for large in rig.larger(domain):
        for offset in dict.fromkeys((0, large // 2, large - granule)):
            yield large, offset


@on_hardware("PT-07")
def test_a_part_of_a_larger_page(rig: Rig) -> Findings:
    """Its first granule, one in the middle, its last: gone is what the answer says, and that only."""
    domain = rig.domain()
    if not rig.larger(domain):
        raise NotApplicable("there are no larger pages")
    granule = rig.granule(domain)
    for large, offset in _parts(rig, domain):
        iova, physical, gone = _part(rig, domain, large, offset)
        for at in sorted({0, offset, large - granule, max(0, offset - granule), min(large - granule, offset + granule)}):
            wanted = None if at in gone else physical + at
            where = f" ({at:#x} of a page of {large:#x} of which {len(gone):#x} bytes are said to be gone)"
            yield from rig.expect(rig.nic, iova + at, granule, wanted, where, was=physical + at)
            answer = rig.table_answer(domain, iova + at)
            yield hold(answer == wanted, f"iova_to_phys at{where} answers {_shown(answer)}, not {_shown(wanted)}")
        rig.unmap(domain, iova, large)


@on_hardware("PT-08")
def test_the_neighbours_stay(rig: Rig) -> Findings:
    """Small pages beside small ones, and both kinds beside a larger page of which a part goes."""
    domain = rig.domain()
    granule = rig.granule(domain)
    iova, physical = rig.buffer(domain, 9 * granule)
    for offset, pages in ((4, 1), (1, 2), (6, 2)):
        rig.unmap(domain, iova + offset * granule, pages * granule)
    for page in range(9):
        wanted = physical + page * granule if page in (0, 3, 5, 8) else None
        yield from rig.expect(rig.nic, iova + page * granule, granule, wanted, " beside pages that were unmapped")
    for large in rig.larger(domain):
        for offset in (0, large - granule):
            try:
                frame, at = rig.frames(large, large), rig.iovas(domain, 2 * large + granule, large) + large
            except NotApplicable:
                continue
            beside, behind = rig.frames(granule, granule), rig.frames(granule, granule)
            rig.map(domain, at - granule, beside, granule)
            rig.map(domain, at + large, behind, granule)
            rig.map_pages(domain, at, frame, large)
            rig.unmap(domain, at + offset, granule)
            where = f" beside a page of {large:#x} of which a part was unmapped"
            yield from rig.expect(rig.nic, at - granule, granule, beside, where)
            yield from rig.expect(rig.nic, at + large, granule, behind, where)


@on_hardware("PT-09")
def test_mapping_over_a_mapping_is_refused(rig: Rig) -> Findings:
    """The same page, a range that ends on it, a larger page around it, a small one inside a larger one."""
    domain = rig.domain()
    granule = rig.granule(domain)
    other = rig.frames(8 * granule, granule)
    iova = rig.iovas(domain, 8 * granule)
    physical = rig.frames(granule, granule)
    rig.map(domain, iova + 4 * granule, physical, granule)
    for first, pages in ((4, 1), (2, 3), (4, 3), (0, 8)):
        found = rig.refusal(rig.map_pages, domain, iova + first * granule, other, granule, pages)
        what = f"mapping {pages} pages of which one is mapped"
        yield hold(found == "EEXIST", f"{what} is answered by {found or 'success'}, not EEXIST")
        for page in range(8):
            wanted = physical if page == 4 else None
            yield from rig.expect(rig.nic, iova + page * granule, granule, wanted, f" after {what} was refused")
    for large in rig.larger(domain):
        frame, at = rig.frames(large, large), rig.iovas(domain, large, large)
        inside = at + large // 2
        rig.map(domain, inside, physical, granule)
        found = rig.refusal(rig.map_pages, domain, at, frame, large)
        yield hold(found == "EEXIST", f"a page of {large:#x} around a mapped one is answered by {found or 'success'}, not EEXIST")
        yield from rig.expect(rig.nic, inside, granule, physical, " after a larger page around it was refused")
        yield from rig.expect(rig.nic, at, granule, None, " after a larger page was refused")
        rig.unmap(domain, inside, granule)
        rig.map_pages(domain, at, frame, large)
        found = rig.refusal(rig.map_pages, domain, inside, other, granule)
        yield hold(found == "EEXIST", f"a page inside one of {large:#x} is answered by {found or 'success'}, not EEXIST")
        yield from rig.expect(rig.nic, at, large, frame, " after a page inside it was refused")


# ---- permissions -----------------------------------------------------------------------------------------------------


def _mapped(rig: Rig, domain: Domain, prot: Prot) -> Iterator[tuple[int, int, int]]:
    """A page of each size with this protection: size, I/O address, physical address."""
    for size in _all_sizes(rig, domain):
        physical, iova = rig.frames(size, size), rig.iovas(domain, size, size)
        rig.map_pages(domain, iova, physical, size, 1, prot)
        yield size, iova, physical


def _somewhere(rig: Rig, size: int, physical: int) -> int:
    """An offset in a page at which there is memory for buffers."""
    return next(offset for offset in rig.spots(size) if rig.is_buffer(physical + offset))


@on_hardware("PT-10")
def test_read_only(rig: Rig) -> Findings:
    """Reading works, writing does not."""
    domain = rig.domain()
    for size, iova, physical in _mapped(rig, domain, Prot.READ):
        yield from rig.expect(rig.nic, iova, size, physical, f" in a read-only page of {size:#x}")
        at = _somewhere(rig, size, physical)
        yield from rig.expect_write(rig.nic, iova + at, physical + at, lands=False, when=f" in a read-only page of {size:#x}")


@on_hardware("PT-11")
def test_write_only(rig: Rig) -> Findings:
    """Writing works; reading does not where the tables can say so."""
    domain = rig.domain()
    can = rig.system.vendor.has("write-only")
    try:
        for size, iova, physical in _mapped(rig, domain, Prot.WRITE):
            at = _somewhere(rig, size, physical)
            yield from rig.expect_write(rig.nic, iova + at, physical + at, lands=True, when=f" in a write-only page of {size:#x}")
            if can:
                yield from rig.expect(rig.nic, iova, size, None, f" in a write-only page of {size:#x}")
    except IommuError as error:
        if can or error.name != "EINVAL":
            raise
        raise NotApplicable(f"{rig.system.vendor.name} has no pages without READ") from error


@on_hardware("PT-12")
def test_read_and_write(rig: Rig) -> Findings:
    """Both work."""
    domain = rig.domain()
    for size, iova, physical in _mapped(rig, domain, READ_WRITE):
        yield from rig.expect(rig.nic, iova, size, physical, f" in a page of {size:#x}")
        at = _somewhere(rig, size, physical)
        yield from rig.expect_write(rig.nic, iova + at, physical + at, lands=True, when=f" in a page of {size:#x}")


# ---- edges -----------------------------------------------------------------------------------------------------------


@on_hardware("PT-13")
def test_the_edges_of_the_aperture(rig: Rig) -> Findings:
    """The first page and the last that are not reserved, unless the device itself cannot address them or needs them."""
    domain = rig.domain()
    granule = rig.granule(domain)
    first, last = rig.edges(domain)
    for iova in (first, last + 1 - granule):
        if iova + granule <= rig.reach and rig.free_there(iova, granule):
            physical = rig.frames(granule, granule)
            rig.map(domain, iova, physical, granule)
            yield from rig.expect(rig.nic, iova, granule, physical, " at the edge of the aperture")
            rig.unmap(domain, iova, granule)
            yield from rig.expect(rig.nic, iova, granule, None, " at the edge of the aperture, unmapped")


@on_hardware("PT-14")
def test_beyond_the_aperture(rig: Rig) -> Findings:
    """The next page, one whose address is cut to a mapped one's, a range that leaves the aperture, the page before it."""
    domain = rig.domain()
    granule = rig.granule(domain)
    first, last = domain.aperture
    iova, physical = rig.buffer(domain, granule)
    other = rig.frames(2 * granule, granule)
    tries = []
    if last + 1 + granule <= 1 << 64:
        span = 1 << last.bit_length()
        tries = [(last + 1, 1), (iova + span, 1), (last + 1 - granule, 2)]
    if first >= granule:
        tries.append((first - granule, 1))
    if not tries:
        raise NotApplicable("the aperture is all there is")
    for at, pages in tries:
        if at + pages * granule > 1 << 64:
            continue
        found = rig.refusal(rig.map_pages, domain, at, other, granule, pages)
        text = f"mapping {pages} pages at {at:#x}, outside {first:#x}..{last:#x}, is answered by {found or 'success'}"
        yield hold(found in REFUSALS, text)
        yield from rig.expect(rig.nic, iova, granule, physical, f" after {text}")
        answer = rig.table_answer(domain, last + 1 - granule)
        yield hold(answer is None, f"{text}; the last page is mapped to {_shown(answer)} now")


# ---- memory ----------------------------------------------------------------------------------------------------------


def _fill(rig: Rig, domain: Domain) -> list[tuple[int, int]]:
    """Map this and that, with tables of every level."""
    granule = rig.granule(domain)
    ranges = [(rig.iovas(domain, 40 * granule), 40 * granule)]
    border = rig.border(domain, 8 * granule)
    ranges.append((border - 4 * granule, 8 * granule))
    for iova, size in ranges:
        rig.map(domain, iova, rig.frames(size, granule), size)
    for large in rig.larger(domain):
        iova = rig.iovas(domain, large, large)
        rig.map_pages(domain, iova, rig.frames(large, large), large)
        ranges.append((iova, large))
    return ranges


@on_hardware("PT-15")
def test_all_memory_comes_back(rig: Rig) -> Findings:
    """With everything unmapped, and with everything still mapped."""
    home = rig.domain()
    rig.drop(rig.domain(), rig.nic, to=home)
    for unmapped in (True, False):
        before = rig.pages.outstanding
        domain = rig.domain()
        ranges = _fill(rig, domain)
        yield hold(rig.pages.outstanding > before, "a domain with mappings takes no memory for tables")
        if unmapped:
            for iova, size in ranges:
                rig.unmap(domain, iova, size)
        rig.drop(domain, rig.nic, to=home)
        kept = rig.pages.outstanding - before
        how = "everything was unmapped and " if unmapped else ""
        yield hold(not kept, f"after {how}the domain was given back, {kept:#x} bytes of tables are not")


@on_hardware("PT-16")
def test_the_tenth_round_needs_no_more_than_the_second(rig: Rig) -> Findings:
    """The same ranges again and again."""
    domain = rig.domain()
    granule = rig.granule(domain)
    border = rig.border(domain, 16 * granule) - 7 * granule
    physical = rig.frames(15 * granule, granule)
    used = []
    for _ in range(10):
        rig.map(domain, border, physical, 15 * granule)
        rig.unmap(domain, border, 15 * granule)
        used.append(rig.pages.outstanding)
    yield hold(used[9] == used[1], f"after the second round {used[1]:#x} bytes are in use, after the tenth {used[9]:#x}")


@with_lab("PT-17")
def test_a_map_without_memory_changes_nothing(lab: Lab, variant: str) -> Findings:
    """With room for no table, for one, and so on, until there is enough."""
    shortage = Shortage()
    with open_rig(lab, variant, registry=lab.registry.wrapped(shortage)) as rig:
        yield from _maps_without_memory(rig, shortage)


def _maps_without_memory(rig: Rig, shortage: Shortage) -> Findings:
    domain = rig.domain()
    granule = rig.granule(domain)
    large = next(iter(rig.larger(domain)), granule)
    for pgsize, count in ((granule, 14), (granule, 1200), (large, 3)):
        room = (count + 2) * pgsize
        try:
            start, physical = rig.border(domain, room) - 3 * granule, rig.frames(room, pgsize)
        except NotApplicable:
            continue
        start &= -pgsize
        neighbour = rig.frames(granule, granule)
        rig.map(domain, start - granule, neighbour, granule)
        yield from _without_memory(rig, shortage, domain, start, physical, pgsize, count, neighbour)


def _without_memory(
    rig: Rig, shortage: Shortage, domain: Domain, iova: int, physical: int, pgsize: int, count: int, neighbour: int
) -> Findings:
    granule, before, size = rig.granule(domain), rig.pages.outstanding, pgsize * count
    refused = 0
    for room in range(0, 1 << 20, 1 << 10):
        with shortage.of(rig.pages, room):
            found = rig.refusal(rig.map_pages, domain, iova, physical, pgsize, count)
        if not found:
            break
        refused += 1
        what = f"mapping {count} x {pgsize:#x} bytes with {room:#x} bytes for tables"
        yield hold(found == "ENOMEM", f"{what} is answered by {found}")
        kept = rig.pages.outstanding - before
        yield hold(not kept, f"after {what} was refused, {kept:#x} bytes more are in use")
        for at in (iova, iova + 3 * granule, iova + size - granule):
            answer = rig.table_answer(domain, at)
            yield hold(answer is None, f"after {what} was refused, {at:#x} is mapped to {_shown(answer)}")
        yield from rig.expect(rig.nic, iova, granule, None, f" after {what} was refused")
        yield from rig.expect(rig.nic, iova - granule, granule, neighbour, f", beside, after {what} was refused")
    if refused:
        yield from rig.expect(rig.nic, iova, size, physical, " once there is memory")
        rig.unmap(domain, iova, size)


@on_hardware("PT-18")
def test_a_new_domain_is_empty(rig: Rig) -> Findings:
    """One that is made of the memory of another, which was given back with everything mapped."""
    home = rig.domain()
    domain = rig.domain()
    ranges = _fill(rig, domain)
    rig.drop(domain, rig.nic, to=home)
    fresh = rig.domain()
    for iova, _ in ranges:
        answer = rig.table_answer(fresh, iova)
        yield hold(answer is None, f"iova_to_phys({iova:#x}) of a new domain answers {_shown(answer)}")
        yield from rig.expect(rig.nic, iova, rig.granule(fresh), None, " in a new domain")
    granule = rig.granule(fresh)
    iova = ranges[0][0] + granule
    rig.map(fresh, iova, rig.frames(granule, granule), granule)
    for beside in (iova - granule, iova + granule):
        yield from rig.expect(rig.nic, beside, granule, None, " beside the first page of a new domain")


@on_hardware("PT-19")
def test_all_bits_of_physical_addresses(rig: Rig) -> Findings:
    """A page at each power of two at which there is memory for buffers, and the last one."""
    domain = rig.domain()
    granule = rig.granule(domain)
    buffers = rig.platform.buffers
    frames = [1 << bit for bit in range(63) if 1 << bit in buffers and (1 << bit) + granule in buffers]
    for physical in [*(frame for frame in frames if not frame % granule), (buffers.stop - granule) & -granule]:
        rig.stamp(physical, granule)
        iova = rig.iovas(domain, granule)
        rig.map(domain, iova, physical, granule)
        yield from rig.expect(rig.nic, iova, granule, physical)
