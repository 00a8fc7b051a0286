"""What vouches for a cell of the behaviour matrix: a real kernel, QEMU's hardware, or the facts alone."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.machine.model import Machine
from iommukit.report.answer import Answer
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome, Result

if TYPE_CHECKING:
    from iommukit.report.shapes import VouchedJson, VoucherName

Place = tuple[str, str, str]
"""A scenario's id, a kernel's and a vendor's name."""


class Voucher(enum.Enum):
    """What vouches for a cell."""

    KERNEL = "kernel"
    RECORDING = "recording"
    QEMU = "qemu"
    FACTS = "facts"
    CONTRADICTED = "contradicted"
    """Nothing does: a real kernel does otherwise, and the difference has no name."""


MARK: dict[Voucher, str] = {
    Voucher.KERNEL: "k",
    Voucher.RECORDING: "r",
    Voucher.QEMU: "q",
    Voucher.FACTS: "f",
    Voucher.CONTRADICTED: "!",
}
"""For a narrow column."""

MEANING: dict[Voucher, str] = {
    Voucher.KERNEL: "a real kernel has played this very scenario, and agrees",
    Voucher.RECORDING: "recorded boots of this kernel show every step in the same situation with the same answer",
    Voucher.QEMU: "what the scenario expects, and the vendor's driver is tried on QEMU's hardware with this kernel",
    Voucher.FACTS: "only what the scenario expects, from the facts",
    Voucher.CONTRADICTED: "a real kernel does otherwise",
}


@dataclass(frozen=True, slots=True)
class Record:
    """How the model stood with what a real kernel did.

    ``agrees`` is false where it differs; then ``reason`` is the difference's name, empty where it has none.  ``seal`` is of what
    was played and of the model's answer; ``release`` says which kernel it was.
    """

    seal: str
    release: str
    agrees: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """The recordings that show everything that a cell shows; where they show otherwise, ``agrees`` is false."""

    seal: str
    recordings: tuple[str, ...]
    agrees: bool = True


@dataclass(frozen=True, slots=True)
class Vouched:
    """What vouches for one cell: ``release`` of the real kernel, or ``recordings``; ``note`` on a difference.

    ``tried``: beside it, the vendor's driver passes the hardware rules on QEMU with this kernel, and the scenario does DMA.
    """

    by: Voucher
    release: str = ""
    note: str = ""
    recordings: tuple[str, ...] = ()
    tried: bool = False

    @property
    def source(self) -> str:
        """The kernel or the recordings."""
        return self.release or ", ".join(self.recordings)

    @property
    def text(self) -> str:
        """In few words: ``kernel (6.12.48+deb13-amd64)``."""
        text = f"{self.by.value} ({self.source})" if self.source else self.by.value
        return f"{text} and {Voucher.QEMU.value}" if self.tried else text

    def to_json(self) -> VouchedJson:
        """As the matrix's JSON has it."""
        by: VoucherName = self.by.value
        found: VouchedJson = {"by": by}
        if self.release:
            found["release"] = self.release
        if self.recordings:
            found["recordings"] = list(self.recordings)
        if self.tried:
            found["tried"] = True
        if self.note:
            found["note"] = self.note
        return found


@dataclass(frozen=True, slots=True)
class Evidence:
    """Records of real kernels that played scenarios, what recorded boots show, and whose driver is tried on QEMU's hardware."""

    records: Mapping[Place, Record] = field(default_factory=dict)
    emulated: frozenset[tuple[str, str]] = frozenset()
    """Kernels and vendors."""
    recorded: Mapping[Place, Shown] = field(default_factory=dict)

    def vouch(self, scenario: Scenario, played: str, result: Result, answer: Answer) -> Vouched | None:
        """What vouches for a result; ``None`` where nothing does.  ``played`` is the scenario's ``digest_of_played``.

        A record counts only for what was played then and answered then: a changed scenario or model has to be compared again.
        Facts vouch for what they expect, so for a PASS alone.
        """
        if result.outcome is Outcome.NOT_APPLICABLE:
            return None
        place = result.scenario, result.kernel, result.vendor
        tried = place[1:] in self.emulated and any(step.op == "dma" for step in scenario.steps)
        record, shown = self.records.get(place), self.recorded.get(place)
        told = seal(played, answer) if record is not None or shown is not None else ""
        note = ""
        if record is not None and record.seal == told:
            if record.agrees:
                return Vouched(Voucher.KERNEL, record.release, tried=tried)
            if not record.reason:
                return Vouched(Voucher.CONTRADICTED, record.release)
            note = f"{record.release} does otherwise: {record.reason}"
        if result.outcome is not Outcome.PASS:
            return None
        if shown is not None and shown.seal == told:
            if not shown.agrees:
                return Vouched(Voucher.CONTRADICTED, recordings=shown.recordings)
            return Vouched(Voucher.RECORDING, note=note, recordings=shown.recordings, tried=tried)
        return Vouched(Voucher.QEMU if tried else Voucher.FACTS, note=note)


def digest_of_played(scenario: Scenario) -> str:
    """Of a scenario's machine, boot and steps as its file has them; not of what it expects."""
    machine = scenario.machine
    assert isinstance(machine, Machine)
    parts = (
        machine.model_dump(mode="json", by_alias=True, include={"arch", "hardware", "devices"}),
        {name: repr(table) for name, table in machine.firmware.items()},
        scenario.boot.model_dump(mode="json"),
        [step.model_dump(mode="json", exclude_unset=True) for step in scenario.steps],
        (scenario.vendor, scenario.requires),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def seal(played: str, answer: Answer) -> str:
    """Twelve hexadecimal digits of what was played and of the model's answer."""
    told = json.dumps((played, answer.steps, answer.types, answer.groups, answer.text))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
