"""Domains and flush queues: what is offered, what is refused, and that both are meant."""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.device import Device
from iommukit.domain import UNBOUNDED, Domain, DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.policy import Era
from iommukit_conformance.case import Findings, Undecided, case, hold
from iommukit_conformance.lab import NIC, Lab

ROLES = ("identity-required", "strict-required", "no-lazy", "direct-region")


def _device(lab: Lab, role: str | None) -> Device:
    """A device in a role, or an ordinary one; on a machine of its own."""
    return lab.role(role) if role else lab.plain()


def _devices(lab: Lab) -> Iterator[Device]:
    """An ordinary device, and the vendor's examples."""
    for role in (None, *ROLES):
        try:
            yield _device(lab, role)
        except (NotApplicable, InputError):
            if role is None:
                raise


def _asked_types(lab: Lab) -> list[DomainType]:
    """The types that a core asks for in this generation; a queue only before the posted patch."""
    return [kind for kind in DomainType if kind is not DomainType.DMA_FQ or lab.era is Era.V6_1]


def _translates(lab: Lab, device: Device) -> DomainType:
    assert device.unit is not None
    return DomainType.DMA if device.unit.default_domains else DomainType.UNMANAGED


@case("DRV-33")
def test_every_device_can_be_translated(lab: Lab) -> Findings:
    """A driver that leaves the DMA API to the architecture still serves other users."""
    for device in _devices(lab):
        kind = _translates(lab, device)
        text = f"{device.name} ({device.facts.role or 'plain'}) gets no {kind.name} domain"
        yield hold(lab.alloc(device, kind) is not None, text)


@case("DRV-31")
def test_two_devices_do_not_share_a_domain_unasked(lab: Lab) -> Findings:
    """Two allocations, two objects; static ones say so."""
    for device in _devices(lab):
        for kind in _asked_types(lab):
            one, two = lab.alloc(device, kind), lab.alloc(device, kind)
            if one is None or two is None:
                continue
            yield hold(one is not two or one.static, f"two allocations of {kind.name} are one domain, and it is not static")
            yield hold(one.static == two.static, f"of two allocations of {kind.name} one is static")


@case("DRV-32")
def test_a_refusal_is_a_refusal(lab: Lab) -> Findings:
    """What a fresh device is refused it is refused again after other types were asked for, and what it gets it gets."""
    for role in (None, *ROLES):
        try:
            fresh = {kind: lab.alloc(_device(lab, role), kind) is not None for kind in _asked_types(lab)}
            device = _device(lab, role)
        except (NotApplicable, InputError):
            continue
        attached, log = device.attached, len(device.system.boot.log)
        said = ("refused", "offered")
        for _ in range(2):
            for kind, before in fresh.items():
                now = lab.alloc(device, kind) is not None
                text = f"{role or 'plain'}: {kind.name} is {said[before]}, and {said[now]} after other types were asked for"
                yield hold(now == before, text)
        yield hold(device.attached is attached, "asking for domains has moved the device")
        yield hold(len(device.system.boot.log) == log, "asking for domains is a line in the boot log")


def _provocations(lab: Lab) -> Iterator[tuple[str, Device, Domain]]:
    """Attachments that some hardware cannot do."""
    device = lab.plain()
    far = lab.alloc(device, _translates(lab, device))
    if far is not None:
        far.aperture = (UNBOUNDED - 0xFFF, UNBOUNDED)
        yield "a domain at the end of the address space", device, far
    try:
        system = lab.boot({**NIC, "address": "0000:00:03.0"}, {**NIC, "name": "other", "address": "0001:00:03.0"})
        device, other = system.devices["nic"], system.devices["other"]
        foreign = lab.alloc(device, _translates(lab, device)) if device.unit and other.unit else None
        if foreign is not None:
            system.attach(device, foreign)
            yield "a domain of another segment", other, foreign
    except (NotApplicable, InputError, IommuError):
        pass
    try:
        device = lab.role("direct-region")
        unmanaged = lab.alloc(device, DomainType.UNMANAGED)
        if unmanaged is not None:
            yield "an unmanaged domain in place of direct regions", device, unmanaged
    except (NotApplicable, InputError):
        pass


@case("DRV-36")
def test_a_refused_attachment_changes_nothing(lab: Lab) -> Findings:
    """Attachments that hardware may be unable to do; a driver that can do them all leaves this undecided."""
    if "attach_dev" not in lab.ops.implemented:
        raise NotApplicable(f"{lab.vendor.name} leaves attaching to the core")
    refused = 0
    for what, device, domain in _provocations(lab):
        before = device.attached
        try:
            device.system.attach(device, domain)
        except IommuError as error:
            refused += 1
            yield hold(device.attached is before, f"{what} was refused ({error}), but the device is no longer where it was")
        else:
            yield hold(device.attached is domain, f"{what} was accepted, but the device is elsewhere")
    if not refused:
        raise Undecided(f"{lab.vendor.name} refuses none of the attachments that were tried")


@case("DRV-37")
def test_a_blocked_device_is_in_no_domain(lab: Lab) -> Findings:
    """What the core does where a group is refused or its last domain goes away."""
    if "set_dev_blocked" not in lab.ops.implemented:
        raise NotApplicable(f"{lab.vendor.name} leaves blocking to the core")
    for device in _devices(lab):
        done = lab.ops.set_dev_blocked(device=device)
        yield hold(not done or device.attached is None, f"{device.name} is blocked, but in a domain: {device.attached}")


# ---- flush queues ----------------------------------------------------------------------------------------------------


@case("DRV-41")
def test_queues_are_offered_where_they_work(lab: Lab) -> Findings:
    """A queue that is offered starts; before the posted patch a lazy domain is to be had by the same rule."""
    for device in _devices(lab):
        who = f"{device.name} ({device.facts.role or 'plain'})"
        offers = lab.ops.prefer_dma_api_fq(device=device)
        try:
            lab.ops.flush_queue_options(device=device)
            starts = ""
        except IommuError as error:
            starts = str(error)
        yield hold(not offers or not starts, f"{who}: a queue is offered, but does not start: {starts}")
        if lab.era is Era.V6_1 and device.unit is not None and device.unit.default_domains:
            lazy = lab.alloc(device, DomainType.DMA_FQ) is not None
            said = ("refuses", "offers")
            yield hold(lazy == offers, f"{who}: the driver {said[offers]} a queue and {said[lazy]} lazy domains")


@case("DRV-42", eras=lambda era: era >= Era.V6_12)
def test_both_answers_about_queues_agree(lab: Lab) -> Findings:
    """``deferred_flush`` and ``prefer_dma_api_fq``."""
    for device in _devices(lab):
        domain = lab.alloc(device, DomainType.DMA)
        if domain is not None and domain.generic_pt:
            yield None
            continue
        capability = lab.ops.capable(device=device, capability="deferred_flush")
        offers = lab.ops.prefer_dma_api_fq(device=device)
        text = f"{device.name} ({device.facts.role or 'plain'}): deferred_flush is {capability}, prefer_dma_api_fq {offers}"
        yield hold(capability == offers, text)
