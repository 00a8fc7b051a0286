"""Options that several commands share, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from iommukit.kernel.kernel import Kernel
    from iommukit.scenario.model import Scenario
    from iommukit.vendors import Vendor, VendorRegistry


class _WithExamples(click.Command):
    """Whose help ends in examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unwrapped."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_WithExamples):
    """A command whose help ends in examples."""


class Group(_WithExamples, click.Group):
    """Commands under one name, with examples at the end of its help."""


KERNEL_HELP = "rfc, rfc-as-posted, rfc-unconverted, 6.1, 6.12, 7.2, 6.1.176 or 6.1.192; may be repeated."
vendor_option = click.option(
    "--vendor", "vendors", multiple=True, metavar="VENDOR", help="A vendor plugin's name; may be repeated.  Default: all installed."
)
scenario_option = click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="PATH",
    help="A scenario file or folder; may be repeated.  Default: the suite's.",
)
json_flag = click.option("--json", "as_json", is_flag=True, help="Answer as JSON on standard output.")


def load_registry(context: click.Context, wanted: Sequence[str]) -> VendorRegistry:
    """The installed vendors.

    A plugin that cannot be used is bad input, unless others were asked for by name: then it is only mentioned.
    """
    from iommukit.vendors import VendorRegistry

    if isinstance(context.obj, VendorRegistry):
        return context.obj
    from iommukit.errors import InputError
    from iommukit.report.plugins import installed

    registry = VendorRegistry()
    for plugin in installed(registry):
        if plugin.error is None:
            continue
        if not wanted or plugin.name in wanted:
            raise InputError(plugin.error)
        from iommukit.cli.main import complain

        complain(f"left out: {plugin.error}")
    return registry


def chosen_vendors(registry: VendorRegistry, names: Sequence[str]) -> list[Vendor]:
    """The vendors of those names, each once; all without names."""
    from iommukit.errors import InputError

    vendors = [registry.get(name) for name in dict.fromkeys(names)] if names else list(registry)
    if not vendors:
        raise InputError("no vendor plugin is installed (entry points iommukit.vendors)")
    return vendors


def chosen_kernels(names: Sequence[str], default: Sequence[str] = ()) -> list[Kernel]:
    """The kernels of those names, each once; ``default`` or all six profiles without names."""
    from iommukit.kernel.profiles import PROFILES, get_kernel

    kernels = [get_kernel(name) for name in names or default or PROFILES]
    return list({kernel.name: kernel for kernel in kernels}.values())


def chosen_scenarios(paths: Sequence[str]) -> list[Scenario]:
    """The scenarios of files and folders; the conformance suite's without paths."""
    from iommukit.errors import InputError
    from iommukit.scenario.load import load_scenarios, shipped_scenarios

    if "" in paths:
        raise InputError("an empty text is no path of a scenario")
    return load_scenarios([Path(path) for path in paths] or [shipped_scenarios()])


def check_target(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A file to write, or ``-`` for standard output; refused at once where it can never be written."""
    if value is not None and value != "-":
        path = Path(value)
        if path.is_dir():
            raise click.BadParameter(f"{value} is a folder", context, parameter)
        if not path.parent.is_dir():
            raise click.BadParameter(f"there is no folder {path.parent}", context, parameter)
    return value
