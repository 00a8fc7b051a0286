"""Running the suite against mistakes in using a vendor's hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from iommukit.errors import InputError, NotApplicable
from iommukit.hookspecs import Emulation, Mistake
from iommukit.hw.platforms import platform_factory
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.case import Stage, Verdict
from iommukit_conformance.lab import MODEL
from iommukit_conformance.suite import run_vendor
from iommukit_conformance.watched_bus import WatchedPlatform
from iommukit_conformance.wrong.slips import SLIPS, Slip

KERNELS = ("7.2", "rfc", "6.1")
"""The kernels to try, until one gives occasion for the mistake."""


@dataclass(frozen=True)
class Tried:
    """What became of a mistake on a platform: ``PASS`` where its rule has rejected the driver, ``FAIL`` where nothing has.

    ``N/A`` where the driver gives no occasion for it, and where the platform cannot see it; ``found`` is the finding or the reason.
    """

    mistake: Mistake
    outcome: Outcome
    found: str


def mistakes_of(vendor: Vendor) -> list[Mistake]:
    """Those that every driver can make, and the vendor's own."""
    return [*SLIPS, *vendor.ops.mistakes()]


def try_mistake(vendor: Vendor, mistake: Mistake, hardware: str = MODEL, kernels: Sequence[str] = KERNELS) -> Tried:
    """Run the cases of the mistake's rule against the vendor's driver with the mistake around it.

    One that the vendor declares as unseen must not be rejected.  Raises ``HarnessFault``.
    """
    tried = _try(vendor, mistake, hardware, kernels)
    reason = vendor.declaration.unseen.get(mistake.name)
    if reason is None or tried.outcome is Outcome.NOT_APPLICABLE:
        return tried
    if tried.outcome is Outcome.PASS:
        return Tried(mistake, Outcome.FAIL, f"rejected, although the declaration says that it cannot be seen: {reason}")
    return Tried(mistake, Outcome.NOT_APPLICABLE, reason)


def _try(vendor: Vendor, mistake: Mistake, hardware: str, kernels: Sequence[str]) -> Tried:
    if hardware != MODEL and (unseen := mistake.unseen or _unseen(vendor, mistake, hardware)):
        return Tried(mistake, Outcome.NOT_APPLICABLE, unseen)
    reason = "there is no case of its rule"
    for name in kernels:
        wrapper = mistake.wrapper()
        registry = VendorRegistry()
        registry.register(vendor.plugin, vendor.name)
        done = run_vendor(
            registry.wrapped(wrapper),
            vendor.name,
            [get_kernel(name)],
            choose=lambda case: case.stage is Stage.HARDWARE and case.rule == mistake.rule,
            scenarios_too=False,
            enough=1,
            hardware=hardware,
        )
        for ran in done:
            if ran.verdict.outcome is Outcome.FAIL:
                finding = next((found for found in ran.verdict.findings if found.rule == mistake.rule), None)
                if finding is not None:
                    return Tried(mistake, Outcome.PASS, finding.text)
            if ran.verdict.outcome in (Outcome.XFAIL, Outcome.NOT_APPLICABLE, Outcome.UNDECIDED):
                reason = ran.verdict.reason
                continue
            if isinstance(wrapper, Slip) and not wrapper.committed:
                reason = f"{vendor.name} gives no occasion for it"
                continue
            return Tried(mistake, Outcome.FAIL, _other(ran.verdict))
    return Tried(mistake, Outcome.NOT_APPLICABLE, reason)


def _unseen(vendor: Vendor, mistake: Mistake, hardware: str) -> str:
    """Why an emulator cannot see a mistake, by what the vendor says of it; empty where it can, or is not to be had."""
    emulation = _emulation(vendor.plugin, vendor.name, hardware)
    if emulation is None:
        return ""
    known = {**emulation.deviations, **emulation.absent}
    return emulation.unseen.get(mistake.name, "") or known.get(mistake.rule, "")


@cache
def _emulation(plugin: Any, name: str, hardware: str) -> Emulation | None:
    """The emulated machine that this computer has for a vendor."""
    registry = VendorRegistry()
    try:
        with WatchedPlatform(platform_factory(hardware)(registry.register(plugin, name), "")) as platform:
            return platform.emulation
    except (InputError, NotApplicable):
        return None


def _other(verdict: Verdict) -> str:
    return f"only rejected otherwise: {verdict.findings[0]}" if verdict.findings else "accepted"
