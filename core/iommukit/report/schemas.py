"""JSON Schemas of everything that crosses the project's border, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from iommukit.errors import InputError
from iommukit.hookspecs import VendorDeclaration
from iommukit.machine.model import Machine
from iommukit.report import shapes
from iommukit.report.page import listed
from iommukit.scenario.model import Scenario

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

NUMBER_TEXT = {"type": "string", "pattern": "^0[xX][0-9a-fA-F]+$|^[0-9]+$"}


def _adapted(shape: Any) -> Schema:
    schema: Schema = TypeAdapter(shape).json_schema()
    return schema


def _machine() -> Schema:
    return _with_number_texts(Machine.model_json_schema())


def _scenario() -> Schema:
    """As the loader takes it: a machine written inline needs no name of its own."""
    schema = _with_number_texts(Scenario.model_json_schema())
    machine = schema["$defs"]["Machine"]
    machine["required"] = [key for key in machine["required"] if key != "machine"]
    if not machine["required"]:
        del machine["required"]
    step = schema["$defs"]["Step"]
    for name, operation in step["properties"].items():
        step["properties"][name] = next(part for part in operation["anyOf"] if "$ref" in part)
    step.update(minProperties=1, maxProperties=1)
    return schema


def _with_number_texts(schema: Schema) -> Schema:
    """Wherever a 64-bit number may stand, 0x… text may stand too."""

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
        elif isinstance(node, dict):
            if node.get("type") == "integer" and node.get("maximum") == (1 << 64) - 1:
                number = {key: node.pop(key) for key in ("type", "minimum", "maximum") if key in node}
                node["anyOf"] = [number, NUMBER_TEXT]
            for key, item in list(node.items()):
                if key != "default":
                    visit(item)

    visit(schema)
    return schema


SCHEMAS: dict[str, tuple[str, Callable[[], Schema]]] = {
    "scenario": ("a scenario file's document", _scenario),
    "machine": ("a machine file", _machine),
    "result": ("a line of iommukit run --json", lambda: _adapted(shapes.ResultJson)),
    "matrix": ("iommukit matrix --json", lambda: _adapted(shapes.MatrixJson)),
    "diff": ("iommukit diff --json", lambda: _adapted(shapes.DiffJson)),
    "boot": ("iommukit boot --json", lambda: _adapted(shapes.BootsJson)),
    "walk": ("iommukit walk --json", lambda: _adapted(shapes.WalkJson)),
    "agreement": ("iommukit oracle kernel check --json", lambda: _adapted(shapes.AgreementJson)),
    "plugins": ("iommukit plugins --json", lambda: _adapted(shapes.PluginsJson)),
    "declaration": ("what a vendor plugin declares", lambda: _adapted(VendorDeclaration)),
}
"""Name: what it describes, and how it is made."""


def schema(name: str) -> Schema:
    """The JSON Schema (draft 2020-12) of that name.  Raises ``InputError`` naming those that exist."""
    if name not in SCHEMAS:
        raise InputError(f"no schema {name!r}; there are {listed(SCHEMAS)}")
    described, make = SCHEMAS[name]
    return {"$schema": DIALECT, "title": f"iommukit {name}", "description": described, **_untitled(make())}


def _untitled(made: Schema) -> Schema:
    return {key: value for key, value in made.items() if key not in ("title", "description")}
