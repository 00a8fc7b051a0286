"""The allocator of tables: nothing overlaps, everything is zero, everything comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.errors import IommuError
from iommukit.hw.memory import PhysicalMemory

SIZE = 1 << 22
SIZES = st.sampled_from([0x400, 0x800, 0x1000, 0x4000, 0x20000])
STEPS = st.lists(st.one_of(st.tuples(SIZES, st.integers(1, 40)), st.integers(0, 1000)), max_size=60)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, base=st.sampled_from([0, 0x4000_0000]))
def test_what_is_handed_out_is_apart_aligned_and_zero(steps: list[tuple[int, int] | int], base: int) -> None:
    memory = PhysicalMemory(SIZE, base)
    pages = memory.pages
    held: list[tuple[int, int]] = []
    for step in steps:
        if isinstance(step, int):
            if held:
                address, size = held.pop(step % len(held))
                if step % 3 == 0 and size > pages.GRAIN:  # give back a part, keep the rest
                    part = size // 2 // pages.GRAIN * pages.GRAIN
                    held.append((address + part, size - part))
                    size = part
                pages.free(address, size)
        else:
            size, count = step
            try:
                address = pages.alloc(size, count)
            except IommuError:
                continue  # only a shortage: the last lines would notice anything else
            assert address % size == 0
            assert pages.start <= address
            assert address + size * count <= memory.end
            assert all(address + size * count <= other or other + length <= address for other, length in held)
            assert not any(memory.read(address, size * count))
            memory.write(address, b"\xff" * (size * count))
            held.append((address, size * count))
        assert pages.outstanding == sum(length for _, length in held)
    for address, size in held:
        pages.free(address, size)
    assert pages.outstanding == 0
    assert pages.alloc(SIZE // 2) == pages.start, "all of it is in one piece again"


def test_a_table_given_back_is_the_next_one() -> None:
    pages = PhysicalMemory(SIZE).pages
    first, second = pages.alloc(0x1000), pages.alloc(0x1000)
    pages.free(first, 0x1000)
    pages.free(second, 0x1000)
    assert (pages.alloc(0x1000), pages.alloc(0x1000)) == (second, first)


def test_tables_given_back_one_by_one_make_a_run() -> None:
    pages = PhysicalMemory(SIZE).pages
    tables = [pages.alloc(0x1000) for _ in range(SIZE // 2 // 0x1000)]
    with pytest.raises(IommuError, match="ENOMEM"):
        pages.alloc(0x1000)
    for table in tables:
        pages.free(table, 0x1000)
    assert pages.alloc(0x1000, len(tables)) == pages.start


def test_runs_are_found_in_pieces_where_there_is_none_of_the_length() -> None:
    pages = PhysicalMemory(SIZE).pages
    tables = [pages.alloc(0x1000) for _ in range(SIZE // 2 // 0x1000)]
    for table in tables[::2]:
        pages.free(table, 0x1000)
    runs = pages.alloc_runs(0x1000, 100)
    assert sum(count for _, count in runs) == 100
    before = pages.outstanding
    with pytest.raises(IommuError, match="ENOMEM"):
        pages.alloc_runs(0x1000, len(tables))
    assert pages.outstanding == before


@pytest.mark.parametrize("size", [0x400, 0x1000, 0x4000])
def test_giving_back_twice_is_noticed(size: int) -> None:
    pages = PhysicalMemory(SIZE).pages
    address = pages.alloc(0x1000, 4)
    pages.free(address, 0x4000)
    with pytest.raises(ValueError, match="twice"):
        pages.free(address, size)
    with pytest.raises(ValueError, match="never"):
        pages.free(pages.start + 0x10000, size)
    again = pages.alloc(0x1000)
    with pytest.raises(ValueError, match="twice"):
        pages.free(again, 0x2000)


def test_a_limit_is_a_shortage() -> None:
    pages = PhysicalMemory(SIZE).pages
    pages.limit = 0x2000
    first = pages.alloc(0x1000)
    with pytest.raises(IommuError, match="ENOMEM"):
        pages.alloc(0x1000, 2)
    pages.alloc(0x1000)
    with pytest.raises(IommuError, match="ENOMEM"):
        pages.alloc(0x400)
    pages.free(first, 0x1000)
    pages.alloc(0x400)


@pytest.mark.parametrize("size", [0x400, 0x1000, 1 << 20, 1 << 22, 1 << 24])
def test_large_tables_are_aligned_to_their_size(size: int) -> None:
    """Also where long runs begin at a huge page."""
    pages = PhysicalMemory(1 << 28).pages
    pages.alloc(0x400)
    assert [pages.alloc(size) % size, pages.alloc(size, 3) % size, pages.alloc(1 << 22) % (1 << 22)] == [0, 0, 0]
