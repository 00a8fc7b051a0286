"""What the command line's options come to: asked of the model itself, by playing the boot without them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.kernel.cmdline import Verdict, split_cmdline
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec
from iommukit.report.observe import why_dead
from iommukit.report.page import listed

if TYPE_CHECKING:
    from iommukit.report.shapes import VerdictName

Play = Callable[[BootSpec], System]
"""Boots the same machine, kernel and vendor with another command line or build."""

VERDICTS: dict[Verdict, VerdictName] = {
    Verdict.EFFECTIVE: "effective",
    Verdict.INEFFECTIVE: "ineffective",
    Verdict.INVALID: "invalid",
    Verdict.UNKNOWN: "unknown",
}
OPT_IN = "force enabled due to platform opt in"


@dataclass(frozen=True, slots=True)
class OptionFate:
    """What became of an option: its reader's verdict and note, and whether the boot is another one without it."""

    option: str
    verdict: VerdictName
    note: str
    matters: bool


def is_on(system: System) -> bool:
    """Whether some unit translates."""
    return any(not unit.failed for unit in system.units)


def outcome_of(system: System) -> Hashable:
    """What a boot comes to, without its log: units, default, groups with their domains, who can do DMA."""
    groups = []
    for number, group in sorted(system.groups.items()):
        domain = group.default_domain
        facets = None
        if domain is not None:
            facets = (domain.type, domain.aperture, domain.page_sizes, domain.generic_pt, domain.flush_queue)
        groups.append((number, tuple(device.label for device in group.devices), facets))
    units = tuple((unit.name, unit.failed) for unit in system.units)
    dead = tuple(device.label for device in system.present_devices() if why_dead(device))
    return units, system.boot.default.policy(), tuple(groups), dead


def without(cmdline: str, option: str) -> str:
    """The command line without an option; ``name=word`` also leaves the comma list that it is part of.

    A reader that finds words anywhere in a text reports one that stands nowhere by itself; then the texts that hold it go.
    """
    name, equals, word = option.partition("=")
    words = list(split_cmdline(cmdline))
    listed_somewhere = any(_same(key, name) and word in (value or "").split(",") for key, value in words)
    kept: list[tuple[str, str | None]] = []
    for key, value in words:
        if not _same(key, name) or (value is None) is bool(equals):
            kept.append((key, value))
        elif value is not None and value != word and listed_somewhere:
            rest = [item for item in value.split(",") if item != word]
            if rest:
                kept.append((key, ",".join(rest)))
        elif value is not None and word not in value:
            kept.append((key, value))
    return " ".join(_written(key if value is None else f"{key}={value}") for key, value in kept)


def _same(one: str, other: str) -> bool:
    """The kernel takes - and _ in a name for the same character."""
    return one.replace("-", "_") == other.replace("-", "_")


def _written(word: str) -> str:
    return f'"{word}"' if any(character.isspace() for character in word) else word


def option_fates(system: System, boot: BootSpec, play: Play) -> tuple[OptionFate, ...]:
    """Every option that somebody reads or that looks like an IOMMU's, in the order written.

    An option matters where the boot is another one without it, or where it is one of several that each switch remapping on or off.
    """
    whole, on = outcome_of(system), is_on(system)
    bare = boot.cmdline
    for report in system.boot.reports:
        bare = without(bare, report.option)
    several = is_on(play(boot.model_copy(update={"cmdline": bare}))) is not on
    fates = []
    for report in system.boot.reports:
        rest = boot.model_copy(update={"cmdline": without(boot.cmdline, report.option)})
        matters = outcome_of(play(rest)) != whole
        if not matters and several:
            matters = is_on(play(boot.model_copy(update={"cmdline": f"{report.option} {bare}".strip()}))) is on
        fates.append(OptionFate(report.option, VERDICTS[report.verdict], report.note, matters))
    return tuple(fates)


def on_off_reasons(system: System, boot: BootSpec, play: Play) -> tuple[str, ...]:
    """Why DMA remapping is on or off: the option without which it would not be, else the build, else the driver's line."""
    on = is_on(system)
    state = "off" if on else "on"
    reasons = []
    options = list(dict.fromkeys(report.option for report in system.boot.reports))
    bare = boot.cmdline
    for option in options:
        bare = without(bare, option)
        rest = boot.model_copy(update={"cmdline": without(boot.cmdline, option)})
        if is_on(play(rest)) is not on:
            reasons.append(f"{option} on the command line: without it remapping is {state}")
    if not reasons and len(options) > 1 and is_on(play(boot.model_copy(update={"cmdline": bare}))) is not on:
        reasons.append(f"{listed(options)} on the command line: without all of them remapping is {state}")
    if reasons:
        return tuple(reasons)
    if on:
        line = next((line for line in system.boot.log if OPT_IN in line), None)
        return (
            (f"the firmware asks for it: '{line}'",)
            if line
            else ("this kernel uses the IOMMUs that it finds, unless told otherwise",)
        )
    for option in system.vendor.ops.kernel_options(boot=system.boot):
        more = boot.model_copy(update={"cmdline": f"{boot.cmdline} {option.name}=on".strip()})
        if len(more.cmdline) <= 4096 and is_on(play(more)):
            reasons.append(f"this kernel was built to leave it off; {option.name}=on would switch it on")
    return tuple(reasons) or ("the driver finds no IOMMU that it can use",)
