"""The shipped scenarios and the machines that come with the project, read once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from iommukit.errors import InputError
from iommukit.machine.model import Machine
from iommukit.scenario.load import load_machine, load_scenarios, machine_index, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit_conformance.rules import RULES


@lru_cache(maxsize=1)
def _read() -> tuple[tuple[Scenario, ...], str]:
    try:
        return tuple(load_scenarios([shipped_scenarios()])), ""
    except InputError as error:
        return (), str(error)


def scenarios() -> tuple[Scenario, ...]:
    """All shipped scenarios; none where they cannot be read."""
    return _read()[0]


def unreadable() -> str:
    """Why the shipped scenarios cannot be read; empty where they can."""
    return _read()[1]


@lru_cache(maxsize=1)
def known_rules() -> frozenset[str]:
    """The rules of this suite and those that scenarios name."""
    return frozenset(RULES) | {scenario.rule for scenario in scenarios() if scenario.rule}


@lru_cache(maxsize=1)
def _machines() -> tuple[Machine, ...]:
    found: dict[str, Machine] = {}
    for name in machine_index():
        found[name] = load_machine(name)
    for scenario in scenarios():
        if isinstance(scenario.machine, Machine):
            found.setdefault(scenario.machine.machine, scenario.machine)
    return tuple(found.values())


def shipped_tables(signature: str) -> Iterator[tuple[str, Any]]:
    """The machines that carry a table, and the table: its bytes, or its written fields."""
    for machine in _machines():
        raw = machine.firmware.get(signature)
        if isinstance(raw, bytes | dict):
            yield machine.machine, raw
