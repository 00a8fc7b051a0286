"""Reading and writing declarative structures: the one piece of code that walks bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi_fields import NulText, Wire
from iommukit.machine.acpi_structure import (
    ALIGNMENT,
    Block,
    Checksum,
    Count,
    Family,
    Filler,
    Item,
    Length,
    Offset,
    Placement,
    Plan,
    Structure,
    Tag,
    Tail,
)


@dataclass(frozen=True, slots=True)
class FieldAt:
    """Where a field lies, in bytes from the start of the table.

    ``name`` is its path (``structures[0].scopes[1].start_bus``), ``title`` the specification's name for it, ``value`` what was
    parsed; for a derived field it is the number in the table.
    """

    offset: int
    length: int
    name: str
    title: str
    value: Any


@dataclass
class Trace:
    """What a reader notes when asked to: every field, and where each structure starts (by path, ending in a dot)."""

    fields: list[FieldAt] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def locate(self, path: str) -> tuple[int, str]:
        """Offset and title of the field, or else of the structure, that ``path`` names."""
        for found in self.fields:
            if found.name == path:
                return found.offset, found.title
        owner, dot, name = path.rpartition(".")
        inside = [found for found in self.fields if found.name.startswith(path)]
        if inside:
            return inside[0].offset, inside[0].title
        return self.starts.get(owner + dot, 0), name.replace("_", " ").title()


class Reader:
    """Turns the bytes of one table into structures."""

    def __init__(self, data: bytes, table: str, source: str | None = None, trace: Trace | None = None) -> None:
        self.data = data
        self.table = table
        self.source = source
        self.trace = trace
        self.labels: dict[int, str] = {}

    def fail(self, message: str, offset: int, title: str) -> FirmwareError:
        """The error to raise for what lies at ``offset``."""
        return FirmwareError(message, table=self.table, offset=offset, field=title, source=self.source)

    def structure(self, cls: type[Structure], start: int, end: int, path: str = "") -> Structure:
        """Read the structure that fills ``start``..``end`` (exclusive)."""
        if self.trace is not None:
            self.trace.starts[path] = start
        return _Frame(self, cls, start, end, path).read()

    def note(self, offset: int, length: int, name: str, title: str, value: Any) -> None:
        """Tell the trace, if there is one."""
        if self.trace is not None:
            self.trace.fields.append(FieldAt(offset, length, name, title, value))

    def value(self, wire: Wire, raw: bytes, offset: int, title: str) -> Any:
        """The value of a field."""
        try:
            return wire.read(raw, self.labels)
        except ValueError as error:
            raise self.fail(str(error), offset, title) from None

    def array(self, tail: Tail, at: int, limit: int, count: int | None, path: str) -> tuple[int, tuple[Any, ...]]:
        """Read ``count`` elements, or as many as there are up to ``limit``; also returns where they end."""
        values: list[Any] = []
        if isinstance(tail.element, Wire):
            size = tail.element.size
            assert size is not None
            while at < limit if count is None else len(values) < count:
                if at + size > limit:
                    raise self.fail(f"element {len(values)}, of {size} bytes, is cut off at {limit:#x}", at, tail.title)
                value = self.value(tail.element, self.data[at : at + size], at, tail.title)
                self.note(at, size, f"{path}{tail.name}[{len(values)}]", tail.title, value)
                values.append(value)
                at += size
            return at, tuple(values)
        spans: list[tuple[type[Structure], int, int]] = []
        while at < limit if count is None else len(spans) < count:
            member, stop = self._span(tail, tail.element, at, limit)
            spans.append((member, at, stop))
            at = stop
        if tail.element.labelled:
            self._label(spans)
        for index, (member, start, stop) in enumerate(spans):
            values.append(self.structure(member, start, stop, f"{path}{tail.name}[{index}]."))
        return at, tuple(values)

    def _span(self, tail: Tail, family: Family, at: int, limit: int) -> tuple[type[Structure], int]:
        """The class of the structure at ``at``, and where it ends."""
        room = limit - at
        if room < family.header:
            raise self.fail(f"{room} bytes are left here, a structure needs at least {family.header}", at, tail.title)
        member = family.other
        if family.tag is not None:
            place, size = at + family.tag[0], family.tag[1]
            tag = int.from_bytes(self.data[place : place + size], "little")
            member = family.by_tag.get(tag, member)
            if member is None:
                raise self.fail(f"unknown type {tag:#x}", place, "Type")
        assert member is not None
        if family.length is not None:
            place, size = at + family.length[0], family.length[1]
            length = int.from_bytes(self.data[place : place + size], "little")
        else:
            place = at
            try:
                length = member.extent(self.data[at:limit])
            except ValueError as error:
                raise self.fail(str(error), at, "Type") from None
        title = "Length" if family.length is not None else tail.title
        least = max(family.header, member.__plan__.head_size)
        if length < least:
            raise self.fail(f"{member.__name__} is {length} bytes long, {least} are the least it needs", place, title)
        if length > room:
            raise self.fail(
                f"{member.__name__} is {length} bytes long, {length - room} more than its parent has left", place, title
            )
        return member, at + length

    def _label(self, spans: list[tuple[type[Structure], int, int]]) -> None:
        """Give each structure a name for others to refer to: its kind and its number among its kind."""
        seen: dict[str, int] = {}
        for member, start, _ in spans:
            kind = member.model_fields["kind"].default
            self.labels[start] = f"{kind}-{seen.setdefault(kind, 0)}"
            seen[kind] += 1


class _Frame:
    """The reading of one structure."""

    def __init__(self, reader: Reader, cls: type[Structure], start: int, end: int, path: str) -> None:
        self.reader, self.cls, self.start, self.end, self.path = reader, cls, start, end, path
        self.plan: Plan = cls.__plan__
        self.limit = end
        self.values: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.offsets: dict[str, tuple[int, Item, int]] = {}

    def read(self) -> Structure:
        reader, values = self.reader, self.values
        at = self.tails(self.head())
        spans = [(self.start, at, "")]
        for tail in self.plan.located:
            count = self.counts.get(tail.name, tail.fixed)
            values[tail.name] = ()
            if count != 0:
                begin = self.start + self.offsets[tail.name][0]
                stop, values[tail.name] = reader.array(tail, begin, self.end, count, self.path)
                spans.append((begin, stop, tail.name))
        if issubclass(self.cls, Block):
            values["placement"] = self.placement(spans)
        if self.plan.labelled:
            values["label"] = reader.labels.get(self.start)
        return self.cls(**values)

    def head(self) -> int:
        """Read the parts of fixed size; returns where they end."""
        reader, data, at, absent = self.reader, self.reader.data, self.start, False
        for item in self.plan.head:
            stop = at + item.size
            if absent or stop > self.limit:
                if not item.optional:
                    raise self.short(item, at)
                absent = True
                self.values[item.name] = None
                continue
            raw = data[at:stop]
            value: Any = int.from_bytes(raw, "little")
            if item.wire is not None:
                value = self.values[item.name] = reader.value(item.wire, raw, at, item.title)
            elif isinstance(item.part, Count):
                self.counts[item.part.of] = value
            elif isinstance(item.part, Offset):
                self.offset(item, item.part.of, value, at)
            elif isinstance(item.part, Tag) and isinstance(item.part.value, bytes):
                value = raw.decode("latin-1")
            reader.note(at, item.size, self.path + item.name, item.title, value)
            at = stop
        for offset, item, place in self.offsets.values():
            if self.counts.get(item.part.of) != 0 and self.start + offset < at:  # type: ignore[union-attr]
                raise reader.fail(f"{offset:#x} lies within the {at - self.start} bytes of fixed fields", place, item.title)
        return at

    def short(self, item: Item, at: int) -> FirmwareError:
        name = self.cls.__name__
        if self.limit < self.end:
            return self.reader.fail(f"an array of this {name} starts within this field", at, item.title)
        return self.reader.fail(f"{name} ends at {self.end:#x}, before this field of {item.size} bytes does", at, item.title)

    def offset(self, item: Item, of: str, value: int, at: int) -> None:
        self.offsets[of] = (value, item, at)
        if self.counts.get(of) == 0:
            return
        if self.start + value > self.end:
            raise self.reader.fail(f"{value:#x} is beyond the end of this {self.cls.__name__}", at, item.title)
        self.limit = min(self.limit, self.start + value)

    def tails(self, at: int) -> int:
        """Read the parts of varying size that lie where they are declared."""
        reader, data = self.reader, self.reader.data
        for tail in self.plan.tail:
            count = self.counts.get(tail.name, tail.fixed)
            if tail.many:
                at, self.values[tail.name] = reader.array(tail, at, self.limit, count, self.path)
                continue
            assert isinstance(tail.element, Wire)
            stop = self.limit if count is None else at + count
            if stop > self.limit:
                raise reader.fail(f"{count} bytes go beyond offset {self.limit:#x}", at, tail.title)
            value = self.values[tail.name] = reader.value(tail.element, data[at:stop], at, tail.title)
            if isinstance(tail.element, NulText):
                stop = at + len(value) + 1
            if stop > at:
                reader.note(at, stop - at, self.path + tail.name, tail.title, value)
            at = stop
        return at

    def placement(self, spans: list[tuple[int, int, str]]) -> Placement | None:
        """What the plain layout does not tell: offsets, the length, bytes between."""
        offsets: dict[str, int] = {}
        plain = spans[0][1] - self.start
        ends = {name: stop for _, stop, name in spans}
        for tail in self.plan.located:
            actual = self.offsets[tail.name][0]
            if actual != (aligned(plain) if tail.name in ends else 0):
                offsets[tail.name] = actual
            if tail.name in ends:
                plain = max(plain, ends[tail.name] - self.start)
        spans = sorted(spans)
        filler = []
        for (_, stop, name), (begin, _, other) in pairwise([*spans, (self.end, self.end, "")]):
            if begin < stop:
                _, item, place = self.offsets[other or name]
                raise self.reader.fail(f"{other or name} overlaps {name or 'the fields before it'}", place, item.title)
            if begin > stop:
                gap = self.reader.data[stop:begin]
                self.reader.note(stop, begin - stop, f"{self.path}placement.filler", "Padding", gap)
                if any(gap):
                    filler.append(Filler(at=stop - self.start, data=gap))
        length = self.end - self.start
        if not offsets and not filler and length == plain:
            return None
        return Placement(length=None if length == plain else length, offsets=offsets, filler=tuple(filler))


def aligned(at: int) -> int:
    """``at``, rounded up to where an array may start."""
    return -(-at // ALIGNMENT) * ALIGNMENT


class Writer:
    """Turns structures into the bytes of one table."""

    def __init__(self, table: str, labels: Mapping[str, int] | None = None) -> None:
        self.table = table
        self.out = bytearray()
        self.known = labels or {}
        self.labels: dict[str, int] = {}

    def fail(self, message: str, path: str) -> InputError:
        """The error to raise for what cannot be written."""
        return InputError(message, source=self.table, place=path or None)

    def put(self, at: int, raw: bytes) -> int:
        """Write ``raw`` at ``at``; returns where it ends."""
        stop = at + len(raw)
        if stop > len(self.out):
            self.out.extend(bytes(stop - len(self.out)))
        self.out[at:stop] = raw
        return stop

    def number(self, value: int, size: int, path: str) -> bytes:
        """A derived number."""
        if value >> 8 * size:
            raise self.fail(f"{value:#x} does not fit in {size} bytes", path)
        return value.to_bytes(size, "little")

    def structure(self, value: Structure, start: int, path: str = "") -> int:
        """Write a structure at ``start``; returns where it ends."""
        plan = value.__plan__
        placement = (value.placement if isinstance(value, Block) else None) or Placement()
        if plan.labelled and (label := getattr(value, "label", None)) is not None:
            self.labels[label] = start
        at, later = start, []
        for item in self._present(value, path):
            raw = bytes(item.size)
            if item.wire is not None:
                raw = item.wire.write(getattr(value, item.name), self.known)
            elif isinstance(item.part, Tag):
                raw = item.part.raw
            elif isinstance(item.part, Count):
                raw = self.number(len(getattr(value, item.part.of)), item.size, path + item.name)
            else:
                later.append((at, item))
            at = self.put(at, raw)
        for tail in plan.tail:
            at = self.tail(tail, getattr(value, tail.name), at, path)
        spans = [(start, at, "fields")]
        offsets: dict[str, int] = {}
        cursor = at - start
        for tail in plan.located:
            content = getattr(value, tail.name)
            offsets[tail.name] = placement.offsets.get(tail.name, aligned(cursor) if content else 0)
            if content:
                begin = start + offsets[tail.name]
                stop = self.tail(tail, content, begin, path)
                spans.append((begin, stop, tail.name))
                cursor = max(cursor, stop - start)
        end = start + cursor
        if isinstance(value, Block):
            end = self._place(value, placement, spans, start, end, path)
        for place, item in later:
            if isinstance(item.part, Length):
                self.put(place, self.number(end - start, item.size, path + item.name))
            elif isinstance(item.part, Offset):
                self.put(place, self.number(offsets[item.part.of], item.size, path + item.name))
            else:
                assert isinstance(item.part, Checksum)
        return end

    def tail(self, tail: Tail, content: Any, at: int, path: str) -> int:
        """Write an array, or bytes or text."""
        if not tail.many:
            assert isinstance(tail.element, Wire)
            return self.put(at, tail.element.write(content, self.known))
        for index, one in enumerate(content):
            if isinstance(tail.element, Wire):
                at = self.put(at, tail.element.write(one, self.known))
            else:
                at = self.structure(one, at, f"{path}{tail.name}[{index}].")
        return at

    def _present(self, value: Structure, path: str) -> Iterator[Item]:
        absent = ""
        for item in value.__plan__.head:
            if item.optional and getattr(value, item.name) is None:
                absent = absent or item.name
            elif absent:
                raise self.fail(f"{item.name} cannot be there where {absent} is not", path + item.name)
            else:
                yield item

    def _place(self, value: Block, placement: Placement, spans: list[tuple[int, int, str]], start: int, end: int, path: str) -> int:
        """Apply a placement's length and filler, and see that no part lies on another."""
        if unknown := placement.offsets.keys() - {tail.name for tail in value.__plan__.located}:
            raise self.fail(f"no such array: {', '.join(sorted(unknown))}", path + "placement.offsets")
        if placement.length is not None:
            if placement.length < end - start:
                raise self.fail(f"{placement.length} is shorter than the content, {end - start}", path + "placement.length")
            end = start + placement.length
        for filler in placement.filler:
            begin = start + filler.at
            spans.append((begin, begin + len(filler.data), "filler"))
            self.put(begin, filler.data)
        for (_, stop, name), (begin, _, other) in pairwise([*sorted(spans), (end, end, "the end")]):
            if begin < stop:
                raise self.fail(f"{name} and {other} overlap", path + "placement")
        self.put(end, b"")
        return end
