"""One session: what has been found out about the suite and about each vendor, so that each case knows whether it may speak."""

from __future__ import annotations

from functools import cached_property

from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import DEFAULT, get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Case, Finding, HarnessFault, Scope, Stage, Verdict, decide
from iommukit_conformance.declared import malformed
from iommukit_conformance.lab import Bench, Lab
from iommukit_conformance.reference import NAME, Reference
from iommukit_conformance.selection import Selection
from iommukit_conformance.suite import cases

BROKEN = "the suite itself is broken, which says nothing of a driver"


class Session:
    """Decides cases in the order: the suite itself, the vendor's smoke, everything else."""

    def __init__(self, selection: Selection, disputed: dict[str, str] | None = None) -> None:
        self.selection = selection
        self.disputed = disputed or {}
        self._smoke: dict[tuple[str, str], str] = {}

    @cached_property
    def _bench(self) -> Bench:
        return Bench(self.selection.registry, self.selection.hardware)

    @cached_property
    def _own_lab(self) -> Lab:
        registry = VendorRegistry()
        registry.register(Reference(), NAME)
        return Bench(registry).lab(NAME, get_kernel(DEFAULT))

    def lab(self, vendor: str, kernel: Kernel) -> Lab:
        """The lab of a vendor that can be loaded."""
        return self._bench.lab(vendor, kernel)

    def decide(self, case: Case, vendor: str, kernel: Kernel) -> Verdict:
        """Decide a case for a vendor and a kernel."""
        if case.stage is Stage.HARNESS:
            return self._harness[case.name]
        if case.scope is Scope.SUITE:
            return self._decide(case, self._own_lab)
        if self.harness_fault:
            return Verdict(Outcome.UNDECIDED, f"{BROKEN}: {self.harness_fault}", fault=True)
        if vendor in self.selection.broken:
            if case.stage is Stage.SMOKE:
                return Verdict(Outcome.FAIL, "", (Finding("DRV-06", self.selection.broken[vendor]),))
            return Verdict(Outcome.UNDECIDED, f"{vendor} cannot be loaded")
        wrong = next(malformed(self.selection.registry.get(vendor).declaration), "")
        if wrong:
            if case.stage is Stage.SMOKE or case.rule == "DRV-01":
                return Verdict(Outcome.FAIL, "", (Finding("DRV-01", wrong),))
            return Verdict(Outcome.UNDECIDED, f"{vendor} cannot be examined: {wrong}")
        lab = self.lab(vendor, kernel)
        if case.stage is not Stage.SMOKE:
            trouble = self.smoke(vendor, kernel)
            if trouble:
                return Verdict(Outcome.UNDECIDED, f"{vendor} fails its smoke test under {kernel.name}: {trouble}")
        for key in (f"{case.name}[{vendor}-{kernel.name}]", f"{case.name}[{vendor}]", case.name):
            if key in self.disputed:
                return Verdict(Outcome.UNDECIDED, f"disputed: {self.disputed[key]}")
        return self._decide(case, lab)

    def _decide(self, case: Case, lab: Lab) -> Verdict:
        try:
            return decide(case, lab)
        except HarnessFault as fault:
            if case.stage is Stage.HARNESS:
                return Verdict(Outcome.FAIL, "", (Finding("SUITE-1", str(fault)),))
            return Verdict(Outcome.UNDECIDED, f"the suite or the model is wrong here, not {lab.vendor.name}: {fault}", fault=True)

    @cached_property
    def _harness(self) -> dict[str, Verdict]:
        from iommukit_conformance.test_smoke import HARNESS

        return {case.name: self._decide(case, self._own_lab) for case in HARNESS.make()}

    @cached_property
    def harness_fault(self) -> str:
        """What is wrong with the suite itself; empty where it can tell right from wrong."""
        for verdict in self._harness.values():
            if verdict.outcome is not Outcome.PASS:
                return "; ".join(str(finding) for finding in verdict.findings[:1]) or verdict.reason
        return ""

    def smoke(self, vendor: str, kernel: Kernel) -> str:
        """What is wrong with a vendor's smoke cases; empty where nothing is.

        Where a kernel's drivers translate for no ordinary device the cases are not applicable, and others may still be.
        """
        key = (vendor, kernel.name)
        if key not in self._smoke:
            self._smoke[key] = ""
            for case in cases():
                if case.stage is Stage.SMOKE:
                    verdict = self._decide(case, self.lab(vendor, kernel))
                    if verdict.outcome is Outcome.FAIL:
                        self._smoke[key] = str(verdict.findings[0])
                        break
        return self._smoke[key]
