"""The allocator of I/O addresses, against a plain set of pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from iommukit.dma.iova import IovaSpace
from iommukit.errors import IommuError

PAGES = 64
GRANULE = 0x1000


class Space(RuleBasedStateMachine):
    """Pages handed out are free, aligned and below the limit; a refusal is right."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.space = IovaSpace(GRANULE, 0, PAGES * GRANULE - 1)
        self.free = set(range(PAGES))

    @rule(first=st.integers(0, PAGES * GRANULE - 1), size=st.integers(1, 4 * GRANULE))
    def reserve(self, first: int, size: int) -> None:
        self.space.reserve(first, first + size - 1)
        self.free -= set(range(first // GRANULE, (first + size - 1) // GRANULE + 1))

    @rule(target=taken, size=st.integers(1, 9 * GRANULE), limit=st.integers(0, PAGES * GRANULE + 5))
    def alloc(self, size: int, limit: int) -> tuple[int, int] | None:
        pages = -(-size // GRANULE)
        alignment = 1 << (pages - 1).bit_length()
        fits = [
            page
            for page in range(0, PAGES, alignment)
            if (page + pages) * GRANULE - 1 <= limit and self.free >= set(range(page, page + pages))
        ]
        if not fits:
            with pytest.raises(IommuError):
                self.space.alloc(size, limit)
            return None
        found = self.space.alloc(size, limit)
        assert found == max(fits) * GRANULE
        self.free -= set(range(found // GRANULE, found // GRANULE + pages))
        return found, size

    @rule(range_=consumes(taken))
    def give_back(self, range_: tuple[int, int] | None) -> None:
        if range_ is not None:
            iova, size = range_
            self.space.free(iova, size)
            self.free |= set(range(iova // GRANULE, iova // GRANULE + -(-size // GRANULE)))

    @invariant()
    def counts(self) -> None:
        assert self.space.free_bytes == len(self.free) * GRANULE


TestSpace = Space.TestCase


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 20))
def test_what_is_free_cannot_be_given_back(first: int, size: int) -> None:
    space = IovaSpace(GRANULE, 0, (1 << 48) - 1)
    with pytest.raises(ValueError):
        space.free(first // GRANULE * GRANULE, size)
