"""One table of everything that vouches for the model: scenarios on real kernels, recorded boots, documented resolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from iommukit.kernel.kernel import Kernel
from iommukit.report.agreement import AgreementReport, Remark, Row
from iommukit.report.runs import run_case
from iommukit.scenario.expectation import says_nothing
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_oracle.kernel.agreement import Check, Standing
from iommukit_oracle.observations import Observation, Replay, Verdict

if TYPE_CHECKING:
    from iommukit.report.shapes import StandingName

PLAYED, BOOTED, RESOLVED = "scenarios on a real kernel", "recorded boots", "documented resolutions"
"""The judges.  The last are of kernels that exist nowhere: what is expected of them is written down (``docs/rfc-holes.md``)."""
RFC = "rfc"
"""The kernel that is judged by what is written down."""

_OF_STANDING: dict[Standing, StandingName] = {
    Standing.AGREES: "agrees",
    Standing.DIFFERS: "differs",
    Standing.KNOWN: "explained",
    Standing.UNDECIDED: "undecided",
    Standing.STALE: "stale",
    Standing.MISSING: "missing",
}
_OF_VERDICT: dict[Verdict, StandingName] = {
    Verdict.AGREES: "agrees",
    Verdict.DIFFERS: "differs",
    Verdict.KNOWN: "explained",
    Verdict.UNDECIDED: "undecided",
}
_OF_OUTCOME: dict[Outcome, StandingName] = {
    Outcome.PASS: "agrees",
    Outcome.FAIL: "differs",
    Outcome.XFAIL: "explained",
    Outcome.UNDECIDED: "undecided",
}
_TOLD = (Verdict.DIFFERS, Verdict.KNOWN)
"""Observations that are told one by one; an undecided one is told where its scenario is."""


class Table:
    """Collects rows and remarks."""

    def __init__(self) -> None:
        self.report = AgreementReport()
        self._rows: dict[tuple[str, str, str], Row] = {}

    def _row(self, judge: str, unit: str, kernel: str, vendor: str) -> Row:
        found = self._rows.get((judge, kernel, vendor))
        if found is None:
            found = self._rows[judge, kernel, vendor] = Row(judge, unit, kernel, vendor)
            self.report.rows.append(found)
        return found

    def _observe(self, row: Row, case: str, seen: Observation) -> None:
        standing = _OF_VERDICT[seen.verdict]
        row.observations[standing] += 1
        if seen.verdict in _TOLD:
            told = f"{seen.where}: {seen.kind}: the kernel has {seen.expected}, the model {seen.got}"
            self.report.remarks.append(Remark(standing, row.judge, row.kernel, row.vendor, case, told, seen.reason))

    def add_played(self, check: Check) -> None:
        """Scenarios that real kernels have played."""
        for each in check.agreements:
            row = self._row(PLAYED, "scenario", each.kernel, each.vendor)
            standing = _OF_STANDING[each.standing]
            row.standings[standing] += 1
            for seen in each.observations:
                self._observe(row, each.scenario, seen)
            if each.reason:
                remark = Remark(standing, PLAYED, each.kernel, each.vendor, each.scenario, reason=each.reason)
                self.report.remarks.append(remark)
        for (kernel, vendor), boots in check.boots.items():
            row = self._row(PLAYED, "scenario", kernel, vendor)
            for boot in boots:
                for seen in boot:
                    self._observe(row, "boot", seen)

    def add_booted(self, replays: Iterable[Replay]) -> None:
        """Recorded boots with what was done after them."""
        for replay in replays:
            row = self._row(BOOTED, "boot", replay.kernel, replay.vendor)
            verdicts = {seen.verdict for seen in replay.observations}
            first = next(verdict for verdict in _WORST_FIRST if verdict in verdicts or verdict is Verdict.AGREES)
            row.standings[_OF_VERDICT[first]] += 1
            for seen in replay.observations:
                self._observe(row, replay.id, seen)

    def add_resolved(
        self,
        scenarios: Sequence[Scenario],
        kernel: Kernel,
        vendors: Iterable[Vendor],
        registry: VendorRegistry,
    ) -> None:
        """Scenarios that say what is expected of a kernel that nobody can boot."""
        for vendor in vendors:
            for scenario in scenarios:
                wanted = scenario.expectation(kernel.name)
                if wanted is None or says_nothing(wanted):
                    continue
                result = run_case(scenario, kernel, vendor, registry)
                standing = _OF_OUTCOME.get(result.outcome)
                if standing is None:
                    continue
                row = self._row(RESOLVED, "scenario", kernel.name, vendor.name)
                row.standings[standing] += 1
                row.observations[standing] += 1
                if standing != "agrees":
                    where = f"{scenario.scenario} ({kernel.name}, {vendor.name})"
                    seen = f"{where}: {'; '.join(result.findings)}" if result.findings else ""
                    remark = Remark(standing, RESOLVED, kernel.name, vendor.name, scenario.scenario, seen, result.reason)
                    self.report.remarks.append(remark)


_WORST_FIRST = (Verdict.DIFFERS, Verdict.KNOWN, Verdict.AGREES)
