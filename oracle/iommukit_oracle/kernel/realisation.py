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
class Realisation:
    """What is booted.

    ``machine`` is a key of ``guest.boot.MACHINES``; ``options`` are those of its IOMMU; ``devices`` are values of ``-device`` in
    order; ``extra`` further arguments; ``cmdline`` the kernel's, words that stand for its configuration in front.  ``tables`` are
    ACPI tables by file name that replace the firmware's or are added to them (``kernel/firmware/acpi`` in the initrd).
    ``placed`` are the devices by name.  ``qemu`` names a variant of QEMU (``no-np-cache``), empty for the installed one.
    ``notes`` say what stands for what, a line each.
    """

    machine: str
    vendor: str
    cmdline: str
    options: str = ""
    devices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    tables: Mapping[str, bytes] = field(default_factory=dict)
    placed: Mapping[str, Placed] = field(default_factory=dict)
    qemu: str = ""
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Realisations with the same key boot alike."""
        tables = tuple(sorted((name, bytes(data)) for name, data in self.tables.items()))
        return self.machine, self.options, self.devices, self.extra, self.cmdline, tables, self.qemu
