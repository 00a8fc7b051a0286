"""Which translation a function is registered with (``s390_iommu_attach_device``, ``blocking_domain_attach_device``)."""

from __future__ import annotations

from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit_s390.events import handle_events
from iommukit_s390.functions import Function
from iommukit_s390.tables import PagingDomain
from iommukit_s390.zpci import deregister, refresh_all, register


def enter(function: Function, domain: Domain) -> None:
    """Let a domain translate for the function, after a moment in which nothing does.

    Errors of the function are handled before: an event that has happened is not left for the new domain.  Raises ``EIO``, or
    ``ENOMEM`` where a hypervisor cannot shadow what the domain maps already, with the function in the domain that it was in.
    """
    hardware = function.hardware
    assert hardware is not None
    handle_events(function)
    before = hardware.domain
    leave(function)
    try:
        _register(function, domain)
    except IommuError:
        leave(function)
        if before is not None:
            _register(function, before)
        raise


def leave(function: Function) -> None:
    """Let none of the function's requests through."""
    hardware = function.hardware
    assert hardware is not None
    domain = hardware.domain
    if domain is None:
        return
    deregister(function)
    hardware.domain = None
    if isinstance(domain, PagingDomain):
        domain.functions.remove(function)


def _register(function: Function, domain: Domain) -> None:
    hardware = function.hardware
    assert hardware is not None
    if domain.type is DomainType.BLOCKED:
        return
    if not isinstance(domain, PagingDomain):
        # Relaxed translation: an anchor of zeros (s390_attach_dev_identity).
        register(function, 0)
        hardware.domain = domain
        return
    register(function, domain.iota)
    hardware.domain = domain
    domain.functions.append(function)
    if function.tlb_refresh and domain.populated:
        refresh_all(function)
