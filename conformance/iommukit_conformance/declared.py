"""The form of a declaration: what must be right before anything else can be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from iommukit.hookspecs import VendorDeclaration

ARCHITECTURES = ("x86_64", "aarch64", "s390x", "riscv64")
"""The architectures of machine files, as ``uname -m`` prints them."""


def malformed(said: VendorDeclaration) -> Iterator[str]:
    """What is wrong with a declaration's form, one line each."""
    if not isinstance(said.title, str) or not said.title.strip():
        yield f"title is {said.title!r}; a text was expected"
    if not isinstance(said.arch, tuple | list) or not said.arch:
        yield f"arch is {said.arch!r}; a tuple was expected, of {', '.join(ARCHITECTURES)}"
    else:
        for arch in said.arch:
            if arch not in ARCHITECTURES:
                yield f"arch names {arch!r}; there are {', '.join(ARCHITECTURES)}"
    if not isinstance(said.capabilities, Set) or not _texts(said.capabilities):
        yield f"capabilities is {said.capabilities!r}; a set of names was expected"
    for name in ("hardware_options", "expected_failures"):
        value: Any = getattr(said, name)
        if not isinstance(value, Mapping) or not _texts(value) or not _texts(value.values()):
            yield f"{name} is {value!r}; a mapping from names to a text each was expected"


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
