"""Expectations that make no sense are bad input, and those that say nothing decide nothing."""

from __future__ import annotations

from typing import Any

import pytest

from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import execute
from iommukit.scenario.judge import judge
from iommukit.scenario.load import load_scenario
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome
from tests.kernel.toy import toy_registry


def _scenario(expected: Any) -> Scenario:
    document = {
        "scenario": "s",
        "machine": {"devices": [{"name": "nic"}, {"name": "log"}]},
        "steps": [{"bind": {"device": "nic"}}, {"write": {"group_of": "nic", "type": "DMA"}}],
        "expect": {"rfc": expected},
    }
    return load_scenario(document, source="s.yaml")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"frob": "ok"}, "s.yaml: expect.rfc: no 'frob' to expect something of"),
        ({"²": "ok"}, "no '²' to expect something of"),
        ({"nic": "DAM"}, "s.yaml: expect.rfc.nic: no type 'DAM'; there are DMA, DMA-FQ, UNDECIDED, absent, "),
        ({"nic": None}, "expect.rfc.nic: no type None"),
        ({"nic": ["DMA"]}, "expect.rfc.nic: no type list"),
        ({"write": "EFOO"}, "expect.rfc.write: ok or an errno name was expected, got 'EFOO'"),
        ({"write": {"a": "b"}}, "expect.rfc.write: ok or an errno name was expected, got dict"),
        ({"write": ["ok", "ok"]}, "expect.rfc.write: 1 steps write, 2 results expected"),
        ({"claim": "ok"}, "expect.rfc.claim: no step does claim"),
        ({1: {"write": "ok"}}, "expect.rfc.1.write: no step does write"),
        ({3: "ok"}, "expect.rfc.3: there is no step 3"),
        ({0: "ok"}, "expect.rfc.0: there is no step 0"),
        ({1: ["ok"]}, "expect.rfc.1: a result or a mapping was expected"),
        ({"boot": "DMA"}, "expect.rfc.boot: a mapping was expected"),
        ({"boot": {"result": "ok"}}, "expect.rfc.boot.result: a boot has no result"),
        ({"boot": {"attaches": 1}}, "expect.rfc.boot.attaches: attachments are counted for steps"),
        ({"attaches": "many"}, "expect.rfc.attaches: a number was expected, got 'many'"),
        ({"groups": ["nic"]}, "expect.rfc.groups: a list of lists of devices was expected"),
        ({"groups": [["nix"]]}, "expect.rfc.groups: no device 'nix' in the machine; there are log, nic"),
        ({"reserved": ["nic"]}, "expect.rfc.reserved: a mapping from devices to lists of lines was expected"),
        ({"reserved": {"nix": []}}, "expect.rfc.reserved: no device 'nix' in the machine"),
        ({"default": "strict"}, "expect.rfc.default: one of IDENTITY, LAZY, STRICT was expected, got 'strict'"),
        ({"log": [5]}, "expect.rfc.log: 'log' is a word of expectations and a device as well"),
        ({"no_log": [5]}, "expect.rfc.no_log: log and no_log expect a text or a list of texts"),
    ],
)
def test_nonsense_is_bad_input(expected: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _scenario(expected)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [
        ({}, Outcome.UNDECIDED),
        ({1: {}}, Outcome.UNDECIDED),
        ({"boot": {}, "groups": [], "no_log": []}, Outcome.UNDECIDED),
        ({"reserved": {}}, Outcome.UNDECIDED),
        ({"reserved": {"nic": []}}, Outcome.PASS),
        ({"groups": [], "bind": "ok"}, Outcome.PASS),
        ({"bind": "EBUSY"}, Outcome.FAIL),
        ({1: {"nic": "identity"}}, Outcome.FAIL),
    ],
)
def test_only_what_is_expected_passes(expected: Any, outcome: Outcome) -> None:
    registry, toy = toy_registry()
    scenario = _scenario(expected)
    assert judge(scenario, execute(scenario, get_kernel("rfc"), toy, registry)).outcome is outcome
