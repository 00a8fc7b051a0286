"""``iommukit oracle kernel trace``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iommukit.cli.options import Command, json_flag
from iommukit.cli.oracle_kernel import find_kernel, image_option, modules_option

if TYPE_CHECKING:
    from iommukit_oracle.kernel.trace import Kind
    from iommukit_oracle.trace_summary import Spread
    from iommukit_oracle.traces import Trace

UNITS = {"": 0, "KiB": 10, "MiB": 20}


@click.command(
    "trace",
    cls=Command,
    examples=(
        "iommukit oracle kernel trace --kernel 6.12 --vendor intel_vtd -o nvme.jsonl.xz",
        "iommukit oracle kernel trace --kernel 7.2 --vendor s390 --device disk --bytes 4MiB -o disk.jsonl",
        "iommukit oracle kernel trace --show nvme.jsonl.xz",
    ),
)
@click.option("--kernel", metavar="KERNEL", help="6.1, 6.12 or 7.2.")
@click.option("--vendor", metavar="VENDOR", help="A vendor plugin's name.")
@click.option(
    "--device",
    type=click.Choice(["disk", "nvme", "nic"]),
    default="disk",
    show_default=True,
    help="A virtio disk, an NVMe disk or a card.",
)
@click.option("--bytes", "size", default="1MiB", show_default=True, metavar="SIZE", help="How much of a disk is read.")
@click.option("--cmdline", default="", metavar="TEXT", help="More for the kernel's command line, such as iommu.strict=1.")
@image_option
@modules_option
@click.option("-o", "--output", metavar="FILE", help="Where to write, .jsonl or .jsonl.xz.")
@click.option("--show", "shown", metavar="FILE", help="Sum up a trace in place of recording one.")
@json_flag
def command(
    kernel: str | None,
    vendor: str | None,
    device: Kind,
    size: str,
    cmdline: str,
    image: str | None,
    modules: str | None,
    output: str | None,
    shown: str | None,
    as_json: bool,
) -> int:
    """Record what a real kernel maps and unmaps while a device works, or sum up such a trace.

    The device is a disk that is read or a card that asks the network; it is the only one that does DMA.

    Each event has its time, IOVA, physical address and size.  docs/traces.md has the format.
    """
    from iommukit.errors import HardwareLost, InputError
    from iommukit_oracle.kernel.trace import machine_for, record_trace
    from iommukit_oracle.recording import SUFFIXES
    from iommukit_oracle.traces import read_trace, write_trace

    if shown is not None:
        if kernel or vendor or cmdline or image or modules or output:
            raise InputError("--show takes a trace that is there: it excludes what records one")
        tell(read_trace(Path(shown)), shown, as_json)
        return 0
    if kernel is None or vendor is None or output is None:
        raise InputError("--kernel, --vendor and -o are needed to record a trace, or --show FILE")
    if not output.endswith(SUFFIXES):
        raise InputError(f"a name ending in {' or '.join(SUFFIXES)} was expected", source=output)
    amount = re.fullmatch(r"(\d{1,12})(|KiB|MiB)", size)
    if amount is None:
        raise InputError(f"--bytes: a number was expected, with KiB or MiB behind it, not {size!r}")
    found = find_kernel(image, modules)(kernel, machine_for(vendor).debian)
    try:
        trace = record_trace(found, vendor, device, int(amount[1]) << UNITS[amount[2]], cmdline)
    except HardwareLost as error:
        raise InputError(f"no trace: {error}") from error
    write_trace(Path(output), trace)
    tell(trace, output, as_json)
    return 0


def tell(trace: Trace, source: str, as_json: bool) -> None:
    """Print a trace's summary.  Raises ``InputError`` where the trace contradicts itself."""
    from iommukit.cli.output import show, show_json
    from iommukit.report.page import Page
    from iommukit_oracle.trace_summary import summary_json, summed_up

    if as_json:
        show_json(summary_json(trace, source))
        return
    header, found = trace.header, summed_up(trace, source)
    work = header.work
    device = next((each for each in header.devices if each.address == work.device), None)
    group = next((each for each in header.groups if each.id == trace.group), None)
    amount = f"for at most {work.amount} s" if work.kind == "nic" else f"{work.amount} bytes"
    page = Page()
    page.line(f"{source}: {header.package}, {header.vendor}, QEMU {header.qemu}")
    page.pairs(
        [
            ("device", f"{work.device}, {device.driver if device else 'unknown'}: {work.kind}, {amount}, {work.result}"),
            ("group", f"{group.id}, {group.type}" if group else "none"),
            ("events", f"{found.events}, of the device {found.maps} maps and {found.unmaps} unmaps"),
            ("mapped", f"{found.peak_pages} pages at most, {found.left_pages} at the end"),
            ("sizes", ", ".join(f"{count} of {size >> 10} KiB" for size, count in found.sizes.items())),
            ("IOVAs", addresses(found.ranges)),
            ("unmapped", durations(found.lifetimes)),
            ("used again", durations(found.returns)),
        ],
        indent=2,
    )
    show(page)


def addresses(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges in words: each of a few, of many only where they begin and end."""
    if len(ranges) > 3:
        return f"{ranges[0][0]:#x} to {ranges[-1][1]:#x} in {len(ranges)} pieces"
    return "; ".join(f"{first:#x} to {last:#x}" for first, last in ranges) or "none"


def durations(spread: Spread) -> str:
    """Durations in words: how many pages, and how long."""
    if not spread.count:
        return "no page"
    shortest, middle, longest = (f"{value / 1000:,.0f}" for value in (spread.shortest, spread.median, spread.longest))
    return f"{spread.count} page{'s' * (spread.count > 1)}, after {shortest} to {longest} us, median {middle} us"
