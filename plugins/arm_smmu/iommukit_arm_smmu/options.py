"""What a machine file may say of the hardware, and the drivers' command-line options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from iommukit.errors import NotApplicable
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import Apply, KernelOption, OptionReport, Stage, Verdict, kstrtobool
from iommukit.machine.documents import validate_document
from iommukit.machine.model import Machine, Number, Strict
from iommukit.policy import Era

# ---- hardware --------------------------------------------------------------------------------------------------------

Granule = Literal["4K", "16K", "64K"]


class Hardware(Strict):
    """The keys of a machine file's ``hardware``; the defaults are QEMU's virt machine with ``iommu=smmuv3``."""

    version: Literal[2, 3] = Field(3, description="architecture: 3 (SMMUv3) or 2 (SMMUv2)")
    described_by: Literal["dt", "acpi"] | None = Field(
        None, description="what the kernel reads: dt or acpi; absent: acpi with an IORT or with direct regions, else dt"
    )
    base: Number = Field(0x0905_0000, description="address of the first unit's registers; further units follow at 128 KiB")
    coherent_walk: bool = Field(True, description="table walks are coherent (SMMU_IDR0.COHACC, SMMU_IDR0.CTTW)")
    ias: int = Field(44, ge=32, le=52, description="intermediate address size in bits: the input of stage 2")
    oas: int = Field(44, ge=32, le=52, description="output address size in bits")
    va_bits: int = Field(48, ge=32, le=52, description="input size of stage 1 in bits")
    stages: tuple[Literal[1, 2], ...] = Field((1,), min_length=1, description="translation stages implemented: 1, 2 or both")
    granules: tuple[Granule, ...] = Field(
        ("4K", "16K", "64K"), min_length=1, description="translation granules implemented: 4K, 16K, 64K"
    )
    sid_bits: int | None = Field(
        None, ge=1, le=32, description="bits of a stream id (SMMU_IDR1.SIDSIZE, SMMU_IDR0.NUMSIDB); absent: 16, with an IORT 32"
    )
    mapping_groups: int = Field(128, ge=1, le=1024, description="SMMUv2: stream-map entries (SMMU_IDR0.NUMSMRG)")
    legacy_binding: bool = Field(False, description="SMMUv2: described by the old mmu-masters property")
    implementation: Literal["qcom", "nvidia"] | None = Field(
        None, description="SMMUv2: implementation hooks, qcom or nvidia; absent: plain Arm"
    )
    dirty_state: bool = Field(False, description="SMMUv3: hardware updates dirty state (SMMU_IDR0.HTTU)")
    canwbs: bool = Field(False, description="SMMUv3: the root complex has coherent memory regardless of attributes (CANWBS)")
    preserve_config: bool = Field(True, description="ACPI: the kernel keeps the firmware's PCI configuration (_DSM 5)")
    its: dict[int, Number] = Field(
        default_factory=dict, description="ACPI: base address of each ITS by its identifier, for regions that an IORT names"
    )


_V2_ONLY = ("legacy_binding", "implementation", "mapping_groups")
_V3_ONLY = ("dirty_state", "canwbs")


def read_hardware(machine: Machine) -> Hardware:
    """A machine's hardware options.

    Raises ``InputError`` for a value that cannot be, ``NotApplicable`` for an option of the other architecture version.
    """
    hardware = validate_document(Hardware, machine.hardware, text=None, source=f"{machine.source}: hardware")
    for key in _V2_ONLY if hardware.version == 3 else _V3_ONLY:
        if getattr(hardware, key) != Hardware.model_fields[key].get_default():
            raise NotApplicable(f"SMMUv{hardware.version} has no {key}")
    return hardware


# ---- command line ----------------------------------------------------------------------------------------------------

BYPASS_V2 = "arm-smmu.disable_bypass"
BYPASS_V3 = "arm-smmu-v3.disable_bypass"


def unattached_streams_fault(boot: BootState, version: int) -> bool:
    """Whether the DMA of a device that no domain holds is stopped (True) or passes untranslated.

    No part of the policy.  SMMUv3 has no choice since 6.12: it stops.
    """
    if version == 3:
        return boot.era >= Era.V6_12 or bool(boot.options.get(BYPASS_V3, True))
    return bool(boot.options.get(BYPASS_V2, boot.config.get("ARM_SMMU_DISABLE_BYPASS_BY_DEFAULT", True)))


def kernel_options(boot: BootState) -> tuple[KernelOption, ...]:
    """The module parameters of both drivers; SMMUv3's is gone in 6.12."""
    summary = "whether streams without a domain fault or pass; no part in the policy"
    names = (BYPASS_V2,) if boot.era >= Era.V6_12 else (BYPASS_V2, BYPASS_V3)
    return tuple(KernelOption(name, Stage.SETUP, _disable_bypass(name), summary) for name in names)


def _disable_bypass(name: str) -> Apply:
    def apply(value: str | None, boot: BootState) -> Iterable[OptionReport]:
        shown = name if value is None else f"{name}={value}"
        # A boolean module parameter without a value is true.
        chosen = True if value is None else kstrtobool(value)
        if chosen is None:
            yield OptionReport(shown, Verdict.INVALID, "a boolean was expected; nothing changed")
            return
        boot.options[name] = chosen
        fate = "fault" if chosen else "pass untranslated"
        yield OptionReport(shown, Verdict.INEFFECTIVE, f"streams without a domain {fate}; no part in the policy")

    return apply
