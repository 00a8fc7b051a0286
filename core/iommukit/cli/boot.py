"""``iommukit boot``."""

from __future__ import annotations

import click

from iommukit.cli.options import Command, chosen_vendors, json_flag, load_registry, vendor_option


@click.command(
    "boot",
    cls=Command,
    examples=(
        "iommukit boot nic-behind-root-port",
        'iommukit boot my-laptop.yaml --cmdline "intel_iommu=on iommu=pt"',
        "iommukit boot my-laptop.yaml --kernel 6.12 --kconfig strict --json",
    ),
)
@click.argument("machine", metavar="MACHINE")
@click.option("--kernel", metavar="KERNEL", help="A profile, or a release from 5.10 on.  Default: as captured, else rfc.")
@click.option("--kconfig", type=click.Choice(["strict", "lazy", "passthrough"]), help="The build's IOMMU_DEFAULT_…")
@click.option("--cmdline", metavar="TEXT", help="The kernel command line, in place of the captured one.")
@click.option("--memory-encryption", is_flag=True, help="SME, SEV or TDX is on.")
@vendor_option
@json_flag
@click.pass_context
def command(
    context: click.Context,
    machine: str,
    kernel: str | None,
    kconfig: str | None,
    cmdline: str | None,
    memory_encryption: bool,
    vendors: tuple[str, ...],
    as_json: bool,
) -> int:
    """Whether a machine's devices are protected after boot, and why.

    MACHINE is a machine file or the name of one that comes with iommukit.  Answers: is DMA remapping on and why, what the kernel
    prints, what each command-line option did, who shares a group.  Groups that depend on unknown ACS bits are UNDECIDED.

    A captured machine is booted as it was, unless told otherwise, and compared with what was observed: exit code 1 where that
    differs in a way that the file does not list.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.report.boot_page import boots_page
    from iommukit.report.boots import boot_all

    given = {"kconfig": kconfig, "cmdline": cmdline, "memory_encryption": memory_encryption or None}
    overrides = {name: value for name, value in given.items() if value is not None}
    registry = load_registry(context, vendors)
    makers = chosen_vendors(registry, vendors) if vendors else None
    boots = boot_all(machine, registry, makers, kernel=kernel, overrides=overrides)
    if as_json:
        show_json(boots.to_json())
    else:
        show(boots_page(boots))
    return int(boots.finding)
