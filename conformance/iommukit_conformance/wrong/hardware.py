"""Mistakes about units, devices and firmware."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType
from iommukit.hookspecs import hookimpl
from iommukit.hw.platform import Addresses
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, Stage
from iommukit.machine.acpi import AcpiFormat, TableFormat
from iommukit.machine.model import Machine
from iommukit_conformance.reference import NAME, OFF, OPTION, PagedDomain, ReferenceUnit
from iommukit_conformance.reference_table import Toyt
from iommukit_conformance.wrong.base import Wrong


class MakesAUnitInPassing(Wrong):
    """A unit for each device."""

    mistake = "It answers a unit that it makes while probing, and that the core has never registered."
    rule = "DRV-10"

    @hookimpl
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """Equal is not the same."""
        found = super().probe_device(device, units)
        return found and Unit(found.name, found.vendor, state=found.state)


class OnAlthoughOff(Wrong):
    """Reads its own option only."""

    mistake = "It starts its units although the command line says iommu=off."
    rule = "DRV-11"

    @hookimpl
    def discover(self, machine: Machine, boot: BootState) -> Sequence[Unit]:
        """The flag of the architecture is not looked at."""
        if boot.options.get(OFF):
            return ()
        return (Unit("reference0", NAME, state=ReferenceUnit(True, machine.firmware.get("TOYT"))),)


class OneUnitForASequence(Wrong):
    """There is only one, after all."""

    mistake = "It answers its only unit where a sequence of units was asked for."
    rule = "DRV-07"

    @hookimpl
    def discover(self, machine: Machine, boot: BootState) -> Any:
        """Nobody can go through a unit."""
        return next(iter(super().discover(machine, boot)), ())


class SilentReader(Wrong):
    """Does its work and says nothing."""

    mistake = "Its option's reader reports nothing, not even an empty sequence."
    rule = "DRV-07"

    @hookimpl
    def kernel_options(self, boot: BootState) -> Sequence[KernelOption]:
        """One option whose reader answers None."""
        silent: Any = lambda value, boot: None  # noqa: E731
        return (KernelOption(OPTION, Stage.SETUP, silent, "a word that is read in silence"),)


class TwoUnitsOfOneName(Wrong):
    """One name for all."""

    mistake = "Its units have the same name in sysfs."
    rule = "DRV-06"

    @hookimpl
    def discover(self, machine: Machine, boot: BootState) -> Sequence[Unit]:
        """A second unit without a number."""
        units = super().discover(machine, boot)
        return (*units, *(Unit(unit.name, unit.vendor, state=unit.state) for unit in units))


class RemembersTheLeft(Wrong):
    """Never forgets."""

    mistake = "It remembers a device that has left and takes it for known when it returns: it gets no unit again."
    rule = "DRV-13"

    @hookimpl
    def release_device(self, device: Device) -> None:
        """Notes the slot."""
        super().release_device(device)
        device.system.boot.options.setdefault("reference.known", set()).add(device.label)

    @hookimpl
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """Known slots need no probing, it thinks."""
        if device.label in device.system.boot.options.get("reference.known", ()):
            return None
        return super().probe_device(device, units)


class AnswersInWords(Wrong):
    """As a register would read."""

    mistake = "It answers 'no' where True or False was asked for, which is taken for yes."
    rule = "DRV-17"

    @hookimpl
    def capable(self, device: Device, capability: str) -> Any:
        """Any text is true."""
        return "yes" if super().capable(device, capability) else "no"


class AnswersAList(Wrong):
    """Numbers in a row."""

    mistake = "Its iova_to_phys answers a list of numbers where an array was asked for."
    rule = "DRV-18"

    @hookimpl
    def iova_to_phys(self, domain: PagedDomain, iova: Addresses) -> Any:
        """Slow, and without a width."""
        return super().iova_to_phys(domain, iova).tolist()


class OffersMoreThanItHas(Wrong):
    """A plan, not a driver."""

    mistake = "It declares identity domains and offers none in any release."
    rule = "DRV-03"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Not yet."""
        return None if type is DomainType.IDENTITY else super().domain_alloc(device, type)


class _Loses(AcpiFormat[Toyt]):
    def build(self, table: Toyt) -> bytes:
        return super().build(table.model_copy(update={"oem_id": "OTHER"}))


class LosesAField(Wrong):
    """Writes its own name into the header."""

    mistake = "It puts its own maker's id into every table that it writes, so that a captured table is no longer the machine's."
    rule = "DRV-80"

    @hookimpl
    def firmware_formats(self) -> Sequence[TableFormat[Any]]:
        """The format that does so."""
        return (_Loses(Toyt),)


class _Trusting(AcpiFormat[Toyt]):
    def parse(self, data: bytes, source: str | None = None) -> Toyt:
        struct.unpack_from("<36s", data)
        return super().parse(data, source)


class TrustsFirmware(Wrong):
    """Reads before it looks."""

    mistake = "It reads past the end of a table that was cut short."
    rule = "DRV-81"

    @hookimpl
    def firmware_formats(self) -> Sequence[TableFormat[Any]]:
        """The format that does so."""
        return (_Trusting(Toyt),)
