"""The controls: right drivers that no case may reject, the reference and lesser ones.

A lesser driver lacks something that a driver may lack, and says so.  What fails for it asks for more than it names in ``requires``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.policy import DmaApiPolicy
from iommukit_conformance.reference import Reference


class Lesser(Reference):
    """The reference without some of its capabilities; what is left out of the hardware is up to each."""

    lacks: ClassVar[frozenset[str]] = frozenset()
    """The capabilities that it does not declare; those that are also a role have no example."""

    @hookimpl
    def declare(self) -> VendorDeclaration:
        """Declare what is left."""
        said = super().declare()
        title = f"{said.title} without {', '.join(sorted(self.lacks))}"
        return VendorDeclaration(title, said.arch, said.capabilities - self.lacks, {"emulated": said.hardware_options["emulated"]})

    @hookimpl
    def example_device(self, role: str, boot: BootState) -> ExampleDevice | None:
        """Devices for the roles that are left."""
        return None if role in self.lacks else super().example_device(role, boot)


class WithoutIdentity(Lesser):
    """Every request is translated."""

    lacks = frozenset({"identity", "identity-required"})

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """Nothing can require what there is not."""
        answer: DmaApiPolicy = super().def_domain_type(device)
        return DmaApiPolicy.ANY if answer is DmaApiPolicy.IDENTITY else answer

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """No identity domains."""
        return None if type is DomainType.IDENTITY else super().domain_alloc(device, type)


class WithoutLazy(Lesser):
    """Each unmap must be flushed at once."""

    lacks = frozenset({"lazy", "lazy-preferred"})

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """Nobody wishes for a queue."""
        answer: DmaApiPolicy = super().def_domain_type(device)
        return DmaApiPolicy.ANY if answer is DmaApiPolicy.LAZY else answer

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        """No queue works."""
        return False

    @hookimpl
    def capable(self, device: Device, capability: str) -> bool:
        """No flush is put off."""
        return capability != "deferred_flush" and super().capable(device, capability)


class WithoutRequirements(Lesser):
    """No device of its requires anything: it leaves ``def_domain_type`` to the core."""

    lacks = frozenset({"identity-required", "strict-required", "lazy-preferred"})

    def_domain_type = None  # type: ignore[assignment]


CONTROLS: Mapping[str, type[Reference]] = {
    "the_reference_passes": Reference,
    "without_identity_passes": WithoutIdentity,
    "without_lazy_passes": WithoutLazy,
    "without_requirements_passes": WithoutRequirements,
}
"""All of them, by the names of their cases."""
