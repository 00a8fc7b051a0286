"""What a trace comes to: its events carried out on empty address spaces, one for each group."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from iommukit.errors import InputError
from iommukit_oracle.traces import Trace


@dataclass(frozen=True, slots=True)
class Summary:
    """What a device's group had mapped.  Pages are of the trace's ``page_size``; lifetimes, of a page, are nanoseconds.

    ``lowest`` and ``end`` bound the IOVAs of what was mapped; both are 0 where nothing was.  ``others`` are the pages that are
    mapped at the end for other groups: their direct regions.
    """

    events: int
    maps: int
    unmaps: int
    peak_pages: int
    left_pages: int
    lowest: int
    end: int
    median_lifetime: int
    longest_lifetime: int
    others: int


def summed_up(trace: Trace, source: str) -> Summary:
    """Carry out a trace.

    Raises ``InputError`` with the event's line where a page is mapped that is mapped, one is unmapped that is not, or an address or
    a size is not a multiple of the page size.
    """
    page = trace.header.page_size
    own = next((each.group for each in trace.header.devices if each.address == trace.header.work.device), None)
    lines = [number for number, event in enumerate(trace.events, start=2) if event.name in ("map", "unmap")]
    spaces: dict[int | None, dict[int, int]] = {own: {}}
    mine = spaces[own]
    lifetimes: list[int] = []
    maps = unmaps = peak = end = 0
    lowest = 1 << 64
    for number, (event, group) in zip(lines, trace.attributed(), strict=True):
        place = f"{source}:{number}"
        if event.iova % page or event.size % page or not event.size:
            raise InputError(f"multiples of {page} were expected: {event.size} bytes at {event.iova:#x}", source=place)
        live = spaces.setdefault(group, {})
        pages = range(event.iova, event.iova + event.size, page)
        if event.name == "map":
            if event.number("paddr") % page:
                raise InputError(f"a multiple of {page} was expected: paddr {event.number('paddr'):#x}", source=place)
            for iova in pages:
                if iova in live:
                    raise InputError(f"a map of {iova:#x}, which is mapped", source=place)
                live[iova] = event.time
        else:
            for iova in pages:
                if iova not in live:
                    raise InputError(f"an unmap of {iova:#x}, which is not mapped", source=place)
                lived = event.time - live.pop(iova)
                if group == own:
                    lifetimes.append(lived)
        if group == own:
            maps, unmaps = maps + (event.name == "map"), unmaps + (event.name == "unmap")
            lowest, end, peak = min(lowest, event.iova), max(end, event.iova + event.size), max(peak, len(mine))
    return Summary(
        events=len(trace.events),
        maps=maps,
        unmaps=unmaps,
        peak_pages=peak,
        left_pages=len(mine),
        lowest=lowest if end else 0,
        end=end,
        median_lifetime=int(median(lifetimes)) if lifetimes else 0,
        longest_lifetime=max(lifetimes, default=0),
        others=sum(len(live) for group, live in spaces.items() if group != own),
    )
