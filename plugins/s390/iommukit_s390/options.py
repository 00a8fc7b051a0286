"""The driver's command-line options."""

from __future__ import annotations

import re
from collections.abc import Iterable

from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict
from iommukit.policy import Era

APERTURE = "s390_iommu_aperture"
"""Where ``BootState.options`` keeps the factor."""
STRICT = "s390_iommu.strict"
"""Where 6.1 keeps the strictness of its own DMA code."""

DEPRECATED = "s390_iommu=strict deprecated; use iommu.strict=1 instead"


def aperture_factor(boot: BootState) -> int:
    """How many times the memory size a function's DMA range may span; 0 is no limit."""
    factor: int = boot.options.get(APERTURE, 1)
    return factor


def kernel_options(boot: BootState) -> tuple[KernelOption, ...]:
    """``s390_iommu=`` and ``s390_iommu_aperture=``."""
    return (
        KernelOption("s390_iommu", Stage.SETUP, _strict, "strict: flush at each unmap (since 6.7 as iommu.strict=1)"),
        KernelOption(APERTURE, Stage.SETUP, _aperture, "DMA range of a function, in multiples of the memory size"),
    )


def _strict(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    if value != "strict":
        shown = "s390_iommu" if value is None else f"s390_iommu={value}"
        yield OptionReport(shown, Verdict.INVALID, "strict is the only word; nothing changed")
        return
    if boot.era is Era.V6_1:
        boot.options[STRICT] = True
        note = "the architecture's own DMA code flushes at each unmap; the core's policy is not touched"
    else:
        boot.log.append(DEPRECATED)
        boot.set_dma_strict()
        note = "as iommu.strict=1; deprecated"
    yield OptionReport("s390_iommu=strict", Verdict.EFFECTIVE, note)


def _aperture(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    if value is None:
        yield OptionReport(APERTURE, Verdict.INVALID, "a number was expected; nothing changed")
        return
    shown = f"{APERTURE}={value}"
    # kstrtou32 with base 10: a sign is allowed, anything else is not.
    factor = int(value) if re.fullmatch(r"\+?[0-9]+", value, re.ASCII) else None
    if factor is None or factor > 0xFFFF_FFFF:
        boot.options[APERTURE] = 1
        yield OptionReport(shown, Verdict.INVALID, "a decimal number of 32 bits was expected; the factor is 1")
        return
    boot.options[APERTURE] = factor
    limit = f"{factor} times the memory size" if factor else "not limited by the memory size"
    yield OptionReport(shown, Verdict.EFFECTIVE, f"a function's DMA range is {limit}")
