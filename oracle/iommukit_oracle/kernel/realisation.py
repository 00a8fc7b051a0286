"""A machine of QEMU that stands for a machine file, and what cannot be made."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Inexpressible(Exception):
    """What is asked for cannot be made with QEMU and this kernel: the scenario is UNDECIDED, and the text says why."""


class Plugging(enum.Enum):
    """How a device comes and goes while the guest runs."""

    QMP = "qmp"
    """QEMU plugs and unplugs it."""
    SYSFS = "sysfs"
    """Its slot takes no plugging: the kernel is told to forget it, and to scan again."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A device of the machine file in the guest.

    ``address`` is its name below ``/sys/bus/pci/devices``; ``id`` is QEMU's name for it; ``properties`` are those of ``-device``,
    by QEMU's names, ``driver`` (QEMU's model) and ``id`` included: what ``device_add`` takes.  ``driver`` is the guest's driver
    that does its DMA, ``None`` where there is none; ``work`` is what that driver can be asked to do: ``network``, ``disk`` or
    nothing.
    """

    name: str
    address: str
    id: str
    properties: Mapping[str, str]
    present: bool = True
    plugging: Plugging = Plugging.SYSFS
    driver: str | None = None
    work: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that firmware reserves for a device: bytes ``start``..``end``, inclusive.

    ``path`` are slots and functions from the root bus down, ``requester`` is the number that the device's requests carry, and
    ``type`` what a group's ``reserved_regions`` call it.
    """

    start: int
    end: int
    requester: int
    path: tuple[tuple[int, int], ...]
    type: str = "direct"

    @property
    def address(self) -> str:
        """The device's."""
        return f"0000:{self.requester >> 8:02x}:{self.requester >> 3 & 0x1F:02x}.{self.requester & 7}"

    @property
    def text(self) -> str:
        """A line of ``reserved_regions``, with dashes for blanks."""
        return f"{self.start:#018x}-{self.end:#018x}-{self.type}"


MEMORY = 512 << 20
"""Bytes of memory of a guest; the regions of machine files lie at the end of so much."""
NO_NP_CACHE = "no-np-cache"
"""The variant of QEMU whose AMD IOMMU does not ask for the flush of entries that were absent."""
UEFI = "uefi"
"""The machine with UEFI in front, which hands the kernel ACPI tables in place of a device tree."""


@dataclass(frozen=True, slots=True)
class Realisation:
    """What is booted.

    ``machine`` is a key of ``guest.boot.MACHINES``; ``memory`` is in bytes; ``options`` are those of the IOMMU; ``devices`` are
    values of ``-device`` in order; ``extra`` further arguments; ``cmdline`` the kernel's, words that stand for its configuration in
    front.
    ``external`` are slot and function numbers of ports on the root bus that firmware calls external-facing, ``regions`` the memory
    that it reserves, ``opt_in`` whether it asks for protection.  ``acs`` are the addresses of ports whose access control is on:
    a kernel that has not enabled it is helped.  ``placed`` are the devices by name.  ``qemu`` names a variant (``NO_NP_CACHE``,
    ``UEFI``), empty for QEMU as it is; ``numbers`` are vendor and device by QEMU's model, where they are not its own.  ``notes``
    say what stands for what, a line each.
    """

    machine: str
    vendor: str
    cmdline: str
    memory: int = MEMORY
    options: str = ""
    devices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    external: tuple[int, ...] = ()
    regions: tuple[Region, ...] = ()
    opt_in: bool = False
    acs: tuple[str, ...] = ()
    placed: Mapping[str, Placed] = field(default_factory=dict)
    qemu: str = ""
    numbers: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Realisations with the same key boot alike."""
        made = (self.machine, self.memory, self.options, self.devices, self.extra, self.cmdline, self.qemu, self.numbers)
        return *made, self.external, self.regions, self.opt_in, self.acs
