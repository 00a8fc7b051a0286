"""Real machines: each captured boot is predicted from its own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iommukit.machine.model import Machine
from iommukit.report.boot import predict
from iommukit.scenario.load import load_machine, shipped_machines
from iommukit.vendors import VendorRegistry

FILES = sorted((shipped_machines() / "captured").glob("*.yaml"))


@pytest.fixture(scope="module")
def registry() -> VendorRegistry:
    return VendorRegistry.installed()


def _format(registry: VendorRegistry, signature: str):  # type: ignore[no-untyped-def]
    return next(form for vendor in registry for form in vendor.ops.firmware_formats() if form.signature == signature)


def test_there_are_enough() -> None:
    assert len(FILES) >= 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prediction(path: Path, registry: VendorRegistry) -> None:
    machine = load_machine(str(path))
    assert machine.sources[0].licence == "CC-BY-4.0"
    for captured in machine.captured:
        prediction = predict(machine, captured, registry)
        compared = {part.part for part in prediction.comparison}
        assert compared >= {"enabled", "log", "groups", "numbers"}
        assert "units" in compared or not prediction.enabled
        assert not [part for part in prediction.comparison if part.finding]
        assert not prediction.stale, "the file excuses a difference that is not there"


def test_stated_acs_decides_every_group(registry: VendorRegistry) -> None:
    """ACS as one boot's groups show it predicts the other kernel's groups and their numbers, in another order."""
    machine = load_machine("latitude-9420-6.2.10")
    prediction = predict(machine, machine.captured[0], registry)
    observed = machine.captured[0].observed
    assert observed is not None
    assert not prediction.undecided
    assert {group.number: set(group.devices) for group in prediction.groups} == dict(enumerate(map(set, observed.groups)))
    older = load_machine("latitude-9420-5.18.1").captured[0].observed
    assert older is not None
    assert list(older.groups) != list(observed.groups)


@pytest.mark.parametrize("wrong", ["members", "number", "unit", "line", "off"])
def test_a_wrong_prediction_is_found(wrong: str, registry: VendorRegistry) -> None:
    machine = load_machine("latitude-9420-6.2.10")
    fields = machine.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    observed = fields["captured"][0]["observed"]
    if wrong == "members":
        observed["groups"][4].append(observed["groups"].pop()[0])
    elif wrong == "number":
        observed["groups"][3], observed["groups"][4] = observed["groups"][4], observed["groups"][3]
    elif wrong == "unit":
        observed["units"] = observed["units"][::-1]
    elif wrong == "line":
        observed["log"][-1] += " and more"
    else:
        observed["enabled"] = False
    changed = Machine.model_validate(fields)
    assert predict(changed, changed.captured[0], registry).finding


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fields_build_the_very_table(path: Path, registry: VendorRegistry, shared_folder: Path) -> None:
    machine = load_machine(str(path))
    ((signature, fields),) = machine.firmware.items()
    form = _format(registry, signature)
    raw = (shared_folder / "machines" / path.stem / "table.bin").read_bytes()
    assert form.build(form.validate(fields, path.name)) == raw


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_say_what_the_sources_say(path: Path, shared_folder: Path) -> None:
    machine = load_machine(str(path))
    folder = shared_folder / "machines" / path.stem
    meta = json.loads((folder / "meta.json").read_text())
    devices = json.loads((folder / "devices.json").read_text())
    groups = json.loads((folder / "groups.json").read_text())
    (captured,) = machine.captured
    assert captured.observed is not None
    assert (captured.kernel, captured.boot.cmdline) == (meta["kernel"], meta["cmdline"])
    assert captured.observed.enabled == meta["iommu_enabled"]
    assert [(d.address, d.id, d.class_code) for d in machine.devices] == [
        (d["bdf"], f"{d['vendor']}:{d['device']}", d["class"]) for d in devices
    ]
    assert {str(number): list(members) for number, members in enumerate(captured.observed.groups)} == groups
    log = (folder / "dmesg.txt").read_text().splitlines()
    assert all(line in log for line in captured.observed.log)
