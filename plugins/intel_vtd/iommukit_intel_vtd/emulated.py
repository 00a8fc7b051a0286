"""The machines of QEMU that have an ``intel-iommu``, and what that one does otherwise than the specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from iommukit.hookspecs import Emulation

_EDU: dict[str, Any] = {"id": "1234:11e8", "class": "00ff00", "kind": "conventional"}

MACHINE: dict[str, Any] = {
    "machine": "q35-intel-iommu",
    "arch": "x86_64",
    "hardware": {"address_width": 39},
    "devices": [
        {"name": "nic", "address": "0000:00:03.0", **_EDU},
        {"name": "second", "address": "0000:00:04.0", **_EDU},
        {"name": "bulk", "address": "0000:00:05.0", "id": "1000:0012", "class": "010000", "kind": "conventional"},
    ],
}
"""CAP and ECAP are those that this plugin takes for a machine without a table."""

FIRST = (7, 0)

DEVIATIONS: dict[str, str] = {
    "FAULT-03": "QEMU drops a write that hits a cached read-only translation without a fault record",
}
"""What QEMU gets wrong in every mode, by rule."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode of the unit: QEMU's properties for it, the machine's ``hardware``, what else goes wrong, the first release."""

    properties: str
    hardware: Mapping[str, Any]
    deviations: Mapping[str, str] = field(default_factory=dict)
    since: tuple[int, int] = FIRST


_SCALABLE = {
    "ATTACH-05": "in scalable mode QEMU takes a device off pass-through for a context-cache invalidation, not for a PASID cache's",
}

MODES: dict[str, Mode] = {
    "four-levels": Mode("aw-bits=48", {"address_width": 48}),
    "caching-mode": Mode("aw-bits=39,caching-mode=on", {"address_width": 39, "caching_mode": True}),
    "snoop-control": Mode("aw-bits=39,snoop-control=on", {"address_width": 39, "snoop_control": True}),
    "scalable": Mode("aw-bits=48,x-scalable-mode=on", {"address_width": 48, "scalable_mode": True}, _SCALABLE),
    # The first stage alone, which is what QEMU has the property for: no second stage, no supervisor requests.
    "first-stage": Mode(
        "aw-bits=48,x-scalable-mode=on,x-flts=on",
        {"units": [{"cap": 0x01D2_008C_222F_0606, "ecap": 0x0000_8800_00F0_0F4A}], "host_address_width": 48},
        _SCALABLE,
        since=(10, 0),
    ),
}
"""The modes beside the plain one, which has three levels in legacy mode."""


def emulated_machine(version: tuple[int, int]) -> Emulation | None:
    """The machine of a version; none before 7.0."""
    if version < FIRST:
        return None
    plain = Emulation(
        binary="x86_64",
        arguments=("-M", "q35", "-device", "intel-iommu,aw-bits=39"),
        machine=MACHINE,
        deviations=DEVIATIONS,
    )
    return replace(plain, variants={name: _variant(plain, mode) for name, mode in MODES.items() if mode.since <= version})


def _variant(plain: Emulation, mode: Mode) -> Emulation:
    return replace(
        plain,
        arguments=("-M", "q35", "-device", f"intel-iommu,{mode.properties}"),
        machine={**MACHINE, "hardware": mode.hardware},
        deviations={**DEVIATIONS, **mode.deviations},
    )
