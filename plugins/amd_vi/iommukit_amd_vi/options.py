"""The driver's command line: ``amd_iommu=`` and its companions (``drivers/iommu/amd/init.c``).

Since 6.1 the value is a comma list whose words are matched by prefix; before, every position of the text is looked at and
what is not recognised is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict

if TYPE_CHECKING:
    from iommukit.kernel.boot import BootState

KEY = "amd_vi"
"""Where ``BootState.options`` keeps an ``AmdOptions``."""

Release = tuple[int, int]
COMMA_LIST: Release = (6, 1)
POLICY_LINE: Release = (5, 14)
"""Since this release the core, not the driver, says how unmaps are flushed."""

V1_PAGE_SIZES = ((1 << 52) - 1) & ~0xFFF & ~(1 << 39)
"""Every power of two from 4 KiB except 512 GiB, which hardware gets wrong (``AMD_IOMMU_PGSIZES``).

Before 7.2 the driver names sizes beyond 2^51 bytes as well, which no physical address could fill.
"""
V2_PAGE_SIZES = 1 << 12 | 1 << 21 | 1 << 30
"""4 KiB, 2 MiB, 1 GiB (``AMD_IOMMU_PGSIZES_V2``)."""


@dataclass(slots=True)
class AmdOptions:
    """What the command line asked the driver for.

    ``table`` is the page-table format of translated domains, 1 or 2; ``page_sizes`` limits format 1 (bytes, a bitmap).
    """

    off: bool = False
    force_enable: bool = False
    force_isolation: bool = False
    full_flush: bool = False
    table: int = 1
    irt_cache_disabled: bool = False
    legacy_interrupts: bool = False
    page_sizes: int = V1_PAGE_SIZES


def amd_options(boot: BootState) -> AmdOptions:
    """The options of a boot; the defaults where the command line names none."""
    options: AmdOptions = boot.options.setdefault(KEY, AmdOptions())
    return options


def kernel_options(boot: BootState) -> tuple[KernelOption, ...]:
    """The options that the driver registers."""
    return (
        KernelOption("amd_iommu", Stage.SETUP, _amd_iommu, "off, force_isolation, page-table format, page sizes and others"),
        KernelOption("amd_iommu_intr", Stage.SETUP, _interrupts, "how interrupts of guests are remapped"),
        *(KernelOption(name, Stage.SETUP, _no_policy(name), summary) for name, summary in _NO_POLICY.items()),
    )


_NO_POLICY = {
    "amd_iommu_dump": "print the IVRS table",
    "ivrs_ioapic": "correct an I/O APIC's requester id",
    "ivrs_hpet": "correct the event timer's requester id",
    "ivrs_acpihid": "correct an ACPI device's requester id",
}


def _no_policy(name: str) -> Callable[[str | None, BootState], Iterator[OptionReport]]:
    def apply(value: str | None, boot: BootState) -> Iterator[OptionReport]:
        shown = name if value is None else f"{name}={value}"
        yield OptionReport(shown, Verdict.INEFFECTIVE, "no part in the policy; not modelled")

    return apply


def _full_flush(options: AmdOptions, boot: BootState) -> None:
    options.full_flush = True
    if boot.release >= POLICY_LINE:
        boot.log.append("AMD-Vi: amd_iommu=fullflush deprecated; use iommu.strict=1 instead")
    boot.set_dma_strict()


def _set(name: str, value: object) -> Callable[[AmdOptions, BootState], None]:
    return lambda options, boot: setattr(options, name, value)


def _limit(page_sizes: int, shown: str) -> Callable[[AmdOptions, BootState], None]:
    def apply(options: AmdOptions, boot: BootState) -> None:
        options.page_sizes = page_sizes
        boot.log.append(f"AMD-Vi: Restricting V1 page-sizes to {shown}")

    return apply


@dataclass(frozen=True, slots=True)
class Word:
    """One word of ``amd_iommu=``: the release that brought it, what it does, and what to tell the user."""

    text: str
    since: Release
    apply: Callable[[AmdOptions, BootState], None]
    note: str
    verdict: Verdict = Verdict.EFFECTIVE


_ALWAYS: Release = (0, 0)

# In the order in which the driver compares.
WORDS = (
    Word("fullflush", _ALWAYS, _full_flush, "deprecated: translated domains are strict, as with iommu.strict=1"),
    Word("force_enable", (5, 14), _set("force_enable", True), "keeps the IOMMU on beside Stoney Ridge graphics"),
    Word("off", _ALWAYS, _set("off", True), "the IOMMU is not used: devices reach all memory"),
    Word(
        "force_isolation",
        _ALWAYS,
        _set("force_isolation", True),
        "devices with PASID are translated too, unless identity is the default",
    ),
    Word("pgtbl_v1", COMMA_LIST, _set("table", 1), "translated domains use host page tables (the default)"),
    Word("pgtbl_v2", COMMA_LIST, _set("table", 2), "translated domains use guest page tables where the IOMMU can"),
    Word(
        "irtcachedis",
        COMMA_LIST,
        _set("irt_cache_disabled", True),
        "interrupt remapping only; no part in the policy",
        Verdict.INEFFECTIVE,
    ),
    Word("nohugepages", (6, 12), _limit(0x1000, "4KiB"), "host page tables hold 4 KiB pages only"),
    Word("v2_pgsizes_only", (6, 12), _limit(V2_PAGE_SIZES, "4KiB/2MiB/1GiB"), "host page tables hold 4 KiB, 2 MiB and 1 GiB pages"),
)

_BELIEVED = {
    "on": "no such word: AMD-Vi is on wherever firmware describes it; only off exists",
    "pt": "no such word: identity by default is iommu=pt",
    "strict": "no such word: strictness is iommu.strict=1",
    "lazy": "no such word: laziness is iommu.strict=0",
}
"""Words that users believe in."""


def _amd_iommu(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    """``parse_amd_iommu_options``."""
    if value is None:
        yield OptionReport("amd_iommu", Verdict.UNKNOWN, "no reader in this kernel: the option is amd_iommu=…")
    elif not value:
        yield OptionReport("amd_iommu=", Verdict.INEFFECTIVE, "no word, and so nothing changed")
    elif boot.release >= COMMA_LIST:
        yield from _comma_list(value, boot)
    else:
        yield from _any_position(value, boot)


def _known(boot: BootState) -> list[Word]:
    return [word for word in WORDS if boot.release >= word.since]


def _comma_list(value: str, boot: BootState) -> Iterator[OptionReport]:
    options = amd_options(boot)
    known = _known(boot)
    rest = value
    while rest:
        shown = rest.partition(",")[0]
        word = next((word for word in known if rest.startswith(word.text)), None)
        if word is not None:
            word.apply(options, boot)
            yield OptionReport(f"amd_iommu={shown}", word.verdict, word.note)
        else:
            # The kernel prints all that is left, not only the word.
            boot.log.append(f"AMD-Vi: Unknown option - '{rest}'")
            yield OptionReport(f"amd_iommu={shown}", Verdict.UNKNOWN, _why_unknown(shown))
        rest = rest[len(shown) :].lstrip(",")


def _any_position(value: str, boot: BootState) -> Iterator[OptionReport]:
    options = amd_options(boot)
    known = _known(boot)
    understood = set()
    for position in range(len(value)):
        for word in known:
            if value.startswith(word.text, position):
                understood.add(word.text)
                word.apply(options, boot)
                yield OptionReport(f"amd_iommu={word.text}", word.verdict, word.note)
    for shown in value.split(","):
        if shown and not any(text in shown for text in understood):
            yield OptionReport(f"amd_iommu={shown}", Verdict.UNKNOWN, _why_unknown(shown))


def _why_unknown(shown: str) -> str:
    later = next((word for word in WORDS if shown.startswith(word.text)), None)
    if later is not None:
        return f"no such word in this release; read since {later.since[0]}.{later.since[1]}"
    return _BELIEVED.get(shown, "no such word")


def _interrupts(value: str | None, boot: BootState) -> Iterator[OptionReport]:
    """``parse_amd_iommu_intr``: the first word found at any position counts."""
    shown = "amd_iommu_intr" if value is None else f"amd_iommu_intr={value}"
    text = value or ""
    found = sorted((text.find(word), word) for word in ("legacy", "vapic") if word in text)
    if not found:
        yield OptionReport(shown, Verdict.UNKNOWN, "no such word; there are legacy and vapic")
        return
    amd_options(boot).legacy_interrupts = found[0][1] == "legacy"
    yield OptionReport(shown, Verdict.INEFFECTIVE, "interrupts only; no part in the policy")
