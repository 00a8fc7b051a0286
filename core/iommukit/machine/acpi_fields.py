"""What the fields of a firmware table are made of: numbers, flags, codes, text, bytes and references.

A field's annotation says both how it lies in memory and how people write it::

    address: Address                # eight bytes; 0xfed90000 in YAML
    flags: As8[DrhdFlags]           # one byte; [include_pci_all] in YAML
    reserved: Zero16 = 0            # two bytes that the specification wants to be zero, kept as they are

Everything is little-endian (ACPI 5.2).  Each kind of field is a ``Wire``: bytes to value, value to bytes, and the pydantic
schema of the written form.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

E = TypeVar("E", bound=enum.IntEnum | enum.IntFlag)


class Code(enum.IntEnum):
    """A number with names for the values that the specification knows; any other value stays a number.

    People write the name in lower case (``ioapic``) or the number.
    """

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if not isinstance(value, int) or value < 0:
            return None
        member = int.__new__(cls, value)
        member._name_ = f"{value:#x}"
        member._value_ = value
        return member

    @property
    def known(self) -> bool:
        """Whether the specification names this value."""
        return self._name_ in type(self).__members__


def number(value: object) -> object:
    """An int from what people write: 10, "10" or "0xa"."""
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            raise ValueError(f"a number was expected, such as 10 or 0xa, not {value!r}") from None
    return value


class Wire(ABC):
    """One kind of field.  ``size`` is its length in bytes, ``None`` where the content tells."""

    size: int | None = None

    @abstractmethod
    def read(self, raw: bytes, labels: Mapping[int, str]) -> Any:
        """The value of ``raw``; ``ValueError`` says what is wrong with it."""

    @abstractmethod
    def write(self, value: Any, labels: Mapping[str, int]) -> bytes:
        """The bytes of ``value``."""

    def reserved(self, value: Any) -> str | None:
        """What ``value`` sets that the specification reserves, in words."""
        return None


class Int(Wire):
    """An unsigned number of ``size`` bytes; of an enumeration or a set of flags where the annotation says so.

    ``reserved_bits`` must be zero by the specification; values that break this are kept and reported by ``lint``.
    """

    def __init__(self, size: int, *, hex: bool = False, reserved_bits: int = 0) -> None:
        self.size: int = size
        self.hex = hex
        self.reserved_bits = reserved_bits
        self.maximum = (1 << 8 * size) - 1
        self.type: type[enum.IntEnum] | type[enum.IntFlag] | None = None

    def of(self, type_: object) -> Int:
        """Bind the number to the enumeration or the flags of its annotation."""
        if not (isinstance(type_, type) and issubclass(type_, enum.IntEnum | enum.IntFlag)):
            return self
        bound = Int(self.size, hex=self.hex, reserved_bits=self.reserved_bits)
        bound.type = type_
        if issubclass(type_, enum.IntFlag):
            bound.reserved_bits = self.maximum & ~sum(type_)
        return bound

    def read(self, raw: bytes, labels: Mapping[int, str]) -> int:
        """Read the number, least significant byte first."""
        value = int.from_bytes(raw, "little")
        return value if self.type is None else self.type(value)

    def write(self, value: int, labels: Mapping[str, int]) -> bytes:
        """Write the number, least significant byte first."""
        return int(value).to_bytes(self.size, "little")

    def reserved(self, value: int) -> str | None:
        """Name a value that the enumeration does not know, or bits that must be zero."""
        if isinstance(value, Code) and not value.known:
            return f"{int(value):#x} is no known value"
        stray = int(value) & self.reserved_bits
        return f"reserved bits {stray:#x} are set" if stray else None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        wire = self.of(source)
        note = {"iommukit_wire": wire}
        if wire.type is not None:
            written = core_schema.plain_serializer_function_ser_schema(wire._written, when_used="json")
            return core_schema.no_info_plain_validator_function(wire._named, serialization=written, metadata=note)
        plain = core_schema.int_schema(strict=True, ge=0, le=self.maximum)
        written = core_schema.plain_serializer_function_ser_schema(hex if self.hex else int, when_used="json")
        return core_schema.no_info_before_validator_function(number, plain, serialization=written, metadata=note)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        numbers: list[JsonSchemaValue] = [
            {"type": "integer", "minimum": 0, "maximum": self.maximum},
            {"type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)$"},
        ]
        wire: Int = schema["metadata"]["iommukit_wire"]
        if wire.type is None:
            return {"anyOf": numbers}
        choices = [{"enum": [name.lower() for name in wire.type.__members__]}, *numbers]
        if issubclass(wire.type, enum.IntFlag):
            return {"anyOf": [{"type": "array", "items": {"anyOf": choices}}, *choices]}
        return {"anyOf": choices}

    def _named(self, value: object) -> int:
        assert self.type is not None
        if issubclass(self.type, enum.IntFlag) and isinstance(value, list | tuple | set | frozenset):
            total = 0
            for item in value:
                total |= self._one(item)
        else:
            total = self._one(value)
        if not 0 <= total <= self.maximum:
            raise ValueError(f"{total:#x} does not fit in {self.size} bytes")
        return self.type(total)

    def _one(self, value: object) -> int:
        assert self.type is not None
        if isinstance(value, str):
            if (member := self.type.__members__.get(value.upper())) is not None:
                return int(member)
            try:
                return int(value, 0)
            except ValueError:
                names = ", ".join(name.lower() for name in self.type.__members__)
                raise ValueError(f"no such name {value!r}; there are {names}") from None
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        raise ValueError(f"a name or a number was expected, not {value!r}")

    def _written(self, value: int) -> Any:
        if isinstance(value, enum.IntFlag):
            rest = int(value) & self.reserved_bits
            return [str(member.name).lower() for member in value] + ([hex(rest)] if rest else [])
        return value.name.lower() if isinstance(value, Code) and value.known else hex(value)


class Text(Wire):
    """``size`` bytes of text, padded with NUL (other padding, such as blanks, is kept)."""

    def __init__(self, size: int) -> None:
        self.size: int = size

    def read(self, raw: bytes, labels: Mapping[int, str]) -> str:
        """Read the text without its padding."""
        return raw.decode("latin-1").rstrip("\0")

    def write(self, value: str, labels: Mapping[str, int]) -> bytes:
        """Write the text and its padding."""
        return value.encode("latin-1").ljust(self.size, b"\0")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, core_schema.str_schema(strict=True, max_length=self.size))

    def _check(self, value: str) -> str:
        value.encode("latin-1")
        return value.rstrip("\0")


class NulText(Wire):
    """Text that ends with a NUL."""

    def read(self, raw: bytes, labels: Mapping[int, str]) -> str:
        """Read up to the NUL."""
        text, end, _ = raw.partition(b"\0")
        if not end:
            raise ValueError("has no terminating NUL")
        return text.decode("latin-1")

    def write(self, value: str, labels: Mapping[str, int]) -> bytes:
        """Write the text and its NUL."""
        return value.encode("latin-1") + b"\0"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, core_schema.str_schema(strict=True))

    def _check(self, value: str) -> str:
        value.encode("latin-1")
        if "\0" in value:
            raise ValueError("NUL cannot be part of the text")
        return value


class Raw(Wire):
    """Bytes, written as hexadecimal digits; ``size`` ``None``: all that is left of the structure.

    ``zero``: the specification wants them to be zero.
    """

    def __init__(self, size: int | None = None, *, zero: bool = False) -> None:
        self.size = size
        self.zero = zero

    def read(self, raw: bytes, labels: Mapping[int, str]) -> bytes:
        """Take the bytes as they are."""
        return bytes(raw)

    def write(self, value: bytes, labels: Mapping[str, int]) -> bytes:
        """Give the bytes as they are."""
        return value

    def reserved(self, value: bytes) -> str | None:
        """Show bytes that must be zero and are not."""
        return f"reserved bytes are {value.hex()}, not zero" if self.zero and any(value) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(bytes.hex, when_used="json")
        return core_schema.no_info_plain_validator_function(self._bytes, serialization=shown)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": "^([0-9a-fA-F]{2})*$"}

    def _bytes(self, value: object) -> bytes:
        if isinstance(value, str):
            try:
                value = bytes.fromhex(value)
            except ValueError:
                raise ValueError("pairs of hexadecimal digits were expected") from None
        if not isinstance(value, bytes):
            raise ValueError(f"hexadecimal digits were expected, not {value!r}; write them in quotes")
        if self.size is not None and len(value) != self.size:
            raise ValueError(f"{self.size} bytes were expected, not {len(value)}")
        return value


class DeviceFunction(NamedTuple):
    """One step of a path through PCI: a device number and a function number.  Written ``1e.6``, hexadecimal."""

    device: int
    function: int

    def __str__(self) -> str:
        return f"{self.device:02x}.{self.function:x}"


class PathStep(Wire):
    """Two bytes: device, function (VT-d 8.3.1)."""

    size = 2

    def read(self, raw: bytes, labels: Mapping[int, str]) -> DeviceFunction:
        """Read device and function."""
        return DeviceFunction(raw[0], raw[1])

    def write(self, value: DeviceFunction, labels: Mapping[str, int]) -> bytes:
        """Write device and function."""
        return bytes(value)

    def reserved(self, value: DeviceFunction) -> str | None:
        """Name a step that PCI does not have."""
        return f"{value} is no PCI device and function" if value.device > 31 or value.function > 7 else None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        return core_schema.no_info_plain_validator_function(self._step, serialization=shown)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": r"^[0-9a-fA-F]{1,2}\.[0-9a-fA-F]{1,2}$"}

    def _step(self, value: object) -> DeviceFunction:
        if isinstance(value, DeviceFunction):
            return value
        if isinstance(value, float):
            raise ValueError(f"{value!r} was read as a number; write device.function in quotes")
        device, dot, function = value.partition(".") if isinstance(value, str) else ("", "", "")
        try:
            step = DeviceFunction(int(device, 16), int(function, 16))
        except ValueError:
            raise ValueError(f"device.function in hexadecimal was expected, such as 1e.6, not {value!r}") from None
        if not (dot and 0 <= step.device <= 255 and 0 <= step.function <= 255):
            raise ValueError(f"{value!r}: device and function are one byte each")
        return step


class Reference(Wire):
    """The place of another structure: in memory its offset from the start of the table, as written its label.

    ``nullable``: offset 0 means that there is none.
    """

    def __init__(self, size: int, *, nullable: bool = False) -> None:
        self.size: int = size
        self.nullable = nullable

    def read(self, raw: bytes, labels: Mapping[int, str]) -> str | None:
        """Find the label of the structure at the offset."""
        offset = int.from_bytes(raw, "little")
        if offset in labels:
            return labels[offset]
        if offset == 0 and self.nullable:
            return None
        raise ValueError(f"{offset:#x} is not the start of a node")

    def write(self, value: str | None, labels: Mapping[str, int]) -> bytes:
        """Write the offset of the labelled structure."""
        return (0 if value is None else labels.get(value, 0)).to_bytes(self.size, "little")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        label = core_schema.str_schema(strict=True, min_length=1)
        return core_schema.nullable_schema(label) if self.nullable else label


U8 = Annotated[int, Int(1)]
U16 = Annotated[int, Int(2)]
U32 = Annotated[int, Int(4)]
U64 = Annotated[int, Int(8)]
Hex8 = Annotated[int, Int(1, hex=True)]
Hex16 = Annotated[int, Int(2, hex=True)]
Hex32 = Annotated[int, Int(4, hex=True)]
Hex64 = Annotated[int, Int(8, hex=True)]
Address = Annotated[int, Int(8, hex=True)]
Zero8 = Annotated[int, Int(1, hex=True, reserved_bits=0xFF)]
Zero16 = Annotated[int, Int(2, hex=True, reserved_bits=0xFFFF)]
Zero32 = Annotated[int, Int(4, hex=True, reserved_bits=0xFFFFFFFF)]
Zero64 = Annotated[int, Int(8, hex=True, reserved_bits=0xFFFFFFFFFFFFFFFF)]
As8 = Annotated[E, Int(1)]
As32 = Annotated[E, Int(4)]
Name = Annotated[str, NulText()]
Payload = Annotated[bytes, Raw()]
Step = Annotated[DeviceFunction, PathStep()]
Ref16 = Annotated[str, Reference(2)]
Ref32 = Annotated[str, Reference(4)]
