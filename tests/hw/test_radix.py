"""What the state machine seldom comes to: shortage at every step, edges of larger pages, roots that grow, skipped levels."""

from __future__ import annotations

import numpy as np
import pytest

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Format, Level
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED
from iommukit.hw.radix import FEW, PageTable, Partial

from .formats import Big, Full, Plain, Sized, Split, Wide
from .test_radix_machine import contents

RW = Prot.READ | Prot.WRITE
ALL: list[Format] = [Plain(), Full(), Wide(), Big(), Sized(), Split()]


@pytest.fixture
def memory() -> PhysicalMemory:
    return PhysicalMemory(1 << 30, base=0x4000_0000)


def unmap(table: PageTable, iova: int, pgsize: int, count: int, partial: Partial = Partial.WHOLE) -> int:
    """Unmap, with nobody to wait for."""
    freed: list[tuple[int, int]] = []
    done = table.unmap(iova, pgsize, count, partial=partial, freed=freed)
    for address, size in freed:
        table.memory.pages.free(address, size)
    return done


@pytest.mark.parametrize("format", ALL, ids=lambda format: type(format).__name__)
class TestEveryFormat:
    def test_many_pages_are_mapped_as_one_by_one(self, format: Format, memory: PhysicalMemory) -> None:
        grain = 1 << format.levels[0].shift
        count = 3 << format.levels[0].bits
        at_once, singly = PageTable(format, memory), PageTable(format, memory)
        first = 5 * grain
        assert at_once.map(first, 9 * grain, grain, count, RW) == count * grain
        for page in range(count):
            singly.map(first + page * grain, (9 + page) * grain, grain, 1, RW)
        iovas = np.arange(0, first + (count + 3) * grain, grain // 2, dtype=np.uint64)
        found = at_once.lookup_many(iovas)
        assert np.array_equal(found, singly.lookup_many(iovas))
        assert int((found != UNMAPPED).sum()) == 2 * count
        leaves = [[entry for level, _, entry in table.entries(first + 7 * grain) if not level] for table in (at_once, singly)]
        assert leaves[0] == leaves[1]
        assert at_once.bytes == singly.bytes
        assert unmap(at_once, first, grain, count) == sum(unmap(singly, first + page * grain, grain, 1) for page in range(count))
        at_once.free()
        singly.free()
        assert memory.pages.outstanding == 0

    @pytest.mark.parametrize("count", [1, FEW, FEW + 1, 2000])
    def test_shortage_at_every_step_leaves_all_as_it_was(self, format: Format, memory: PhysicalMemory, count: int) -> None:
        table = PageTable(format, memory)
        grain = 1 << format.levels[0].shift
        table.map(0, 0, grain, 3, RW)
        before, used, taken = contents(table), table.bytes, memory.pages.outstanding
        iova = table.span // 2 - grain * (count // 2)
        errors = set()
        for limit in range(taken, taken + (1 << 20), memory.pages.GRAIN):
            memory.pages.limit = limit
            try:
                table.map(iova, grain, grain, count, RW)
            except IommuError as error:
                errors.add(error.name)
                assert contents(table) == before
                assert (table.bytes, memory.pages.outstanding) == (used, taken)
            else:
                break
        assert errors == {"ENOMEM"}
        assert table.lookup(iova + grain * (count - 1)) == grain * count

    def test_nothing_is_mapped_over(self, format: Format, memory: PhysicalMemory) -> None:
        table = PageTable(format, memory)
        grain = 1 << format.levels[0].shift
        count = 2 << format.levels[0].bits
        table.map(grain * count, 0, grain, 1, RW)
        before = contents(table)
        for first, pages in ((grain * count, 1), (grain * (count - FEW + 1), FEW), (grain, count), (grain * count, count)):
            with pytest.raises(IommuError, match="EEXIST"):
                table.map(first, 0, grain, pages, RW)
            assert contents(table) == before

    def test_what_cannot_be(self, format: Format, memory: PhysicalMemory) -> None:
        table = PageTable(format, memory)
        grain = 1 << format.levels[0].shift
        for error, iova, paddr, pgsize, count in (
            ("ERANGE", table.span - grain, 0, grain, 2),
            ("ERANGE", table.span, 0, grain, 1),
            ("EINVAL", 1, 0, grain, 1),
            ("EINVAL", 0, 1, grain, 1),
            ("EINVAL", 0, 0, grain // 2, 1),
        ):
            with pytest.raises(IommuError, match=error):
                table.map(iova, paddr, pgsize, count, RW)
        assert table.unmap(table.span, grain, 1, partial=Partial.WHOLE, freed=[]) == 0
        assert table.lookup(table.span) is None
        assert table.lookup_many(np.array([table.span], dtype=np.uint64))[0] == UNMAPPED

    def test_scattered_tables_are_filled_as_well(self, format: Format, memory: PhysicalMemory) -> None:
        table, other = PageTable(format, memory), PageTable(format, memory)
        grain, per_table = 1 << format.levels[0].shift, 1 << format.levels[0].bits
        for number in (3, 0, 2, 1, 4):
            table.map(number * per_table * grain, 0, grain, 1, RW)
            other.map(number * per_table * grain, 0, grain, 1, RW)
            assert unmap(table, number * per_table * grain, grain, 1) == grain
        table.map(0, grain, grain, 5 * per_table, RW)
        iovas = np.arange(0, 5 * per_table * grain, grain, dtype=np.uint64)
        assert np.array_equal(table.lookup_many(iovas), iovas + np.uint64(grain))
        assert unmap(table, 0, grain, 5 * per_table) == 5 * per_table * grain
        assert (table.lookup_many(iovas) == UNMAPPED).all()


class TestLargerPagesInTheWay:
    """Eight large pages of 512 KiB; what becomes of one of which a part is unmapped."""

    LARGE = 1 << 19

    @pytest.fixture
    def table(self, memory: PhysicalMemory) -> PageTable:
        table = PageTable(Plain(), memory)
        table.map(0, 0, self.LARGE, 8, RW)
        return table

    def unmapped(self, table: PageTable) -> list[int]:
        """Which of the 4 KiB pages are not mapped."""
        iovas = np.arange(0, 8 * self.LARGE, 0x1000, dtype=np.uint64)
        return np.flatnonzero(table.lookup_many(iovas) == UNMAPPED).tolist()

    @pytest.mark.parametrize(
        ("partial", "first", "count", "done", "gone"),
        [
            (Partial.REFUSE, 0, 1, 0, (0, 0)),
            (Partial.REFUSE, 0, 200, 128, (0, 128)),
            (Partial.REFUSE, 10, 200, 0, (0, 0)),
            (Partial.WHOLE, 0, 1, 128, (0, 128)),
            (Partial.WHOLE, 10, 1, 128, (0, 128)),
            (Partial.WHOLE, 10, 200, 256, (0, 256)),
            (Partial.WHOLE_FROM_START, 0, 1, 128, (0, 128)),
            (Partial.WHOLE_FROM_START, 0, 200, 256, (0, 256)),
            (Partial.WHOLE_FROM_START, 10, 200, 0, (0, 0)),
            (Partial.SPLIT, 0, 1, 1, (0, 1)),
            (Partial.SPLIT, 10, 1, 1, (10, 11)),
            (Partial.SPLIT, 10, 300, 300, (10, 310)),
        ],
    )
    def test_ends(self, table: PageTable, partial: Partial, first: int, count: int, done: int, gone: tuple[int, int]) -> None:
        assert unmap(table, first << 12, 0x1000, count, partial) == done << 12
        assert self.unmapped(table) == list(range(*gone))

    def test_a_split_tells_which_pages_were_replaced(self, table: PageTable) -> None:
        split: list[tuple[int, int]] = []
        assert table.unmap(10 << 12, 0x1000, 300, partial=Partial.SPLIT, freed=[], split=split) == 300 << 12
        assert split == [(0, self.LARGE), (2 * self.LARGE, self.LARGE)]

    def test_a_page_is_split_over_several_levels(self, memory: PhysicalMemory) -> None:
        table = PageTable(Plain(), memory)
        table.map(0, 0, 1 << 26, 1, RW)
        assert unmap(table, 0x5000, 0x1000, 1, Partial.SPLIT) == 0x1000
        assert [entry[0] for entry in table.entries(0x6000)] == [2, 1, 0]
        assert table.lookup(0x5000) is None
        assert table.lookup(0x6000) == 0x6000
        assert table.lookup((1 << 26) - 1) == (1 << 26) - 1

    def test_a_split_without_memory_changes_nothing(self, table: PageTable, memory: PhysicalMemory) -> None:
        before = contents(table)
        memory.pages.limit = memory.pages.outstanding
        assert unmap(table, 0x5000, 0x1000, 1, Partial.SPLIT) == 0
        assert contents(table) == before

    def test_an_empty_table_makes_room_for_a_page(self, memory: PhysicalMemory) -> None:
        table = PageTable(Plain(), memory)
        table.map(0, 0, 0x1000, 1, RW)
        with pytest.raises(IommuError, match="EEXIST"):
            table.map(0, 0, self.LARGE, 1, RW)
        unmap(table, 0, 0x1000, 1)
        freed: list[tuple[int, int]] = []
        leaf_table = table.format.address(table.entries(0)[-2][2], 1)
        table.map(0, 0, self.LARGE, 1, RW, freed)
        assert freed == [(leaf_table, 1024)]
        assert memory.pages.outstanding == table.bytes + 1024

    def test_several_empty_tables_make_room_for_a_page(self, memory: PhysicalMemory) -> None:
        table = PageTable(Plain(), memory)
        for number in range(3):
            table.map(number * self.LARGE, 0, 0x1000, 1, RW)
            unmap(table, number * self.LARGE, 0x1000, 1)
        table.map(0, 0, 1 << 26, 1, RW)
        assert memory.pages.outstanding == table.bytes == 2048


def test_freed_tables_are_not_touched_until_they_are_given_back(memory: PhysicalMemory) -> None:
    """Hardware that still walks a table from its own memory of the way finds what was there."""
    table = PageTable(Full(), memory)
    table.map(0, 0x5000, 0x1000, 1024, RW)
    leaves = table.format.address(table.entries(0)[-2][2], 1)
    freed: list[tuple[int, int]] = []
    table.unmap(0, 0x1000, 1024, partial=Partial.WHOLE, freed=freed)
    assert freed == [(leaves, 8192)]
    assert table.format.address(memory.word(leaves), 0) == 0x5000
    assert table.entries(0)[-1][0] == 1


def test_tables_are_kept_where_the_driver_keeps_them(memory: PhysicalMemory) -> None:
    table = PageTable(Full(), memory)
    table.map(0, 0, 0x1000, 1024, RW)
    used = table.bytes
    freed: list[tuple[int, int]] = []
    assert table.unmap(0, 0x1000, 1024, partial=Partial.WHOLE, freed=freed, release=False) == 4 << 20
    assert (freed, table.bytes) == ([], used)
    assert [entry for _, _, entry in table.entries(0x3000)][-1] == 0


def test_a_root_grows(memory: PhysicalMemory) -> None:
    table = PageTable(Sized(), memory, top=1)
    assert table.span == 1 << 30
    table.map(0x7000, 0x1000, 0x1000, 1, RW)
    with pytest.raises(IommuError, match="ERANGE"):
        table.map(1 << 30, 0, 0x1000, 1, RW)
    memory.pages.limit = memory.pages.outstanding + 4096
    before = table.root, table.top, table.bytes, memory.pages.outstanding
    with pytest.raises(IommuError, match="ENOMEM"):
        table.grow(3)
    assert (table.root, table.top, table.bytes, memory.pages.outstanding) == before
    memory.pages.limit = None
    table.grow(3)
    table.map(1 << 30, 0, 0x1000, 1, RW)
    assert (table.lookup(0x7123), table.lookup(1 << 30), table.lookup(1 << 39)) == (0x1123, 0, None)
    table.free()
    assert memory.pages.outstanding == 0


def test_skipped_levels_are_followed(memory: PhysicalMemory) -> None:
    """The root names a table of leaves; the address bits of the levels between must be zero."""
    table = PageTable(Sized(), memory)
    leaves = memory.pages.alloc(4096)
    memory.set_word(table.root, leaves | 1 << 9 | 1)
    memory.set_word(leaves + 8 * 5, 0x7000 | 1)
    iovas = [0x5123, 0x6000, 0x20_5123, 0x8000_5123]
    assert [table.lookup(iova) for iova in iovas] == [0x7123, None, None, None]
    found = table.lookup_many(np.array(iovas, dtype=np.uint64))
    assert found.tolist() == [0x7123, *[int(UNMAPPED)] * 3]


def test_the_sizes_between_levels(memory: PhysicalMemory) -> None:
    """A page of 64 KiB is sixteen equal entries, from whichever of them it is read."""
    table = PageTable(Sized(), memory)
    table.map(0x3_0000, 0x5_0000, 0x1_0000, 3, RW)
    entries = {table.entries(iova)[-1][2] for iova in range(0x3_0000, 0x4_0000, 0x1000)}
    assert len(entries) == 1
    assert entries.pop() & 0xF000 == 0x7000
    assert table.lookup(0x3_F123) == 0x5_F123
    assert unmap(table, 0x4_2000, 0x1000, 1, Partial.WHOLE) == 0x1_0000
    assert [table.lookup(iova) for iova in (0x3_F000, 0x4_0000, 0x4_F000, 0x5_0000)] == [0x5_F000, None, None, 0x7_0000]
    assert unmap(table, 0x5_0000, 0x1000, 1, Partial.REFUSE) == 0
    assert unmap(table, 0x3_0000, 0x1000, 16, Partial.REFUSE) == 0x1_0000


def test_addresses_beyond_48_bits_are_split(memory: PhysicalMemory) -> None:
    table = PageTable(Split(), memory)
    start = (3 << 48) - 20 * 0x1_0000
    table.map(0, start, 0x1_0000, 100, RW)
    iovas = np.arange(0, 100 << 16, 1 << 16, dtype=np.uint64)
    assert np.array_equal(table.lookup_many(iovas), iovas + np.uint64(start))
    assert table.entries(30 << 16)[-1][2] & 0xF000 == 3 << 12
    with pytest.raises(IommuError, match="ERANGE"):
        table.map(200 << 16, 1 << 52, 0x1_0000, 1, RW)


def test_a_table_may_take_more_than_its_entries(memory: PhysicalMemory) -> None:
    """A root of four entries in a page of its own; leaves that are not adjoining although they were made at once."""

    class Roomy(Plain):
        levels = (Level(12, 7, least=0x1000), Level(19, 2, least=0x1000))

    table = PageTable(Roomy(), memory)
    table.map(0x1000, 0x8000, 0x1000, 400, RW)
    assert (table.root % 0x1000, table.bytes) == (0, 5 * 0x1000)
    iovas = np.arange(0, 512 << 12, 1 << 12, dtype=np.uint64)
    assert np.flatnonzero(table.lookup_many(iovas) != UNMAPPED).tolist() == list(range(1, 401))
    assert unmap(table, 0x1000, 0x1000, 400) == 400 << 12
    table.free()
    assert memory.pages.outstanding == 0


def test_big_endian_entries(memory: PhysicalMemory) -> None:
    table = PageTable(Big(), memory)
    table.map(0, 0x1234_5000, 0x1000, 300, Prot.READ)
    _, address, entry = table.entries(0x12B000)[-1]
    assert entry == 0x1234_5000 + 0x12B000 | 0x200
    assert memory.read(address, 8) == entry.to_bytes(8, "big")
    assert memory.big_word(address + 8) == 0x400


def test_random_addresses_over_mixed_pages(memory: PhysicalMemory) -> None:
    """Many look-ups at once agree with single ones, over several chunks."""
    table = PageTable(Full(), memory)
    rng = np.random.default_rng(5)
    table.map(0, 1 << 40, 0x1000, 5000, RW)
    table.map(1 << 30, 1 << 41, 1 << 21, 100, RW)
    table.map(1 << 31, 1 << 42, 1 << 30, 2, RW)
    table.map(1 << 40, 1 << 43, 0x1000, 700, RW)
    near = [rng.integers(0, 1 << 26, 60000), (1 << 30) + rng.integers(0, 1 << 28, 60000), rng.integers(0, 5 << 30, 60000)]
    near += [(1 << 40) + rng.integers(0, 1 << 22, 5000), rng.integers(0, 1 << 50, 5000)]
    iovas = np.concatenate(near).astype(np.uint64)
    rng.shuffle(iovas)
    found = table.lookup_many(iovas)
    assert 0.3 < (found != UNMAPPED).mean() < 0.9
    for iova, physical in zip(iovas[::50].tolist(), found[::50].tolist(), strict=True):
        assert table.lookup(iova) == (None if physical == UNMAPPED else physical)
