"""The option ``intel_iommu=`` (``drivers/iommu/intel/iommu.c:intel_iommu_setup``), and what a kernel build starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict

NAME = "intel_iommu"
KEY = "intel_vtd.options"


@dataclass(slots=True)
class VtdOptions:
    """What the build and the command line ask of the driver."""

    enabled: bool
    """DMA remapping is wanted (``!dmar_disabled``)."""
    scalable: bool
    """Scalable mode where the hardware has it (``intel_iommu_sm``)."""
    superpages: bool = True
    opt_in_vetoed: bool = False
    """``off``: the platform's opt-in does not count either."""
    map_graphics: bool = True
    """Translate for graphics (``dmar_map_gfx``); ``igfx_off`` and quirks clear it."""


def vtd_options(boot: BootState) -> VtdOptions:
    """The options of this boot; at first what the build says."""
    options = boot.options.get(KEY)
    if options is None:
        options = boot.options[KEY] = VtdOptions(
            enabled=boot.config.get("INTEL_IOMMU_DEFAULT_ON", True),
            scalable=boot.config.get("INTEL_IOMMU_SCALABLE_MODE_DEFAULT_ON", True),
        )
    assert isinstance(options, VtdOptions)
    return options


Act = Callable[[VtdOptions, BootState], bool | None]
"""Apply one word.  True: it changed something that this model follows; False: things were so already; ``None``: no part in it."""


def _set(**values: bool) -> Act:
    def act(options: VtdOptions, boot: BootState) -> bool:
        changed = any(getattr(options, name) is not value for name, value in values.items())
        for name, value in values.items():
            setattr(options, name, value)
        return changed

    return act


def _strict(options: VtdOptions, boot: BootState) -> bool:
    boot.set_dma_strict()
    return True


def _elsewhere(options: VtdOptions, boot: BootState) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the list: what it does, the line printed, and what it means."""

    text: str
    act: Act
    line: str
    note: str


WORDS: tuple[Word, ...] = (
    Word("on", _set(enabled=True), "IOMMU enabled", "DMA remapping is on"),
    Word("off", _set(enabled=False, opt_in_vetoed=True), "IOMMU disabled", "DMA remapping is off, whatever the platform asks for"),
    Word("igfx_off", _set(map_graphics=False), "Disable GFX device mapping", "graphics devices are not translated"),
    Word(
        "forcedac",
        _elsewhere,
        "intel_iommu=forcedac deprecated; use iommu.forcedac instead",
        "places I/O addresses; no part in the policy",
    ),
    Word(
        "strict",
        _strict,
        "intel_iommu=strict deprecated; use iommu.strict=1 instead",
        "translated domains are strict, even with iommu.strict=0",
    ),
    Word("sp_off", _set(superpages=False), "Disable supported super page", "4 KiB pages only"),
    Word("sm_on", _set(scalable=True), "Enable scalable mode if hardware supports", "scalable mode; does not switch remapping on"),
    Word("sm_off", _set(scalable=False), "Scalable mode is disallowed", "legacy mode"),
    Word(
        "tboot_noforce",
        _elsewhere,
        "Intel-IOMMU: not forcing on after tboot. This could expose security risk for tboot",
        "measured launch is not modelled",
    ),
)
"""In the driver's order; a word is recognised by its beginning, so ``strict-bad`` is ``strict``."""


def _intel_iommu(value: str | None, boot: BootState) -> Iterator[OptionReport]:
    if not value:
        yield OptionReport(NAME if value is None else f"{NAME}=", Verdict.INVALID, "a value was expected; nothing changed")
        return
    options = vtd_options(boot)
    rest = value
    while rest:
        token, comma, following = rest.partition(",")
        shown = f"{NAME}={token}"
        word = next((word for word in WORDS if rest.startswith(word.text)), None)
        if word is None:
            boot.log.append(f"DMAR: Unknown option - '{rest}'")
            yield OptionReport(shown, Verdict.UNKNOWN, "no such word")
        else:
            boot.log.append(f"DMAR: {word.line}")
            changed = word.act(options, boot)
            verdict = Verdict.EFFECTIVE if changed else Verdict.INEFFECTIVE
            note = word.note if token == word.text else f"read as {word.text}: {word.note}"
            yield OptionReport(shown, verdict, note if changed is not False else f"{note} (as before)")
        rest = following.lstrip(",") if comma else ""


OPTIONS: tuple[KernelOption, ...] = (
    KernelOption(NAME, Stage.SETUP, _intel_iommu, "DMA remapping on or off, strictness, scalable mode, graphics"),
)
