"""What a vendor says of itself, held against what it does in all modelled releases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iommukit.domain import DomainType
from iommukit.errors import InputError, NotApplicable
from iommukit.hookspecs import CAPABILITIES
from iommukit.kernel.profiles import PROFILES
from iommukit_conformance.case import Findings, Scope, case, hold
from iommukit_conformance.declared import malformed
from iommukit_conformance.drills import MACHINES
from iommukit_conformance.lab import Lab
from iommukit_conformance.options import strict_word
from iommukit_conformance.scenarios import known_rules


@case("DRV-01", scope=Scope.VENDOR)
def test_the_declaration_names_what_exists(lab: Lab) -> Findings:
    """Words that mean nothing turn cases off."""
    said = lab.vendor.declaration
    wrong = list(malformed(said))
    yield from wrong or (None,)
    if wrong:
        return
    for name in sorted(said.capabilities):
        yield hold(name in CAPABILITIES, f"there is no capability {name!r}")
    for name, text in said.hardware_options.items():
        yield hold(name and text.strip(), f"the hardware option {name!r} is not explained")
    for rule, reason in said.expected_failures.items():
        yield hold(rule in known_rules(), f"expected_failures names {rule!r}, which is no rule")
        yield hold(reason.strip(), f"expected_failures gives no reason for {rule}")


def _identity(lab: Lab) -> bool:
    domain = lab.alloc(lab.plain(), DomainType.IDENTITY)
    return domain is not None and domain.type is DomainType.IDENTITY


def _lazy(lab: Lab) -> bool:
    device = lab.plain()
    domain = lab.alloc(device, DomainType.DMA)
    return lab.ops.prefer_dma_api_fq(device=device) is True or (domain is not None and domain.generic_pt)


def _pci(lab: Lab) -> bool:
    return lab.boot(*MACHINES["behind-port"]).devices["nic"].group is not None


def _trust(lab: Lab) -> bool:
    system = lab.boot(*MACHINES["outside"])
    return system.devices["nic"].untrusted and system.devices["nic"].unit is not None


def _superpages(lab: Lab) -> bool:
    return lab.plain().attached is not None and any(
        domain.page_sizes & ~0xFFF & (domain.page_sizes - 1) for domain in (lab.alloc(lab.plain(), DomainType.UNMANAGED),) if domain
    )


def _regions(lab: Lab) -> bool:
    return bool(lab.ops.get_resv_regions(device=lab.plain())) or _example("direct-region")(lab)


def _example(role: str) -> Callable[[Lab], bool]:
    def evidence(lab: Lab) -> bool:
        return lab.example(role) is not None

    return evidence


EVIDENCE: Mapping[str, Callable[[Lab], bool]] = {
    "identity": _identity,
    "lazy": _lazy,
    "pci": _pci,
    "trust": _trust,
    "identity-required": _example("identity-required"),
    "strict-required": _example("strict-required"),
    "lazy-preferred": _example("lazy-preferred"),
    "no-lazy": _example("no-lazy"),
    "direct-regions": _example("direct-region"),
    "relaxable-regions": _example("relaxable-region"),
    "legacy-strict-option": lambda lab: strict_word(lab) is not None,
    "superpages": _superpages,
    "resv-firmware": _regions,
}
"""How a capability shows.  ``pasid`` does not, as far as this is modelled."""

MAY_BE_SILENT = frozenset({"superpages", "resv-firmware", "trust"})
"""Capabilities that may show although the vendor makes nothing of them: the core decides about trust, for one."""


def _shows(lab: Lab, capability: str) -> bool:
    """Whether a capability shows in any release."""
    for kernel in PROFILES.values():
        try:
            if EVIDENCE[capability](lab.with_kernel(kernel)):
                return True
        except (NotApplicable, InputError):
            continue
    return False


@case("DRV-03", scope=Scope.VENDOR)
def test_what_is_declared_is_there(lab: Lab) -> Findings:
    """In some release; and trust where the cases boot."""
    first = lab.vendor.declaration.arch[0]
    text = (
        f"trust is declared, but on {first} kernels since 6.12 hold no device for untrusted: name x86_64 first, or leave trust out"
    )
    yield hold(first == "x86_64" or not lab.vendor.has("trust"), text)
    for capability in sorted(lab.vendor.declaration.capabilities & EVIDENCE.keys()):
        yield hold(_shows(lab, capability), f"{capability} is declared, but shows in no release: {CAPABILITIES[capability]}")


@case("DRV-04", scope=Scope.VENDOR)
def test_what_is_there_is_declared(lab: Lab) -> Findings:
    """So that it is tested."""
    for capability in sorted(EVIDENCE.keys() - MAY_BE_SILENT):
        known = lab.vendor.has(capability) or not _shows(lab, capability)
        yield hold(known, f"{capability} is not declared, but there: {CAPABILITIES[capability]}")
