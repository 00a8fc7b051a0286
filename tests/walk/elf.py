"""ELF cores as tests want them, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence

HEADER, PROGRAM, SECTION = 64, 56, 64


def core(
    segments: Sequence[tuple[int, bytes]],
    *,
    order: str = "<",
    machine: int = 62,
    kind: int = 4,
    phentsize: int = PROGRAM,
    note: bool = True,
    extended: bool = False,
) -> bytes:
    """An ELF core with one PT_LOAD for each (physical address, bytes), behind a PT_NOTE as real dumps have it.

    ``extended`` puts the number of program headers where those with more than 65534 have it.
    """
    placed = []
    at = HEADER + PROGRAM * (len(segments) + note) + (SECTION if extended else 0)
    for address, data in segments:
        placed.append((address, at, len(data), len(data)))
        at += len(data)
    tail = b"".join(data for _, data in segments)
    return headers(placed, order=order, machine=machine, kind=kind, phentsize=phentsize, note=note, extended=extended) + tail


def headers(
    segments: Sequence[tuple[int, int, int, int]],
    *,
    order: str = "<",
    machine: int = 62,
    kind: int = 4,
    phentsize: int = PROGRAM,
    note: bool = True,
    extended: bool = False,
) -> bytes:
    """Only the headers; segments as (physical address, offset, size in the file, size in memory)."""
    count = len(segments) + note
    sections_at = HEADER + PROGRAM * count if extended else 0
    ident = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    phnum = 0xFFFF if extended else count
    out = ident + struct.pack(
        order + "HHIQQQIHHHHHH", kind, machine, 1, 0, HEADER, sections_at, 0, HEADER, phentsize, phnum, SECTION, int(extended), 0
    )
    if note:
        out += struct.pack(order + "IIQQQQQQ", 4, 0, 0, 0, 0, 0, 0, 0)
    for address, offset, filesz, memsz in segments:
        out += struct.pack(order + "IIQQQQQQ", 1, 7, offset, 0, address, filesz, memsz, 0)
    if extended:
        out += struct.pack(order + "IIQQQQII", 0, 0, 0, 0, 0, 0, 0, count) + bytes(SECTION - 48)
    return out
