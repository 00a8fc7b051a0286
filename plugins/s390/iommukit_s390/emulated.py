"""QEMU's emulated PCI functions, as a machine for the driver."""

from __future__ import annotations

from iommukit.hookspecs import Emulation

MEMORY = 256 << 20
APERTURE = 3 << 30
"""A DMA range with a border of segment tables (2 GiB) in it, as ``s390_iommu_aperture=12`` makes it of so little memory."""

DEVIATIONS: dict[str, str] = {}
"""Nothing that a rule asks for.

Others of QEMU's ways no rule can tell from right ones: it shadows every function, reads region-third tables only, wants them whole
(TL 3, TF 0), takes an entry of zeros for an error also where it names the first frame of memory (hence ``lowest``), drops requests
beyond PAL and those of a function without a translation silently, and does not say whether a request was a write.
"""


def _function(name: str, number: int) -> dict[str, object]:
    """A virtio block device behind a function; user-defined and function id are the same number."""
    return {
        "name": name,
        "address": f"{number:04x}:00:00.0",
        "id": "1af4:1042",
        "class": "010000",
        "kind": "zpci",
        "attributes": {"fid": number, "uid": number},
    }


def emulated_machine(version: tuple[int, int]) -> Emulation:
    """Two functions with what QEMU's CLP tells of emulated ones: all are under a hypervisor that shadows tables."""
    return Emulation(
        binary="s390x",
        arguments=("-M", "s390-ccw-virtio", "-cpu", "max"),
        machine={
            "machine": "qemu-zpci",
            "arch": "s390x",
            "hardware": {
                "tlb_refresh": True,
                "pft": 0,
                "start_dma": 0x1_0000_0000,
                "end_dma": 0x1FF_FFFF_FFFF_FFFF,
                "dtsm": 0x40,
                "memory_size": APERTURE,
            },
            "devices": [_function("nic", 1), _function("second", 2)],
        },
        memory_size=MEMORY,
        deviations=DEVIATIONS,
        lowest=0x1000,
    )
