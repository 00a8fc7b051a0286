"""Declarative binary structures: one class is the layout in memory, the written form and the JSON schema.

A structure's annotated fields, in order, are its bytes.  What can be derived is no field but a class variable in its place::

    class Drhd(Block):
        kind: Literal["drhd"] = "drhd"             # not in memory: how people tell structures apart
        type: ClassVar[Tag] = Tag(2, 0)            # two bytes: 0 for this structure
        length: ClassVar[Length] = Length(2)       # two bytes: the structure's length
        flags: As8[DrhdFlags] = DrhdFlags(0)
        ...
        scopes: tuple[DeviceScope, ...] = ()       # structures up to the end

An array goes on to the end of its structure, or has a ``Count``, and lies where it is declared, or where an ``Offset`` says.
A field whose type admits ``None`` may be missing at the end of an older, shorter structure.

Whatever is read is written again byte for byte: what firmware does differently from the plain layout (a longer structure, an
array elsewhere, stray bytes) is kept in ``placement``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field

from iommukit.machine.acpi_fields import Hex16, Int, Payload, Reference, Wire

ALIGNMENT = 4
"""Arrays with an offset are placed at multiples of this, counted from the start of their structure."""


@dataclass(frozen=True)
class Derived:
    """Bytes that follow from the rest of the structure; ``size`` of them."""

    size: int


@dataclass(frozen=True)
class Tag(Derived):
    """A constant that tells the structure from others (a type number, a signature)."""

    value: int | bytes

    @property
    def raw(self) -> bytes:
        """The bytes of the constant."""
        return self.value if isinstance(self.value, bytes) else self.value.to_bytes(self.size, "little")


class Length(Derived):
    """The structure's length in bytes, from its own start."""


@dataclass(frozen=True)
class Checksum(Derived):
    """One byte that makes the sum of the table's bytes zero (ACPI 5.2.6)."""

    size: int = 1


@dataclass(frozen=True)
class Count(Derived):
    """The number of elements of the array ``of``, or of bytes of the field ``of``."""

    of: str


@dataclass(frozen=True)
class Offset(Derived):
    """Where the array ``of`` starts, in bytes from the start of this structure; 0 where it is empty."""

    of: str


@dataclass(frozen=True)
class Problem:
    """What ``Structure.faults`` and ``Structure.findings`` report; ``path`` is relative to the structure."""

    path: str
    message: str
    severity: Literal["error", "warning"] = "warning"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Filler(_Model):
    """Bytes other than zero that belong to no field; ``at`` counts from the start of the structure."""

    at: Hex16
    data: Payload


class Placement(_Model):
    """Where firmware departs from the plain layout; all in bytes from the start of the structure."""

    length: Annotated[int, Field(ge=0)] | None = None
    offsets: dict[str, Annotated[int, Field(ge=0)]] = {}
    filler: tuple[Filler, ...] = ()


class Structure(_Model):
    """A binary structure, declared by its fields (see the module's text)."""

    __plan__: ClassVar[Plan]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__plan__ = _plan(cls)

    @classmethod
    def extent(cls, data: bytes) -> int:
        """The length of the structure that ``data`` starts with, for structures that carry no ``Length``."""
        return cls.__plan__.head_size

    def faults(self) -> Iterator[Problem]:
        """What makes a whole table unusable although every field can be read; asked of the table itself only."""
        yield from ()

    def findings(self) -> Iterator[Problem]:
        """What is doubtful about this structure, beside reserved bits and unknown values, which every structure reports."""
        yield from ()


@dataclass(frozen=True)
class Item:
    """A part of fixed size: a field's ``wire`` or a derived ``part``."""

    name: str
    title: str
    size: int
    wire: Wire | None = None
    part: Derived | None = None
    optional: bool = False


@dataclass(frozen=True)
class Tail:
    """A part whose size its content tells: an array, or bytes or text."""

    name: str
    title: str
    element: Wire | Family
    many: bool
    fixed: int | None = None


@dataclass
class Plan:
    """The layout of a structure class."""

    head: list[Item] = field(default_factory=list)
    tail: list[Tail] = field(default_factory=list)
    located: list[Tail] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)
    head_size: int = 0
    tag: tuple[int, Tag] | None = None
    length: tuple[int, int] | None = None
    labelled: bool = False


class Family:
    """The structure classes that an array may hold, told apart by their tag; at most one takes every other tag."""

    def __init__(self, members: list[type[Structure]]) -> None:
        plans = [member.__plan__ for member in members]
        self.by_tag = {int(plan.tag[1].value): m for m, plan in zip(members, plans, strict=True) if plan.tag}
        others = [member for member, plan in zip(members, plans, strict=True) if not plan.tag]
        if len(others) > 1 or len({(plan.tag[0], plan.tag[1].size) for plan in plans if plan.tag}) > 1:
            raise TypeError(f"{members}: the members cannot be told apart")
        if len({plan.length for plan in plans}) > 1:
            raise TypeError(f"{members}: the members have their length in different places")
        self.other = others[0] if others else None
        self.tag = next(((plan.tag[0], plan.tag[1].size) for plan in plans if plan.tag), None)
        self.length = plans[0].length
        self.labelled = any(plan.labelled for plan in plans)
        self.header = max((sum(place) for place in (self.tag, self.length) if place), default=plans[0].head_size)


def _plan(cls: type[Structure]) -> Plan:
    """Read a class's annotations, its bases' first."""
    plan = Plan()
    located = set()
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if name in ("placement", "__plan__") or typing.get_origin(hint) is Literal:
            continue
        if name == "label":
            plan.labelled = True
            continue
        title = name.replace("_", " ").title()
        if name not in cls.model_fields:
            part = getattr(cls, name, None)
            if not isinstance(part, Derived):
                continue
            if isinstance(part, Tag):
                plan.tag = (plan.head_size, part)
            elif isinstance(part, Length):
                plan.length = (plan.head_size, part.size)
                if not issubclass(cls, Block):
                    raise TypeError(f"{cls.__name__} has a length: it is a Block")
            elif isinstance(part, Count):
                plan.counted.add(part.of)
            elif isinstance(part, Offset):
                located.add(part.of)
            _append(cls, plan, Item(name, title, part.size, part=part))
            continue
        title = cls.model_fields[name].title or title
        many, fixed, optional, element = _element(hint)
        if isinstance(element, Wire) and element.size is not None and not many:
            _append(cls, plan, Item(name, title, element.size, wire=element, optional=optional))
        elif name in located:
            plan.located.append(Tail(name, title, element, many, fixed))
        else:
            plan.tail.append(Tail(name, title, element, many, fixed))
    return plan


def _append(cls: type[Structure], plan: Plan, item: Item) -> None:
    if plan.tail or plan.located or (plan.head and plan.head[-1].optional and not item.optional):
        raise TypeError(f"{cls.__name__}.{item.name}: a part of fixed size cannot follow one that varies")
    plan.head.append(item)
    if not item.optional:
        plan.head_size += item.size


def _element(hint: Any) -> tuple[bool, int | None, bool, Wire | Family]:
    """Read an annotation: whether an array, of how many, whether it may be missing, of what."""
    wires = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Wire)]
    if wires:
        wire = wires[0]
        base = hint.__origin__
        return False, None, False, wire.of(base) if isinstance(wire, Int) else wire
    if typing.get_origin(hint) in (Union, types.UnionType):
        (inner,) = [option for option in typing.get_args(hint) if option is not types.NoneType]
        many, fixed, _, element = _element(inner)
        return many, fixed, True, element
    if typing.get_origin(hint) is tuple:
        first, *rest = typing.get_args(hint)
        fixed = None if rest == [...] else 1 + len(rest)
        if any(isinstance(note, Wire) for note in getattr(first, "__metadata__", ())):
            return True, fixed, False, _element(first)[3]
        return True, fixed, False, Family(_members(first))
    raise TypeError(f"{hint!r} says nothing about the layout in memory")


def _members(hint: Any) -> list[type[Structure]]:
    if typing.get_origin(hint) is Annotated:
        hint = hint.__origin__
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return list(options)


class Block(Structure):
    """A structure that carries its length, so that it may be longer than its fields."""

    placement: Placement | None = None


def walk(structure: Structure, path: str = "") -> Iterator[tuple[str, Structure]]:
    """The structure and all below it, each with its path as a prefix (``structures[0].``; the table's own is empty)."""
    yield path, structure
    plan = structure.__plan__
    for tail in (*plan.tail, *plan.located):
        if tail.many and isinstance(tail.element, Family):
            for index, child in enumerate(getattr(structure, tail.name)):
                yield from walk(child, f"{path}{tail.name}[{index}].")


def reference_faults(table: Structure) -> Iterator[Problem]:
    """Labels that appear twice, and references to labels that do not appear."""
    plan = table.__plan__
    if not any(isinstance(tail.element, Family) and tail.element.labelled for tail in (*plan.tail, *plan.located)):
        return
    structures = list(walk(table))
    labels: set[str] = set()
    for path, structure in structures:
        if (label := getattr(structure, "label", None)) is not None:
            if label in labels:
                yield Problem(f"{path}label", f"the label {label!r} appears twice")
            labels.add(label)
    for path, structure in structures:
        for item in structure.__plan__.head:
            target = getattr(structure, item.name) if isinstance(item.wire, Reference) else None
            if target is not None and target not in labels:
                yield Problem(path + item.name, f"there is no node {target!r}")


def reserved(structure: Structure) -> Iterator[Problem]:
    """Fields of this structure that hold what the specification reserves, and structures of unknown type."""
    plan = structure.__plan__
    for item in plan.head:
        value = getattr(structure, item.name) if item.wire else None
        if item.wire and value is not None and (message := item.wire.reserved(value)):
            yield Problem(item.name, message)
    for tail in (*plan.tail, *plan.located):
        if isinstance(tail.element, Wire):
            value = getattr(structure, tail.name)
            for index, one in enumerate(value if tail.many else [value]):
                if message := tail.element.reserved(one):
                    yield Problem(f"{tail.name}[{index}]" if tail.many else tail.name, message)
    if getattr(structure, "kind", None) == "raw":
        yield Problem("type", "unknown type; the structure is kept as it is and skipped")
