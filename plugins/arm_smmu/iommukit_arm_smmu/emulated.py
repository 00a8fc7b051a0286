"""The machines of QEMU that have an SMMUv3, and what that one does otherwise than the specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iommukit.hookspecs import Emulation
from iommukit_arm_smmu.smmu import KERNEL_PAGES

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
"""The release whose newest ``virt`` has both stages, whatever ``-global`` asks of the SMMU; an older ``virt`` obeys."""
UNSEEN_BEFORE = {"arm-no-access-flag": "QEMU looks at the access flag since 9.1 only"}
"""Mistakes that older releases do not see."""
MEMORY_BASE = 0x4000_0000

DEVIATIONS: dict[str, str] = {}
"""What QEMU gets wrong, by rule."""
STAGE_2_DEVIATIONS: dict[str, str] = {
    "FAULT-03": "of a cached stage 2 entry QEMU takes a missing permission for stage 1's, and records no fault",
}
"""The same of stage 2 alone."""


def emulated_machine(version: tuple[int, int]) -> Emulation | None:
    """The machine of a version; none before 7.

    The hardware has all granules, so that which one the driver uses is up to the kernel's page size.
    """
    if version < (7, 0):
        return None
    both = version >= BOTH_STAGES_SINCE
    plain = replace(_emulation("virt", [1, 2] if both else [1]), unseen={} if both else UNSEEN_BEFORE)
    variants = {f"{size}-pages": replace(plain, config={option: True}) for option, size in KERNEL_PAGES.items()}
    if both:
        second = _emulation("virt-9.0", [2], "-global", "arm-smmuv3.stage=2")
        variants["stage-2"] = replace(second, deviations={**DEVIATIONS, **STAGE_2_DEVIATIONS})
    return replace(plain, variants=variants)


def _emulation(machine: str, stages: list[int], *more: str) -> Emulation:
    return Emulation(
        binary="aarch64",
        arguments=("-M", f"{machine},iommu=smmuv3", "-cpu", "cortex-a57", *more),
        machine={**MACHINE, "hardware": {**MACHINE["hardware"], "stages": stages}},
        memory_base=MEMORY_BASE,
        deviations=DEVIATIONS,
    )
