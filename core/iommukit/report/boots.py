"""All boots of a machine: those it was captured in, or one as asked for, with every vendor that can realise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.profiles import DEFAULT
from iommukit.machine.documents import validate_document
from iommukit.machine.model import BootSpec, CapturedBoot, Machine
from iommukit.report.boot import Prediction, predict, vendors_of
from iommukit.report.runs import crash
from iommukit.scenario.load import load_machine
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.report.shapes import BootsJson


@dataclass(slots=True)
class Boots:
    """The predictions, the vendors that cannot realise the machine with their reasons, and those that stopped on it."""

    machine: Machine
    predictions: list[Prediction] = field(default_factory=list)
    not_applicable: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)

    @property
    def finding(self) -> bool:
        """Whether an observation differs or a plugin stopped."""
        return bool(self.stopped) or any(prediction.finding for prediction in self.predictions)

    def to_json(self) -> BootsJson:
        """As ``iommukit boot --json`` writes it."""
        return {
            "machine": self.machine.machine,
            "predictions": [prediction.to_json() for prediction in self.predictions],
            "not_applicable": dict(self.not_applicable),
            "stopped": dict(self.stopped),
        }


def captured_boots(machine: Machine, kernel: str | None, overrides: Mapping[str, Any]) -> list[CapturedBoot]:
    """The boots of the machine file with ``kernel`` and the fields of ``overrides`` put over them, each once.

    An observation counts only for the boot that it was made of.  A machine without captured boots has one, under ``rfc`` unless
    said otherwise.  Raises ``InputError`` for an override that is no boot.
    """
    found: dict[str, CapturedBoot] = {}
    for base in machine.captured or (CapturedBoot(kernel=DEFAULT),):
        wanted = {**base.boot.model_dump(), **overrides}
        boot = validate_document(BootSpec, wanted, text=None, source="boot") if overrides else base.boot
        changed = base.model_copy(update={"kernel": kernel or base.kernel, "boot": boot})
        if (changed.kernel, changed.boot) != (base.kernel, base.boot):
            changed = changed.model_copy(update={"observed": None})
        found.setdefault(changed.model_dump_json(), changed)
    return list(found.values())


def boot_all(
    name: str,
    registry: VendorRegistry,
    vendors: Sequence[Vendor] | None = None,
    *,
    kernel: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Boots:
    """Load a machine and predict its boots; ``vendors`` of ``None`` are those that its tables leave.

    Raises ``InputError`` for an unknown machine or kernel, a wrong table, and where no vendor can realise the machine.
    """
    boots = Boots(load_machine(name))
    asked = captured_boots(boots.machine, kernel, overrides or {})
    for vendor in vendors_of(boots.machine, registry) if vendors is None else vendors:
        for captured in asked:
            try:
                boots.predictions.append(predict(boots.machine, captured, registry, vendor))
            except NotApplicable as error:
                boots.not_applicable[vendor.name] = str(error)
            except InputError:
                raise
            except Exception as error:
                boots.stopped[vendor.name] = crash(error)
    if not (boots.predictions or boots.stopped):
        reasons = "; ".join(f"{vendor}: {reason}" for vendor, reason in boots.not_applicable.items())
        raise InputError(f"no vendor can realise it ({reasons})", source=boots.machine.source)
    return boots
