"""``iommukit schema``."""

from __future__ import annotations

import click

from iommukit.cli.options import Command, json_flag


@click.command(
    "schema",
    cls=Command,
    examples=(
        "iommukit schema",
        "iommukit schema scenario > scenario.schema.json",
    ),
)
@click.argument("name", required=False)
@json_flag
def command(name: str | None, as_json: bool) -> None:
    """Print a JSON Schema: of scenario and machine files, and of what commands answer.

    Without NAME, list the schemas.  A schema is JSON with or without --json.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.report.page import Page, Span
    from iommukit.report.schemas import SCHEMAS, schema

    if name is not None:
        show_json(schema(name))
    elif as_json:
        show_json({known: described for known, (described, _) in SCHEMAS.items()})
    else:
        page = Page()
        page.pairs([(Span(known, "name"), described) for known, (described, _) in SCHEMAS.items()])
        show(page)
