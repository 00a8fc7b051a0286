"""The machine of QEMU that has an SMMUv3, and what that one does otherwise than the specification."""

from __future__ import annotations

from typing import Any

from iommukit.hookspecs import Emulation

_EDU: dict[str, Any] = {"id": "1234:11e8", "class": "00ff00", "kind": "conventional"}

MACHINE: dict[str, Any] = {
    "machine": "virt-smmuv3",
    "arch": "aarch64",
    "hardware": {"version": 3, "stages": [1], "granules": ["4K", "16K", "64K"], "oas": 44, "ias": 44},
    "devices": [
        {"name": "nic", "address": "0000:00:03.0", **_EDU},
        {"name": "second", "address": "0000:00:04.0", **_EDU},
        {"name": "bulk", "address": "0000:00:05.0", "id": "1000:0012", "class": "010000", "kind": "conventional"},
    ],
}

BOTH_STAGES_SINCE = (9, 1)
"""The release whose ``virt`` has both stages, whatever ``-global`` asks of the SMMU."""
MEMORY_BASE = 0x4000_0000

DEVIATIONS: dict[str, str] = {}
"""What QEMU gets wrong, by rule."""


def emulated_machine(version: tuple[int, int]) -> Emulation | None:
    """The machine of a version; none before 7."""
    if version < (7, 0):
        return None
    hardware = {**MACHINE["hardware"], "stages": [1, 2] if version >= BOTH_STAGES_SINCE else [1]}
    return Emulation(
        binary="aarch64",
        arguments=("-M", "virt,iommu=smmuv3", "-cpu", "cortex-a57"),
        machine={**MACHINE, "hardware": hardware},
        memory_base=MEMORY_BASE,
        deviations=DEVIATIONS,
    )
