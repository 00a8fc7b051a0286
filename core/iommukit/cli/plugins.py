"""``iommukit plugins``."""

from __future__ import annotations

import click

from iommukit.cli.options import Command, json_flag


@click.command(
    "plugins",
    cls=Command,
    examples=(
        "iommukit plugins",
        "iommukit plugins --smoke",
    ),
)
@click.option("--smoke", is_flag=True, help="Boot each plugin on a trivial machine under every kernel.")
@json_flag
@click.pass_context
def command(context: click.Context, smoke: bool, as_json: bool) -> int:
    """List the installed vendor plugins.

    For each: what it models, what it has, the hooks it implements, what it knowingly breaks, and the distribution that it came
    with.  --smoke tells a broken plugin from a working one, before any question of right or wrong behaviour.  Exit code 1 if one
    is broken.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.report.plugins import installed, plugins_page, registered, smoke_test
    from iommukit.vendors import VendorRegistry

    if isinstance(context.obj, VendorRegistry):
        registry, plugins = context.obj, registered(context.obj)
    else:
        registry = VendorRegistry()
        plugins = installed(registry)
    if smoke:
        for plugin in plugins:
            if plugin.vendor is not None:
                plugin.smoke = smoke_test(plugin.vendor, registry)
    if as_json:
        show_json({"plugins": [plugin.to_json() for plugin in plugins]})
    else:
        show(plugins_page(plugins))
    return int(any(plugin.broken for plugin in plugins))
