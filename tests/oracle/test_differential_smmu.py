"""SMMUv3: the model against QEMU's on words, commands and requests that no driver wrote (IHI 0070, DDI 0487)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .differential import flips, thorough
from .smmu_twins import (
    AF,
    AP_USER,
    BLOCKS,
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_PROD,
    COMMANDS,
    CONTEXTS,
    CR0,
    EVENTQ_BASE,
    EVENTS,
    FIRST_LEVEL,
    FRAMES,
    GERROR,
    GERRORN,
    ILLEGAL_HERE,
    PAGE,
    QUEUE,
    QUEUES,
    REGISTERS,
    SMMUEN,
    STREAMS,
    SYNC,
    TABLE_READ_ONLY,
    TABLE_USER,
    TABLES,
    SmmuTwins,
    bent_command,
    past_devices,
)

SID = 24
F_TRANSLATION, F_PERMISSION = 0x10, 0x13
ROOM = 0x80_0000
"""I/O addresses end in an offset below this, so that blocks lead to frames: 24 MiB from memory's first byte on."""
words = st.integers(0, (1 << 64) - 1)


@pytest.fixture(scope="module")
def twins() -> Iterator[SmmuTwins]:
    twins = SmmuTwins()
    yield twins
    twins.close()


def shift_of(level: int, granule: int) -> int:
    return granule + (granule - 3) * (3 - level)


def table_of(level: int, tree: int = 0) -> int:
    return TABLES + (4 * tree + level << 16)


def good_context(tsz: int, granule: int, start: int, *, asid: int = 5, tree: int = 0) -> list[int]:
    """V, AA64, A, R, IPS 44 bits, EPD1."""
    word = tsz | {12: 0, 14: 2, 16: 1}[granule] << 6 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
    return [word, table_of(start, tree), 0, 0xFF, 0, 0, 0, 0]


def start_of(tsz: int, granule: int) -> int:
    """The level of the first table (DDI 0487 D8.2.1)."""
    return 4 - -(-(64 - tsz - granule) // (granule - 3))


def path(iova: int, tsz: int, granule: int, tree: int = 0) -> list[tuple[int, int]]:
    """The level and the address of each entry for an I/O address."""
    start = start_of(tsz, granule)
    found = []
    for level in range(start, 4):
        index = (iova & (1 << 64 - tsz) - 1) >> shift_of(level, granule)
        if level > start:
            index &= (1 << granule - 3) - 1
        found.append((level, table_of(level, tree) + 8 * index))
    return found


@st.composite
def offsets(draw: st.DrawFn) -> int:
    return 0x180_0000 | draw(st.integers(0, 0x5F_FFFF)) & ~3


shapes = st.tuples(st.integers(16, 39), st.sampled_from((12, 14, 16)))


@st.composite
def iovas(draw: st.DrawFn, tsz: int) -> int:
    upper = draw(st.one_of(st.integers(0, (1 << 64 - tsz) - 1), st.integers(0, (1 << 64 - tsz) - 1), st.integers(0, (1 << 48) - 1)))
    return upper & ~0x1FF_FFFF | draw(offsets())


spoils = st.one_of(
    st.tuples(st.just("flip"), flips()),
    st.tuples(st.just("flip"), flips(0, 11, 4)),
    st.tuples(st.just("flip"), flips(44, 63, 4)),
    st.tuples(st.just("block"), flips()),
    st.tuples(st.just("value"), words),
)


def same(twins: SmmuTwins, iova: int, write: bool, entries: Sequence[int] = (), sid: int = SID, *, told: bool = True) -> bool:
    """One request, and whether the next one can be compared.

    Not after "table rights": QEMU has stopped a write at a table, and the model, which was further down, has told something else.
    """
    here, there = twins.probe(sid, iova, write)
    if write and here != there and any(entry & 3 == 3 and entry & TABLE_READ_ONLY for entry in entries[:-1]):
        assert isinstance(there[1], list)
        assert (there[0], [event[0] & 0xFF for event in there[1]]) == (None, [F_PERMISSION] if told else [])
        return False
    twins.drain()
    assert here == there, f"{'write' if write else 'read'} {iova:#x}: {show(here)}, in QEMU {show(there)}"
    twins.agree()
    return True


def show(outcome: tuple[object, object]) -> str:
    at, events = outcome
    assert isinstance(events, list)
    return f"{at if at is None else hex(at)} {[tuple(map(hex, event)) for event in events]}"  # type: ignore[call-overload]


# ---- table descriptors (DDI 0487 D8.3) -------------------------------------------------------------------------------


@thorough(150)
@given(data=st.data())
def test_descriptors(twins: SmmuTwins, data: st.DataObject) -> None:
    tsz, granule = data.draw(shapes)
    start = start_of(tsz, granule)
    twins.begin()
    twins.ste(SID, [0b1011 | CONTEXTS, *(0,) * 7])
    context = good_context(tsz, granule, start)
    context[1] |= data.draw(st.sampled_from((0, 0, 0, 2)))  # HAD0
    context[0] ^= data.draw(st.sampled_from((0, 0, 0, 1 << 45)))  # R
    twins.cd(context)
    for _ in range(data.draw(st.integers(1, 2))):
        iova = data.draw(iovas(tsz))
        entries = []
        places = path(iova, tsz, granule)
        spoiled = data.draw(st.sets(st.sampled_from([level for level, _ in places]), max_size=2))
        for level, address in places:
            word = FRAMES | data.draw(st.integers(0, 0x5F)) << 16 | PAGE if level == 3 else table_of(level + 1) | 3
            if level in spoiled:
                kind, bits = data.draw(spoils)
                if kind == "block":
                    word = (1 << 30 | PAGE & ~2) ^ bits
                else:
                    word = word ^ bits if kind == "flip" else bits
            if level < 3 and word & 3 == 1 and level not in BLOCKS[granule]:
                word ^= 1  # "wide block"
            entries.append(twins.descriptor(address, word, level))
        if context[1] & 2:
            entries = [entry & ~TABLE_READ_ONLY for entry in entries]
        for write in data.draw(st.sampled_from(((True, False), (False,), (True,), (True, True), (False, False)))):
            if not same(twins, iova, write, entries, told=bool(context[0] & 1 << 45)):
                return
        twins.command((4, 31), (0x30, 0))


# ---- context descriptors (5.4) ---------------------------------------------------------------------------------------


@thorough(150)
@given(data=st.data())
def test_context_descriptors(twins: SmmuTwins, data: st.DataObject) -> None:
    tsz, granule = data.draw(shapes)
    start = start_of(tsz, granule)
    twins.begin()
    context = good_context(tsz, granule, start)
    context[0] |= data.draw(st.integers(16, 39)) << 16 | data.draw(st.integers(0, 3)) << 22
    kind = data.draw(st.sampled_from(("flip", "tables", "value", "ttb")))
    if kind == "flip":
        context[0] ^= data.draw(flips(0, 63, 2))
        context[1] ^= data.draw(flips(0, 3))
    elif kind == "ttb":
        context[0] ^= (4 ^ data.draw(st.integers(0, 7))) << 32
        context[1] ^= data.draw(flips(0, 63, 2))
        context[2] ^= data.draw(flips())
    elif kind == "value":
        context[0] = data.draw(words) | 1 << 31 | 1 << 41 | 1 << 46
    context[1] = past_devices(context[1])
    if not context[0] & 1 << 30 and data.draw(st.booleans()):
        context[0] |= 1 << 30
    twins.cd(context)
    twins.ste(SID, [0b1011 | CONTEXTS, *(0,) * 7])
    iova = data.draw(iovas(tsz))
    for level, address in path(iova, tsz, granule):
        twins.descriptor(address, FRAMES | PAGE if level == 3 else table_of(level + 1) | 3, level)
    bits = 64 - (context[0] & 0x3F)
    if not context[0] & 1 << 30 and (context[0] & 1 << 14 or iova >> bits):
        return  # "upper table"
    if context[0] & 1 << 15 and context[0] >> 14 & context[0] >> 30 & 1:
        return  # ENDI without any tables
    for write in (True, False):
        same(twins, iova, write)


# ---- stream table entries (5.2) --------------------------------------------------------------------------------------


@thorough(100)
@given(data=st.data())
def test_stream_table_entries(twins: SmmuTwins, data: st.DataObject) -> None:
    log2size = data.draw(st.integers(0, 16))
    base = STREAMS ^ data.draw(st.one_of(st.just(0), flips(6, 5 + log2size - 1, 3))) if log2size > 1 else STREAMS
    if log2size > 10:
        base = STREAMS
    twins.begin(strtab=base | data.draw(st.sampled_from((0, 1 << 62, 0x3F))), cfg=log2size | data.draw(st.integers(0, 31)) << 6)
    aligned = base & -(64 << log2size)
    iova = data.draw(iovas(39))
    twins.cd(good_context(39, 12, 2))
    for level, address in path(iova, 39, 12):
        twins.descriptor(address, FRAMES | PAGE if level == 3 else table_of(level + 1) | 3, level)
    for sid in (24, 32):
        word0 = CONTEXTS | 1 | data.draw(st.integers(0, 7)) << 1
        word0 ^= data.draw(st.one_of(st.just(0), flips(0, 63, 2)))
        word0 = past_devices(word0)
        rest = [data.draw(st.one_of(st.just(0), flips(), words)) for _ in range(3)]
        twins.ste(sid, [word0, *rest, 0, 0, 0, 0], aligned)
        if base & 32 << log2size:
            continue  # "unaligned table"
        for write in (True, False):
            same(twins, past_devices(iova) if word0 >> 1 & 7 == 4 else iova, write, sid=sid)


# ---- caches (4.3, 4.4) -----------------------------------------------------------------------------------------------

CACHED = (0x1_8000_0000, 0x1_8000_1000, 0x1_8020_0000, 0x1_8040_0000)
"""Two pages, and two blocks of 2 MiB: the pages' upper bits differ from the blocks' at level 2 only."""


@st.composite
def invalidations(draw: st.DrawFn) -> tuple[int, int]:
    opcode = draw(st.sampled_from((3, 4, 5, 6, 0x10, 0x11, 0x12, 0x12, 0x12, 0x13, 0x13, 0x30)))
    sid = draw(st.sampled_from((24, 32, 25, 1 << 16 | 24)))
    if opcode < 7:
        leaf = draw(st.integers(0, 31)) if opcode == 4 else draw(st.integers(0, 1))
        return opcode | sid << 32 | draw(st.sampled_from((0, 0, 1 << 11, 7 << 12))), leaf
    first = opcode | draw(st.sampled_from((0, 0, 9))) << 32 | draw(st.sampled_from((5, 6, 7))) << 48
    second = draw(st.sampled_from((*CACHED, 0x1_8000_0000, 0x1_8000_2000, 0x1_8020_3000, 0))) | draw(st.integers(0, 1))
    if opcode in (0x12, 0x13) and draw(st.booleans()):
        first |= draw(st.integers(0, 31)) << 12 | draw(st.integers(0, 12)) << 20
        second |= 1 << 10 | draw(st.integers(0, 3)) << 8
    return first, second


@thorough(60)
@given(data=st.data())
def test_caches(twins: SmmuTwins, data: st.DataObject) -> None:
    twins.begin()
    shared = data.draw(st.booleans())
    for tree, asid in ((0, 5), (1, 5 if shared else 6)):
        twins.cd(good_context(25, 12, 1, asid=asid, tree=tree), CONTEXTS + 64 * tree)
        for iova in CACHED:
            for level, address in path(iova, 25, 12, tree):
                if level < (3 if iova < CACHED[2] else 2):
                    twins.descriptor(address, table_of(level + 1, tree) | 3, level)
    frames = dict.fromkeys(((tree, iova) for tree in (0, 1) for iova in CACHED), 0)

    def leaf(tree: int, iova: int) -> None:
        page = iova < CACHED[2]
        level, address = path(iova, 25, 12, tree)[2 if page else 1]
        frames[tree, iova] = number = frames[tree, iova] + 1
        at = FRAMES + (4 * (number % 8) + 32 * tree << 12) + (iova & 0x3000) if page else FRAMES + (number % 3 << 21)
        twins.descriptor(address, 0 if number % 5 == 4 else at | (PAGE if page else PAGE & ~2), level)

    def entry(sid: int, which: int) -> None:
        twins.ste(sid, [(0b1011 | CONTEXTS + 64 * which) if which < 2 else 0b1001 if which == 2 else 0b0001, *(0,) * 7])

    for key in frames:
        leaf(*key)
    for which, sid in enumerate((24, 32)):
        entry(sid, which)
    for _ in range(data.draw(st.integers(3, 8))):
        for sid in (24, 32):
            same(twins, data.draw(st.sampled_from(CACHED)) | 0x40, data.draw(st.booleans()), sid=sid)
        change = data.draw(st.sampled_from(("leaf", "leaf", "entry", "none")))
        if change == "leaf":
            leaf(data.draw(st.integers(0, 1)), data.draw(st.sampled_from(CACHED)))
        elif change == "entry":
            entry(data.draw(st.sampled_from((24, 32))), data.draw(st.integers(0, 3)))
        twins.command(*data.draw(st.lists(invalidations(), max_size=3)))
        twins.agree()


# ---- the command queue (4.1, 6.3.26 to 6.3.28) -----------------------------------------------------------------------

opcodes = st.one_of(
    st.sampled_from((1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, SYNC, SYNC, SYNC)),
    st.sampled_from((1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, SYNC, SYNC, SYNC)),
    st.sampled_from(ILLEGAL_HERE),
    st.integers(0, 255),
)
steps = st.one_of(
    st.tuples(st.just("prod"), st.integers(0, 127)),
    st.tuples(st.just("prod"), st.integers(0, 127)),
    st.tuples(st.just("acknowledge"), st.just(0)),
    st.tuples(st.just("mend"), st.just(0)),
    st.tuples(st.just("cr0"), st.sampled_from((0, 4, 8, 12, 13))),
    st.tuples(st.just("cons"), st.integers(0, 127)),
    st.tuples(st.just("size"), st.integers(0, 6)),
    st.tuples(st.just("gone"), st.integers(0, 3)),
)


@thorough(60)
@given(data=st.data())
def test_command_queue(twins: SmmuTwins, data: st.DataObject) -> None:
    twins.begin(on=False)
    command = st.tuples(opcodes, flips(8, 31, 2), st.integers(0, 3)).map(lambda drawn: (drawn[0] | drawn[1], drawn[2]))
    ring = [data.draw(command) for _ in range(64)]
    for number, (first, second) in enumerate(ring):
        twins.words(COMMANDS + 16 * number, [first, second], list(bent_command(first, second)))
    cr0, base = QUEUES, COMMANDS
    for step, value in data.draw(st.lists(steps, min_size=3, max_size=12)):
        if step == "prod":
            twins.set(CMDQ_PROD, value)
        elif step == "acknowledge":
            twins.set(GERRORN, twins.unit.read(GERROR, 4))
            twins.raw((GERRORN, twins.platform.bus.read(REGISTERS + GERROR, 4)))
        elif step == "mend":
            log2size = twins.unit.commands.base & 0x1F
            at = twins.unit.read(CMDQ_CONS, 4) & (1 << min(log2size, 6)) - 1
            twins.words(COMMANDS + 16 * at, [SYNC, 0])
        elif step == "cr0":
            cr0 = value
            twins.set(CR0, cr0)
        elif not cr0 & 8:
            if step == "cons":
                twins.set(CMDQ_CONS, value)
            else:
                base = COMMANDS if step == "size" else 0x4_0000_0000
                twins.set(CMDQ_BASE, base | value, 8)
        twins.agree()


# ---- what QEMU does otherwise (strict) -------------------------------------------------------------------------------


class Example:
    """A mapped page, on which one thing is wrong; the model reads it as it is."""

    def __init__(self, twins: SmmuTwins, *, tsz: int = 39, granule: int = 12, **begin: int) -> None:
        self.twins = twins
        self.iova = 0x180_0040
        twins.begin(bend=False, **begin)
        twins.ste(SID, [0b1011 | CONTEXTS, *(0,) * 7])
        self.context = good_context(tsz, granule, start_of(tsz, granule))
        self.path = dict(path(self.iova, tsz, granule))
        self.words = {level: FRAMES | PAGE if level == 3 else table_of(level + 1) | 3 for level in self.path}
        self.write()

    def write(self, **changed: int) -> Example:
        for level, address in self.path.items():
            self.twins.descriptor(address, self.words[level], level)
        self.twins.cd(self.context)
        return self

    def entry(self, level: int, bits: int) -> Example:
        self.words[level] ^= bits
        return self.write()

    def cd(self, bits: int) -> Example:
        self.context[0] ^= bits
        return self.write()

    def ask(self, write: bool = False, iova: int | None = None) -> tuple[bool, bool]:
        """Whether the request arrives: in the model, and in QEMU."""
        here, there = self.twins.probe(SID, self.iova if iova is None else iova, write)
        self.events = [list(events) for _, events in (here, there)]  # type: ignore[call-overload]
        self.twins.drain()
        return here[0] is not None, there[0] is not None

    def types(self) -> list[list[int]]:
        return [[event[0] & 0xFF for event in events] for events in self.events]


@pytest.mark.parametrize(
    ("name", "level", "bits", "stopped"),
    [
        ("access flag", 3, AF, 0x12),
        ("unprivileged", 3, AP_USER, F_PERMISSION),
        ("unprivileged", 2, TABLE_USER, F_PERMISSION),
    ],
)
def test_pages_that_qemu_reaches_though_it_must_not(twins: SmmuTwins, name: str, level: int, bits: int, stopped: int) -> None:
    assert Example(twins).ask() == (True, True)
    example = Example(twins).entry(level, bits)
    assert example.ask() == (False, True), name
    assert example.types() == [[stopped], []]


@pytest.mark.parametrize(("tsz", "granule", "level"), [(16, 12, 0), (20, 14, 1), (20, 16, 1)])
def test_blocks_that_are_too_large(twins: SmmuTwins, tsz: int, granule: int, level: int) -> None:
    example = Example(twins, tsz=tsz, granule=granule)
    example.words[level] = 1 << 30 | PAGE & ~2
    example.write().iova |= 1 << 30
    assert example.ask()[0] is False
    assert example.types() == [[F_TRANSLATION], []], "wide block"


def test_output_addresses_are_not_held_against_their_size(twins: SmmuTwins) -> None:
    example = Example(twins).entry(3, 1 << 45)
    assert example.ask() == (False, False)
    assert example.types() == [[0x11], []], "output size"


def test_a_write_stops_at_the_first_table_that_forbids_it(twins: SmmuTwins) -> None:
    example = Example(twins).entry(2, TABLE_READ_ONLY).entry(3, 1)
    example.ask(write=True)
    assert example.types() == [[F_TRANSLATION], [F_PERMISSION]], "table rights"


def test_low_addresses_in_the_upper_table(twins: SmmuTwins) -> None:
    example = Example(twins).cd(1 << 30 | 39 << 16 | 2 << 22 | 1 << 14)
    example.context[2], example.context[1] = example.context[1], 0
    assert example.write().ask() == (False, True), "upper table"


def test_events_that_qemu_words_otherwise(twins: SmmuTwins) -> None:
    example = Example(twins).entry(3, 1)
    example.ask()
    assert [event[0][1] >> 40 & 3 for event in example.events] == [2, 0], "class"
    example = Example(twins)
    twins.ste(SID, [0b1011 | 1 << 33, *(0,) * 7])
    example.ask()
    assert [event[0][2:] for event in example.events] == [(0, 1 << 33), (1 << 33, 0)], "fetch address"


def test_a_stream_beyond_the_table_is_told_unasked(twins: SmmuTwins) -> None:
    example = Example(twins, cfg=4, on=False)
    twins.set(0x2C, 0)
    twins.set(CR0, QUEUES | SMMUEN)
    reached = twins.unit.translate(SID, 0, write=False)
    twins._devices[SID].store(0, 4, 0)
    prods = [twins.unit.read(0x1_00A8, 4), twins.platform.bus.read(REGISTERS + 0x1_00A8, 4)]
    assert (reached, prods) == (None, [0, 1]), "unknown stream"
    del example


def test_an_event_queue_that_is_full(twins: SmmuTwins) -> None:
    example = Example(twins).entry(3, 1)
    for _ in range((1 << QUEUE) + 1):
        twins.unit.translate(SID, example.iova, write=True)
        twins._devices[SID].store(example.iova, 4, 0)
    found = twins.registers()
    assert found["EVENTQ_PROD"] == (1 << 31 | 1 << QUEUE, 1 << QUEUE), "full queue"
    assert found["active errors"] == (0, 0b100)


def test_bypass_has_no_limit(twins: SmmuTwins) -> None:
    example = Example(twins)
    twins.ste(SID, [0b1001, *(0,) * 7])
    example.ask(iova=1 << 45)
    assert example.types() == [[0x11], []], "bypass size"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *(("commands for absent features", (opcode, 0)) for opcode in ILLEGAL_HERE),
        ("reserved sync", (SYNC | 3 << 12, 0)),
        ("reserved range", (0x12, 1 << 10)),
        ("secure prefetch", (1 | 1 << 10, 0)),
    ],
)
def test_commands_that_qemu_takes_though_they_are_illegal(twins: SmmuTwins, name: str, command: tuple[int, int]) -> None:
    twins.begin(bend=False)
    twins.command(command, sync=False)
    assert twins.registers()["CMDQ_CONS"] == (1 << 24, 1), name


def test_addresses_that_qemu_does_not_align(twins: SmmuTwins) -> None:
    assert Example(twins, strtab=STREAMS | 32 << 8).ask() == (True, False), "unaligned table"
    twins.begin(bend=False, on=False)
    twins.set(CR0, 0)
    twins.words(COMMANDS, [1, 0])
    twins.words(COMMANDS + 0x40, [0xFF, 0])
    twins.set(CMDQ_BASE, COMMANDS | 0x40 | QUEUE, 8)
    twins.set(EVENTQ_BASE, EVENTS | 0x40 | QUEUE, 8)
    twins.set(CR0, QUEUES | SMMUEN)
    twins.set(CMDQ_PROD, 1)
    assert twins.registers()["CMDQ_CONS"] == (1, 1 << 24), "unaligned queue"


# ---- two levels (5.1): last, since QEMU 7.2 never leaves them again --------------------------------------------------


@thorough(60)
@given(data=st.data())
def test_two_level_tables(twins: SmmuTwins, data: st.DataObject) -> None:
    split, log2size = data.draw(st.sampled_from((6, 8, 10))), data.draw(st.integers(0, 16))
    twins.begin(strtab=FIRST_LEVEL, cfg=1 << 16 | split << 6 | log2size)
    span = data.draw(st.one_of(st.integers(0, split), st.integers(0, 31)))
    twins.first_level(0, past_devices(STREAMS ^ data.draw(st.one_of(st.just(0), flips(32, 51, 2)))) | span, split)
    iova = data.draw(iovas(39))
    twins.cd(good_context(39, 12, 2))
    for level, address in path(iova, 39, 12):
        twins.descriptor(address, FRAMES | PAGE if level == 3 else table_of(level + 1) | 3, level)
    for sid in (24, 32):
        twins.ste(sid, [CONTEXTS | 0b1011, *(0,) * 7])
        here, there = twins.probe(sid, iova, data.draw(st.booleans()))
        twins.drain()
        if not sid >> log2size and span and sid >= 1 << span:
            assert isinstance(here[1], list)
            here = here[0], [(event[0] + 2, *event[1:]) for event in here[1]]  # "outside the span"
        assert here == there, f"{show(here)} {show(there)}"


def test_the_span_of_a_second_level_table(twins: SmmuTwins) -> None:
    for span, split, expected, name in ((5, 8, (False, True), "span"), (4, 8, (False, False), "outside the span")):
        example = Example(twins, strtab=FIRST_LEVEL, cfg=1 << 16 | split << 6 | 16)
        twins.first_level(0, STREAMS | span, split)
        assert example.ask() == expected, name
        if not expected[1]:
            assert example.types() == [[2], [4]], name


def test_a_reserved_split_is_six(twins: SmmuTwins) -> None:
    example = Example(twins, strtab=FIRST_LEVEL, cfg=1 << 16 | 4 << 6 | 16)
    twins.first_level(0, STREAMS | 7, 6)
    assert example.ask() == (True, False), "split"
