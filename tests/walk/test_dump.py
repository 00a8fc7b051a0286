"""Dumps as files: what is in them is found at its address, what is wrong with them is one line."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.errors import InputError
from iommukit.machine.dump import Dump
from tests.walk.elf import core, headers

WORDS = [0x1122334455667788, 1, 2**64 - 1, 0]
DATA = struct.pack("<4Q", *WORDS)


def dump_of(folder: Path, data: bytes, base: int | None = None) -> Dump:
    path = folder / "dump"
    path.write_bytes(data)
    return Dump(path, base)


@pytest.mark.parametrize(("order", "machine", "arch"), [("<", 62, "x86_64"), ("<", 183, "aarch64"), (">", 22, "s390x")])
@pytest.mark.parametrize("extended", [False, True])
def test_words_of_either_order_of_bytes(tmp_path: Path, order: str, machine: int, arch: str, extended: bool) -> None:
    dump = dump_of(
        tmp_path, core([(0x4000_0000, DATA), (0x1000, b"\0" * 7 + b"\1")], order=order, machine=machine, extended=extended)
    )
    assert dump.arch == arch
    assert dump.size == len(DATA) + 8
    assert [dump.word(0x4000_0000 + 8 * index) for index in range(4)] == WORDS
    assert dump.table(0x4000_0008, 3).tolist() == WORDS[1:]
    assert dump.big_word(0x1000) == 1
    assert dump.big_table(0x1000, 1).tolist() == [1]
    assert dump.big_table(0x1000, 1).dtype == np.uint64


def test_plain_memory_begins_at_its_base(tmp_path: Path) -> None:
    dump = dump_of(tmp_path, DATA, 0x4000_0000)
    assert dump.arch is None
    assert dump.table(0x4000_0000, 4).tolist() == WORDS
    with pytest.raises(InputError, match="no memory at 0x40000020 in the dump"):
        dump.word(0x4000_001C)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), min_size=1, max_size=8), st.data())
def test_memory_is_the_union_of_the_segments(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Segments in any order, touching or overlapping with the same bytes: a table is read where every byte of it is there."""
    whole = bytes(range(200)) * 2
    segments = [(0x1000 + 8 * start, whole[8 * start : 8 * (start + length)]) for start, length in pieces]
    dump = dump_of(tmp_path_factory.mktemp("union"), core(segments))
    there = {word for start, length in pieces for word in range(start, start + length)}
    assert dump.size == 8 * len(there)
    start = data.draw(st.integers(0, 48))
    count = data.draw(st.integers(1, 6))
    if there.issuperset(range(start, start + count)):
        assert dump.table(0x1000 + 8 * start, count).tobytes() == whole[8 * start : 8 * (start + count)]
    else:
        missing = next(word for word in range(start, start + count) if word not in there)
        with pytest.raises(InputError, match=f"no memory at {0x1000 + 8 * missing:#x} in the dump"):
            dump.table(0x1000 + 8 * start, count)


def test_addresses_that_no_memory_has(tmp_path: Path) -> None:
    dump = dump_of(tmp_path, core([(2**64 - 64, DATA), (0, DATA)]))
    assert dump.word(2**64 - 40) == 0
    for address in (-8, 2**64, 2**80, 2**64 - 8):
        with pytest.raises(InputError, match="no memory at"):
            dump.word(address)


def test_a_segment_s_unwritten_end_is_a_hole(tmp_path: Path) -> None:
    """A core of makedumpfile leaves pages out: memsz counts them, filesz does not."""
    dump = dump_of(tmp_path, headers([(0x1000, 0, 0x60, 0x1000), (0x8000, 0, 0, 0x1000)]))
    assert dump.size == 0x60
    for address in (0x1060, 0x8000):
        with pytest.raises(InputError, match="no memory at"):
            dump.word(address)


def test_a_million_segments(tmp_path: Path) -> None:
    segments = np.zeros(1_000_000, dtype=[("flags", "<u8"), *((name, "<u8") for name in ("at", "v", "p", "file", "mem", "align"))])
    segments["flags"] = 1
    segments["p"] = np.arange(len(segments)) * 0x2000
    segments["file"] = segments["mem"] = 64
    head = bytearray(headers([], note=False, extended=True))
    struct.pack_into("<I", head, 64 + 44, len(segments))
    struct.pack_into("<Q", head, 32, len(head))  # e_phoff: behind the section
    struct.pack_into("<Q", head, 40, 64)  # e_shoff
    dump = dump_of(tmp_path, bytes(head) + segments.tobytes())
    assert dump.size == 64_000_000
    assert dump.word(0x2000 * 999_999) == dump.word(0)


OVERLAP = [(0x1000, DATA), (0x1008, DATA)]

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a dump", "is no ELF file; --base says"),
    "kdump": (b"KDUMP   " + bytes(100), "is a kdump-compressed dump"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "compressed by gzip"),
    "cut-header": (core([(0, DATA)])[:40], "the ELF header is cut: 40 of 64 bytes"),
    "32-bit": (b"\x7fELF\x01\x01" + bytes(60), "a 64-bit ELF core was expected"),
    "byte-order": (b"\x7fELF\x02\x07" + bytes(60), "the byte order in the ELF header is 7"),
    "program": (core([(0, DATA)], kind=2), "a core (ELF type 4) was expected, not ELF type 2"),
    "machine": (core([(0, DATA)], machine=8), "dumps of machine 8 are not understood"),
    "no-load": (core([]), "has no PT_LOAD segment"),
    "nothing-written": (headers([(0x1000, 0, 0, 0x1000)]), "no PT_LOAD segment holds any bytes"),
    "header-size": (core([(0, DATA)], phentsize=32), "program headers have 32 bytes: 56 were expected"),
    "cut-headers": (core([(0, DATA)])[:100], "2 program headers from 0x40 on end beyond"),
    "cut-data": (core([(0x1000, DATA)])[:-1], "ends beyond the file's"),
    "offset-overflow": (headers([(0, 2**64 - 8, 16, 16)]), "whose sum is beyond 2^64"),
    "address-overflow": (headers([(2**64 - 8, 0, 16, 16)]), "goes on beyond the physical address 2^64"),
    "contradiction": (core(OVERLAP), "two PT_LOAD segments hold different bytes from 0x1008 on"),
    "section": (core([(0, DATA)], extended=True)[:64] + bytes(8), "lies beyond the end of the file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_dump_is_one_line(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    with pytest.raises(InputError) as error:
        dump_of(tmp_path, data)
    assert str(error.value).startswith(f"{tmp_path / 'dump'}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a dump: No such file"):
        Dump(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read as a dump: Is a directory"):
        Dump(tmp_path)
    with pytest.raises(InputError, match="memory cannot begin at"):
        dump_of(tmp_path, DATA, 4)


def test_endless_overlaps_end(tmp_path: Path) -> None:
    """Segments that overlap a thousandfold are refused before they are compared for hours."""
    size = 1 << 20
    segments = [(8 * index, 8 * index % 4096, size, size) for index in range(60_000)]
    with pytest.raises(InputError, match=r"overlap too much|hold different bytes"):
        dump_of(tmp_path, headers(segments) + bytes(size + 8192))


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_damage_is_bad_input_or_a_dump(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    data = bytearray(core([(0x1000, DATA), (0x3000, DATA)]))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(InputError):
        assert dump_of(tmp_path_factory.mktemp("noise"), bytes(data)).size > 0
