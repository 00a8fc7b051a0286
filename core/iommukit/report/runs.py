"""Running scenarios under kernels with vendors, each combination once, judged."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from iommukit.errors import InputError
from iommukit.kernel.historic import Historic
from iommukit.kernel.kernel import Kernel
from iommukit.scenario.executor import Watcher, execute
from iommukit.scenario.judge import judge
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome, Result
from iommukit.vendors import Vendor, VendorRegistry


def run_case(
    scenario: Scenario,
    kernel: Kernel,
    vendor: Vendor,
    registry: VendorRegistry,
    *,
    watchers: tuple[Watcher, ...] = (),
) -> Result:
    """Run and judge one scenario.

    N/A where the scenario is another vendor's; XFAIL where the vendor declares that it breaks the scenario's rule, and FAIL where
    such a case passes.  A plugin or a model that stops with an exception is a FAIL that says where.  Raises ``InputError``, naming
    the scenario, for what the scenario or its machine gets wrong.
    """
    result = Result(scenario.scenario, kernel.name, vendor.name)
    if scenario.vendor not in (None, vendor.name):
        known = "" if scenario.vendor in registry else ", which is not installed"
        result.outcome, result.reason = Outcome.NOT_APPLICABLE, f"the scenario is for {scenario.vendor}{known}"
        return result
    if isinstance(kernel, Historic) and scenario.steps:
        result.reason = f"only the boot of {kernel.name} is modelled"
        return result
    try:
        result = judge(scenario, execute(scenario, kernel, vendor, registry, watchers=watchers))
    except InputError as error:
        if error.source == scenario.scenario:
            raise
        raise InputError(str(error), source=f"scenario {scenario.scenario}") from error
    except Exception as error:
        result.outcome = Outcome.FAIL
        result.findings = (f"stopped by {crash(error)}",)
        return result
    return _expected(scenario, vendor, result)


def _expected(scenario: Scenario, vendor: Vendor, result: Result) -> Result:
    """Hold the outcome against what the vendor declares to break."""
    reason = vendor.declaration.expected_failures.get(scenario.rule or "")
    if reason is None:
        return result
    if result.outcome is Outcome.FAIL:
        result.outcome, result.reason = Outcome.XFAIL, reason
    elif result.outcome is Outcome.PASS:
        result.outcome = Outcome.FAIL
        result.findings = (f"passes, but {vendor.name} declares that it breaks {scenario.rule}: {reason}",)
    return result


def crash(error: Exception) -> str:
    """An unexpected exception in one line: its kind, its text and the place in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"


def run_cases(
    scenarios: Sequence[Scenario],
    kernels: Sequence[Kernel],
    vendors: Sequence[Vendor],
    registry: VendorRegistry,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Scenario, Result]]:
    """Every combination, scenario by scenario, then vendor by vendor; ``tick`` is called after each."""
    for scenario in scenarios:
        for vendor in vendors:
            for kernel in kernels:
                yield scenario, run_case(scenario, kernel, vendor, registry)
                tick()


def worst(results: Sequence[Result]) -> int:
    """The exit code of a set of results: 1 with a FAIL among them, else 0."""
    return int(any(result.outcome is Outcome.FAIL for result in results))
