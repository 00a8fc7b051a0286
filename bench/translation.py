"""How fast translation is: page tables through the hooks, and the hardware models' DMA.

Run as ``python bench/translation.py [--vendor V]... [--kernel K] [--variants] [--json]``.  Each vendor boots on its own hardware
model in this process; figures are processor time, the best of several.  They stand beside what numpy needs for the same work on a
flat array in the same run, and beside Linux 7.2's own page-table code in C, as measured on a machine of the kind.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from iommukit.device import Device
from iommukit.dma.mapping import iommu_map, iommu_unmap
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import NotApplicable
from iommukit.hookspecs import Gather
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, ModelPlatform
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import Vendor, VendorRegistry

PAGE = 0x1000
GIB = 1 << 30
PAGES = GIB // PAGE
MILLION = 1_000_000
MIB = 1 << 20
ROUNDS = 5
ROOM = (ROUNDS + 1) * GIB
READ_WRITE = Prot.READ | Prot.WRITE


Figures = dict[str, dict[str, float]]
"""By vendor and by the keys of ``ROWS``."""


@dataclass(frozen=True)
class Row:
    """A figure: its short name, its unit, what is measured, the aim, what the peers need, and the limit: a flat array's work."""

    title: str
    unit: str
    what: str
    aim: float | None = None
    peers: str = "-"
    limit: str = ""

    def missed(self, figure: float) -> bool:
        """Whether a figure misses the aim."""
        return self.aim is not None and figure > self.aim


ROWS = {
    "map_fresh": Row(
        *("map, fresh", "ns", "a page of 1 GiB in 4 KiB pages, its tables made on the way", 2.9, "2.5-2.9"),
        "np.add(template, bits, out=array), of memory untouched before",
    ),
    "map_present": Row(
        *("map, present", "ns", "the same, the tables are there", 2.9, "1.4-1.9"),
        "np.add(template, bits, out=array)",
    ),
    "unmap": Row("unmap", "ns", "a page of 1 GiB in 4 KiB pages", 4.0, "0.8-4.9", "array.fill(0)"),
    "map_sync": Row("sync maps", "ns", "a page of 1 GiB, of telling the hardware that it was mapped"),
    "unmap_sync": Row("sync unmaps", "ns", "a page of 1 GiB, of invalidating it and freeing its tables"),
    "lookup": Row("look up", "ns", "each of a million random addresses, iova_to_phys", 45.0, "33-40", "array.take(indices)"),
    "round_trip": Row("one page", "ns", "map, unmap and sync; Linux: a call, without sync", 25_000.0, "31-34"),
    "dma_miss": Row("DMA, missed", "ns", "each of a million random pages, TLB missed", 150.0, limit="array.take(indices)"),
    "memory": Row("memory", "MiB", "besides the tables", 64.0),
}


def best(work: Callable[[], object], count: int, rounds: int = ROUNDS, before: Callable[[], object] = lambda: None) -> float:
    """Nanoseconds of processor time for each of ``count`` things that ``work`` does."""
    least = float("inf")
    for _ in range(rounds):
        before()
        started = time.process_time_ns()
        work()
        least = min(least, time.process_time_ns() - started)
    return least / count


def bench_limits() -> dict[str, float]:
    """The flat array's figures."""
    with closing(PhysicalMemory(GIB)) as warm:  # memory that a virtual machine has yet to get from its host is slow once
        warm.table(warm.pages.alloc(128 * MIB), 16 * MIB)[:] = 1
    memory = PhysicalMemory(16 * GIB)
    template = np.arange(PAGES, dtype=np.uint64) * np.uint64(PAGE)
    parts = iter(memory.table(memory.pages.alloc(8 * PAGES), PAGES) for _ in range(ROUNDS))
    part = memory.table(memory.pages.alloc(8 * PAGES), PAGES)
    wanted = np.random.default_rng(3).integers(0, PAGES, MILLION)
    bits = np.uint64(GIB | 3)
    figures = {
        "map_fresh": best(lambda: np.add(template, bits, out=next(parts)), PAGES),
        "map_present": best(lambda: np.add(template, bits, out=part), PAGES),
        "lookup": best(lambda: part.take(wanted), MILLION),
        "unmap": best(lambda: part.fill(0), PAGES),
    }
    return figures | {"dma_miss": figures["lookup"]}


def room(device: Device, domain: Domain) -> int | None:
    """The first of ``ROOM`` bytes of I/O address space that nothing is reserved in, above 4 GiB; ``None`` where there are none."""
    regions = sorted((region.start, region.end) for region in device.system.vendor.ops.get_resv_regions(device=device))
    start = max(4 * GIB, domain.aperture[0])
    for first, last in regions:
        if last >= start and first < start + ROOM:
            start = -(-(last + 1) // GIB) * GIB
    return start if domain.covers(start, start + ROOM - 1) else None


def machines(vendor: Vendor) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The vendor's ordinary hardware, then its variants: name of the column, and hardware options."""
    yield vendor.name, {}
    for variant, options in vendor.declaration.hardware_variants.items():
        yield f"{vendor.name}, {variant}", options


@contextmanager
def domain_of(vendor: Vendor, registry: VendorRegistry, kernel: str, hardware: Mapping[str, Any]) -> Iterator[Bench]:
    """A network card in a domain of its own, on the vendor's hardware model.  Raises ``NotApplicable`` where there is none."""
    if not {"map_pages", "create_unit"} <= set(vendor.ops.implemented):
        raise NotApplicable("it has no page tables or no hardware model yet")
    nic = {"name": "nic", "id": "8086:10d3", "class": "020000", "kind": "endpoint"}
    machine = Machine.model_validate({"machine": "bench", "devices": [nic], "hardware": hardware})
    with closing(ModelPlatform()) as platform:
        system = start_system(get_kernel(kernel), vendor, registry, machine, BootSpec(kconfig="strict"), platform=platform)
        device = system.devices["nic"]
        domain = system.alloc(device, DomainType.UNMANAGED) if system.platform is not None and device.unit is not None else None
        if domain is None:
            raise NotApplicable("it has no domain with page tables for a network card")
        if not domain.page_sizes & PAGE:
            raise NotApplicable("it has no pages of 4 KiB")
        system.attach(device, domain)
        start = room(device, domain)
        if start is None:
            raise NotApplicable(f"its devices reach less than {ROOM // GIB} GiB")
        yield Bench(platform, device, domain, start)


class Bench:
    """The figures of one vendor."""

    def __init__(self, platform: ModelPlatform, device: Device, domain: Domain, iova: int) -> None:
        self.platform, self.device, self.domain = platform, device, domain
        self.ops: Any = domain.ops
        self.physical = 4 * GIB
        self.iova = iova

    def map(self, at: int) -> None:
        """Map a gibibyte in one call."""
        done = self.ops.map_pages(domain=self.domain, iova=at, paddr=self.physical, pgsize=PAGE, pgcount=PAGES, prot=READ_WRITE)
        assert done == GIB

    def sync_map(self, at: int) -> None:
        """Tell the hardware of it, as the core does after every map."""
        self.ops.iotlb_sync_map(domain=self.domain, iova=at, size=GIB)

    def unmap(self, at: int, gather: Gather) -> None:
        """Unmap it in one call."""
        done = self.ops.unmap_pages(domain=self.domain, iova=at, pgsize=PAGE, pgcount=PAGES, gather=gather)
        assert done == GIB

    def sync(self, gather: Gather) -> None:
        """Invalidate, and give tables back."""
        self.ops.iotlb_sync(domain=self.domain, gather=gather)

    def drop(self, at: int) -> None:
        """Unmap and invalidate."""
        gather = Gather()
        self.unmap(at, gather)
        self.sync(gather)

    def leave_tables(self, at: int) -> None:
        """Have empty tables for a gibibyte: those of single pages that were unmapped."""
        for page in range(at, at + GIB, MIB):
            iommu_map(self.domain, page, self.physical, PAGE, READ_WRITE)
            iommu_unmap(self.domain, page, PAGE)

    def figures(self) -> Iterator[tuple[str, float]]:
        """All figures, in an order in which none spoils the next."""
        wanted = np.random.default_rng(5).integers(0, PAGES, MILLION).astype(np.uint64) * np.uint64(PAGE)
        yield "memory", self.memory()
        fresh = iter([self.iova + number * GIB for number in range(1, ROUNDS + 1)])
        yield "map_fresh", best(lambda: self.map(next(fresh)), PAGES)
        fresh = iter([self.iova + number * GIB for number in range(1, ROUNDS + 1)])
        yield "map_sync", best(lambda: self.sync_map(next(fresh)), PAGES)
        fresh = iter([self.iova + number * GIB for number in range(1, ROUNDS + 1)])
        gathers = [Gather() for _ in range(ROUNDS)]
        unmapped, synced = iter(gathers), iter(gathers)
        yield "unmap", best(lambda: self.unmap(next(fresh), next(unmapped)), PAGES)
        yield "unmap_sync", best(lambda: self.sync(next(synced)), PAGES)

        def tables() -> None:
            if self.ops.iova_to_phys(domain=self.domain, iova=np.array([self.iova], dtype=np.uint64))[0] != UNMAPPED:
                self.drop(self.iova)
            self.leave_tables(self.iova)

        yield "map_present", best(lambda: self.map(self.iova), PAGES, before=tables)
        self.sync_map(self.iova)
        addresses = wanted + np.uint64(self.iova)
        yield "lookup", best(lambda: self.ops.iova_to_phys(domain=self.domain, iova=addresses), MILLION)
        yield "dma_miss", self.dma(addresses)
        self.drop(self.iova)
        yield "round_trip", self.round_trip()

    def memory(self) -> float:
        """How much the process has grown at its largest (MiB) by mapping, looking up and unmapping, the tables not counted."""
        wanted = np.arange(self.iova, self.iova + GIB, PAGE, dtype=np.uint64)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier shall not hide what is taken now
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.map(self.iova)
        self.sync_map(self.iova)
        tables = self.platform.bus.memory.pages.outstanding
        self.ops.iova_to_phys(domain=self.domain, iova=wanted)
        self.drop(self.iova)
        return max(0.0, _status("VmHWM") - before - tables) / MIB

    def dma(self, addresses: Any) -> float:
        """A device reads a word in each of many pages, with a TLB that holds nothing of them."""
        words = self.platform.bus.memory.table(self.physical, GIB // 8)
        words[:: PAGE // 8].sum()  # the memory itself shall not be what takes time
        initiator = self.platform.initiator(self.device)
        seen = initiator.load_words(addresses)
        assert not (seen == UNMAPPED).any()
        return best(
            lambda: initiator.load_words(addresses), MILLION, rounds=3, before=lambda: self.ops.flush_iotlb_all(domain=self.domain)
        )

    def round_trip(self, count: int = 2000) -> float:
        """One page mapped and unmapped, as the DMA API does it in strict mode; its table stays."""
        keep = self.iova + 8 * PAGE
        iommu_map(self.domain, keep, self.physical, PAGE, READ_WRITE)

        def work() -> None:
            for _ in range(count):
                iommu_map(self.domain, self.iova, self.physical, PAGE, READ_WRITE)
                iommu_unmap(self.domain, self.iova, PAGE)

        figure = best(work, count)
        iommu_unmap(self.domain, keep, PAGE)
        return figure


def _status(field: str) -> int:
    """A field of this process's status (bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def bench_vendors(names: list[str], kernel: str, variants: bool) -> tuple[Figures, dict[str, str]]:
    """Figures by vendor, and why others have none: of the first hardware that will do, or of all ``variants``."""
    registry = VendorRegistry.installed()
    figures: Figures = {}
    skipped: dict[str, str] = {}
    for vendor in [registry.get(name) for name in names] if names else registry:
        for column, hardware in machines(vendor):
            try:
                with domain_of(vendor, registry, kernel, hardware) as bench:
                    figures[column] = dict(bench.figures())
            except NotApplicable as error:
                skipped[column] = str(error)
            gc.collect()
            if column in figures and not variants:
                break
    return figures, skipped


def number_text(figure: float) -> str:
    """A figure with as many digits as it takes to compare it."""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.1f}"


def show_table(console: Console, kernel: str, limits: dict[str, float], figures: Figures) -> None:
    """Print the figures side by side; one that misses its aim is marked with an exclamation mark."""
    title = f"Translation, drivers of {kernel}, best of {ROUNDS}, processor time"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in (*(name.replace(", ", ",\n") for name in figures), "aim", "flat\narray", "Linux\nin C"):
        table.add_column(head, justify="right", no_wrap=True)
    for key, row in ROWS.items():
        cells = [
            (f"[red]{number_text(of[key])}![/red]" if row.missed(of[key]) else number_text(of[key])) for of in figures.values()
        ]
        limit = f"{limits[key]:.1f}" if key in limits else "-"
        table.add_row(row.title, row.unit, *cells, f"{row.aim:,g}" if row.aim else "-", limit, row.peers)
    console.print(table)


def show(kernel: str, limits: dict[str, float], figures: Figures, skipped: dict[str, str]) -> None:
    """Print tables of as many columns as are read with ease, and in words what they come to."""
    console = Console()
    columns = list(figures)
    step = 6 if console.width >= 110 else 4
    for first in range(0, len(columns), step):
        show_table(console, kernel, limits, {column: figures[column] for column in columns[first : first + step]})
        console.print()
    for row in ROWS.values():
        console.print(f"{row.title:12}  {row.what}", highlight=False, soft_wrap=True)
        if row.limit:
            console.print(f"{'':12}  flat array: {row.limit}", highlight=False, soft_wrap=True)
    console.print()
    for name, reason in skipped.items():
        console.print(f"{name}: left out: {reason}", highlight=False, soft_wrap=True)
    for name, of in figures.items():
        missed = [row.title for key, row in ROWS.items() if row.missed(of[key])]
        verdict = f"misses: {', '.join(missed)}" if missed else "every aim is met"
        times = of["map_fresh"] / limits["map_fresh"]
        console.print(
            f"{name}: {verdict}; mapping takes {times:.1f} times the fill of untouched memory", highlight=False, soft_wrap=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vendor", action="append", default=[], help="only this vendor (may be given again)")
    parser.add_argument("--kernel", default="7.2", choices=sorted(PROFILES), help="whose drivers (7.2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--variants", action="store_true", help="every variant of each vendor's hardware")
    options = parser.parse_args()
    limits = bench_limits()
    figures, skipped = bench_vendors(options.vendor, options.kernel, options.variants)
    if options.json:
        print(json.dumps({"kernel": options.kernel, "flat_array": limits, "vendors": figures, "left_out": skipped}, indent=2))
    else:
        show(options.kernel, limits, figures, skipped)


if __name__ == "__main__":
    main()
