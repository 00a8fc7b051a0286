"""The machine of QEMU that has an ``amd-iommu``, and what that one does otherwise than the specification."""

from __future__ import annotations

from typing import Any

from iommukit.hookspecs import Emulation
from iommukit_amd_vi.layout import EMULATED_EFR

_EDU: dict[str, Any] = {"id": "1234:11e8", "class": "00ff00", "kind": "conventional"}

MACHINE: dict[str, Any] = {
    "machine": "q35-amd-iommu",
    "arch": "x86_64",
    # NpCache stands in QEMU's capability header; its cache holds no absent entries.
    "hardware": {"efr": EMULATED_EFR, "np_cache": True},
    "devices": [
        {"name": "nic", "address": "0000:00:03.0", **_EDU},
        {"name": "second", "address": "0000:00:04.0", **_EDU},
        {"name": "bulk", "address": "0000:00:05.0", "id": "1000:0012", "class": "010000", "kind": "conventional"},
    ],
}
"""The IOMMU's own function takes slot 1."""

_OPTIONS = {7: "", 9: ",pt=off", 11: ",dma-remap=on"}
"""By the first major version that needs them: without them DMA is silently passed through."""

_NO_LOG = "QEMU never writes the event log (since 11 it does, but leaves the tail where it is)"

DEVIATIONS: dict[str, str] = dict.fromkeys(("FAULT-01", "FAULT-02", "FAULT-03", "FAULT-07", "FAULT-08", "FAULT-10"), _NO_LOG)
"""What QEMU gets wrong, by rule.  It translates v1 tables alone, and has no mode beside this one.

Others of its ways no rule can tell from right ones: its cache is tagged by device, each INVALIDATE_IOMMU_PAGES drops the whole
domain, it caches neither directories nor device table entries nor absent entries, and CMDHEAD reads 0x1000 at an exact wrap.
"""


def emulated_machine(version: tuple[int, int]) -> Emulation | None:
    """The machine of a version; none before 7."""
    fitting = [major for major in _OPTIONS if major <= version[0]]
    if not fitting:
        return None
    return Emulation(
        binary="x86_64",
        arguments=("-M", "q35", "-device", f"amd-iommu{_OPTIONS[fitting[-1]]}"),
        machine=MACHINE,
        deviations=DEVIATIONS,
        unseen={"syncs-half": "QEMU forgets the whole domain on every INVALIDATE_IOMMU_PAGES"},
    )
