"""The machine of QEMU that has an ``intel-iommu``, and what that one does otherwise than the specification."""

from __future__ import annotations

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
"""What QEMU gets wrong, by rule."""


def emulated_machine(version: tuple[int, int]) -> Emulation | None:
    """The machine of a version; none before 7.0."""
    if version < FIRST:
        return None
    return Emulation(
        binary="x86_64",
        arguments=("-M", "q35", "-device", "intel-iommu,aw-bits=39"),
        machine=MACHINE,
        deviations=DEVIATIONS,
    )
