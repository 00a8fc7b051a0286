"""What a trace comes to, and whose mapping is whose, by traces made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli.main import cli
from iommukit.cli.oracle_trace import addresses
from iommukit.errors import InputError
from iommukit_oracle.guest.tracing import Event
from iommukit_oracle.trace_summary import Spread, summary_json, summed_up
from iommukit_oracle.traces import (
    Phase,
    Trace,
    TraceDevice,
    TraceEvent,
    TraceGroup,
    TraceHeader,
    Work,
    from_kernel,
    parse_event,
    read_trace,
    write_trace,
)

DISK, USB, UART = "0000:00:04.0", "0000:00:1d.0", "0000:00:1e.0"
LAST = hex((1 << 24) - 1)
DIRECT = (("0x0", LAST, "direct-relaxable"), ("0xfee00000", "0xfeefffff", "msi"))


def event(time: int, name: str, *values: int | str) -> TraceEvent:
    return TraceEvent(time, name, values)


def made(*events: TraceEvent) -> Trace:
    """A disk in group 1; two controllers in groups 2 and 3, each with a direct region of 16 MiB."""
    ids = {DISK: ("1af4:1042", "010000"), USB: ("8086:2934", "0c0300"), UART: ("8086:2935", "0c0300")}
    header = TraceHeader(
        kernel="6.12",
        package="made by hand",
        uname="",
        qemu="7.2",
        vendor="intel_vtd",
        arch="x86_64",
        cmdline="",
        qemu_args="",
        page_size=4096,
        resolution_ns=1000,
        work=Work(kind="disk", device=DISK, amount=4096, result="ok"),
        devices=tuple(
            TraceDevice.model_validate({"address": address, "id": ids[address][0], "class": ids[address][1], "group": group})
            for group, address in enumerate(ids, start=1)
        ),
        groups=(
            TraceGroup(id=1, type="DMA-FQ"),
            TraceGroup(id=2, type="DMA-FQ", regions=DIRECT),
            TraceGroup(id=3, type="DMA-FQ", regions=DIRECT),
        ),
        phases=(Phase(name="boot", events=len(events)),),
    )
    return Trace(header, events)


REGION = (0, 0, 1 << 24)
TRACE = made(
    event(1000, "add_device_to_group", 2, USB),
    event(1000, "map", *REGION),
    event(2000, "map", *REGION),
    event(3000, "map", 0x1000, 0x1000, 0x1000),
    event(4000, "map", 0xFFFF_E000, 0x2000, 0x2000),
    event(6000, "unmap", 0xFFFF_E000, 0x1000, 0x1000),
    event(9000, "map", 0xFFFF_E000, 0x8000, 0x1000),
    event(14000, "unmap", 0xFFFF_E000, 0x2000, 0x2000),
    event(15000, "unmap", 0, 1 << 24, 1 << 24),
    event(16000, "io_page_fault", DISK, "e1000e", 0xFFFF_E000, 1),
)


def test_whose_mapping_is_whose() -> None:
    """Two groups have the same direct region: the first two maps of it are theirs, and so is one of a part of it."""
    assert [group for _, group in TRACE.attributed()] == [2, 3, 2, 1, 1, 1, 1, 2]


def test_a_mapping_to_itself_outside_direct_regions_is_the_device_s() -> None:
    trace = made(event(0, "map", 0xFEE0_0000, 0xFEE0_0000, 0x1000), event(1, "map", LOW := 1 << 24, LOW, 0x1000))
    assert [group for _, group in trace.attributed()] == [1, 1]


def test_what_it_comes_to() -> None:
    trace = made(*(each for each in TRACE.events if each.time != 3000))
    found = summed_up(trace, "t")
    assert (found.events, found.maps, found.unmaps) == (9, 2, 2)
    assert found.sizes == {0x1000: 1, 0x2000: 1}
    assert (found.peak_pages, found.left_pages, found.others) == (2, 0, 4096)
    assert found.ranges == ((0xFFFF_E000, 0xFFFF_FFFF),)
    assert found.lifetimes == Spread(3, 2000, 5000, 10000)
    assert found.returns == Spread(1, 3000, 3000, 3000)
    answer = summary_json(trace, "t")["summary"]
    assert answer["ranges"] == [{"first": "0xffffe000", "last": "0xffffffff"}]
    assert answer["returns"] == {"count": 1, "shortest": 3000, "median": 3000, "longest": 3000}
    json.dumps(answer)


def test_a_trace_of_nothing() -> None:
    found = summed_up(made(), "t")
    assert (found.maps, found.peak_pages, found.ranges, found.lifetimes) == (0, 0, (), Spread(0, 0, 0, 0))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.xz"])
def test_a_file_is_the_trace(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_trace(path, TRACE)
    assert read_trace(path) == TRACE
    before = path.read_bytes()
    write_trace(path, read_trace(path))
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a name ending in \.jsonl or \.jsonl\.xz was expected"):
        write_trace(tmp_path / "t.txt", TRACE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", r"t:2: an event was expected: \[TIME, NAME, FIELDS…\]"),
        ("{}", "t:2: an event was expected"),
        ('[true,"map","0x0","0x0",4096]', "t:2: an event was expected"),
        ('[-1,"map","0x0","0x0",4096]', "t:2: an event was expected"),
        ('[1,"map",0,"0x0",4096]', "t:2: iova: 0x… of 64 bits was expected, not 0"),
        ('[1,"map","0xg","0x0",4096]', "t:2: iova: 0x… of 64 bits was expected, not '0xg'"),
        ('[1,"map","0x0","0x10000000000000000",4096]', "t:2: paddr: 0x… of 64 bits"),
        ('[1,"map","0x0","0x0","4096"]', "t:2: size: a number of 64 bits was expected, not '4096'"),
        ('[1,"map","0x0","0x0",true]', "t:2: size: a number"),
        ('[1,"attach_device_to_domain",4]', "t:2: device: text was expected, not 4"),
        ("[" * 100_000, "t:2: is no JSON"),
    ],
)
def test_a_line_that_is_no_event(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_event(line, "t:2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.jsonl: is empty: the header of a trace was expected"),
        ("[]\n", "t.jsonl:1: a recording .* was expected"),
        ("{}\n", "t.jsonl:1: format: is no trace"),
        ('{"format":"iommukit-trace"}\n', "t.jsonl:1: version: version 1 was expected, not None"),
    ],
)
def test_a_file_that_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(path)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, TRACE)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"t\.jsonl: phases: 10 events were expected, and 9 are there"):
        read_trace(path)


def test_events_as_a_guest_tells_them() -> None:
    fields = {"iova": "0x1000", "paddr": "0x2000", "size": "4096"}
    assert from_kernel([Event(5, "map", fields)]) == (event(5, "map", 0x1000, 0x2000, 4096),)
    with pytest.raises(InputError, match="unmap has no field size"):
        from_kernel([Event(5, "unmap", {"iova": "0x1000"})])
    with pytest.raises(InputError, match="mop is no event that traces know"):
        from_kernel([Event(5, "mop", {})])


def test_many_addresses() -> None:
    assert addresses([]) == "none"
    assert addresses([(0, 1), (4, 5)]) == "0x0 to 0x1; 0x4 to 0x5"
    assert addresses([(0, 1), (4, 5), (8, 9), (12, 13)]) == "0x0 to 0xd in 4 pieces"


def test_the_page(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, made(*(each for each in TRACE.events if each.time != 3000)))
    result = CliRunner().invoke(cli, ["oracle", "kernel", "trace", "--show", str(path)])
    assert result.exit_code == 0, result.output
    assert "1 of 4 KiB, 1 of 8 KiB" in result.stdout
    assert "0xffffe000 to 0xffffffff\n" in result.stdout
    assert "3 pages, after 2 to 10 us, median 5 us" in result.stdout
    assert "1 page, after 3 to 3 us, median 3 us" in result.stdout
