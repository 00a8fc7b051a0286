"""What a trace comes to: its events carried out on empty address spaces, one for each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from iommukit.errors import InputError
from iommukit_oracle.traces import Trace, TraceEvent


@dataclass(frozen=True, slots=True)
class Spread:
    """Durations in nanoseconds: how many there were, the shortest, the median and the longest; all 0 where there were none."""

    count: int
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, durations: Iterable[int]) -> Spread:
        """Of some durations."""
        found = sorted(durations)
        return cls(len(found), found[0], int(median(found)), found[-1]) if found else cls(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a device's group had mapped.  Pages are of the trace's ``page_size``.

    ``sizes`` counts the maps by their size in bytes.  ``ranges`` are the IOVAs that were ever mapped, adjoining pages as one: first
    and last byte.  ``lifetimes`` are those of pages, from map to unmap.  ``returns`` are how long after its unmap a page was mapped
    again: a flush queue keeps an address until no cache can know it any more.  ``others`` are the pages that are mapped at the end
    for other groups: their direct regions.
    """

    events: int
    maps: int
    unmaps: int
    sizes: dict[int, int]
    peak_pages: int
    left_pages: int
    ranges: tuple[tuple[int, int], ...]
    lifetimes: Spread
    returns: Spread
    others: int


@dataclass(slots=True)
class _Space:
    """A domain: when each page was mapped and, of those that are not any more, when it was unmapped."""

    page: int
    live: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    lifetimes: list[int] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)
    sizes: Counter[int] = field(default_factory=Counter)
    unmaps: int = 0
    peak: int = 0

    def map(self, event: TraceEvent, place: str) -> None:
        self.sizes[event.size] += 1
        for iova in range(event.iova, event.iova + event.size, self.page):
            if iova in self.live:
                raise InputError(f"a map of {iova:#x}, which is mapped", source=place)
            self.live[iova] = event.time
            if iova in self.gone:
                self.returns.append(event.time - self.gone.pop(iova))
        self.peak = max(self.peak, len(self.live))

    def unmap(self, event: TraceEvent, place: str) -> None:
        self.unmaps += 1
        for iova in range(event.iova, event.iova + event.size, self.page):
            if iova not in self.live:
                raise InputError(f"an unmap of {iova:#x}, which is not mapped", source=place)
            self.lifetimes.append(event.time - self.live.pop(iova))
            self.gone[iova] = event.time

    def ranges(self) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for iova in sorted(self.live.keys() | self.gone.keys()):
            if found and found[-1][1] + 1 == iova:
                found[-1] = found[-1][0], iova + self.page - 1
            else:
                found.append((iova, iova + self.page - 1))
        return tuple(found)


def summed_up(trace: Trace, source: str) -> Summary:
    """Carry out a trace.

    Raises ``InputError`` with the event's line where a page is mapped that is mapped, one is unmapped that is not, or an address or
    a size is not a multiple of the page size.
    """
    page = trace.header.page_size
    lines = [number for number, event in enumerate(trace.events, start=2) if event.name in ("map", "unmap")]
    mine = _Space(page)
    spaces: dict[int | None, _Space] = {trace.group: mine}
    for number, (event, group) in zip(lines, trace.attributed(), strict=True):
        place = f"{source}:{number}"
        if event.iova % page or event.size % page or not event.size:
            raise InputError(f"multiples of {page} were expected: {event.size} bytes at {event.iova:#x}", source=place)
        space = spaces.setdefault(group, _Space(page))
        if event.name == "map":
            if event.number("paddr") % page:
                raise InputError(f"a multiple of {page} was expected: paddr {event.number('paddr'):#x}", source=place)
            space.map(event, place)
        else:
            space.unmap(event, place)
    return Summary(
        events=len(trace.events),
        maps=mine.sizes.total(),
        unmaps=mine.unmaps,
        sizes=dict(sorted(mine.sizes.items())),
        peak_pages=mine.peak,
        left_pages=len(mine.live),
        ranges=mine.ranges(),
        lifetimes=Spread.of(mine.lifetimes),
        returns=Spread.of(mine.returns),
        others=sum(len(space.live) for space in spaces.values() if space is not mine),
    )


def summary_json(trace: Trace, source: str) -> dict[str, Any]:
    """The header and, as ``summary``, what it comes to, fit for JSON: addresses as 0x… text.  Raises as ``summed_up``."""
    found = summed_up(trace, source)
    return {
        **trace.header.model_dump(mode="json", by_alias=True),
        "summary": {
            "events": found.events,
            "maps": found.maps,
            "unmaps": found.unmaps,
            "sizes": {str(size): count for size, count in found.sizes.items()},
            "peak_pages": found.peak_pages,
            "left_pages": found.left_pages,
            "ranges": [{"first": hex(first), "last": hex(last)} for first, last in found.ranges],
            "lifetimes": _spread(found.lifetimes),
            "returns": _spread(found.returns),
            "others": found.others,
        },
    }


def _spread(spread: Spread) -> dict[str, int]:
    return {name: getattr(spread, name) for name in ("count", "shortest", "median", "longest")}
