"""s390: the model of the PCI functions against QEMU's on tables and instructions that no driver wrote."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .differential import flips, thorough
from .zpci_twins import (
    BASE,
    EDMA,
    FRAME,
    FRAMES,
    INVALID,
    PAGE_INVALID,
    PAGES,
    PROTECT,
    ROOT,
    SDMA,
    SEGMENTS,
    WHOLE,
    ZpciTwins,
    fib,
)

PAGE, SEGMENT, REGION = 1 << 12, 1 << 20, 1 << 31
words = st.integers(0, (1 << 64) - 1)


@pytest.fixture(scope="module")
def twins() -> Iterator[ZpciTwins]:
    twins = ZpciTwins()
    yield twins
    twins.close()


# ---- tables ----------------------------------------------------------------------------------------------------------

ranges = st.one_of(
    st.tuples(st.integers(0, 3 * 256 - 1), st.integers(1, 20)),
    st.tuples(st.sampled_from((0, 256, 512)), st.sampled_from((3, 17, 256, 300, 512, 768))),
).flatmap(lambda usual: st.sampled_from((*(usual,) * 19, (0, 2048 * 256 + 40))))
"""Pages from ``BASE`` on, and how many; now and then all of a region and what follows, which takes QEMU a while."""
places = st.tuples(st.sampled_from((0, 1, 2, 2048)), st.sampled_from((0, 1, 2, 16, 17, 254, 255)))
"""Segments from ``BASE`` on, and pages in them."""


@st.composite
def wrong(draw: st.DrawFn, good: int, *usual: int) -> int:
    """An entry with something wrong, or not."""
    return draw(
        st.one_of(
            st.just(good),
            st.sampled_from(usual).map(lambda bits: good ^ bits),
            flips(0, 11).map(lambda bits: good ^ bits),
            flips(0, 63).map(lambda bits: good ^ bits),
            words,
            st.just(0),
        )
    )


def fill(twins: ZpciTwins, data: st.DataObject, *, good: bool) -> None:
    """Tables for three segments of region 3 and one of region 4, with something wrong in one entry or another."""

    def entry(right: int, *usual: int) -> int:
        return right if good or data.draw(st.integers(0, 3)) else data.draw(wrong(right, *usual))

    for region in (0, 1):
        twins.region(3 + region, entry(SEGMENTS + 0x4000 * region | 4 | WHOLE, PROTECT, INVALID, 4, 1, 0x40, 0x3000))
    for number, (table, index) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0))):
        right = PAGES + 0x800 * number
        twins.segment(table, index, entry(right, PROTECT, INVALID, FRAME | right ^ FRAMES + SEGMENT * number, 4))
        for at in (0, 1, 2, 16, 17, 254, 255):
            frame = FRAMES + (number << 18) + (data.draw(st.integers(0, 63)) << 12)
            twins.page(number, at, entry(frame, PROTECT, PAGE_INVALID, 0x800, 0x20))


def aligned(twins: ZpciTwins, first: int, pages: int) -> int:
    """As many of the pages as QEMU can be judged by: those up to the border of a segment, where it begins within one."""
    return min(pages, 256 - first % 256) if first % 256 else pages


@thorough(40)
@given(data=st.data())
def test_tables(twins: ZpciTwins, data: st.DataObject) -> None:
    twins.begin()
    twins.modify(twins.handles(0), 4, 0, fib())
    twins.windows(0)
    fill(twins, data, good=False)
    for _ in range(data.draw(st.integers(1, 4))):
        first, pages = data.draw(ranges)
        pages = aligned(twins, first, pages)
        here, there = twins.refresh(twins.handles(0), BASE + first * PAGE, pages * PAGE)
        assert here == there
        unsure = range(0)
        for _, _, address in twins.agree():
            twins.modify(twins.handles(0), 7, 0, fib())
            unsure = range(first, address - BASE >> 12)
        for segment, page in data.draw(st.lists(places, max_size=3)):
            if segment * 256 + page not in unsure:
                offset = page * PAGE + data.draw(st.sampled_from((0, 8, 0xFF8)))
                twins.access(0, BASE + segment * SEGMENT + offset, data.draw(st.booleans()))
        if unsure:
            return
        fill(twins, data, good=data.draw(st.booleans()))


# ---- instructions ----------------------------------------------------------------------------------------------------

blocks = st.builds(
    fib,
    st.sampled_from((SDMA, SDMA, BASE, SDMA - 1, SDMA + 0x123, EDMA, 0)),
    st.sampled_from((EDMA, EDMA, BASE, BASE + 0x1234, EDMA + 1, SDMA, 0, (1 << 64) - 1)),
    st.sampled_from((0x804, 0x804, 0x804, 0x804, 0x800, 0x808, 0x80C, 0x810, 4, 0)).map(lambda bits: ROOT | bits),
    format=st.sampled_from((0, 0, 0, 1)),
    measurement=st.sampled_from((0, 0, 1, 8, 15)),
)
handle_flips = st.sampled_from((0, 0, 0, 0, 0, 0, 1 << 31, 1 << 24, 0x40))
instructions = st.one_of(
    st.tuples(st.just("modify"), st.sampled_from((4, 4, 5, 6, 7, 9, 10, 2, 3)), st.sampled_from((0, 0, 0, 1, 255)), blocks),
    st.tuples(st.just("modify"), st.integers(0, 255), st.just(0), blocks),
    st.tuples(
        st.just("refresh"),
        st.sampled_from((SDMA, BASE, BASE + PAGE, BASE + SEGMENT, BASE + 4 * REGION, 0, SDMA - PAGE)),
        st.sampled_from((0, PAGE, PAGE, 3 * PAGE, SEGMENT)),
        st.just(b""),
    ),
    st.tuples(
        st.just("load"), st.sampled_from((15, 15, 15, 6, 14)), st.integers(0, 15), st.sampled_from((0, 1, 2, 3, 4, 63, 254, 255))
    ),
    st.tuples(st.just("set"), st.sampled_from((0, 1, 2, 255)), st.sampled_from((1, 1, 0, 2)), st.just(b"")),
)


@thorough(80)
@given(data=st.data())
def test_instructions(twins: ZpciTwins, data: st.DataObject) -> None:
    twins.begin(enable=data.draw(st.sampled_from((True, True, False))))
    fill(twins, data, good=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(2, 14))):
        function = data.draw(st.sampled_from((0, 0, 0, 1)))
        model = twins.models[function]
        handles = twins.handles(function, data.draw(handle_flips))
        kind, first, second, more = data.draw(instructions)
        if kind == "modify":
            if first == 10 and model.handle == handles[0]:
                more = fib(measurement=int.from_bytes(more[64:72]))
            registered = model.registration
            here, there = twins.modify(handles, first, second, more)
            assert here == there, f"MPCIFC {first} {second}"
            if first == 6 and here[2] and registered is not None:  # type: ignore[index]
                twins.modify((model.handle, 0), 5, 0, fib())  # "failed reregistration"
        elif kind == "refresh":
            registration = model.registration
            end = first + second
            if registration is not None and (end == registration.base or first <= registration.limit < end - 1):
                continue  # "end before the base", "beyond the limit"
            here, there = twins.refresh(handles, first, second)
            assert here == there, f"RPCIT {first:#x} {second:#x}"
        elif kind == "load":
            sides = zip((twins.facility, twins.qemu), handles, strict=True)
            done = [side.load(handle, first, more, second) for side, handle in sides]
            here, there = ((item.cc, int(item.status), item.interruption) for item in done)
            if more + second <= 256:
                assert here == there, f"PCILG {first} {more:#x} {second}"
        else:
            both = []
            for side, handle in zip((twins.facility, twins.qemu), handles, strict=True):
                request = struct.pack(">HHI8xIHBBQHH", 32, 5, 0, handle, 0, first, second, 0, 32, 0)
                both.append(struct.unpack_from(">HHIQI", side.clp(request)[1]))
            assert both[0][:2] == both[1][:2], f"Set PCI Function {first} {second}: {both}"
            if both[0][1] == 0x10:
                twins.there_handles[function] = both[1][4]
                assert (both[0][4] >> 31, both[0][4]) == (both[1][4] >> 31, model.handle)
        twins.agree()


# ---- Call Logical Processor ------------------------------------------------------------------------------------------


@thorough(60)
@given(
    command=st.sampled_from((2, 2, 2, 3, 4, 5, 0, 1, 6, 0x102)),
    length=st.sampled_from((32, 32, 32, 32, 24, 40, 0, 15, 16, 33)),
    room=st.sampled_from((48, 64, 96, 32, 40, 56, 144, 160, 0, 8, 9)),
    format=st.sampled_from((0, 0, 0, 1, 1 << 27, 1 << 28, 1 << 31)),
    reserved=st.sampled_from((0, 0, 0, 1, 1 << 63)),
    token=st.sampled_from((0, 0, 0x7777)),
)
def test_call_logical_processor(
    twins: ZpciTwins, command: int, length: int, room: int, format: int, reserved: int, token: int
) -> None:
    twins.begin()
    if command != 2 and (format or room < 144 or token):
        format, room, token = 0, 144, 0  # "format"
    request = struct.pack(">HHIQQQ", length, command, format, reserved, token, 0)[: max(length, 2)].ljust(length, b"\0")
    request += struct.pack(">HH", room, 0)
    here, answered = twins.facility.clp(request)
    there, answer = twins.qemu.clp(request)
    assert here.interruption == there.interruption
    if here.interruption or length % 8:
        return
    codes = [struct.unpack_from(">H", block, 2)[0] for block in (answered, answer)]
    assert codes[0] == codes[1], f"response codes {codes[0]:#x} and {codes[1]:#x}"
    if command == 2 and codes[0] == 0x10:
        sizes = [struct.unpack_from(">H", block)[0] for block in (answered, answer)]
        assert sizes[0] == sizes[1]
        assert any(answered[16:24]) == any(answer[16:24])
        for at in range(32, sizes[0], 16):
            assert answered[at : at + 12] == answer[at : at + 12]


# ---- what QEMU does otherwise (strict) -------------------------------------------------------------------------------


def plain(twins: ZpciTwins, **registration: int) -> None:
    """One function with one page at ``BASE``; the model reads entries as they are."""
    twins.begin(bend=False)
    assert twins.modify(twins.handles(0), 4, 0, fib(**registration)) == ((0, 0, 0), (0, 0, 0))
    if "base" not in registration:
        twins.windows(0)
    twins.region(3, SEGMENTS | 4 | WHOLE)
    for index in (0, 1):
        twins.segment(0, index, PAGES + 0x800 * index)
        for page in (0, 1, 2):
            twins.page(index, page, FRAMES + (index << 18) + (page << 12))


def refreshed(twins: ZpciTwins, address: int = BASE, size: int = PAGE) -> tuple[list[int], list[int]]:
    """The codes of the events of RPCIT."""
    twins.refresh(twins.handles(0), address, size)
    here, there = twins.events()
    return [event[0] for event in here], [event[0] for event in there]


def arrives(twins: ZpciTwins, iova: int, physical: int) -> tuple[bool, bool]:
    """Whether a read reaches a place."""
    model, device = twins.models[0], twins.devices[0]
    device.poke(0, b"-" * 8)
    device.load(iova, 8, 0)
    return model.translate(model.facts.fid, iova, write=False) == physical, device.peek(0, 8) == twins.there.read(physical, 8)


@pytest.mark.parametrize(
    ("name", "entry", "here", "there"),
    [
        ("whole tables", SEGMENTS | 4, [], [8]),
        ("whole tables", SEGMENTS | 4 | WHOLE | 0x40, [8], [8]),
        ("whole tables", SEGMENTS | 8, [9], [8]),
        ("origin zero", 4 | WHOLE, None, [9]),
    ],
)
def test_region_table_entries(twins: ZpciTwins, name: str, entry: int, here: list[int] | None, there: list[int]) -> None:
    plain(twins)
    twins.region(3, entry)
    found = refreshed(twins)
    assert found[1] == there, name
    assert here is None or found[0] == here


def test_a_segment_table_between_multiples_of_its_size(twins: ZpciTwins) -> None:
    plain(twins)
    twins.region(3, SEGMENTS | 0x1000 | 4 | WHOLE)
    twins.segment(0, 512, PAGES)
    twins.segment(0, 0, PAGES + 0x800)
    refreshed(twins)
    assert (arrives(twins, BASE, FRAMES)[0], arrives(twins, BASE, FRAMES + (1 << 18))[1]) == (True, True), "region origin"


def test_a_page_table_entry_of_zeros_names_the_first_frame(twins: ZpciTwins) -> None:
    for word, code in ((0, 7), (PROTECT, 9)):
        plain(twins)
        twins.put(PAGES, word)
        assert refreshed(twins) == ([], [code]), "origin zero"
        assert twins.models[0].translate(1, BASE + 8, write=False) == 8


def test_ranges_that_are_not_aligned(twins: ZpciTwins) -> None:
    plain(twins)
    twins.refresh(twins.handles(0), BASE + SEGMENT, 3 * PAGE)
    twins.segment(0, 0, INVALID)
    twins.refresh(twins.handles(0), BASE + PAGE, SEGMENT + PAGE)
    assert arrives(twins, BASE + SEGMENT, FRAMES + (1 << 18)) == (True, False), "unaligned range"
    plain(twins)
    twins.refresh(twins.handles(0), BASE + PAGE // 2, PAGE)
    twins.page(0, 1, FRAMES + 0x8000)
    twins.refresh(twins.handles(0), BASE + PAGE // 2, PAGE)
    assert arrives(twins, BASE + PAGE, FRAMES + 0x8000) == (True, False), "unaligned page"


def test_the_limits_of_a_registration(twins: ZpciTwins) -> None:
    plain(twins, base=BASE, limit=BASE + PAGE - 1)
    twins.put(PAGES + 8, 0)
    assert refreshed(twins, BASE, 2 * PAGE) == ([], [7]), "beyond the limit"
    plain(twins, base=BASE)
    assert refreshed(twins, BASE - PAGE, PAGE) == ([2], []), "end before the base"
    plain(twins)
    beyond = BASE + (1 << 42)
    assert refreshed(twins) == ([], [])
    assert refreshed(twins, beyond) == ([2], []), "reach"
    assert arrives(twins, beyond, FRAMES) == (False, True), "reach"


def test_what_is_told_of_a_request(twins: ZpciTwins) -> None:
    plain(twins, limit=BASE + PAGE - 1)
    model, device = twins.models[0], twins.devices[0]
    assert refreshed(twins) == ([], [])
    model.translate(1, BASE + PAGE, write=True)
    device.store(BASE + PAGE, 8, 0)
    assert [len(events) for events in twins.events()] == [1, 0], "silence"
    plain(twins)
    model, told = twins.models[0], []
    model.translate(1, BASE, write=True)
    device.store(BASE, 8, 0)
    for take in (twins.facility.store_event, twins.qemu.store_event):
        block = take()
        assert block is not None
        told.append(block[64 + 12 : 64 + 16])
    assert told == [bytes((0, 0, 0, 3)), bytes(4)], "direction"


def test_dma_of_a_function_that_is_blocked(twins: ZpciTwins) -> None:
    plain(twins)
    refreshed(twins)
    assert arrives(twins, BASE, FRAMES) == (True, True)
    twins.refresh(twins.handles(0), BASE - REGION * 3, PAGE)
    assert twins.modify(twins.handles(0), 9, 0, fib()) == ((0, 0, 0), (0, 0, 0))
    twins.events()
    assert arrives(twins, BASE, FRAMES) == (False, True), "blocked"


def test_a_refused_registration_leaves_the_old_one(twins: ZpciTwins) -> None:
    plain(twins)
    assert twins.modify(twins.handles(0), 6, 0, fib(iota=0)) == ((0, 0, 0x15), (0, 0, 0x15))
    assert twins.modify(twins.handles(0), 5, 0, fib()) == ((0, 0, 0), (1, 24, 0)), "failed reregistration"


def test_answers_of_instructions(twins: ZpciTwins) -> None:
    twins.begin(enable=True)
    handle = twins.there_handles[0]
    twins.set_function(handle, 1)
    twins.set_function(handle & ~(1 << 31), 0)
    assert twins._handles()[0] == handle, "handles"
    list_pci = struct.pack(">HHI24xHH", 32, 2, 0, 56, 0)
    assert [side.clp(list_pci)[0].cc for side in (twins.facility, twins.qemu)] == [0, 3], "list length"
    group = struct.pack(">HHI24xHH", 32, 4, 1 << 28, 144, 0)
    assert [side.clp(group)[1][2:4] for side in (twins.facility, twins.qemu)] == [b"\0\x40", b"\1\x0b"], "format"
    beyond = [side.load(each, 15, 256, 4) for side, each in zip((twins.facility, twins.qemu), twins.handles(0), strict=True)]
    assert (beyond[0].interruption, beyond[1].result & 0xFFFF_FFFF) == (0x15, 0xFFFF_FFFF), "configuration"
