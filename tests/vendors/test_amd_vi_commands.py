"""Commands, events and caches of the IOMMU as hardware (AMD 48882, 2.4 and 2.5)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.platform import UNMAPPED
from iommukit_amd_vi.model.commands import pages_of
from iommukit_amd_vi.queue import EVERYTHING, inv_address
from iommukit_amd_vi.units import Iommu

from .amd_vi_hardware import (
    CMDBASE,
    CMDHEAD,
    CMDTAIL,
    COMMANDS,
    CONTROL,
    DOMAIN,
    EVENT_LOG_EN,
    EVTHEAD,
    GIOV,
    GT_EN,
    GUEST_FEATURES,
    GV,
    ON,
    PR,
    RW,
    SID,
    STATUS,
    TV,
    WORD,
    Hand,
    V,
    tables,
)

CMD_BUF_EN = 1 << 12
INV_PAGES, INV_ENTRY, INV_ALL = 3 << 60, 2 << 60, 8 << 60
S, PDE, GN = 1, 2, 4
ALL = 0x7FFF_FFFF_FFFF_F000
A, B = 0x9000, 0xA000


@pytest.fixture
def hand():
    hand = Hand()
    hand.root = hand.page()
    hand.leaf = tables(hand, hand.root, 3, 0x5000, A | RW | PR)
    hand.host(hand.root, 3)
    return hand


# ---- the buffer ------------------------------------------------------------------------------------------------------


def test_completion_wait_stores(hand):
    assert hand.wait()
    assert hand.get(CMDHEAD) == hand.get(CMDTAIL) == 16


@pytest.mark.parametrize("enabled", [0, 1 << 4])
def test_completion_wait_with_i_sets_the_status_bit_whether_an_interrupt_follows_or_not(hand, enabled):
    hand.put(CONTROL, ON | enabled)
    hand.command(1 << 60)
    assert not hand.get(STATUS) & 4
    hand.command(1 << 60 | 2)
    assert hand.get(STATUS) & 4
    hand.put(STATUS, 4)
    assert not hand.get(STATUS) & 4


def test_nothing_happens_before_the_tail_is_written(hand):
    assert hand.read(0x5000) == A
    hand.memory.set_word(hand.leaf, B | RW | PR)
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000, ring=False)
    assert hand.read(0x5000) == A
    hand.put(CMDTAIL, hand.tail)
    assert hand.read(0x5000) == B


def test_the_ring_wraps(hand):
    for _ in range(700):
        hand.command(INV_PAGES | DOMAIN << 32, ALL | S)
        assert hand.get(CMDHEAD) == hand.tail
    assert hand.wait()


def test_a_longer_ring():
    hand = Hand()
    hand.put(CMDBASE, COMMANDS | 9 << 56)
    hand.put(CMDTAIL, 0x1FF0)
    assert hand.get(CMDTAIL) == 0x1FF0
    hand.put(CMDTAIL, 0x2000)
    assert hand.get(CMDTAIL) == 0


ILLEGAL = {
    "code 0": (0, 0),
    "code 15": (15 << 60, 0),
    "reserved bit of the entry's": (INV_ENTRY | SID | 1 << 20, 0),
    "second word of the entry's": (INV_ENTRY | SID, 1),
    "reserved bit of the pages'": (INV_PAGES | DOMAIN << 32 | 1 << 50, ALL | S),
    "address bit 3 of the pages'": (INV_PAGES | DOMAIN << 32, ALL | S | 8),
    "PASID without guest translation": (INV_PAGES | DOMAIN << 32 | 5, ALL | S | GN),
    "operand of all": (INV_ALL | 1, 0),
    "store address beyond 52 bits": (1 << 60 | WORD | 1 | 1 << 52, 0),
}


@pytest.mark.parametrize("words", ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_command_stops_the_buffer(words):
    hand = Hand(Iommu(0, 0, 2, efr=0x29D3 & ~(1 << 4)))
    assert hand.wait()
    hand.command(*words)
    assert hand.events() == [(5, 0, 0, 0, COMMANDS + 16)]
    assert hand.get(CMDHEAD) == 16, "the head stays at the command"
    assert not hand.get(STATUS) & 1 << 4
    assert not hand.wait()
    hand.memory.set_word(COMMANDS + 16, 1 << 60)
    hand.memory.set_word(COMMANDS + 24, 0)
    hand.put(CONTROL, ON & ~CMD_BUF_EN)
    hand.put(CONTROL, ON)
    assert hand.memory.word(WORD) == hand.sequence, "it goes on when it is enabled again"


def test_all_without_its_feature_is_illegal():
    hand = Hand(Iommu(0, 0, 2, efr=0x29D3 & ~(1 << 6)))
    hand.command(INV_ALL)
    assert hand.events()[0][0] == 5


@pytest.mark.parametrize("words", [(1 << 60 | 1 << 45 | 1, 5)], ids=["store"])
def test_a_command_that_reaches_no_memory(hand, words):
    hand.command(*words)
    assert hand.events() == [(6, 0, 0, 0, COMMANDS)]
    assert not hand.get(STATUS) & 1 << 4


def test_commands_outside_memory(hand):
    hand.put(CMDBASE, 1 << 45 | 8 << 56)
    hand.put(CMDTAIL, 16)
    assert hand.events() == [(6, 0, 0, 0, 1 << 45)]


@pytest.mark.parametrize("words", [(4 << 60 | SID, ALL | S), (5 << 60 | SID, 0), (6 << 60, 0), (7 << 60 | SID, 0)])
def test_commands_that_concern_others_are_taken(hand, words):
    hand.command(*words)
    assert hand.wait()
    assert hand.events() == []


# ---- caches ----------------------------------------------------------------------------------------------------------

FORGETS = {
    "its page": (INV_PAGES | DOMAIN << 32, 0x5000, True),
    "the page before": (INV_PAGES | DOMAIN << 32, 0x4000, False),
    "the page behind": (INV_PAGES | DOMAIN << 32, 0x6000, False),
    "two pages": (INV_PAGES | DOMAIN << 32, 0x4000 | S, True),
    "two other pages": (INV_PAGES | DOMAIN << 32, 0x6000 | S, False),
    "sixteen pages": (INV_PAGES | DOMAIN << 32, 0x7000 | S, True),
    "everything": (INV_PAGES | DOMAIN << 32, ALL | S, True),
    "another domain": (INV_PAGES | DOMAIN + 1 << 32, ALL | S, False),
    "all": (INV_ALL, 0, True),
    "the entry": (INV_ENTRY | SID, 0, False),
}


@pytest.mark.parametrize(("first", "second", "forgets"), FORGETS.values(), ids=FORGETS)
def test_translations_are_cached_until_invalidated(hand, first, second, forgets):
    assert hand.read(0x5000) == A
    hand.memory.set_word(hand.leaf, B | RW | PR)
    assert hand.read(0x5123) == A + 0x123
    hand.command(first, second)
    assert hand.read(0x5000) == (B if forgets else A)
    many = hand.model.translate_many(SID, np.arange(0x5000, 0x6000, 8, dtype=np.uint64), write=False)
    assert many[0] == (B if forgets else A)


def test_a_page_of_any_size_goes_as_a_whole(hand):
    large = tables(hand, hand.root, 3, 0x400000, 0x800000 | RW | PR, level=2)
    assert hand.read(0x400000) == 0x800000
    hand.memory.set_word(large, 0xA00000 | RW | PR)
    hand.command(INV_PAGES | DOMAIN << 32, 0x5FF000)
    assert hand.read(0x400000) == 0xA00000


def test_permissions_are_cached_with_the_address(hand):
    assert hand.write(0x5000) == A
    hand.memory.set_word(hand.leaf, A | 1 << 61 | PR)
    assert hand.write(0x5000) == A
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000)
    assert (hand.write(0x5000), hand.read(0x5000)) == (None, A)


def test_directories_are_cached_unless_pde_says_so(hand):
    assert hand.read(0x5000) == A
    other = hand.page()
    hand.memory.set_word(other + 5 * 8, B | RW | PR)
    directory = hand.memory.word(hand.root) & 0xF_FFFF_FFFF_F000
    hand.memory.set_word(directory, other | 1 << 9 | RW | PR)
    hand.command(INV_PAGES | DOMAIN << 32, ALL | S)
    assert hand.read(0x5000) == A, "the walk began at the cached directory"
    assert hand.model.translate_many(SID, np.full(40, 0x5000, np.uint64), write=False)[0] == A
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000 | PDE)
    assert hand.read(0x5000) == B


def test_directories_of_many_are_cached_as_well(hand):
    iovas = np.full(40, 0x5000, np.uint64)
    assert (hand.model.translate_many(SID, iovas, write=False) == A).all()
    hand.memory.set_word(hand.root, 0)
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000)
    assert (hand.model.translate_many(SID, iovas, write=False) == A).all()
    assert hand.read(0x5000) == A
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000 | PDE)
    assert (hand.model.translate_many(SID, iovas, write=False) == UNMAPPED).all()


@pytest.mark.parametrize("stale", [False, True])
def test_a_very_large_batch_goes_by_cached_directories_too(hand, stale):
    """40000 addresses of two directories, of which one may be cached and changed."""
    for page in range(0x200):
        tables(hand, hand.root, 3, page << 12, A + (page << 12) | RW | PR)
        tables(hand, hand.root, 3, 0x200000 + (page << 12), B + (page << 12) | RW | PR)
    directory = hand.memory.word(hand.root) & 0xF_FFFF_FFFF_F000
    if stale:
        assert hand.read(0x1FF000) == A + 0x1FF000
        hand.memory.set_word(directory, hand.memory.word(directory + 8))
        hand.command(INV_PAGES | DOMAIN << 32, ALL | S)
    iovas = np.random.default_rng(1).integers(0, 0x400000, 40000, dtype=np.uint64)
    found = hand.model.translate_many(SID, iovas, write=True)
    assert (found == np.where(iovas < 0x200000, iovas + np.uint64(A), iovas - np.uint64(0x200000) + np.uint64(B))).all()
    if stale:
        hand.command(INV_PAGES | DOMAIN << 32, ALL | S | PDE)
        found = hand.model.translate_many(SID, iovas, write=True)
        assert (found == (iovas & np.uint64(0x1FFFFF)) + np.uint64(B)).all()


@pytest.mark.parametrize("np_cache", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_absent_entries_are_cached_under_np_cache(np_cache, many):
    hand = Hand(Iommu(0, 0, 2, np_cache=np_cache))
    root = hand.page()
    hand.host(root, 3)

    def read():
        if not many:
            return hand.read(0x5000)
        found = hand.model.translate_many(SID, np.full(40, 0x5000, np.uint64), write=False)[0]
        return None if found == UNMAPPED else int(found)

    assert read() is None
    tables(hand, root, 3, 0x5000, A | RW | PR)
    assert read() == (None if np_cache else A)
    hand.command(INV_PAGES | DOMAIN << 32, 0x5000)
    assert read() == A


def test_devices_of_one_domain_id_share_translations(hand):
    other = hand.page()
    tables(hand, other, 3, 0x5000, B | RW | PR)
    hand.host(other, 3, device=0x20)
    assert hand.read(0x5000) == A
    assert hand.read(0x5000, device=0x20) == A, "two trees of tables under one id are mixed up"
    hand.host(other, 3, device=0x28, domain=DOMAIN + 1)
    assert hand.read(0x5000, device=0x28) == B


@settings(deadline=None)
@given(start=st.integers(0, (1 << 52) - 1), size=st.integers(1, 1 << 50))
def test_the_drivers_address_covers_its_range_and_less_than_twice_the_aligned_power(start, size):
    """``inv_address`` is the driver's, ``pages_of`` the hardware's."""
    size = min(size, (1 << 52) - start)
    first, last = pages_of(inv_address(start, size))
    assert first <= start
    assert last >= start + size - 1
    length = last + 1 - first
    assert length & length - 1 == 0
    half = length // 2
    assert length == 0x1000 or start < first + half <= start + size - 1, "half of it would not do"


@pytest.mark.parametrize(("start", "size"), [(0, EVERYTHING), (1 << 63, 0x1000), (0, 1 << 53), ((1 << 52) - 0x1000, 0x2000)])
def test_the_drivers_address_of_very_much(start, size):
    first, last = pages_of(inv_address(start, size))
    assert first <= start
    assert last >= start + size - 1


# ---- events ----------------------------------------------------------------------------------------------------------


def test_the_log_overflows_stops_and_starts_again(hand):
    for page in range(400):
        hand.read(0x100000 + page * 0x1000)
    assert hand.get(STATUS) & 1
    assert not hand.get(STATUS) & 1 << 3
    assert len(hand.events()) == 255
    hand.read(0x900000)
    assert hand.events() == [], "it has stopped"
    hand.put(STATUS, 1)
    hand.put(CONTROL, ON & ~EVENT_LOG_EN)
    hand.put(CONTROL, ON)
    hand.read(0x900000)
    assert [event[4] for event in hand.events()] == [0x900000]
    assert hand.get(STATUS) & 9 == 8


def test_many_at_once_overflow_it_too(hand):
    iovas = np.arange(0x100000, 0x100000 + 4000 * 0x1000, 0x1000, dtype=np.uint64)
    assert (hand.model.translate_many(SID, iovas, write=True) == UNMAPPED).all()
    assert hand.get(STATUS) & 1
    assert [event[4] for event in hand.events()] == iovas[:255].tolist()


def test_a_log_that_is_off_takes_nothing():
    hand = Hand(control=ON & ~EVENT_LOG_EN)
    hand.entry(V | TV, 0)
    assert hand.read(0x5000) is None
    assert hand.events() == []


@pytest.mark.parametrize(("word", "told"), [(0, 3), (1 << 34, 0), (1 << 33, 1)], ids=["plain", "SA", "SE"])
def test_suppressed_faults(hand, word, told):
    hand.entry(hand.root | 3 << 9 | V | TV | RW, DOMAIN | word)
    for _ in range(3):
        assert hand.read(0x100000) is None
    assert len(hand.events()) == told
    hand.command(INV_ENTRY | SID)
    hand.read(0x100000)
    assert len(hand.events()) == min(told, 1)


def test_the_head_is_the_drivers(hand):
    hand.read(0x100000)
    hand.put(EVTHEAD, 0)
    assert len(hand.events()) == 1


# ---- guest tables ----------------------------------------------------------------------------------------------------

P, W, U, ACCESSED, DIRTY, PS = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
GUEST = P | W | U


@pytest.fixture
def guest():
    hand = Hand(Iommu(0, 0, 2, efr=GUEST_FEATURES), control=ON | GT_EN)
    hand.gcr3, hand.root = hand.page(), hand.page()
    hand.memory.set_word(hand.gcr3, hand.root | 1)
    hand.leaf = tables(hand, hand.root, 4, 0x5000, A | GUEST, directory=GUEST)
    _guest_entry(hand)
    return hand


def _guest_entry(hand, word0=GIOV):
    gcr3 = hand.gcr3
    first = V | TV | GV | RW | word0 | (gcr3 >> 12 & 7) << 58
    hand.entry(first, DOMAIN | (gcr3 >> 15 & 0xFFFF) << 16 | gcr3 >> 31 << 43)


@pytest.mark.parametrize("where", [0x1234000, 0x8_7654_5000, 0xF_FFFF_E000])
def test_the_gcr3_tables_address_is_in_three_fields(guest, where):
    guest.gcr3 = where
    guest.memory.set_word(where, guest.root | 1)
    _guest_entry(guest)
    assert guest.write(0x5123) == A + 0x123


@pytest.mark.parametrize(("level", "shift"), [(1, 12), (2, 21), (3, 30)])
def test_guest_pages(guest, level, shift):
    iova = 5 << shift | 1 << 47
    tables(guest, guest.root, 4, iova, GUEST | (PS if level > 1 else 0), level=level, directory=GUEST)
    for offset in (0, (1 << shift) - 1):
        assert guest.write(iova + offset) == offset
    assert guest.read(1 << 48) is None


@pytest.mark.parametrize(
    ("bits", "read", "write", "flags"), [(P | U, True, False, 0x070), (P | W, False, False, 0x070), (W | U, False, False, 0x020)]
)
def test_guest_permissions(guest, bits, read, write, flags):
    guest.memory.set_word(guest.leaf, A | bits)
    assert (guest.read(0x5000) is not None, guest.write(0x5000) is not None) == (read, write)
    assert guest.events()[-1] == (2, SID, flags, DOMAIN, 0x5000)


def test_accessed_and_dirty_are_set(guest):
    assert guest.read(0x5000) == A
    assert guest.memory.word(guest.leaf) == A | GUEST | ACCESSED
    guest.command(INV_ALL)
    assert guest.write(0x5000) == A
    assert guest.memory.word(guest.leaf) == A | GUEST | ACCESSED | DIRTY
    assert guest.memory.word(guest.root) & ACCESSED


def test_many_at_once_in_guest_tables(guest):
    tables(guest, guest.root, 4, 0x400000, 0x800000 | GUEST | PS, level=2, directory=GUEST)
    tables(guest, guest.root, 4, 0x6000, B | P | U, directory=GUEST)
    iovas = np.array([0x5008, 0x400008, 0x6008, 0x7008, 1 << 48] * 10, np.uint64)
    found = guest.model.translate_many(SID, iovas, write=True)
    nothing = int(UNMAPPED)
    assert found.tolist() == [A + 8, 0x800008, nothing, nothing, nothing] * 10
    assert guest.memory.word(guest.leaf) == A | GUEST | ACCESSED | DIRTY
    assert guest.model.translate_many(SID, iovas, write=False)[2] == B + 8


def test_pasids_have_tables_of_their_own(guest):
    other = guest.page()
    guest.memory.set_word(guest.gcr3 + 3 * 8, other | 1)
    tables(guest, other, 4, 0x5000, B | GUEST, directory=GUEST)
    assert (guest.read(0x5000), guest.read(0x5000, pasid=3)) == (A, B)
    assert guest.read(0x5000, pasid=4) is None
    assert guest.events() == [(2, SID, 0x001, 4, 0x5000)]
    guest.memory.set_word(guest.leaf, B | GUEST)
    guest.command(INV_PAGES | DOMAIN << 32 | 3, ALL | S | PDE | GN)
    assert guest.read(0x5000) == A, "another PASID was invalidated"
    guest.command(INV_PAGES | DOMAIN << 32, 0x5000 | GN)
    assert guest.read(0x5000) == B


def test_without_giov_a_request_needs_a_pasid(guest):
    _guest_entry(guest, 0)
    assert (guest.read(0x5000), guest.read(0x5000, pasid=0)) == (None, A)


def test_an_invalidation_of_host_addresses_forgets_all_guest_addresses(guest):
    assert guest.read(0x5000) == A
    guest.memory.set_word(guest.leaf, B | GUEST)
    guest.command(INV_PAGES | DOMAIN << 32, 0x777000)
    assert guest.read(0x5000) == B


@pytest.mark.parametrize("case", ["GTEn", "GTSup", "GLX"])
def test_guest_tables_that_the_iommu_cannot_have(guest, case):
    if case == "GTEn":
        guest.put(CONTROL, ON)
    elif case == "GLX":
        _guest_entry(guest, GIOV | 1 << 56)
    else:
        guest.model.features &= ~(1 << 4)
    assert guest.read(0x5000) is None
    assert guest.events()[0][0] == 1
