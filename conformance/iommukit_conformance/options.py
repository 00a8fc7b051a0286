"""Trying a vendor's command-line options."""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import OptionReport
from iommukit.kernel.start import parse_cmdline
from iommukit_conformance.lab import Lab

STRICT_WORDS = ("strict", "fullflush", "1", "on", "y")
"""Words by which drivers have called strict mode."""


def told(lab: Lab, cmdline: str) -> BootState:
    """The state after a command line was parsed, before the policy is settled."""
    state = lab.boot_state(kconfig="lazy", cmdline=cmdline)
    parse_cmdline(state, lab.registry)
    return state


def option_names(lab: Lab) -> Iterator[str]:
    """The names of the vendor's options."""
    for option in lab.ops.kernel_options(boot=lab.boot_state()) or ():
        yield option.name


def reports_of(state: BootState, name: str) -> list[OptionReport]:
    """What was reported of one option; ``-`` and ``_`` are the same character."""
    wanted = name.replace("-", "_")
    return [report for report in state.reports if report.option.partition("=")[0].replace("-", "_") == wanted]


def strict_word(lab: Lab) -> str | None:
    """The vendor's own way of asking for strict mode, ``None`` where this release has none."""
    for name in option_names(lab):
        for word in STRICT_WORDS:
            if told(lab, f"{name}={word}").default.strict:
                return f"{name}={word}"
    return None
