"""Which kernel lines the model answers for, and how recorded ones compare with its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

NOT_MODELLED: tuple[tuple[str, str], ...] = (
    (r"Adding to iommu group|Removing from iommu group", "group numbers and members are compared themselves"),
    (r"^ACPI: ", "tables as such"),
    (r"^DMAR-IR: |Interrupt remapping enabled|IRT cache is disabled", "interrupt remapping"),
    (r"^DMAR: (Host address width|DRHD base|dmar\d+: reg_base_addr|RMRR base|ATSR flags)", "a table as it is read"),
    (r"^DMAR: \[Firmware Bug\]", "a region that firmware has not reserved in its memory map"),
    (r"^DMAR: DRHD: handling fault status", "a fault"),
    (r"AMD-Vi: (AMD IOMMUv2|Using global IVHD|Extended features|Found IOMMU cap)", "a feature register as it is read"),
    (r"AMD IOMMUv2", "an AMD driver for process address spaces that also says where it finds nothing"),
    (r"^software IO TLB: ", "bounce buffers"),
    (r"^Malformed early option", "the parser of early options"),
    (r"^Unknown kernel command line parameters|^    iommu=", "the kernel's list of options that nobody reads"),
    (r"^(RIP|CPU|Call Trace|Modules linked in|Code|Hardware name)\b|^ |^---|^R[A-Z0-9]{2}: |^[CF]S: |^CR\d: ", "a stack trace"),
    (r"callbacks suppressed$", "printk's own"),
)
"""Lines that the model does not print, with what they are about."""

_NOT_MODELLED = re.compile("|".join(f"(?:{pattern})" for pattern, _ in NOT_MODELLED))
_ABOUT_DMA = re.compile(r"iommu|DMAR|AMD-Vi|smmu|domain|DMA API|Firmware has requested|WARNING", re.IGNORECASE)
_WARNING = re.compile(r"^WARNING: .* ([a-z0-9_]+)\+0x[0-9a-f]+/0x[0-9a-f]+.*$")
_BROKEN_FIRMWARE = re.compile(r"^Your BIOS is broken;.*RMRR")


def modelled(lines: Iterable[str]) -> list[str]:
    """The lines that the model answers for; a warning is cut to the function that it was in."""
    return [_WARNING.sub(r"WARNING: at \1", line) for line in lines if not _NOT_MODELLED.search(line)]


def about_dma(lines: Iterable[str]) -> list[str]:
    """Of a mixed log, the lines that the model answers for."""
    return [line for line in modelled(lines) if _ABOUT_DMA.search(line)]


def compare_logs(recorded: Sequence[str], printed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Line by line what the kernel has and what the model has, in order; ``nothing`` where one has no such line."""
    matcher = difflib.SequenceMatcher(a=recorded, b=printed, autojunk=False)
    for operation, first, last, start, end in matcher.get_opcodes():
        if operation == "equal":
            yield from ((shown(line), shown(line)) for line in recorded[first:last])
            continue
        yield from ((shown(line), "nothing") for line in recorded[first:last])
        yield from (("nothing", shown(line)) for line in printed[start:end])


def shown(line: str) -> str:
    """A line in quotes, so that a blank at its end is seen."""
    return f'"{line}"'
