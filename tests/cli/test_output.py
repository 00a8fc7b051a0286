"""What people see, held by snapshots, and what programs read, held by the schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from iommukit.report.schemas import SCHEMAS, schema
from tests.cli.conftest import Run
from tests.report.toy_vendor import MACHINE, Blind, Crashing, Knowing, Toy, toy_registry

PAGES: dict[str, tuple[int, tuple[str, ...]]] = {
    "matrix": (1, ("matrix", "--scenario", "scenarios", "--kernel", "rfc", "--kernel", "rfc-as-posted", "--kernel", "6.1")),
    "run-one": (0, ("run", "scenarios/live-switch.yaml", "--vendor", "toy")),
    "run-several": (1, ("run", "scenarios", "--kernel", "rfc", "--kernel", "6.12")),
    "run-short": (1, ("run", "scenarios", "--short")),
    "diff": (1, ("diff", "--from", "6.1", "--to", "rfc-as-posted", "--scenario", "scenarios")),
    "diff-none": (0, ("diff", "--from", "6.12", "--to", "7.2", "--scenario", "scenarios")),
    "boot": (0, ("boot", "card", "--vendor", "toy", "--kernel", "6.1", "--cmdline", "iommu=pt toy_iommu=strict")),
    "boot-off": (0, ("boot", "card.yaml", "--cmdline", "iommu=off", "--kernel", "5.15.0-52-generic", "--vendor", "toy")),
    "boot-neutral": (0, ("boot", "card", "--kconfig", "lazy")),
    "plugins": (0, ("plugins",)),
    "plugins-smoke": (0, ("plugins", "--smoke")),
    "schema": (0, ("schema",)),
}


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, run: Run, snapshot: SnapshotAssertion) -> None:
    code, args = PAGES[name]
    result = run(*args)
    assert result.exit_code == code, result.output
    assert not result.stderr
    assert "\x1b" not in result.stdout
    assert result.stdout == snapshot


def test_captured_boot_against_its_observation(run: Run, folder: Path, snapshot: SnapshotAssertion) -> None:
    observed = {"enabled": True, "units": ["toy0"], "groups": [["0000:00:06.0"], ["0000:01:00.0"]], "log": ["TOY: 1 found"]}
    captured = {"kernel": "6.1.0-1", "boot": {"cmdline": "quiet"}, "observed": observed}
    source = {"name": "A collection", "url": "https://example.org", "licence": "CC0-1.0"}
    machine = {**MACHINE, "captured": [captured], "sources": [source], "firmware": {"TOYT": {"units": 1}}}
    (folder / "seen.yaml").write_text(yaml.safe_dump(machine))
    result = run("boot", "seen")
    assert result.exit_code == 1
    assert result.stdout == snapshot
    observed["differs"] = {"log": "only some lines were kept"}
    (folder / "seen.yaml").write_text(yaml.safe_dump(machine))
    assert run("boot", "seen").exit_code == 0
    assert "differs, as listed" in run("boot", "seen").stdout
    overridden = run("boot", "seen", "--kernel", "6.12")
    assert overridden.exit_code == 0
    assert "against what was observed" not in overridden.stdout


JSON: dict[str, tuple[str, tuple[str, ...]]] = {
    "matrix": ("matrix", ("matrix", "--scenario", "scenarios", "--json", "-")),
    "diff": ("diff", ("diff", "--from", "6.1", "--to", "rfc", "--scenario", "scenarios", "--json")),
    "boot": ("boot", ("boot", "card", "--cmdline", "iommu=pt amd_iommu=on iommu.strict=x iommu=soft", "--json")),
    "plugins": ("plugins", ("plugins", "--smoke", "--json")),
}


@pytest.mark.parametrize("name", JSON)
def test_json_is_as_its_schema_says(name: str, run: Run) -> None:
    which, args = JSON[name]
    result = run(*args)
    assert result.exit_code in (0, 1)
    jsonschema.validate(json.loads(result.stdout), schema(which))


def test_run_answers_one_result_a_line(run: Run) -> None:
    result = run("run", "scenarios", "--json", "--kernel", "rfc", "--kernel", "6.1")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 4 * 2 * 2
    for line in lines:
        jsonschema.validate(line, schema("result"))
    assert {line["outcome"] for line in lines} == {"PASS", "FAIL", "N/A", "UNDECIDED"}
    first = next(line for line in lines if line["scenario"] == "live-switch" and line["vendor"] == "toy")
    assert first["steps"][1]["op"] == "write"
    assert first["steps"][1]["groups"][1] == {"id": 1, "type": "DMA-FQ", "devices": ["0000:01:00.0"]}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name: str, run: Run) -> None:
    result = run("schema", name)
    assert result.exit_code == 0
    made = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["title"] == f"iommukit {name}"


def _documents() -> list[Any]:
    from iommukit.scenario.load import shipped_machines, shipped_scenarios

    found = [("machine", path) for path in sorted(shipped_machines().rglob("*.yaml"))]
    found += [("scenario", path) for path in sorted(shipped_scenarios().rglob("*.yaml"))]
    return [pytest.param(kind, path, id=f"{kind}-{path.stem}") for kind, path in found]


@pytest.mark.parametrize(("kind", "path"), _documents())
def test_what_is_shipped_is_as_its_schema_says(kind: str, path: Path) -> None:
    """Editors check files by the schema, so it must not be stricter than the loader."""
    from iommukit.machine.documents import parse_documents

    validator = jsonschema.Draft202012Validator(schema(kind))
    for document in parse_documents(path.read_text(), str(path)):
        validator.validate(document)


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": "m"},
        {"scenario": "s", "machine": "m", "extra": 1},
        {"scenario": "s", "machine": "m", "steps": [{}]},
        {"scenario": "s", "machine": "m", "steps": [{"unbind": {"device": "a"}, "add": {"device": "a"}}]},
        {"scenario": "s", "machine": {"devices": [{"name": "a", "kind": "toaster"}]}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema("scenario"))


def test_expected_failures_are_shown_and_judged(run: Run) -> None:
    registry = toy_registry(Knowing())
    page = run("plugins", registry=registry)
    assert "TOY-03  the toy never learnt it" in page.stdout
    outcome = run("run", "scenarios/mistaken.yaml", registry=registry)
    assert outcome.exit_code == 0
    assert "XFAIL" in outcome.stdout


@pytest.mark.parametrize(
    ("plugin", "text"), [(Crashing(), "stopped by KeyError: 'no answer'"), (Blind(), "discover found no unit on smoke-endpoint")]
)
def test_smoke_tells_a_broken_plugin(plugin: Toy, text: str, run: Run) -> None:
    registry = toy_registry(Toy(), plugin)
    result = run("plugins", "--smoke", registry=registry)
    assert result.exit_code == 1
    assert f"BROKEN: {text}" in result.stdout
    assert "works: 1 unit, DMA-FQ" in result.stdout
    assert run("plugins", registry=registry).exit_code == 0


def test_a_plugin_that_stops_does_not_stop_the_others(run: Run) -> None:
    registry = toy_registry(Toy(), Crashing())
    boot = run("boot", "card", registry=registry)
    assert boot.exit_code == 1
    assert "crashing stopped: KeyError: 'no answer'" in boot.stdout
    assert "card under rfc with toy" in boot.stdout
    matrix = run("matrix", "--scenario", "scenarios/live-switch.yaml", registry=registry)
    assert matrix.exit_code == 1
    assert "stopped by KeyError" in matrix.stdout
