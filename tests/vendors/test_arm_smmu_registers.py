"""The hardware model's registers and queues (IHI 0070 3.5, 4, 6, 7)."""

from __future__ import annotations

import pytest

from iommukit.hw.platform import UNMAPPED
from tests.vendors.arm_smmu_hardware import ASID, BASE, COMMANDS, EVENTS, NOT_GLOBAL, PAGE, QUEUE, REGISTERS, SID, TABLE, Bench

FRAME = BASE + 0x80_0000
IDR0, IDR1, IDR3, IDR5, CR0, CR0ACK = 0x00, 0x04, 0x0C, 0x14, 0x20, 0x24
GBPA, IRQ_CTRL, IRQ_CTRLACK, GERROR, GERRORN = 0x44, 0x50, 0x54, 0x60, 0x64
PROD, CONS = 0x98, 0x9C
SYNC, ILLEGAL = (0x46, 0), (0x7F, 0)


@pytest.mark.parametrize(
    ("fields", "idr0", "idr5"),
    [
        ({}, 0x0D40_101A, 0x74),  # what QEMU 7.2 answers
        ({"stages": (2,)}, 0x0D44_1019, 0x74),
        ({"stages": (1, 2), "granules": (16,), "output": 52, "large": True}, 0x0D44_101B, 0x446),
    ],
)
def test_identification(fields, idr0, idr5):
    bench = Bench(**fields)
    assert (bench.get(IDR0), bench.get(IDR5)) == (idr0, idr5)
    assert (bench.get(IDR1), bench.get(IDR3)) == (0x0273_0010, 0x1404)
    bench.set(IDR0, 0)
    assert bench.get(IDR0) == idr0


def test_enables_are_acknowledged():
    bench = Bench()
    assert bench.get(CR0ACK) == 0b1101
    bench.set(IRQ_CTRL, 5)
    assert bench.get(IRQ_CTRLACK) == 5


def test_what_is_in_use_cannot_be_changed():
    bench = Bench()
    for offset in (0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA8):
        before = bench.get(offset)
        bench.set(offset, before ^ 0x1_0040)
        assert bench.get(offset) == before, hex(offset)
    bench.set(CR0, 0)
    bench.set(0x88, 9)
    assert bench.get(0x88) == 9


def test_wide_registers_and_both_pages():
    bench = Bench()
    assert bench.bus.read(REGISTERS + 0x80, 8) == TABLE
    bench.stage_1()
    bench.read(0)
    assert bench.get(0xA8) == bench.get(0x1_00A8) == 1
    bench.set(0xAC, 1)
    assert bench.get(0x1_00AC) == 1
    assert bench.get(0x1_0000) == 0, "nothing else is on the second page"


def test_switched_off_everything_passes_or_nothing():
    bench = Bench()
    bench.set(CR0, 0)
    assert bench.read(0x1234) == 0x1234
    assert bench.many(0x1234) == [0x1234]
    bench.set(GBPA, 1 << 20)
    assert bench.read(0x1234) == 0x1234, "without UPDATE nothing is written"
    bench.set(GBPA, 1 << 20 | 1 << 31)
    assert bench.get(GBPA) == 1 << 20
    assert bench.read(0x1234) is None
    assert bench.many(0x1234) == [int(UNMAPPED)]
    assert bench.events() == []


# ---- commands --------------------------------------------------------------------------------------------------------


def stale():
    """A bench with a page that is gone from the tables and still translated."""
    bench = Bench()
    root = bench.stage_1()
    where = bench.map(root, 39, 0x9000, FRAME | PAGE | NOT_GLOBAL)
    assert bench.read(0x9000) == FRAME
    bench.words(where, 0)
    return bench


def test_an_invalidation_is_done_when_a_sync_is():
    bench = stale()
    assert bench.command((0x12 | ASID << 48, 0x9000), sync=False) == 1, "it is consumed"
    assert bench.read(0x9000) == FRAME
    bench.command((0x46 | 2 << 12, 0), sync=False)
    assert bench.read(0x9000) is None


def test_nothing_is_read_before_the_doorbell():
    bench = stale()
    bench.words(COMMANDS, 0x12 | ASID << 48, 0x9000, *SYNC)
    assert bench.read(0x9000) == FRAME
    bench.set(PROD, 2)
    assert bench.read(0x9000) is None


def test_the_queue_wraps():
    bench = Bench()
    for _ in range(50):
        assert bench.command((0x11 | ASID << 48, 0), (0x01, 0), (0x02, 0)) == bench.prod
    bench.set(CR0, 0b0001)
    bench.words(COMMANDS, *SYNC)
    cons = bench.get(CONS)
    bench.set(PROD, cons + 1)
    assert bench.get(CONS) == cons, "the queue is off"


@pytest.mark.parametrize(
    ("command", "stages", "legal"),
    [
        (ILLEGAL, (1,), False),
        ((0x46 | 3 << 12, 0), (1,), False),  # CMD_SYNC with a reserved CS
        ((0x20, 0), (1,), False),  # TLBI_EL2_ALL
        ((0x22 | ASID << 48, 0x1000), (1,), False),
        ((0x18, 0), (1,), False),  # TLBI_EL3_ALL
        ((0x28, 0), (1,), False),  # S12_VMALL without stage 2
        ((0x28, 0), (2,), True),
        ((0x2A, 0x1000), (1, 2), True),
        ((0x11, 0), (2,), False),  # NH_ASID without stage 1
        ((0x10, 0), (1, 2), True),
        ((0x30, 0), (2,), True),
        ((0x40, 0), (1,), False),  # ATC_INV without ATS
        ((0x41, 0), (1,), False),
        ((0x44, 0), (1,), False),  # RESUME without stalling
        ((0x01 | SID << 32, 0), (1,), True),
        ((0x12, 0x1000 | 1 << 10), (1,), False),  # a granule without TTL, NUM and SCALE
        ((0x12 | 1 << 12, 0x1000 | 1 << 10), (1,), True),
        ((0x12, 0x4000 | 2 << 10 | 1 << 8), (1,), False),  # TTL 1 with 16 KiB
        ((0x12, 0x4000 | 2 << 10 | 2 << 8), (1,), True),
    ],
)
def test_which_commands_there_are(command, stages, legal):
    bench = Bench(stages=stages)
    cons = bench.command(command)
    assert (cons >> 24, cons & 0xFFFFF) == ((0, 2) if legal else (1, 0))
    assert bench.get(GERROR) ^ bench.get(GERRORN) == (0 if legal else 1)


def test_an_illegal_command_stops_the_queue_until_it_is_acknowledged():
    bench = stale()
    bench.command(ILLEGAL, (0x12 | ASID << 48, 0x9000))
    assert bench.read(0x9000) == FRAME
    bench.set(PROD, bench.prod)
    assert bench.get(CONS) == 1 << 24, "still at the command"
    bench.words(COMMANDS, *SYNC)
    bench.set(GERRORN, bench.get(GERROR))
    assert bench.get(CONS) == bench.prod
    assert bench.read(0x9000) is None
    bench.command(ILLEGAL)
    assert bench.get(GERROR) ^ bench.get(GERRORN) == 1, "the bit toggles"


def test_a_queue_outside_memory():
    bench = Bench()
    bench.set(CR0, 0)
    bench.bus.write(REGISTERS + 0x90, 8, BASE - 0x10000 | QUEUE)
    bench.set(CR0, 0b1000)
    bench.set(PROD, 1)
    assert bench.get(CONS) >> 24 == 2


# ---- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 5, 6])
def test_ssec_is_illegal_in_the_non_secure_queue(opcode):
    """4.1.6."""
    bench = Bench()
    bench.command((opcode | 1 << 10, 0), sync=False)
    assert (bench.get(CONS) >> 24, bench.get(GERROR)) == (1, 1)


@pytest.mark.parametrize("log2size", [19, 20, 31])
def test_a_queue_is_no_larger_than_the_unit_has_it(log2size):
    """CMDQ_BASE.LOG2SIZE is capped to IDR1.CMDQS, 19 (6.3.26): index 2^19 is index 0 with the wrap bit."""
    bench = Bench()
    queue = BASE + 0x80_0000
    bench.set(0x20, 0)
    bench.bus.write(REGISTERS + 0x90, 8, queue | log2size)
    bench.set(CONS, (1 << 19) - 1)
    for index in (0, (1 << 19) - 1):
        bench.words(queue + 16 * index, *SYNC)
    bench.set(PROD, 1 << 19 | 1)
    bench.set(0x20, 0b1101)
    assert (bench.get(CONS), bench.get(GERROR)) == (1 << 19 | 1, 0)


def test_queues_are_aligned_to_their_size():
    """Lower bits of an address are ignored (6.3.26, 6.3.29)."""
    bench = Bench()
    bench.set(0x20, 0)
    bench.bus.write(REGISTERS + 0x90, 8, COMMANDS | 0x40 | QUEUE)
    bench.bus.write(REGISTERS + 0xA0, 8, EVENTS | 0x60 | QUEUE)
    bench.set(0x20, 0b1101)
    assert bench.command((0x30, 0)) == 2
    bench.read(FRAME)
    assert [event[0] for event in bench.events()] == [4]


def test_a_full_event_queue_says_that_something_was_lost():
    bench = Bench()
    bench.stage_1()
    size = 1 << QUEUE
    for at in range(size):
        bench.read(0x1000 * at)
    assert bench.get(0xA8) == size, "full: only the wrap bit differs"
    bench.read(0xFFFF000)
    assert bench.get(0xA8) == size | 1 << 31
    bench.read(0xFFFF000)
    assert bench.get(0xA8) == size | 1 << 31
    found = bench.events()
    assert [event[2] for event in found] == [0x1000 * at for at in range(size)]
    bench.read(0x5000)
    assert [event[2] for event in bench.events()] == [0x5000]
    for at in range(size + 1):
        bench.read(0x1000 * at)
    assert not bench.get(0xA8) >> 31, "acknowledged, the flag tells the next loss by the other value"


def test_many_stopped_requests_tell_as_much_as_fits():
    bench = Bench()
    bench.stage_1()
    bench.many(*(0x1000 * at for at in range(100)))
    assert bench.get(0xA8) >> 31 == 1
    assert [event[2] for event in bench.events()] == [0x1000 * at for at in range(1 << QUEUE)]


def test_no_events_without_a_queue():
    bench = Bench()
    bench.stage_1()
    bench.set(CR0, 0b1001)
    assert bench.read(0) is None
    assert bench.get(0xA8) == 0


def test_an_event_queue_outside_memory():
    bench = Bench()
    bench.stage_1()
    bench.set(CR0, 0)
    bench.bus.write(REGISTERS + 0xA0, 8, BASE - 0x10000 | QUEUE)
    bench.set(CR0, 0b1101)
    assert bench.read(0) is None
    assert bench.get(GERROR) == 1 << 2
