"""``iommukit walk``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from iommukit.cli.options import Command, json_flag, load_registry


@click.command(
    "walk",
    cls=Command,
    examples=(
        "iommukit walk guest.elf --vendor intel_vtd --root rtaddr=0x10f4000",
        "iommukit walk guest.elf --vendor intel_vtd --root rtaddr=0x10f4000 --device 00:03.0 --iova 0xfffe0000",
        "iommukit walk ram.bin --base 0x40000000 --vendor arm_smmu --root strtab_base=0x42000000 --root strtab_base_cfg=0x10210",
    ),
)
@click.argument("dump", metavar="DUMP")
@click.option("--vendor", required=True, metavar="VENDOR", help="The vendor plugin that knows the tables.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="NAME=VALUE",
    help="A register from which the hardware starts, by the vendor's name for it; may be repeated.",
)
@click.option("--device", metavar="ID", help="Only this device: 00:03.0, or the number by which the hardware knows it.")
@click.option("--iova", metavar="ADDRESS", help="Only this address, with every entry on the way to it.")
@click.option("--base", metavar="ADDRESS", help="DUMP is plain memory from this physical address on.  Default: an ELF core.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N ranges.  Default: 10000.")
@click.option("--tables", type=click.IntRange(min=1), metavar="N", help="Stop after N tables.  Default: 200000.")
@json_flag
@click.pass_context
def command(
    context: click.Context,
    dump: str,
    vendor: str,
    roots: tuple[str, ...],
    device: str | None,
    iova: str | None,
    base: str | None,
    limit: int | None,
    tables: int | None,
    as_json: bool,
) -> int:
    """Decode the IOMMU's tables in a dump of a machine's memory.

    DUMP is an ELF core with physical addresses (QEMU's dump-guest-memory, virsh dump --memory-only, /proc/vmcore, makedumpfile
    -E), or plain memory with --base.  --root gives the registers that say where the tables begin; a wrong name lists the right
    ones.  Adjoining pages with adjoining physical addresses and the same permissions are shown as one range.

    Exit code 1 if an entry is bad or the address asked for is not translated.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.machine.dump import Dump
    from iommukit.report.walk import RANGES, TABLES, check_machine, parse_number, parse_requester, parse_roots, walk_dump
    from iommukit.report.walk_page import walk_page

    registry = load_registry(context, [vendor])
    chosen = registry.get(vendor)
    registers = parse_roots(chosen, roots)
    requester = None if device is None else parse_requester(device)
    address = None if iova is None else parse_number(iova, "--iova")
    memory = Dump(dump, None if base is None else parse_number(base, "--base"))
    check_machine(memory, chosen)
    with _no_collection(), _progress() as tick:
        report = walk_dump(
            memory,
            chosen,
            registers,
            requester=requester,
            iova=address,
            ranges=limit or RANGES,
            tables=tables or TABLES,
            tick=tick,
        )
    if as_json:
        show_json(report.to_json())
    else:
        show(walk_page(report))
    return int(report.finding)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A walk makes many small objects and no garbage; looking for some would take most of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """The number of tables read, on standard error of a terminal; yields what to call with it."""
    from iommukit.cli.output import on_terminal

    if not on_terminal(sys.stderr):
        yield lambda count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading tables") as status:
        yield lambda count: status.update(f"{count} tables read")
