"""Mistakes about policy and trust."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from iommukit.device import Device, Unit
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.policy import DmaApiPolicy, Era
from iommukit_conformance.reference import TRACER
from iommukit_conformance.wrong.base import Wrong


class IdentityForAll(Wrong):
    """Performance first."""

    mistake = "It requires identity for every device."
    rule = "DRV-22"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """Whatever the device."""
        return DmaApiPolicy.ANY if device.untrusted else DmaApiPolicy.IDENTITY


class PreferenceAsRequirement(Wrong):
    """The bug that began the thread of the posted patch."""

    mistake = "It answers its preference for strict translation where the core asks for a requirement."
    rule = "DRV-22"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """A wish in the place of a requirement."""
        answer: DmaApiPolicy = super().def_domain_type(device)
        return DmaApiPolicy.STRICT if answer is DmaApiPolicy.ANY else answer


class IgnoresUntrusted(Wrong):
    """Goes by the ids alone."""

    mistake = "It applies its identity quirk to a device that was plugged into an external port."
    rule = "DRV-24"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """Ids can be forged."""
        return DmaApiPolicy.IDENTITY if device.facts.ids == TRACER else super().def_domain_type(device)


class ClearsUntrusted(Wrong):
    """Knows better than firmware."""

    mistake = "It clears the untrusted mark of network cards, so that they are fast."
    rule = "DRV-15"

    @hookimpl
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """The mark is the core's."""
        if device.facts.base_class == 0x02:
            device.untrusted = False
        return super().probe_device(device, units)


class AnswersDomainTypes(Wrong):
    """Not converted to policies."""

    mistake = "It answers 0 for no opinion, as before the posted patch, which reads as identity."
    rule = "DRV-20"

    @hookimpl
    def def_domain_type(self, device: Device) -> Any:
        """Zero is IDENTITY among the policies."""
        answer = super().def_domain_type(device)
        return 0 if answer is DmaApiPolicy.ANY else answer


class ChangesItsMind(Wrong):
    """Applies a quirk once."""

    mistake = "It remembers that it has required identity for a device and requires nothing the next time."
    rule = "DRV-21"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """Later calls decide about sysfs."""
        answer: DmaApiPolicy = super().def_domain_type(device)
        if answer is DmaApiPolicy.IDENTITY and device.vendor_state == "asked":
            return DmaApiPolicy.ANY
        device.vendor_state = "asked"
        return answer


class FirstDeviceDecides(Wrong):
    """Keeps one answer for its unit."""

    mistake = "It gives the first device's requirement to all devices of the unit."
    rule = "DRV-21"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """So it depends on the order."""
        answer: DmaApiPolicy = super().def_domain_type(device)
        first: DmaApiPolicy = device.system.boot.options.setdefault("reference.first", answer)
        return first


class NoDeviceForItsRole(Wrong):
    """A stale example."""

    mistake = "Its example for a device that requires identity is a device that requires nothing."
    rule = "DRV-23"

    @hookimpl
    def example_device(self, role: str, boot: BootState) -> ExampleDevice | None:
        """The list of quirks has moved on."""
        if role == "identity-required":
            return ExampleDevice({"id": "1234:00ff", "class": "ff0000", "kind": "endpoint"})
        return super().example_device(role, boot)


class RemembersTheLastMachine(Wrong):
    """A module variable in the place of a unit's."""

    mistake = "It keeps a quirk in a global, so that one machine's device decides about the next machine."
    rule = "DRV-05"

    def __init__(self) -> None:
        self.seen = False

    @hookimpl
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """Sees the device of the quirk."""
        self.seen |= device.facts.ids == TRACER
        return super().probe_device(device, units)

    @hookimpl
    def get_resv_regions(self, device: Device) -> Any:
        """Tells everybody."""
        if self.seen and device.system.boot.era < Era.V6_12:
            device.system.log("reference-iommu: tracer quirk active")
        return super().get_resv_regions(device)


class CountsUnitsForEver(Wrong):
    """A counter that is never reset."""

    mistake = "It numbers its units through all boots."
    rule = "DRV-05"

    def __init__(self) -> None:
        self.numbers = count()

    @hookimpl
    def discover(self, machine: Any, boot: BootState) -> Sequence[Unit]:
        """The number is in the log."""
        units = super().discover(machine, boot)
        for unit in units:
            unit.name = f"reference{next(self.numbers)}"
            boot.log.append(f"reference-iommu: {unit.name} is ready")
        return units


class MisspeltCapability(Wrong):
    """Copied by hand."""

    mistake = "It misspells a capability in its declaration, which turns the cases for it off."
    rule = "DRV-01"

    @hookimpl
    def declare(self) -> VendorDeclaration:
        """Nobody knows identity-domains."""
        said = super().declare()
        capabilities = said.capabilities - {"identity"} | {"identity-domains"}
        return VendorDeclaration(said.title, said.arch, capabilities, said.hardware_options)


class HidesACapability(Wrong):
    """Forgot to say so."""

    mistake = "It has a device without a flush queue and does not declare it, so that nothing tests it."
    rule = "DRV-04"

    @hookimpl
    def declare(self) -> VendorDeclaration:
        """One capability less."""
        said = super().declare()
        return VendorDeclaration(said.title, said.arch, said.capabilities - {"no-lazy"}, said.hardware_options)
