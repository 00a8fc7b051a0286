"""Differences between the model and recorded kernels whose cause is known.

Each is recognised by what was recorded, never by a recording's name.  A difference that matches none of them is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from iommukit_oracle.logs import NOT_MODELLED
from iommukit_oracle.observations import Observation
from iommukit_oracle.recording import Recording


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """A named difference: when it applies, and why it is none of the model's business."""

    name: str
    reason: str
    applies: Callable[[Recording, Observation], bool]


def _integrated_graphics(recording: Recording) -> bool:
    """An Intel display device on the root bus, or the option for it, under a kernel as Debian builds it."""
    display = any(
        entry.ids.startswith("8086:") and entry.class_code.startswith("0x03") and entry.bdf.startswith("0000:00:")
        for entry in recording.functions
    )
    return not recording.kernel.startswith("rfc") and (display or "intgpu_off" in recording.cmdline)


def _about_integrated_graphics(recording: Recording, seen: Observation) -> bool:
    if recording.vendor != "intel_vtd" or not _integrated_graphics(recording):
        return False
    about = f"{seen.expected} {seen.got}".lower()
    return (seen.kind == "type" and seen.expected == "identity") or "intgpu" in about or "integrated" in about


def _line_like(pattern: re.Pattern[str]) -> Callable[[Recording, Observation], bool]:
    return lambda recording, seen: seen.kind == "log" and pattern.search(seen.expected.strip('"')) is not None


_MAPPED_TWICE = re.compile(r"DMA PTE for vPFN 0x0 already set|WARNING: at (intel_iommu_map_pages|__domain_mapping)\b")


def _page_zero(recording: Recording, seen: Observation) -> bool:
    """A unit's driver finds page 0 mapped, and firmware has reserved memory from there on."""
    from_zero = any("RMRR base: 0x00000000000000 " in line for line in recording.iommu_log)
    return from_zero and seen.kind == "log" and seen.got == "nothing" and _MAPPED_TWICE.search(seen.expected) is not None


_IN_PIECES = "AMD-Vi: Extended features ("


def _cut_line(recording: Recording, seen: Observation) -> bool:
    """A line that is printed word by word, of which the kernel's log has but the beginning: the model's goes on."""
    if seen.kind != "log" or _IN_PIECES not in f"{seen.expected} {seen.got}":
        return False
    begun = [line.rstrip() for line in recording.iommu_log if line.startswith(_IN_PIECES)]
    return seen.got == "nothing" or any(seen.got.strip('"').startswith(f"{line} ") for line in begun)


KNOWN_DIFFERENCES: tuple[KnownDifference, ...] = (
    KnownDifference(
        "debian-integrated-graphics",
        "Debian's kernels have an option of their own, on by default, that gives integrated graphics an identity domain",
        _about_integrated_graphics,
    ),
    KnownDifference(
        "cut-line",
        "the kernel prints this line word by word, and another one's line has come between",
        _cut_line,
    ),
    KnownDifference(
        "page-zero-twice",
        "Linux maps page 0 anew for each direct region that holds it, as the address that it is mapped to, 0, is also the word for"
        " a page that is not; VT-d's driver warns of that, and the model prints no lines about page tables",
        _page_zero,
    ),
    *(
        KnownDifference("not-modelled", f"the model prints no lines about {subject}", _line_like(pattern))
        for pattern, subject in NOT_MODELLED
    ),
)


def known_reason(recording: Recording, seen: Observation) -> str | None:
    """Name and reason of the known difference that an observation belongs to."""
    for known in KNOWN_DIFFERENCES:
        if known.applies(recording, seen):
            return f"{known.name}: {known.reason}"
    return None
