"""The flush queue: addresses wait in it until one invalidation serves them all (``queue_iova`` in ``dma-iommu.c``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from iommukit.hookspecs import FlushQueueOptions
from iommukit.hw.clock import Clock


@dataclass(frozen=True, slots=True)
class Entry:
    """One unmapped range (bytes) with the tables that went with it; ``flush`` counts the flushes begun before it was queued."""

    iova: int
    size: int
    tables: tuple[tuple[int, int], ...]
    flush: int


class FlushQueue:
    """A ring for each CPU, or one for all.

    ``flush`` invalidates everything that the domain has cached; ``release`` gives an entry's addresses and tables back, which
    happens only once a flush has been finished that began after the entry was queued.  A ring of n entries holds n - 1.
    """

    def __init__(
        self, options: FlushQueueOptions, clock: Clock, flush: Callable[[], None], release: Callable[[Entry], None], cpus: int = 1
    ) -> None:
        self.options = options
        self._clock = clock
        self._flush = flush
        self._release = release
        self._rings: list[deque[Entry]] = [deque() for _ in range(1 if options.single_queue else cpus)]
        self._begun = 0
        self._finished = 0
        self._armed = False

    def __len__(self) -> int:
        return sum(len(ring) for ring in self._rings)

    def add(self, iova: int, size: int, tables: list[tuple[int, int]], cpu: int = 0) -> None:
        """Queue a range on a CPU's ring; a full ring is flushed at once, else the timer will."""
        ring = self._rings[cpu % len(self._rings)]
        self._reclaim(ring)
        if len(ring) == self.options.entries - 1:
            self._flush_now()
            self._reclaim(ring)
        ring.append(Entry(iova, size, tuple(tables), self._begun))
        if not self._armed:
            self._armed = True
            self._clock.call_at(self._clock.now + self.options.timeout_ns, self._timeout)

    def drain(self) -> None:
        """Flush, and release everything."""
        self._flush_now()
        for ring in self._rings:
            self._reclaim(ring)

    def _timeout(self) -> None:
        self._armed = False
        self.drain()

    def _flush_now(self) -> None:
        self._begun += 1
        self._flush()
        self._finished += 1

    def _reclaim(self, ring: deque[Entry]) -> None:
        while ring and ring[0].flush < self._finished:
            self._release(ring.popleft())
