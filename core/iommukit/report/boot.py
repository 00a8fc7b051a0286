"""Predicting a boot: is DMA remapping on, what is printed, who shares a group; and holding that against what was observed.

Where a machine file does not know ACS bits, the boot is played twice, with and without them.  What both agree on is decided; groups
only ever grow when isolation is missing, so everything between the two agrees as well.  The rest is UNDECIDED.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec, CapturedBoot, Machine, Observed
from iommukit.report.option_effects import OPT_IN, OptionFate, is_on, on_off_reasons, option_fates
from iommukit.report.page import counted, listed
from iommukit.scenario.result import UNDECIDED
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.report.shapes import Part, PredictionJson

PARTS: dict[Part, str] = {
    "enabled": "whether DMA remapping is on",
    "units": "the units, in the order in which they register",
    "log": "the lines of the core and the driver, in order",
    "groups": "which devices share a group",
    "numbers": "the groups' numbers",
}
"""What is compared with an observation; the keys of a machine file's ``differs``."""

ADDING = "Adding to iommu group"
DEFAULTS = {
    "IDENTITY": "identity: devices reach all memory",
    "STRICT": "translated, invalidated at each unmap",
    "LAZY": "translated, invalidated in batches by a flush queue",
}


@dataclass(frozen=True, slots=True)
class PredictedGroup:
    """A group with decided members; ``number`` is ``None`` and ``type`` UNDECIDED where unknown ACS bits would have to be known."""

    number: int | None
    type: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UndecidedGroups:
    """Devices whose groups depend on unknown ACS bits: the groups with isolation everywhere, and with none."""

    devices: tuple[str, ...]
    isolated: tuple[tuple[str, ...], ...]
    merged: tuple[tuple[str, ...], ...]
    type: str

    def allows(self, observed: Sequence[frozenset[str]]) -> bool:
        """Whether observed groups lie between the two extremes."""
        mine = frozenset(self.devices)
        cut = [group & mine for group in observed if group & mine]
        return all(any(set(block) <= group for group in cut) for block in self.isolated) and all(
            any(group <= set(block) for block in self.merged) for group in cut
        )


@dataclass(frozen=True, slots=True)
class PartComparison:
    """One part of a prediction against the observation.

    ``differences`` are lines of text; ``accepted`` is the reason that the machine file gives for them.
    """

    part: Part
    differences: tuple[str, ...] = ()
    accepted: str | None = None
    undecided: int = 0
    """How many things the model could not decide."""

    @property
    def agrees(self) -> bool:
        """No difference."""
        return not self.differences

    @property
    def finding(self) -> bool:
        """A difference that the machine file does not list."""
        return bool(self.differences) and self.accepted is None


@dataclass(slots=True)
class Prediction:
    """What a kernel makes of a machine when it boots.

    Device names are ``dev_name()`` (``labels`` gives the machine file's names); ``uncovered`` are PCI functions that no unit
    translates for while remapping is on.
    """

    machine: str
    vendor: str
    kernel: str
    release: str
    """As the machine file or the user wrote it, such as 6.1.12-1-MANJARO."""
    boot: BootSpec
    enabled: bool
    reasons: tuple[str, ...]
    units: tuple[str, ...]
    default: str
    log: tuple[str, ...]
    options: tuple[OptionFate, ...]
    groups: tuple[PredictedGroup, ...]
    undecided: tuple[UndecidedGroups, ...]
    uncovered: tuple[str, ...]
    untrusted: tuple[str, ...]
    labels: dict[str, str]
    warnings: tuple[str, ...] = ()
    comparison: tuple[PartComparison, ...] = ()
    stale: tuple[str, ...] = field(default=())
    """Parts that the machine file lists in ``differs`` and that agree."""

    @property
    def finding(self) -> bool:
        """Whether the observation differs in a way that the machine file does not list."""
        return any(part.finding for part in self.comparison)

    def to_json(self) -> PredictionJson:
        """The prediction as ``iommukit boot --json`` writes it."""
        return {
            "machine": self.machine,
            "vendor": self.vendor,
            "kernel": self.kernel,
            "release": self.release,
            "kconfig": self.boot.kconfig,
            "cmdline": self.boot.cmdline,
            "enabled": self.enabled,
            "reasons": list(self.reasons),
            "units": list(self.units),
            "default": self.default,
            "log": list(self.log),
            "options": [
                {"option": fate.option, "verdict": fate.verdict, "note": fate.note, "makes_a_difference": fate.matters}
                for fate in self.options
            ],
            "groups": [{"id": group.number, "type": group.type, "devices": list(group.devices)} for group in self.groups],
            "undecided": [
                {
                    "devices": list(each.devices),
                    "type": each.type,
                    "isolated": [list(group) for group in each.isolated],
                    "merged": [list(group) for group in each.merged],
                }
                for each in self.undecided
            ],
            "uncovered": list(self.uncovered),
            "untrusted": list(self.untrusted),
            "warnings": list(self.warnings),
            "observed": [
                {"part": part.part, "agrees": part.agrees, "differences": list(part.differences), "accepted": part.accepted}
                for part in self.comparison
            ],
        }


def vendors_of(machine: Machine, registry: VendorRegistry) -> list[Vendor]:
    """The vendors that a machine may belong to: those that read all its tables, or all where it has none.

    Raises ``InputError`` where nobody reads its tables.
    """
    if not machine.firmware:
        return list(registry)
    wanted = set(machine.firmware)
    found = [vendor for vendor in registry if wanted <= {known.signature for known in vendor.ops.firmware_formats()}]
    if not found:
        raise InputError(f"no installed vendor reads {listed(sorted(wanted))}", source=machine.source, place="firmware")
    return found


def predict(machine: Machine, captured: CapturedBoot, registry: VendorRegistry, vendor: Vendor | None = None) -> Prediction:
    """Boot a machine as ``captured`` says (kernel, build option, command line) and compare with its observation, if it has one.

    Without a ``vendor`` the machine's tables choose; raises ``InputError`` where they do not, and ``NotApplicable`` where the
    vendor cannot realise the machine.
    """
    if vendor is None:
        possible = vendors_of(machine, registry)
        if len(possible) != 1:
            raise InputError(f"belongs to no vendor in particular: {listed(each.name for each in possible)}", source=machine.source)
        vendor = possible[0]
    kernel = get_kernel(captured.kernel)

    def play(boot: BootSpec, *, assume_acs: bool = True) -> System:
        return start_system(kernel, vendor, registry, machine, boot, assume_acs=assume_acs)

    system = play(captured.boot)
    other = play(captured.boot, assume_acs=False) if any(spec.acs == "unknown" for spec in machine.devices) else system
    groups, undecided = _groups(system, other)
    enabled = is_on(system)
    prediction = Prediction(
        machine=machine.machine,
        vendor=vendor.name,
        kernel=kernel.name,
        release=captured.kernel,
        boot=captured.boot,
        enabled=enabled,
        reasons=on_off_reasons(system, captured.boot, play),
        units=tuple(unit.name for unit in system.units if not unit.failed),
        default=system.boot.default.policy().name,
        log=tuple(line.rstrip() for line in (*system.boot.log, *system.lines) if ADDING not in line),
        options=option_fates(system, captured.boot, play),
        groups=groups,
        undecided=undecided,
        uncovered=tuple(
            device.label for device in system.present_devices() if enabled and device.facts.kind.is_pci and device.group is None
        ),
        untrusted=tuple(device.label for device in system.present_devices() if device.untrusted),
        labels={device.label: device.name for device in system.devices.values()},
    )
    prediction.warnings = tuple(_warnings(prediction))
    if captured.observed is not None:
        _check_parts(machine, captured.observed)
        prediction.comparison = tuple(_compare(prediction, captured.observed))
        agreeing: set[str] = {part.part for part in prediction.comparison if part.agrees}
        prediction.stale = tuple(part for part in captured.observed.differs if part in agreeing)
    return prediction


# ---- groups ----------------------------------------------------------------------------------------------------------


def _blocks(system: System) -> dict[frozenset[str], tuple[int, str, tuple[str, ...]]]:
    return {frozenset(labels): (number, kind, labels) for number, kind, labels in system.snapshot()}


def _groups(isolated: System, merged: System) -> tuple[tuple[PredictedGroup, ...], tuple[UndecidedGroups, ...]]:
    """What both boots agree on, and the clusters of devices that they group differently."""
    apart, together = _blocks(isolated), _blocks(merged)
    decided = []
    for block, (number, kind, labels) in apart.items():
        if block in together:
            other_number, other_kind, _ = together[block]
            same_kind = kind if kind == other_kind else UNDECIDED
            decided.append(PredictedGroup(number if number == other_number else None, same_kind, labels))
    clusters: list[set[str]] = []
    for block in (*apart, *together):
        if block in apart and block in together:
            continue
        touching = [cluster for cluster in clusters if cluster & block]
        clusters = [cluster for cluster in clusters if not cluster & block]
        clusters.append(set(block).union(*touching))
    order = {device.label: position for position, device in enumerate(isolated.devices.values())}
    undecided = []
    for cluster in sorted(clusters, key=lambda members: min(order[label] for label in members)):
        halves = [[entry for block, entry in side.items() if block <= cluster] for side in (apart, together)]
        kinds = {kind for half in halves for _, kind, _ in half}
        undecided.append(
            UndecidedGroups(
                devices=tuple(sorted(cluster, key=order.__getitem__)),
                isolated=tuple(labels for _, _, labels in halves[0]),
                merged=tuple(labels for _, _, labels in halves[1]),
                type=kinds.pop() if len(kinds) == 1 else UNDECIDED,
            )
        )
    return tuple(decided), tuple(undecided)


# ---- warnings --------------------------------------------------------------------------------------------------------

MODES = {"strict mode": "DMA", "lazy mode": "DMA-FQ"}
"""A policy line's words and the type that they promise."""
NO_PROTECTION = "identity is no protection"


def _warnings(prediction: Prediction) -> Iterator[str]:
    """What users get wrong about such a boot, worst first."""
    lines = [line for line in prediction.log if line.startswith("iommu: D")]
    if prediction.enabled:
        yield from _open_devices(prediction)
    else:
        yield "no IOMMU is on: every device reaches all memory"
        if lines:
            yield f"the kernel prints '{lines[0]}' all the same: that line does not mean that an IOMMU is on"
    for fate in prediction.options:
        if fate.verdict in ("unknown", "invalid"):
            yield f"{fate.option} does nothing: {fate.note}"
        elif not fate.matters and fate.verdict == "effective":
            yield f"{fate.option} makes no difference here: without it the groups, their types and the default are the same"
    if prediction.enabled:
        yield from _misleading_lines(prediction, lines)


def _open_devices(prediction: Prediction) -> Iterator[str]:
    """Untrusted devices that are not strictly translated; devices in identity domains, and why they are."""
    kinds = {label: group.type for group in prediction.groups for label in group.devices}
    kinds |= {label: each.type for each in prediction.undecided for label in each.devices}
    for label in prediction.untrusted:
        if kinds.get(label) != "DMA":
            yield f"{label} is untrusted and {kinds.get(label, 'in no group')}, not strictly translated"
    reached = sum(kind == "identity" for kind in kinds.values())
    if not reached:
        return
    cause = next((fate.option for fate in prediction.options if fate.verdict == "effective" and "identity" in fate.note), "")
    if not cause and prediction.default == "IDENTITY" and any(OPT_IN in line for line in prediction.log):
        cause = "the platform's opt-in translates only for devices behind external-facing ports"
    yield f"{cause + ': ' if cause else ''}{NO_PROTECTION}: {reached} of {counted(len(kinds), 'device')} can reach all memory"


def _misleading_lines(prediction: Prediction, lines: Sequence[str]) -> Iterator[str]:
    """Policy lines that something overruled after they had been printed."""
    types = {group.type for group in prediction.groups} | {each.type for each in prediction.undecided}
    for line in lines:
        if prediction.default == "IDENTITY" and "Passthrough" not in line:
            yield f"the kernel prints '{line}', but the default became identity afterwards"
            return
        for mode, kind in MODES.items():
            other = next(each for each in MODES.values() if each != kind)
            if mode in line and kind not in types and other in types:
                yield f"the kernel prints '{line}', but translated groups are {other}"


# ---- comparison ------------------------------------------------------------------------------------------------------


def _check_parts(machine: Machine, observed: Observed) -> None:
    for part in observed.differs:
        if part not in PARTS:
            raise InputError(
                f"no part {part!r}; there are {listed(PARTS)}", source=machine.source, place="captured.observed.differs"
            )


def _compare(prediction: Prediction, observed: Observed) -> Iterable[PartComparison]:
    reason = observed.differs.get
    if prediction.enabled != observed.enabled:
        words = {True: "on", False: "off"}
        lines = (f"predicted {words[prediction.enabled]}, was {words[observed.enabled]}",)
        yield PartComparison("enabled", lines, reason("enabled"))
    else:
        yield PartComparison("enabled")
    if observed.units:
        same = observed.units == prediction.units
        text = f"predicted {listed(prediction.units) or 'none'}, was {listed(observed.units)}"
        yield PartComparison("units", () if same else (text,), reason("units"))
    if observed.log:
        yield PartComparison("log", tuple(_log_differences(prediction.log, observed.log)), reason("log"))
    if observed.groups or not observed.enabled:
        blocks = [frozenset(group) for group in observed.groups]
        yield PartComparison(
            "groups",
            tuple(_group_differences(prediction, blocks)),
            reason("groups"),
            undecided=len(prediction.undecided),
        )
        yield PartComparison(
            "numbers",
            tuple(_number_differences(prediction, blocks)),
            reason("numbers"),
            undecided=sum(group.number is None for group in prediction.groups),
        )


def _log_differences(predicted: Sequence[str], observed: Sequence[str]) -> Iterable[str]:
    was = [line.rstrip() for line in observed if ADDING not in line]
    matcher = difflib.SequenceMatcher(None, list(predicted), was, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            yield from (f"predicted, not printed: {line}" for line in predicted[i:j])
            yield from (f"printed, not predicted: {line}" for line in was[k:m])


def _group_differences(prediction: Prediction, observed: Sequence[frozenset[str]]) -> Iterable[str]:
    blocks = [block for block in observed if block]
    known = set(blocks)
    for group in prediction.groups:
        members = frozenset(group.devices)
        if members in known:
            continue
        was = [block for block in blocks if block & members]
        shown = " and ".join(f"[{listed(sorted(block))}]" for block in was) if was else "in no group"
        yield f"predicted [{listed(group.devices)}], was {shown}"
    for each in prediction.undecided:
        if not each.allows(blocks):
            yield f"[{listed(each.devices)}] were grouped as no ACS bits can explain"
    covered = {label for group in prediction.groups for label in group.devices}
    covered |= {label for each in prediction.undecided for label in each.devices}
    for block in blocks:
        for label in sorted(block - covered):
            yield f"predicted {label} in no group, was in [{listed(sorted(block))}]"


def _number_differences(prediction: Prediction, observed: Sequence[frozenset[str]]) -> Iterable[str]:
    numbers = {block: number for number, block in enumerate(observed) if block}
    for group in prediction.groups:
        was = numbers.get(frozenset(group.devices))
        if group.number is not None and was is not None and was != group.number:
            yield f"predicted group {group.number} for {listed(group.devices)}, was {was}"
