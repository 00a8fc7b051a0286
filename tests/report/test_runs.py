from __future__ import annotations

import pytest

from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.report.runs import run_case
from iommukit.scenario.result import Outcome, Result
from tests.report.toy_vendor import Crashing, Knowing, Toy, toy_registry, toy_scenario


def run(name: str, *, kernel: str = "rfc", plugin: Toy | None = None, **changes: object) -> Result:
    plugin = plugin or Toy()
    registry = toy_registry(plugin)
    return run_case(toy_scenario(name, **changes), get_kernel(kernel), registry.get(plugin.name), registry)


def test_pass_and_fail() -> None:
    assert run("live-switch").outcome is Outcome.PASS
    failed = run("mistaken")
    assert failed.outcome is Outcome.FAIL
    assert failed.findings == ("type of nic at the end: expected identity, got DMA",)


def test_another_vendors_scenario_is_not_applicable() -> None:
    result = run("live-switch", vendor="acme")
    assert (result.outcome, result.reason) == (Outcome.NOT_APPLICABLE, "the scenario is for acme, which is not installed")
    assert run("live-switch", vendor="toy").outcome is Outcome.PASS


def test_a_declared_failure_is_expected_and_its_passing_is_a_failure() -> None:
    known = run("mistaken", plugin=Knowing())
    assert (known.outcome, known.reason) == (Outcome.XFAIL, "the toy never learnt it")
    surprise = run("live-switch", plugin=Knowing())
    assert surprise.outcome is Outcome.FAIL
    assert surprise.findings == ("passes, but knowing declares that it breaks TOY-01: believed to be broken",)


def test_a_plugin_that_stops_fails_and_says_where() -> None:
    result = run("live-switch", plugin=Crashing())
    assert result.outcome is Outcome.FAIL
    (finding,) = result.findings
    assert finding.startswith("stopped by KeyError: 'no answer' (toy_vendor.py:")


def test_a_kernel_that_can_only_boot_decides_no_steps() -> None:
    result = run("live-switch", kernel="5.15")
    assert (result.outcome, result.reason) == (Outcome.UNDECIDED, "only the boot of 5.15 is modelled")
    assert run("mistaken", kernel="5.15").boot is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requires": ["frob"]}, "scenario live-switch: no capability 'frob'"),
        (
            {"machine": {"machine": "m", "firmware": {"TOYT": "base64:AAAA"}}, "steps": [], "expect": {}},
            "one byte was expected, not 3",
        ),
    ],
)
def test_bad_input_names_the_scenario(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        run("live-switch", **changes)
    assert message in str(caught.value)
    assert "live-switch" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
