"""The command line with toy vendors, in an empty folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from iommukit.cli.main import cli
from iommukit.vendors import VendorRegistry
from tests.report.toy_vendor import MACHINE, SCENARIOS, toy_document, toy_registry

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with ``scenarios/`` and ``card.yaml``."""
    monkeypatch.chdir(tmp_path)
    scenarios = tmp_path / "scenarios"
    scenarios.mkdir()
    for name in SCENARIOS:
        (scenarios / f"{name}.yaml").write_text(yaml.safe_dump(toy_document(name)))
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(MACHINE))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Call ``iommukit`` with the toy vendors, or a registry of one's own."""

    def call(*args: str, registry: VendorRegistry | None = None) -> Result:
        return CliRunner().invoke(cli, args, obj=registry or toy_registry())

    return call
