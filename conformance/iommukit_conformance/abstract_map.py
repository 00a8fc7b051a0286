"""Any sequence of maps and unmaps, against a dictionary: a hypothesis state machine around a rig.

Hypothesis is an optional dependency of the suite (``iommukit[conformance]``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.reporting import with_reporter
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from iommukit.domain import Domain, Prot
from iommukit.errors import IommuError
from iommukit.hw.platform import UNMAPPED
from iommukit_conformance.rig import READ_WRITE, Rig

NOTHING = int(UNMAPPED)
EXAMPLES, EMULATED_EXAMPLES = 12, 3
STEPS, EMULATED_STEPS = 14, 10
PAGES = 40
"""Pages that one operation maps or unmaps at most."""
AREA = 1 << 23
"""The largest area of addresses (bytes) that is played with; at least three pages of two sizes fit."""


class Divergence(Exception):
    """The device reaches something else than the dictionary says; ``str(error)`` is the story."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its first slot, how many slots it has, where it is, and what it allows.  A slot is a page of the smallest size."""

    slot: int
    slots: int
    physical: int
    prot: int


class AbstractMap(RuleBasedStateMachine):
    """The dictionary, and the domain that must agree with it."""

    rig: ClassVar[Rig]
    base: ClassVar[int]
    """The area's first address."""
    frames: ClassVar[int]
    """As much physical memory."""
    sizes: ClassVar[list[int]]
    slots: ClassVar[int]
    home: ClassVar[Domain]

    def __init__(self) -> None:
        super().__init__()
        self.map: dict[int, Page] = {}
        self.story: list[str] = []
        self.touched: set[int] = set()

    # ---- what happens ------------------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        """An empty domain."""
        self.domain = self.rig.domain()

    @rule(
        at=st.integers(0, 4096),
        count=st.integers(1, PAGES),
        size=st.integers(0, 2),
        frame=st.integers(0, 4096),
        prot=st.sampled_from([READ_WRITE, READ_WRITE, Prot.READ]),
    )
    def maps(self, at: int, count: int, size: int, frame: int, prot: int) -> None:
        """Map some pages of one size; over a mapping it must be refused."""
        pgsize = self.sizes[size % len(self.sizes)]
        each = pgsize // self.sizes[0]
        room = self.slots // each
        number = at % room
        count = min(count, room - number)
        frame %= room - count + 1
        iova, physical = self.base + number * pgsize, self.frames + frame * pgsize
        self.story.append(f"map {count} x {pgsize:#x} at {iova:#x} to {physical:#x}{'' if prot & Prot.WRITE else ' read-only'}")
        slots = range(number * each, (number + count) * each)
        self.touched = {slots[0], slots[-1]}
        over = any(slot in self.map for slot in slots)
        try:
            done = self.rig.map_pages(self.domain, iova, physical, pgsize, count, prot)
        except IommuError as error:
            if not over:
                self.fail(f"it is refused: {error}")
            if error.name != "EEXIST":
                self.fail(f"a mapping is there, and the answer is {error.name} instead of EEXIST")
            return
        if over:
            self.fail("a mapping is there, and it is not refused")
        if done != count * pgsize:
            self.fail(f"the answer is {done:#x} bytes")
        for page in range(count):
            first = slots[0] + page * each
            for slot in range(first, first + each):
                self.map[slot] = Page(first, each, physical + page * pgsize, int(prot))

    @rule(at=st.integers(0, 4096), count=st.integers(1, PAGES), wide=st.booleans())
    def unmaps(self, at: int, count: int, wide: bool) -> None:
        """Unmap a range, which begins and ends with whole pages; there may be holes in it."""
        low = at % self.slots
        high = min(self.slots, low + count * (self.sizes[-1] // self.sizes[0] if wide else 1))
        if self.map and low not in self.map and not wide:
            # Somewhere where there is something.
            low = min(self.map, key=lambda slot: abs(slot - low))
            high = min(self.slots, low + count)
        if low in self.map:
            low = self.map[low].slot
        if high - 1 in self.map:
            high = self.map[high - 1].slot + self.map[high - 1].slots
        smallest = self.sizes[0]
        iova, size = self.base + low * smallest, (high - low) * smallest
        self.story.append(f"unmap {size:#x} bytes at {iova:#x}")
        hole = next((slot for slot in range(low, high) if slot not in self.map), high)
        self.touched = {low, high - 1, hole - 1}
        done = self.rig.unmap(self.domain, iova, size)
        if done % smallest or not (hole - low) * smallest <= done <= size:
            self.fail(f"the answer is {done:#x} bytes")
        for slot in range(low, low + done // smallest):
            self.map.pop(slot, None)

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        """At the ends of every page and of every hole, and where something has just been done."""
        if not self.story:
            return
        smallest, rig = self.sizes[0], self.rig
        slots = {slot + near for slot in self.touched for near in (-1, 0, 1)}
        pages = list(dict.fromkeys(self.map.values()))
        for page in pages if len(pages) < PAGES else [*pages[:: len(pages) // PAGES], *pages[-4:]]:
            slots |= {page.slot - 1, page.slot, page.slot + page.slots - 1, page.slot + page.slots}
        asked = sorted(slot for slot in slots if 0 <= slot < self.slots)
        if rig.emulated:
            asked = sorted({*asked[:: max(1, len(asked) // 10)], *(self.touched & set(asked))})
        addresses = [self.base + slot * smallest + (slot * 0x158 & smallest - 8) for slot in asked]
        if rig.emulated:
            found = rig.reached(rig.nic, *[address & -16 for address in addresses])
            addresses = [address & -16 for address in addresses]
        else:
            found = [None if word == NOTHING else word for word in rig.words(rig.nic, addresses).tolist()]
            said = rig.ops.iova_to_phys(domain=self.domain, iova=np.array(addresses, dtype=np.uint64)).tolist()
            for address, at, answer in zip(addresses, found, said, strict=True):
                if answer != (NOTHING if at is None else at):
                    self.fail(f"{address:#x} reaches {_shown(at)}, and iova_to_phys answers {answer:#x}")
        for slot, address, at in zip(asked, addresses, found, strict=True):
            wanted = self.physical(slot, address)
            if at != wanted:
                self.fail(f"{address:#x} reaches {_shown(at)}, not {_shown(wanted)}")
        for slot in sorted(self.touched & set(asked))[: 1 if rig.emulated else 3]:
            address = self.base + slot * smallest
            known = self.map.get(slot)
            at = self.physical(slot, address)
            if known is not None and at is not None and rig.lands(rig.nic, address, at) != bool(known.prot & Prot.WRITE):
                self.fail(f"writing at {address:#x} {'is stopped' if known.prot & Prot.WRITE else 'is not stopped'}")

    def physical(self, slot: int, address: int) -> int | None:
        """What the dictionary says."""
        page = self.map.get(slot)
        return None if page is None else page.physical + address - (self.base + page.slot * self.sizes[0])

    def fail(self, what: str) -> None:
        """Tell the story."""
        raise Divergence("; ".join([*self.story, what]))

    def teardown(self) -> None:
        """Give the domain back."""
        if hasattr(self, "domain"):
            self.rig.drop(self.domain, self.rig.nic, to=self.home)


def _shown(physical: int | None) -> str:
    return "nothing" if physical is None else f"{physical:#x}"


def diverges(rig: Rig) -> str:
    """The shortest story found that ends badly; empty where none does."""
    home = rig.domain()
    sizes = [rig.granule(home), *(size for size in rig.larger(home) if size * 3 <= AREA)]
    area = 3 * sizes[-1] if len(sizes) > 1 else 96 * sizes[0]
    base = rig.border(home, area) - sizes[-1]
    fields: dict[str, Any] = {
        "rig": rig,
        "base": base,
        "frames": rig.frames(area, sizes[-1]),
        "sizes": sizes,
        "slots": area // sizes[0],
        "home": home,
    }
    machine: type[RuleBasedStateMachine] = type("Machine", (AbstractMap,), fields)
    limits = settings(
        max_examples=EMULATED_EXAMPLES if rig.emulated else EXAMPLES,
        stateful_step_count=EMULATED_STEPS if rig.emulated else STEPS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        with with_reporter(lambda _: None):
            run_state_machine_as_test(machine, settings=limits)
    except Divergence as error:
        return str(error)
    return ""
