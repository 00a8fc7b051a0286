"""The one vocabulary of boot, probe, sysfs and hotplug: ``DmaApiPolicy``.

It is the ``enum dma_api_policy`` of the patch posted in December 2022.  The order of the values matters: where two devices
of a group require different policies, the posted patch lets the lower value win.
"""

from __future__ import annotations

import enum


class DmaApiPolicy(enum.IntEnum):
    """What a device requires, or the system prefers, for DMA through the kernel's DMA API."""

    IDENTITY = 0
    """DMA addresses are physical addresses; the device can reach all memory."""
    STRICT = 1
    """DMA is translated and the TLB is invalidated before an unmap returns."""
    LAZY = 2
    """DMA is translated and invalidation is batched in a flush queue."""
    ANY = 3
    """No opinion."""

    __hash__ = int.__hash__  # equal numbers are equal keys; the inherited hash is slow


SYSFS_POLICY: dict[str, DmaApiPolicy] = {
    "identity": DmaApiPolicy.IDENTITY,
    "DMA": DmaApiPolicy.STRICT,
    "DMA-FQ": DmaApiPolicy.LAZY,
    "auto": DmaApiPolicy.ANY,
}
"""The keywords of ``/sys/kernel/iommu_groups/N/type`` as policies."""


class Era(enum.IntEnum):
    """The generation of vendor drivers that a kernel profile is built with.

    ``RFC`` is 6.1 with what the thread of the posted patch was based on: s390 converted to the common DMA API (the
    November 2022 series).  Values are ordered, so that a driver can write ``if boot.era >= Era.V6_12``.
    """

    V6_1 = 1
    RFC = 2
    V6_12 = 3
    V7_2 = 4
