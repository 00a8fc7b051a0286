"""Walks of the tables in a dump: devices, merged ranges, and where to stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.errors import InputError
from iommukit.hw.memory import TableReader
from iommukit.hw.walk import Leaf, Mode, Step, Walk
from iommukit.machine.dump import Dump
from iommukit.report.page import counted, listed
from iommukit.vendors import Vendor

if TYPE_CHECKING:
    from iommukit.hw.memory import Words
    from iommukit.report.shapes import DeviceWalkJson, EntryJson, RangeJson, WalkJson

RANGES = 10_000
"""Ranges kept, unless told otherwise."""
TABLES = 200_000
"""Tables read, unless told otherwise: 400 GiB of 4 KiB pages.  Damaged tables can name each other without end."""

PCI_NAME = re.compile(r"(?:[0-9a-f]{4}:)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


@dataclass(slots=True)
class Range:
    """Adjoining pages with adjoining physical addresses and the same permissions; ``iova``, ``physical`` and ``size`` in bytes.

    ``pages`` counts the pages of each size; ``path`` leads to the first one.  With a ``reason`` nothing is translated here.
    """

    iova: int
    physical: int
    size: int
    read: bool
    write: bool
    path: tuple[Step, ...]
    pages: dict[int, int]
    reason: str = ""

    @property
    def rights(self) -> str:
        """``rw``, ``r-``, ``-w`` or ``--``."""
        return ("r" if self.read else "-") + ("w" if self.write else "-")

    def to_json(self) -> RangeJson:
        """The range as ``iommukit walk --json`` writes it."""
        answer: RangeJson = {
            "iova": hex(self.iova),
            "size": self.size,
            "physical": None if self.reason else hex(self.physical),
            "read": self.read,
            "write": self.write,
            "pages": {str(size): count for size, count in sorted(self.pages.items())},
            "entries": [_entry(step) for step in self.path],
        }
        if self.reason:
            answer["reason"] = self.reason
        return answer


def merge(leaves: Iterable[Leaf]) -> Iterator[Range]:
    """Join leaves that go on where the one before ends, in both address spaces and with the same permissions; never bad entries.

    A page that fills several entries of a table is counted once.
    """
    last: Range | None = None
    for leaf in leaves:
        page = leaf.page or leaf.size
        count = 0 if leaf.reason else -(-leaf.size // page)
        if (
            last is not None
            and last.iova + last.size == leaf.iova
            and last.physical + last.size == leaf.physical
            and last.read is leaf.read
            and last.write is leaf.write
            and not (last.reason or leaf.reason)
        ):
            last.size += leaf.size
            last.pages[page] = last.pages.get(page, 0) + count
            continue
        if last is not None:
            yield last
        pages = {page: count} if count else {}
        last = Range(leaf.iova, leaf.physical, leaf.size, leaf.read, leaf.write, leaf.path, pages, leaf.reason)
    if last is not None:
        yield last


@dataclass(slots=True)
class DeviceWalk:
    """One device's entry and the ranges that it can reach, or the one address that was ``asked`` for."""

    requester: int
    label: str
    walk: Walk
    asked: bool = False
    ranges: list[Range] = field(default_factory=list)

    @property
    def finding(self) -> bool:
        """Whether an entry is bad, or the address asked for is not translated."""
        stopped = self.walk.mode is Mode.BAD or (self.asked and self.walk.mode is Mode.BLOCKED)
        return stopped or any(each.reason for each in self.ranges)

    def to_json(self) -> DeviceWalkJson:
        """The device as ``iommukit walk --json`` writes it."""
        return {
            "requester": hex(self.requester),
            "device": self.label,
            "mode": self.walk.mode.value,
            "domain": self.walk.domain,
            "reason": self.walk.reason,
            "entries": [_entry(step) for step in self.walk.steps],
            "ranges": [each.to_json() for each in self.ranges],
        }


@dataclass(slots=True)
class WalkReport:
    """What was found in a dump.  ``cut`` says why there may be more."""

    dump: str
    arch: str | None
    memory: int
    vendor: str
    roots: Mapping[str, int]
    iova: int | None
    devices: list[DeviceWalk] = field(default_factory=list)
    cut: str = ""

    @property
    def finding(self) -> bool:
        """Whether there is anything for exit code 1."""
        return any(device.finding for device in self.devices)

    def to_json(self) -> WalkJson:
        """The walk as ``iommukit walk --json`` writes it."""
        return {
            "dump": self.dump,
            "arch": self.arch,
            "memory": self.memory,
            "vendor": self.vendor,
            "roots": {name: hex(value) for name, value in self.roots.items()},
            "iova": None if self.iova is None else hex(self.iova),
            "devices": [device.to_json() for device in self.devices],
            "cut": self.cut or None,
        }


def _entry(step: Step) -> EntryJson:
    return {"name": step.name, "address": hex(step.address), "value": hex(step.value), "meaning": step.meaning}


# ---- arguments -------------------------------------------------------------------------------------------------------


def parse_roots(vendor: Vendor, given: Iterable[str]) -> dict[str, int]:
    """Read ``name=value`` texts.  Raises ``InputError`` for what the vendor does not know, and where its first root is missing."""
    known = dict(vendor.ops.table_roots())
    if not known or "walk_tables" not in vendor.ops.implemented:
        raise InputError(f"{vendor.name} does not read tables")
    explained = listed(f"{name} ({text})" for name, text in known.items())
    roots: dict[str, int] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or name not in known:
            raise InputError(f"--root {text}: NAME=VALUE was expected, with a name among {explained}")
        if name in roots:
            raise InputError(f"--root {name} is given twice")
        roots[name] = parse_number(value, f"--root {name}")
    required = next(iter(known))
    if required not in roots:
        raise InputError(f"--root {required}=VALUE is needed; {vendor.name} has {explained}")
    return roots


def parse_number(text: str, what: str) -> int:
    """A number below 2^64, decimal or 0x….  Raises ``InputError`` naming ``what`` it is for."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64 or "_" in text or not text.isascii():
        raise InputError(f"{what}: a number from 0 to 2^64 - 1 was expected, decimal or 0x…, not {text!r}")
    return number


def parse_requester(text: str) -> int:
    """A PCI address (``00:03.0``), or the number by which the hardware knows the device.  Raises ``InputError``."""
    if found := PCI_NAME.fullmatch(text.strip()):
        bus, slot, function = (int(part, 16) for part in found.groups())
        return bus << 8 | slot << 3 | function
    if ":" in text:
        raise InputError(f"--device: a PCI address such as 00:03.0 or a number was expected, not {text!r}")
    return parse_number(text, "--device")


def label_of(vendor: Vendor, requester: int) -> str:
    """The PCI address where the vendor translates for PCI functions, else the number."""
    if vendor.has("pci") and requester < 1 << 16:
        return f"{requester >> 8:02x}:{requester >> 3 & 31:02x}.{requester & 7}"
    return hex(requester)


def check_machine(dump: Dump, vendor: Vendor) -> None:
    """Raise ``InputError`` where the dump's architecture is none of the vendor's."""
    if dump.arch is not None and dump.arch not in vendor.declaration.arch:
        raise InputError(f"is of {dump.arch}; {vendor.name} exists on {listed(vendor.declaration.arch)}", source=dump.source)


# ---- walking ---------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """More tables were read than are allowed."""


class _Counted(TableReader):
    """A memory that counts the tables read and stops the walk when they are too many."""

    def __init__(self, memory: TableReader, most: int, tick: Callable[[int], None]) -> None:
        self._memory = memory
        self._most = most
        self._tick = tick
        self._count = 0

    def word(self, address: int) -> int:
        return self._memory.word(address)

    def big_word(self, address: int) -> int:
        return self._memory.big_word(address)

    def _counted(self) -> None:
        self._count += 1
        if self._count > self._most:
            raise _Enough
        if not self._count & 0xFF:
            self._tick(self._count)

    def table(self, address: int, count: int) -> Words:
        self._counted()
        return self._memory.table(address, count)

    def big_table(self, address: int, count: int) -> Words:
        self._counted()
        return self._memory.big_table(address, count)


def walk_dump(
    dump: Dump,
    vendor: Vendor,
    roots: Mapping[str, int],
    *,
    requester: int | None = None,
    iova: int | None = None,
    ranges: int = RANGES,
    tables: int = TABLES,
    tick: Callable[[int], None] = lambda count: None,
) -> WalkReport:
    """Walk the tables of one device or of all, for one address or for all.

    Stops after so many ``ranges`` or ``tables``, and says so in ``cut``.  ``tick`` is called now and then with the number of tables
    read.  Raises ``InputError`` for a root that cannot be.
    """
    report = WalkReport(dump.source, dump.arch, dump.size, vendor.name, dict(roots), iova)
    left = ranges
    try:
        for walk in vendor.ops.walk_tables(memory=_Counted(dump, tables, tick), roots=roots, requester=requester, iova=iova):
            device = DeviceWalk(walk.requester, label_of(vendor, walk.requester), walk, iova is not None)
            report.devices.append(device)
            leaves = walk.pages if iova is None else _at(walk.pages, iova)
            for found in merge(leaves):
                if not left:
                    report.cut = f"more than {counted(ranges, 'range')}; --limit allows for more"
                    return report
                device.ranges.append(found)
                left -= 1
    except _Enough:
        most = counted(tables, "table")
        report.cut = f"more than {most}; --tables allows for more (damaged tables may name each other without end)"
    return report


def _at(leaves: Iterable[Leaf], iova: int) -> Iterator[Leaf]:
    """The leaf of one address, from a vendor that may give them all."""
    for leaf in leaves:
        if leaf.iova <= iova < leaf.iova + max(leaf.size, 1):
            yield leaf
            return
