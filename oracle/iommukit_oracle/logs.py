"""Which kernel lines the model answers for, and how recorded ones compare with its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

NOT_MODELLED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), subject)
    for pattern, subject in (
        (r"Adding to iommu group|Removing from iommu group", "groups, which are compared themselves"),
        (r"^ACPI: ", "ACPI tables as such"),
        (r"^DMAR-IR: ", "VT-d's interrupt remapping"),
        (r"^DMAR: DRHD base", "a remapping unit's scope, for which a machine without a DMAR table has no words"),
        (r"^DMAR: \[Firmware Bug\]", "memory that firmware has not reserved in its memory map"),
        (r"^DMAR: DRHD: handling fault status|^DMAR: \[DMA (Read|Write)", "DMA faults"),
        (r"^arm-smmu-v3 \S+: (event:? |(un)?priv |(\t|\\x09)0x)", "events of an SMMU"),
        (r"^WARNING: .* intel_iommu_init\+|^BIOS vendor: ", "firmware's maker, around a complaint of firmware"),
        (r"AMD IOMMUv2", "AMD's driver for process address spaces, which Debian builds in"),
        (r"^software IO TLB: |^PCI-DMA: ", "bounce buffers"),
        (r"^Unknown kernel command line parameters|^    \S", "the kernel's list of options that nobody reads"),
        (r"^(RIP|CPU|Call Trace|Modules linked in|Code|Hardware name)\b|^ |^---|^R[A-Z0-9]{2}: |^[CF]S: |^CR\d: ", "stack traces"),
        (r"callbacks suppressed$", "printk itself"),
    )
)
"""Lines that the model does not print, and what they are about."""

_NOT_MODELLED = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in NOT_MODELLED))
_ABOUT_DMA = re.compile(r"iommu|DMAR|AMD-Vi|smmu|domain|DMA API|Firmware has requested|WARNING", re.IGNORECASE)
_WARNING = re.compile(r"^WARNING: .* ([a-z0-9_]+)(?:\.cold)?\+0x[0-9a-f]+/0x[0-9a-f]+.*$")


def modelled(lines: Iterable[str]) -> list[str]:
    """The lines that the model answers for; a warning is cut to the function that it was in."""
    return [_WARNING.sub(r"WARNING: at \1", line) for line in lines if not _NOT_MODELLED.search(line)]


def policy_lines(printed: Sequence[str], policy: Iterable[str]) -> list[str]:
    """The lines of a boot that are to be compared: those that the model answers for, and all that tell of policy.

    ``policy`` is the recording's own selection, without trailing blanks; such a line is compared even if the model never prints it.
    """
    chosen = set(policy)
    kept = [line for line in printed if line.strip() in chosen or not _NOT_MODELLED.search(line)]
    return [_WARNING.sub(r"WARNING: at \1", line) for line in kept]


def joins(lines: Iterable[str]) -> list[str]:
    """The lines by which devices join groups."""
    return [line for line in lines if "Adding to iommu group" in line]


def about_dma(lines: Iterable[str]) -> list[str]:
    """Of a mixed log, the lines that the model answers for."""
    return [line for line in modelled(lines) if _ABOUT_DMA.search(line)]


def compare_lines(recorded: Iterable[str], printed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each line of the kernel and of the model beside each other, ``nothing`` where one lacks it; order does not count."""
    left = Counter(list(printed))
    for line in recorded:
        yield shown(line), shown(line) if left[line] else "nothing"
        left[line] -= left[line] > 0
    for line in left.elements():
        yield "nothing", shown(line)


def compare_order(recorded: Sequence[str], printed: Sequence[str]) -> tuple[str, str]:
    """The lines that both have, in the order of each."""
    both = set(recorded).intersection(printed)
    one, other = ([line for line in dict.fromkeys(lines) if line in both] for lines in (recorded, printed))
    return "; ".join(one), "; ".join(other)


def shown(line: str) -> str:
    """A line in quotes, so that a blank at its end is seen."""
    return f'"{line}"'
