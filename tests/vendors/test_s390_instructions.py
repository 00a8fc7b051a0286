"""The s390 hardware model's instructions, byte by byte, without the driver."""

from __future__ import annotations

import struct

import pytest

from iommukit.hw.bus import Completion
from iommukit_s390.model.unit import State
from tests.vendors.s390 import PROTECT, REGION_FIRST, REGION_SECOND, REGION_THIRD, ROOT, SDMA, SEGMENT, Program

OPERAND = 0x15


def listed(program, token=0, room=32 + 16 * 8):
    answer = program.clp(2, struct.pack(">QQ", token, 0), room)
    length, code = struct.unpack_from(">HH", answer)
    (more,) = struct.unpack_from(">Q", answer, 16)
    return code, more, [struct.unpack_from(">HHIII", answer, at) for at in range(32, length, 16)]


# ---- CLP -------------------------------------------------------------------------------------------------------------


def test_list_shows_functions_with_ids_and_handles():
    program = Program("a", "b")
    assert listed(program) == (0x10, 0, [(0x1042, 0x1AF4, 1 << 31, 1, 1), (0x1042, 0x1AF4, 1 << 31, 2, 2)])
    program.models[1].state = State.STANDBY
    assert [entry[2] for entry in listed(program)[2]] == [1 << 31, 0]


def test_a_long_list_is_read_in_pieces():
    program = Program(*(f"f{n}" for n in range(5)))
    seen, token = [], 0
    while True:
        code, token, entries = listed(program, token, 32 + 16 * 2)
        assert code == 0x10
        seen += [entry[3] for entry in entries]
        if not token:
            break
    assert seen == [1, 2, 3, 4, 5]
    assert listed(program, 99)[0] == 0x10A


def test_query_tells_type_and_range_and_the_group_its_attributes():
    program = Program(pft=5, start_dma=0x1000, end_dma=0xFFFF_FFFF, tlb_refresh=True, rtr=True, dtsm=0x60)
    answer = program.clp(3, struct.pack(">IIQ", program.handle, 0, 0), 144)
    assert struct.unpack_from(">QQ", answer, 64) == (0x1000, 0xFFFF_FFFF)
    assert (answer[63], struct.unpack_from(">I", answer, 20)[0]) == (5, 1)
    group = program.clp(4, bytes(3) + answer[19:20] + bytes(12), 64)
    assert (group[19], group[24]) == (0x21, 0x60)
    assert program.clp(4, bytes(3) + b"\x63" + bytes(12), 64)[2:4] == b"\x01\x0b"


def test_functions_with_other_attributes_are_in_another_group():
    program = Program("a", "b")
    program.models[1].facts.tlb_refresh = False
    answers = [program.clp(3, struct.pack(">IIQ", model.handle, 0, 0), 144) for model in program.models]
    groups = [program.clp(4, bytes(3) + answer[19:20] + bytes(12), 64) for answer in answers]
    assert [group[19] & 1 for group in groups] == [1, 0]


def set_function(program, handle, operation, spaces=1):
    answer = program.clp(5, struct.pack(">IHBBQ", handle, 0, operation, spaces, 0), 32)
    return struct.unpack_from(">H", answer, 2)[0], struct.unpack_from(">I", answer, 16)[0]


def test_enabling_changes_the_handle_and_the_old_one_is_nobodys():
    program = Program()
    before = program.handle
    code, handle = set_function(program, before, 0)
    assert (code, handle >> 31, handle == program.handle) == (0x10, 1, True)
    assert set_function(program, before, 0)[0] == 0x101
    assert set_function(program, handle, 0)[0] == 0x102
    code, off = set_function(program, handle, 1)
    assert (code, off >> 31) == (0x10, 0)
    assert set_function(program, off, 1)[0] == 0x102
    assert set_function(program, off, 0, spaces=0)[0] == 0x103
    assert set_function(program, off, 0)[1] != handle


def test_disabling_forgets_what_was_registered():
    program = Program().enabled().register()
    set_function(program, program.handle, 1)
    program.enabled()
    assert program.model.registration is None


@pytest.mark.parametrize(
    "block",
    [
        b"",
        struct.pack(">HH", 8, 2).ljust(64, b"\0"),
        struct.pack(">HH", 33, 2).ljust(64, b"\0"),
        struct.pack(">HH28xHH", 32, 2, 0, 0),
        struct.pack(">HH28xHH", 32, 2, 9, 0),
        struct.pack(">HH28xHH", 32, 2, 8192, 0),
        struct.pack(">HH", 32, 2).ljust(32, b"\0"),
    ],
)
def test_a_block_of_impossible_lengths_is_an_operand_exception(block):
    assert Program().facility.clp(block) == (Completion(0, interruption=OPERAND), b"")


@pytest.mark.parametrize(
    ("header", "code"), [((24, 2, 0), 0x50), ((32, 7, 0), 0x20), ((32, 2, 1 << 28), 0x40)], ids=["length", "command", "format"]
)
def test_a_wrong_request_is_answered_with_its_code(header, code):
    request = struct.pack(">HHI", *header).ljust(header[0], b"\0") + struct.pack(">HH", 64, 0)
    assert Program().facility.clp(request)[1][2:4] == struct.pack(">H", code)


# ---- load and store --------------------------------------------------------------------------------------------------


def test_configuration_space_is_read_from_the_left():
    program = Program().enabled()
    load = program.facility.load
    assert load(program.handle, 15, 0, 2).result == 0xF41A
    assert load(program.handle, 15, 0, 4).result == 0xF41A_4210
    assert program.facility.store(program.handle, 15, 4, 0x0600, 2).cc == 0
    assert (load(program.handle, 15, 4, 2).result, load(program.handle, 15, 4, 1).result) == (0x0600, 0x06)
    program.facility.store(program.handle, 15, 0, 0, 4)
    assert load(program.handle, 15, 0, 2).result == 0xF41A


@pytest.mark.parametrize(
    ("space", "offset", "size", "ending"),
    [(15, 3, 2, (0, 0, OPERAND)), (15, 0, 3, (0, 0, OPERAND)), (15, 256, 4, (0, 0, OPERAND)), (0, 0, 4, (1, 20, 0))],
)
def test_accesses_that_cannot_be(space, offset, size, ending):
    program = Program().enabled()
    for done in (
        program.facility.load(program.handle, space, offset, size),
        program.facility.store(program.handle, space, offset, 0, size),
    ):
        assert (done.cc, done.status, done.interruption) == ending


def test_states_decide_who_may_do_what():
    program = Program().enabled().register()
    model = program.model
    found = {}
    for state in State:
        model.state = state
        handle = program.handle
        loaded = program.facility.load(handle, 15, 0, 2)
        found[state.value] = (
            (loaded.cc, loaded.status),
            program.refresh(SDMA),
            program.modify(10)[:2],
        )
    # The root table is empty memory: where RPCIT is let through it finds an entry of zeros.
    assert found == {
        "standby": ((3, 0), (3, 0), (3, 0)),
        "disabled": ((3, 0), (3, 0), (3, 0)),
        "enabled": ((0, 0), (1, 8), (0, 0)),
        "error": ((1, 12), (1, 40), (0, 0)),
        "blocked": ((0, 0), (1, 8), (0, 0)),
        "permanent error": ((1, 12), (3, 0), (3, 0)),
    }


# ---- registering -----------------------------------------------------------------------------------------------------


def test_registering_has_a_sequence():
    program = Program().enabled()
    iota = ROOT | REGION_THIRD
    assert program.modify(5) == program.modify(6, iota=iota) == (1, 24, 0)
    assert program.modify(4, iota=iota, space=1) == (1, 28, 0)
    assert program.modify(4, iota=iota) == (0, 0, 0)
    assert program.modify(4, iota=iota) == (1, 24, 0)
    assert program.modify(6, iota=iota) == (0, 0, 0)
    assert program.modify(5) == (0, 0, 0)
    assert program.modify(4, iota=iota, handle=program.handle & ~(1 << 31)) == (3, 0, 0)


@pytest.mark.parametrize(
    ("dtsm", "rtr", "iota", "taken"),
    [
        (0x40, False, ROOT | REGION_THIRD, True),
        (0x40, False, ROOT | SEGMENT, False),
        (0x40, False, ROOT | REGION_SECOND, False),
        (0x60, False, ROOT | REGION_SECOND, True),
        (0x50, False, ROOT | REGION_FIRST, True),
        (0xC0, False, ROOT | SEGMENT, True),
        (0xFF, False, ROOT | 0x810, False),
        (0x40, False, 0, False),
        (0x40, True, 0, True),
    ],
)
def test_the_group_says_what_may_be_designated(dtsm, rtr, iota, taken):
    program = Program(dtsm=dtsm, rtr=rtr).enabled()
    assert program.modify(4, iota=iota) == ((0, 0, 0) if taken else (0, 0, OPERAND))


@pytest.mark.parametrize(
    ("base", "limit", "taken"),
    [
        (SDMA, SDMA + 0xFFF, True),
        (SDMA + 0x123, SDMA + 0x234, True),
        (SDMA - 1, SDMA + 0xFFF, False),
        (SDMA + 0x1000, SDMA, False),
        (SDMA, (1 << 57) - 1, True),
        (SDMA, 1 << 57, False),
    ],
)
def test_the_range_lies_in_what_clp_tells(base, limit, taken):
    program = Program().enabled()
    assert program.modify(4, iota=ROOT | REGION_THIRD, base=base, limit=limit)[2] == (0 if taken else OPERAND)


def test_other_controls():
    program = Program().enabled()
    assert [program.modify(operation)[:2] for operation in (2, 2, 3, 3)] == [(0, 0), (1, 24), (0, 0), (1, 24)]
    assert program.modify(99)[2] == OPERAND
    assert program.modify(7)[:2] == program.modify(9)[:2] == (1, 24)
    assert program.modify(10, measurement=0x1000)[:2] == (0, 0)
    assert program.modify(10, measurement=0x1001)[:2] == (1, 0)
    assert program.event()[:2] == (0x2C, 1)
    assert program.model.state is State.ENABLED
    assert program.modify(10, measurement=0x1010)[:2] == (0, 0)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_stops_the_function_until_it_is_reset():
    program = Program().enabled()
    program.root()
    program.register()
    program.map(SDMA, 0x40_0000)
    program.map(SDMA + 0x1000, 0x50_0000, PROTECT)
    assert program.refresh(SDMA, 0x2000) == (0, 0)
    model = program.model
    assert model.translate(1, SDMA + 8, write=True) == 0x40_0008
    assert model.translate(1, SDMA + 0x1010, write=True) is None
    assert model.translate(1, SDMA + 8, write=True) is None
    assert program.event() == (4, 1, program.handle, SDMA + 0x1010, True)
    assert program.event() is None
    assert program.modify(9)[:2] == (0, 0)
    assert model.translate(1, SDMA + 8, write=False) is None
    assert program.modify(7)[:2] == (0, 0)
    assert model.translate(1, SDMA + 8, write=False) == 0x40_0008
    assert program.event() is None


def test_events_of_all_functions_come_in_order():
    program = Program("a", "b").enabled()
    for model in reversed(program.models):
        model.translate(model.facts.fid, SDMA, write=False)
    assert [program.event()[:2] for _ in program.models] == [(1, 2), (1, 1)]


def test_requests_outside_the_range():
    program = Program().enabled()
    program.root()
    for iova in (SDMA - 1, SDMA + 0x2000):
        assert program.modify(4, iota=ROOT | REGION_THIRD, limit=SDMA + 0x1FFF)[:2] == (0, 0)
        assert program.model.translate(1, iova, write=False) is None
        assert program.event() == (2, 1, program.handle, iova, False)
        program.modify(7)
        program.modify(5)


def test_a_range_is_no_longer_than_its_table():
    program = Program().enabled()
    program.root()
    program.register(limit=(1 << 57) - 1)
    assert program.model.translate(1, 1 << 42, write=False) is None
    assert program.event()[0] == 2


def test_rpcit_outside_and_without_registration():
    program = Program().enabled()
    assert (program.refresh(SDMA), program.event()[0]) == ((1, 8), 1)
    program.modify(7)
    program.root()
    program.register(limit=SDMA + 0xFFF)
    assert (program.refresh(SDMA + 0x1000), program.event()[0]) == ((1, 8), 2)
    program.modify(7)
    assert (program.refresh(SDMA + 0x1000, 0), program.event()[0]) == ((1, 8), 2)
    program.modify(7)
    assert program.refresh(SDMA, 0) == (0, 0)
    assert program.refresh(SDMA, handle=program.handle ^ 0x1_0000) == (3, 0)
