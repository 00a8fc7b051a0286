"""Reading YAML documents strictly, with errors that name the file and the line.

The loader follows YAML 1.2's core where 1.1 surprises: ``6.1`` stays the text ``6.1``, ``020000`` and ``0000:01:00.0`` are
text, only ``true`` and ``false`` are booleans, and a key that appears twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from iommukit.errors import InputError

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Model = TypeVar("Model", bound=BaseModel)


MAX_BYTES = 16 << 20
MAX_DEPTH = 100
MAX_NODES = 2_000_000
"""What a document may grow to when its aliases are written out."""


class _Loader(_Base):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_document(self, node: yaml.Node) -> Any:
        """Refuse a document whose aliases multiply before anything is built from it."""
        if _size(node, {}) > MAX_NODES:
            raise yaml.constructor.ConstructorError(None, None, "its aliases make it too large", node.start_mark)
        return super().construct_document(node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there are with every alias written out; a node inside itself has no end."""
    found = known.get(id(node))
    if found is not None:
        return found
    known[id(node)] = MAX_NODES + 1
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_size(member, known) for member in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_size(part, known) for pair in node.value for part in pair)
    known[id(node)] = size
    return size


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
# A longer number stays text, and whoever wants a number says so: Python's own limit would be a traceback.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:0|-?[1-9][0-9]{0,30}|0x[0-9a-fA-F]{1,32})$"), list("-0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | bool):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
        seen.add(key)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_text(path: Path) -> str:
    """Read a text file, or say in one line why not."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"is larger than {MAX_BYTES >> 20} MiB", source=str(path))
        return data.decode()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})", source=str(path)) from error


_BRACKETS = re.compile(r"[\[{]|[\]}]")
_DEEP_BLOCK = re.compile(r"^(?: {200}|(?:[ ]*[-?][ ]){100})", re.MULTILINE)


def _reject_deep(text: str, source: str) -> None:
    """Refuse nesting that the parser's own recursion would not survive.

    Counting brackets overestimates (they may be quoted), so a suspicious text is looked at event by event.
    """
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest < MAX_DEPTH and not _DEEP_BLOCK.search(text):
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError("is nested too deeply", source=source, place=f"line {line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse_documents(text: str, source: str) -> list[Any]:
    """Parse the YAML documents of a text, empty ones left out."""
    try:
        _reject_deep(text, source)
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}" if mark else None
        problem = error.problem or "is not YAML"
        if "nesting depth" in problem:  # newer parsers have a limit of their own
            problem = "is nested too deeply"
        raise InputError(problem, source=source, place=place) from error
    except yaml.YAMLError as error:
        raise InputError("is not YAML: " + " ".join(str(error).split()), source=source) from error
    except RecursionError as error:
        raise InputError("is nested too deeply", source=source) from error


def validate_document(model: type[Model], data: Any, *, text: str | None, source: str) -> Model:
    """Validate parsed data; the first thing wrong becomes one line with its place."""
    if not isinstance(data, dict):
        raise InputError(f"a mapping was expected, not {type(data).__name__}", source=source)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(_explain(first), source=source, place=_place(text, _path(data, first))) from error
    except RecursionError as error:
        raise InputError("is nested too deeply", source=source) from error


_EXPECTED = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
}
"""What pydantic's kinds of errors mean to somebody who writes YAML."""


def _explain(error: Any) -> str:
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return "no such key"
    if kind == "missing":
        return "this key is missing"
    if kind in ("less_than_equal", "greater_than_equal"):
        (limit,) = error["ctx"].values()
        return f"{'at most' if kind.startswith('less') else 'at least'} {limit} was expected, got {str(value)[:40]}"
    if kind in _EXPECTED:
        shown = type(value).__name__ if isinstance(value, dict | list | tuple) else repr(value)
        return f"{_EXPECTED[kind]} was expected, got {shown if len(shown) <= 60 else shown[:57] + '…'}"
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…"
    if kind in ("value_error", "assertion_error"):
        return message
    return f"{message[:1].lower()}{message[1:]}, got {shown}"


def _path(data: Any, error: Any) -> list[str | int]:
    """The error's place without the parts that only pydantic knows, such as the branches of a union."""
    path: list[str | int] = []
    location = error["loc"]
    for position, part in enumerate(location):
        last = position == len(location) - 1
        inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if (isinstance(data, dict) and part in data) or inside:
            data = data[part]
            path.append(part)
        elif last and error["type"] == "missing":
            path.append(part)
    return path


def _place(text: str | None, location: Sequence[str | int]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    line = _line_of(text, location) if text else None
    return f"line {line}, {path}" if line and path else f"line {line}" if line else path or None


def _line_of(text: str, location: Sequence[str | int]) -> int | None:
    """The line of the deepest node on the path that the document has."""
    node = yaml.compose(text, Loader=_Loader)
    line: int | None = None
    for part in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            continue
        node = found
    return line
