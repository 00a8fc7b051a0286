"""The flush queue: nothing is used again before a flush that began after it was queued."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iommukit.dma.flush_queue import Entry, FlushQueue
from iommukit.hookspecs import FlushQueueOptions
from iommukit.hw.clock import Clock

MS = 1_000_000


class Watched:
    """A queue whose flushes and releases are noted in order."""

    def __init__(self, options: FlushQueueOptions, cpus: int = 1) -> None:
        self.clock = Clock()
        self.events: list[str | int] = []
        self.queue = FlushQueue(options, self.clock, lambda: self.events.append("flush"), self.release, cpus)

    def release(self, entry: Entry) -> None:
        self.events.append(entry.iova)


def test_the_timer_flushes_once_for_all() -> None:
    watched = Watched(FlushQueueOptions())
    for number in range(5):
        watched.queue.add(number, 1, [])
        watched.clock.advance(MS)
    assert watched.events == []
    watched.clock.advance(5 * MS)
    assert watched.events == ["flush", 0, 1, 2, 3, 4]
    watched.clock.advance(100 * MS)
    assert watched.events == ["flush", 0, 1, 2, 3, 4], "an empty queue arms no timer"


def test_a_full_ring_flushes_at_once() -> None:
    watched = Watched(FlushQueueOptions(entries=4))
    for number in range(3):
        watched.queue.add(number, 1, [])
    assert watched.events == []
    watched.queue.add(3, 1, [])
    assert watched.events == ["flush", 0, 1, 2]
    assert len(watched.queue) == 1


def test_each_cpu_has_its_ring_unless_there_is_one_for_all() -> None:
    for single, held in ((False, 6), (True, 3)):
        watched = Watched(FlushQueueOptions(entries=4, single_queue=single), cpus=2)
        for number in range(6):
            watched.queue.add(number, 1, [], cpu=number % 2)
        assert len(watched.queue) == held


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=80), st.sampled_from([2, 4, 8]))
def test_released_only_after_a_later_flush(steps: list[tuple[int, int]], entries: int) -> None:
    watched = Watched(FlushQueueOptions(entries=entries), cpus=4)
    for number, (cpu, wait) in enumerate(steps):
        watched.queue.add(number, 1, [], cpu)
        watched.events.append(f"queued {number}")
        watched.clock.advance(wait * MS)
    watched.queue.drain()
    events = watched.events
    for number in range(len(steps)):
        assert events.count(number) == 1
        assert "flush" in events[events.index(f"queued {number}") : events.index(number)]
