"""The scenario files, the neutral machines and the two pages about them hang together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit.hookspecs import CAPABILITIES
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.machine.documents import parse_documents
from iommukit.machine.model import Machine
from iommukit.scenario.load import load_machine, load_scenarios, shipped_machines, shipped_scenarios
from iommukit.scenario.model import ANY_KERNEL
from iommukit_conformance.rules import RULES
from tests.scenario.shipped import DOCS, FILES, registry, scenarios

FLOOR = 120
HOLES_WITHOUT_SCENARIO = {2, 3, 11, 16, 23, 30}
"""Races, a compiler's error, and what leaves no trace: docs/rfc-holes.md says why for each."""

RULES_PAGE = (DOCS / "rules.md").read_text(encoding="utf-8")
HOLES_PAGE = (DOCS / "rfc-holes.md").read_text(encoding="utf-8")
RULE_ROW = re.compile(r"^\| ([A-Z]+-\d{2}) \| (.+?) \| (.+?) \| (.*?) ?\|$", re.MULTILINE)


def test_ids_are_unique_and_many():
    assert len(load_scenarios([shipped_scenarios()])) == len(scenarios()) >= FLOOR


def test_an_id_that_appears_twice_is_refused(tmp_path: Path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(FILES[0].read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match="appears in"):
        load_scenarios([shipped_scenarios(), copy])


def test_every_rule_is_in_the_page_once():
    rows = [row[0] for row in RULE_ROW.findall(RULES_PAGE)]
    assert len(set(rows)) == len(rows)
    assert len(rows) == len(re.findall(r"^\| [A-Z]+-\d", RULES_PAGE, re.MULTILINE)), "a row without its four columns"


def test_rules_and_scenarios_name_each_other():
    described = {row[0] for row in RULE_ROW.findall(RULES_PAGE)}
    tested = {scenario.rule for scenario in scenarios().values()}
    assert described == tested


def test_the_suite_s_invariants_are_the_page_s():
    described = {row[0] for row in RULE_ROW.findall(RULES_PAGE)}
    assert {rule for rule in RULES if rule.startswith("INV-")} == {rule for rule in described if rule.startswith("INV-")}


def test_every_hole_is_told_and_shown():
    told = {int(number) for number in re.findall(r"^\*\*H(\d+) ", HOLES_PAGE, re.MULTILINE)}
    assert told == set(range(1, 31))
    shown = {int(scenario.rule[-2:]) for scenario in scenarios().values() if scenario.rule and scenario.rule.startswith("HOLE-")}
    assert shown == told - HOLES_WITHOUT_SCENARIO


def test_holes_without_a_scenario_say_so():
    for paragraph in re.split(r"^\*\*H", HOLES_PAGE, flags=re.MULTILINE)[1:]:
        number = int(paragraph.split(" ", 1)[0])
        assert ("*Not shown*" in paragraph) is (number in HOLES_WITHOUT_SCENARIO), number
        assert ("*Shown by*" in paragraph) is (number not in HOLES_WITHOUT_SCENARIO), number


def test_the_page_of_holes_names_scenarios_that_exist():
    named = {name for name in re.findall(r"`([a-z0-9][a-z0-9-]+)`", HOLES_PAGE) if "-" in name} - set(PROFILES)
    assert named <= set(scenarios())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_scenario_says_what_it_is_and_expects_something(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "a file begins with one line about its topic"
    for document in parse_documents(text, str(path)):
        scenario = scenarios()[document["scenario"]]
        assert scenario.rule, scenario.scenario
        assert scenario.summary.endswith("."), scenario.scenario
        assert scenario.expect and all(scenario.expect.values()), scenario.scenario


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_expectations_and_conditions_name_what_exists(path: Path):
    for document in parse_documents(path.read_text(encoding="utf-8"), str(path)):
        scenario = scenarios()[document["scenario"]]
        for kernel in scenario.expect:
            assert kernel == ANY_KERNEL or get_kernel(kernel).name == kernel
        assert set(scenario.requires) <= set(CAPABILITIES)
        assert scenario.vendor is None or scenario.vendor in registry()


NEUTRAL = sorted(shipped_machines().glob("*.yaml"))


@pytest.mark.parametrize("path", NEUTRAL, ids=lambda path: path.stem)
def test_a_machine_is_called_like_its_file_and_says_what_it_is(path: Path):
    machine = load_machine(path.stem)
    assert machine.machine == path.stem
    assert machine.summary.endswith(".")


def test_every_neutral_machine_is_used():
    used = {scenario.machine.machine for scenario in scenarios().values() if isinstance(scenario.machine, Machine)}
    assert {path.stem for path in NEUTRAL} <= used


def test_most_scenarios_are_nobody_s():
    """A rule of the core is written for every vendor; only what a driver decides names one."""
    for scenario in scenarios().values():
        own = scenario.rule is not None and scenario.rule.split("-")[0] in ("GROUP", "TRUST", "INV", "OWNER")
        assert not (own and scenario.vendor) or scenario.rule == "INV-05", scenario.scenario
