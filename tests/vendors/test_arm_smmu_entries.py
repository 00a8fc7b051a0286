"""What the SMMUv3 driver writes, by hand: stream table entries, context descriptors, pages; and how it changes an entry in use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from iommukit.domain import Prot
from iommukit.hw.memory import PhysicalMemory
from iommukit_arm_smmu import entries
from iommukit_arm_smmu.tables import StageOne, StageTwo

RW = Prot.READ | Prot.WRITE

STREAMS = {
    "nothing": entries.NOTHING,
    "abort": entries.abort_entry(),
    "bypass": entries.bypass_entry(),
    "one": entries.first_stage_entry(0x8000_0000),
    "another": entries.first_stage_entry(0x9000_0000),
    "second": entries.second_stage_entry(0xA000_0000, StageTwo(12, 40, 40, concatenated=True), 7),
    "third": entries.second_stage_entry(0xB000_0000, StageTwo(16, 40, 40, concatenated=True), 8),
}
HITLESS = {("bypass", "one"), ("one", "bypass"), ("abort", "bypass"), ("bypass", "abort"), ("one", "another"), ("another", "one")}
HITLESS |= {(name, "abort") for name in STREAMS} | {("abort", name) for name in STREAMS}


class Watched:
    """Eight words of memory whose every change is looked at with the hardware's eyes."""

    def __init__(self, words):
        self.memory = PhysicalMemory(0x1000)
        self.memory.table(0, 8)[:] = np.array(words, dtype=np.uint64)
        self.states = []
        outer = self

        class Quads:
            def __init__(self, quads):
                self.quads = quads

            def __getitem__(self, at):
                return self.quads[at]

            def __setitem__(self, at, value):
                self.quads[at] = value
                outer.states.append(tuple(self.quads[:8].tolist()))

        self.memory.quads = Quads(self.memory.quads)


def seen(words, used):
    """What hardware sees of an entry: the bits that it looks at."""
    return tuple(word & bits for word, bits in zip(words, used(words), strict=True))


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(STREAMS, 2)))
def test_an_entry_never_shows_a_mixture(old, new):
    """At each write, the old entry, the new one, or none."""
    watched = Watched(STREAMS[old])
    entries.change_entry(watched.memory, 0, STREAMS[new], entries.entry_used, lambda: None)
    assert watched.states[-1] == STREAMS[new]
    shown = {seen(words, entries.entry_used) for words in watched.states}
    ends = {seen(STREAMS[name], entries.entry_used) for name in (old, new)}
    none = (0,) * 8
    assert shown <= ends | {none}
    if (old, new) in HITLESS and "nothing" not in (old, new):
        assert none not in shown


def test_context_descriptors_never_show_a_mixture_either():
    format = StageOne(12, 48, 44)
    all_of_them = [entries.NOTHING, *(entries.context_descriptor(0x1000 * n, format, n, 44) for n in (1, 2))]
    for old, new in itertools.permutations(all_of_them, 2):
        watched = Watched(old)
        entries.change_entry(watched.memory, 0, new, entries.context_used, lambda: None)
        assert watched.states[-1] == new
        shown = {seen(words, entries.context_used) for words in watched.states}
        assert shown <= {seen(one, entries.context_used) for one in (old, new)} | {(0,) * 8}


def test_entries_by_hand():
    """The words of IHI 0070 5.2 and 5.4 for known values."""
    assert entries.first_stage_entry(0x4567_8000)[:2] == (0x4567_800B, 0b10 | 1 << 2 | 1 << 4 | 3 << 6)
    assert entries.bypass_entry()[:2] == (0b1001, 1 << 44)
    first, root, upper, mair, *_ = entries.context_descriptor(0x1_2345_6000, StageOne(12, 48, 44), 0xABCD, 44)
    low = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31
    assert first == low | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47 | 0xABCD << 48
    assert (root, upper, mair) == (0x1_2345_6000, 0, 0xF404FF44)
    second = STREAMS["second"]
    assert second[0] == 0b1101
    assert second[2] == 7 | 24 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 2 << 48 | 1 << 51 | 1 << 54 | 1 << 58
    assert second[3] == 0xA000_0000


@pytest.mark.parametrize(
    ("prot", "first", "second"),
    [
        (RW, 0xE43, 0x6D7),
        (Prot.READ, 0xEC3, 0x657),
        (Prot.WRITE, 0xE43, 0x697),
        (RW | Prot.CACHE, 0xF47, 0x7FF),
        (RW | Prot.MMIO, 0xE4B, 0x6C7),
        (RW | Prot.NOEXEC, 0xE43 | 3 << 53, 0x6D7 | 1 << 54),
    ],
)
def test_pages_by_hand(prot, first, second):
    """AttrIndx or MemAttr, AP or S2AP, SH, AF, nG, XN."""
    for format, expected in ((StageOne(12, 48, 44), first), (StageTwo(12, 40, 40), second)):
        assert format.leaf(0, 0x1000, prot) == expected
        assert format.leaf(1, 0x20_0000, prot) == expected & ~2
