"""From a machine file to a machine of QEMU that a kernel of Debian's boots on.

Everything here is known without running anything: what QEMU's devices are, what the kernels were built with, where firmware puts
buses.  What cannot be made is ``Inexpressible``, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iommukit.machine.model import BootSpec, Machine
from iommukit_oracle.guest.boot import BY_VENDOR, MACHINES
from iommukit_oracle.kernel.builds import words_for_build
from iommukit_oracle.kernel.express import Express
from iommukit_oracle.kernel.realisation import MEMORY, NO_NP_CACHE, UEFI, Inexpressible, Realisation, Region
from iommukit_oracle.kernel.zpci import Zpci

Options = Mapping[tuple[str, Any], str]
"""By hardware option and value: the property of QEMU's IOMMU, empty where that is what QEMU has."""
HARDWARE: Mapping[str, Options] = {
    "intel_vtd": {
        ("caching_mode", True): "caching-mode=on",
        ("caching_mode", False): "",
        ("pass_through", False): "pt=off",
        ("pass_through", True): "",
        ("scalable_mode", True): "x-scalable-mode=on",
        ("scalable_mode", False): "",
        ("address_width", 39): "aw-bits=39",
        ("address_width", 48): "aw-bits=48",
        ("platform_opt_in", True): "",
        ("platform_opt_in", False): "",
    },
    # What the kernel shows of its feature register has both (0x29d3: PreF PPR GT IA GA HE).
    "amd_vi": {("np_cache", True): "", ("np_cache", False): "", ("guest_translation", True): "", ("ppr", True): ""},
    "arm_smmu": {("version", 3): "", ("described_by", "dt"): "", ("described_by", "acpi"): ""},
    "s390": {},
}


def realise(machine: Machine, boot: BootSpec, vendor: str, kernel: str) -> Realisation:
    """The machine of QEMU for a machine that is as the vendor would have it, and the command line for how it is booted.

    Raises ``Inexpressible``.
    """
    name = BY_VENDOR.get(vendor)
    if name is None:
        raise Inexpressible(f"QEMU has no IOMMU of {vendor}")
    opt_in = bool(machine.hardware.get("platform_opt_in"))
    words, notes = words_for_build(boot, vendor, kernel, MACHINES[name].debian, opt_in=opt_in)
    if machine.firmware:
        raise Inexpressible(f"QEMU makes its own {' and '.join(machine.firmware)}, from its own hardware")
    options = _hardware(machine, vendor)
    builder = Zpci(machine) if name == "s390" else Express(machine, vendor)
    builder.build()
    reserved = _reserved(builder.regions)
    if reserved:
        words = (*words, *reserved)
        notes.append(f"{' '.join(reserved)} stands for firmware's map of memory")
    variant = ""
    if vendor == "amd_vi" and not machine.hardware.get("np_cache"):
        variant = NO_NP_CACHE
    if machine.hardware.get("described_by") == "acpi":
        variant = UEFI
        words = (*words, "acpi=force")
    return Realisation(
        machine=name,
        vendor=vendor,
        cmdline=" ".join((*words, boot.cmdline)).strip(),
        memory=int(machine.hardware.get("memory_size", MEMORY)),
        options=",".join(option for option in options if option),
        devices=tuple(builder.devices),
        extra=tuple(builder.extra),
        external=tuple(builder.external),
        regions=tuple(builder.regions),
        opt_in=opt_in,
        acs=tuple(builder.acs),
        placed=builder.placed,
        qemu=variant,
        numbers=tuple(sorted(builder.renumbered)),
        notes=(*notes, *builder.notes),
    )


def _reserved(regions: Sequence[Region]) -> tuple[str, ...]:
    """The words that take regions from the guest's memory.

    Firmware's map does not know of them, and a region of VT-d in memory that is free is a bug of firmware to Linux.
    """
    return tuple(f"memmap={region.end + 1 - region.start:#x}${region.start:#x}" for region in dict.fromkeys(regions))


def _hardware(machine: Machine, vendor: str) -> list[str]:
    known = HARDWARE[vendor]
    found = []
    for name, value in machine.hardware.items():
        if vendor == "s390" and name == "memory_size":
            continue
        option = known.get((name, value))
        if option is None:
            raise Inexpressible(f"QEMU's IOMMU cannot be made with {name}: {value}")
        found.append(option)
    return found


def reasons(cases: Sequence[tuple[Machine, BootSpec, str, str]]) -> dict[str, int]:
    """Why cases cannot be realised, and how often; empty for those that can."""
    found: dict[str, int] = {}
    for case in cases:
        try:
            realise(*case)
            reason = ""
        except Inexpressible as error:
            reason = str(error)
        found[reason] = found.get(reason, 0) + 1
    return found
