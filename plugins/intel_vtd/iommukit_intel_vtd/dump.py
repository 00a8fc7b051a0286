"""Reading a unit's tables out of a memory or a dump, as the hardware would (VT-d specification 9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from iommukit.errors import InputError
from iommukit.hw.decode import READ, WRITE, Decoded, Kind, TableFormat, TableLevel, pages
from iommukit.hw.walk import Mode, Step, Walk
from iommukit_intel_vtd.capabilities import (
    DT,
    FS1GP,
    FS5LP,
    FSTS,
    MGAW,
    PASID,
    PT,
    RPS,
    SAGAW,
    SC,
    SMPWC,
    SMTS,
    SRS,
    SSADS,
    SSLPS,
    SSTS,
    Capabilities,
)
from iommukit_intel_vtd.layout import PAGE_BITS, RTADDR_TTM, TTM_LEGACY, TTM_SCALABLE
from iommukit_intel_vtd.model.contexts import DeviceTables, Entry, Route, Use
from iommukit_intel_vtd.model.walker import USER, Stage, Stages

if TYPE_CHECKING:
    from iommukit.hw.memory import TableReader, Words

LARGEST_ADDRESS = 52
"""Bits of physical address that an entry can hold."""
NAMES = {1: "PTE", 2: "PDE", 3: "PDPE", 4: "PML4E", 5: "PML5E"}


def _everything() -> Capabilities:
    """A unit that has all that the tables can ask for."""
    words = Capabilities(0, 0).with_bits(SAGAW, 0b01110).with_bits(SSLPS, 0b11).with_bits(MGAW, 56)
    for bits in (FS1GP, FS5LP, DT, PT, SC, SMTS, SRS, PASID, SSADS, SSTS, FSTS, SMPWC, RPS):
        words = words.with_bits(bits, 1)
    return words


class PageTables(TableFormat):
    """The page tables of one stage, as the unit reads them."""

    def __init__(self, stage: Stage, address: int) -> None:
        self._stage, self._address = stage, address
        prefix = "FS-" if stage.first else "SS-"
        self.levels = {level: TableLevel(prefix + name, 3 + 9 * level, 9) for level, name in NAMES.items()}

    def decode(self, level: int, entries: Words) -> Decoded:
        """Sort a table's entries."""
        stage = self._stage
        page = np.full(len(entries), level == 1) if not stage.leaf[level] else entries & np.uint64(stage.leaf[level]) != 0
        reserved = np.where(page, np.uint64(stage.reserved_page[level]), np.uint64(stage.reserved_table[level]))
        there = entries & np.uint64(1 if stage.first else READ | WRITE) != 0
        bad = entries & reserved != 0
        if stage.first:
            bad |= entries & np.uint64(USER) == 0
            rights = (entries & np.uint64(WRITE) | np.uint64(READ)).astype(np.uint8)
        else:
            rights = (entries & np.uint64(READ | WRITE)).astype(np.uint8)
        kind = np.where(page, np.uint8(Kind.PAGE), np.uint8(Kind.TABLE))
        kind = np.where(there, np.where(bad, np.uint8(Kind.BAD), kind), np.uint8(Kind.ABSENT))
        return Decoded(kind, entries & np.uint64(self._address), rights)

    def explain(self, level: int, value: int) -> str:
        """The bits by name."""
        names = FIRST_BITS if self._stage.first else SECOND_BITS
        if not value:
            return "not present"
        words = [name for bit, name in names.items() if value >> bit & 1 and (bit != 7 or level > 1)]
        return ", ".join([*words, f"address {value & self._address:#x}"])

    def fault(self, level: int, value: int) -> str:
        """Why an entry is bad."""
        if self._stage.first and not value & USER:
            return "U/S is clear, and requests without a PASID have user privilege"
        return f"reserved bits are set (reason {int(self._stage.reserved):#x})"


SECOND_BITS = {0: "R", 1: "W", 7: "PS", 11: "SNP", 62: "TM"}
FIRST_BITS = {0: "P", 1: "R/W", 2: "U/S", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "XD"}


FIELDS: dict[tuple[str, int], tuple[tuple[str, int, int], ...]] = {
    ("root entry", 2): (("P", 0, 1), ("CTP", 12, 52)),
    ("context entry", 2): (("P", 0, 1), ("FPD", 1, 1), ("TT", 2, 2), ("SSPTPTR", 12, 52), ("AW", 64, 3), ("DID", 72, 16)),
    ("root entry", 1): (("P", 0, 1), ("CTP", 12, 52)),
    ("context entry", 4): (
        *(("P", 0, 1), ("FPD", 1, 1), ("DTE", 2, 1), ("PASIDE", 3, 1), ("PRE", 4, 1), ("PDTS", 9, 3), ("PASIDDIRPTR", 12, 52)),
        *(("RID_PASID", 64, 20), ("RID_PRIV", 84, 1)),
    ),
    ("PASID directory entry", 1): (("P", 0, 1), ("FPD", 1, 1), ("SMPTBLPTR", 12, 52)),
    ("PASID table entry", 8): (
        *(("P", 0, 1), ("FPD", 1, 1), ("AW", 2, 3), ("SSEE", 5, 1), ("PGTT", 6, 3), ("SSADE", 9, 1), ("SSPTPTR", 12, 52)),
        *(("DID", 64, 16), ("PWSNP", 87, 1), ("PGSNP", 88, 1)),
        *(("SRE", 128, 1), ("FSPM", 130, 2), ("WPE", 132, 1), ("NXE", 133, 1), ("FSPTPTR", 140, 52)),
    ),
}
"""The fields of entries (9.1 to 9.6) by the entry's name and its words: name, lowest bit, width.  52 bits are an address."""


def _meaning(entry: Entry) -> str:
    """The fields that are not 0: a single bit by its name alone."""
    value = sum(word << 64 * number for number, word in enumerate(entry.words))
    words = []
    for name, low, width in FIELDS[entry.name, len(entry.words)]:
        found = value >> low & (1 << width) - 1
        if found:
            words.append(name if width == 1 else f"{name}={found << PAGE_BITS if width == 52 else found:#x}")
    return " ".join(words) or "not present"


def walks(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterator[Walk]:
    """Each device's translation; see the hook ``walk_tables``.

    Raises ``InputError`` for an unknown table mode, a root table outside the memory and a requester id of more than 16 bits.
    """
    if requester is not None and requester >= 1 << 16:
        raise InputError(f"{requester:#x} is no requester id: those of PCI have 16 bits")
    rtaddr = roots["rtaddr"]
    mode = rtaddr >> RTADDR_TTM & 3
    if mode not in (TTM_LEGACY, TTM_SCALABLE):
        raise InputError(f"RTADDR {rtaddr:#x} has the translation table mode {mode}; there are 0 (legacy) and 1 (scalable)")
    words = _everything()
    words = Capabilities(roots.get("cap", words.cap), roots.get("ecap", words.ecap))
    tables = DeviceTables(memory, words, LARGEST_ADDRESS)
    stages = Stages(words, LARGEST_ADDRESS)
    memory.word(rtaddr & -0x1000)
    for found in tables.requesters(rtaddr) if requester is None else (requester,):
        yield _walk(memory, stages, tables.route(rtaddr, found), found, iova)


def _walk(memory: TableReader, stages: Stages, route: Route, requester: int, iova: int | None) -> Walk:
    steps = tuple(
        Step(entry.name, entry.address, sum(word << 64 * number for number, word in enumerate(entry.words)), _meaning(entry))
        for entry in route.path
    )
    if route.use is Use.STOP:
        assert route.reason is not None
        absent = route.reason.name.endswith("ABSENT")
        reason = route.reason.name.lower().replace("_", " ").replace("sm ", "")
        return Walk(requester, Mode.BLOCKED if absent else Mode.BAD, steps, reason=f"{reason} (reason {int(route.reason):#x})")
    if route.use is Use.PASS:
        return Walk(requester, Mode.PASS_THROUGH, steps, domain=route.domain)
    format = PageTables(stages.of(route), stages.address)
    leaves = pages(memory, format, route.root, route.levels, iova=iova)
    return Walk(requester, Mode.TRANSLATED, steps, leaves, domain=route.domain)
