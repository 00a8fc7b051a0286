"""Traces: the shipped samples carried out, files that were tampered with, and one recorded now."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli.main import cli
from iommukit.errors import HardwareLost, InputError
from iommukit_oracle.guest.kernels import debian_kernel
from iommukit_oracle.hardware.qemu import find
from iommukit_oracle.kernel.trace import record_trace
from iommukit_oracle.recording import read_lines
from iommukit_oracle.trace_summary import summed_up
from iommukit_oracle.traces import Trace, read_trace, shipped_traces, write_trace

SAMPLES = sorted(shipped_traces().glob("*.jsonl.xz"))
INTEL = next(path for path in SAMPLES if "intel_vtd" in path.name)


def left(trace: Trace) -> Counter[int]:
    """The pages mapped at the end, by counting alone: every page's maps less its unmaps."""
    balance: Counter[int] = Counter()
    for event in trace.events:
        if event.name in ("map", "unmap"):
            for iova in range(event.iova, event.iova + event.size, trace.header.page_size):
                balance[iova] += 1 if event.name == "map" else -1
    return balance


def test_there_is_a_sample_of_every_vendor() -> None:
    assert {read_trace(path).header.vendor for path in SAMPLES} == {"intel_vtd", "amd_vi", "arm_smmu", "s390"}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_can_be_carried_out(path: Path, tmp_path: Path) -> None:
    trace = read_trace(path)
    found = summed_up(trace, path.name)
    balance = left(trace)
    assert set(balance.values()) <= {0, 1}
    assert found.left_pages + found.others == balance.total()
    assert found.maps > found.unmaps > 0
    assert found.peak_pages * trace.header.page_size >= 64 << 10
    assert 0 < found.lifetimes.shortest <= found.lifetimes.median <= found.lifetimes.longest
    assert trace.header.work.result == "ok"
    write_trace(tmp_path / path.name, trace)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", [path for path in SAMPLES if "-disk" in path.name], ids=lambda path: path.name)
def test_lazily_an_address_stays_away_until_the_queue_is_flushed(path: Path) -> None:
    trace = read_trace(path)
    (kind,) = (group.type for group in trace.header.groups if group.id == trace.group)
    returns = summed_up(trace, path.name).returns
    if kind == "DMA-FQ":
        assert returns.count == 0 or returns.shortest > 5_000_000
    else:
        assert kind == "DMA"
        assert 0 < returns.shortest < 2_000_000


def tampered(tmp_path: Path, line: int, old: str, new: str) -> Path:
    """The Intel sample with one line changed, counted from one."""
    lines = read_lines(INTEL)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    return path


def line_of(name: str) -> int:
    """The line of the Intel sample with the first event of a name that is the disk's."""
    lines = read_lines(INTEL)
    return next(n for n, line in enumerate(lines, start=1) if f'"{name}","0xff' in line)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("header", '"version":1', '"version":2', "version 1 was expected, not 2"),
        ("header", '"vendor"', '"maker"', "vendor: this key is missing"),
        ("map", '"map"', '"mop"', "'mop' is no event"),
        ("map", "[", "{", "is no JSON"),
        ("map", ",4096]", "]", "map has the fields iova, paddr, size, and 2 are there"),
        ("map", '000",4096]', '010",4096]', "a multiple of 4096 was expected"),
        ("map", ",4096]", ",4095]", "multiples of 4096 were expected"),
        ("unmap", "[", "[1", "ns behind one of"),
        ("unmap", '"unmap","0xff', '"unmap","0xef', "which is not mapped"),
    ],
)
def test_a_tampered_file_is_one_line(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    number = 1 if name == "header" else line_of(name)
    path = tampered(tmp_path, number, old, new)
    result = CliRunner().invoke(cli, ["oracle", "kernel", "trace", "--show", str(path)])
    assert result.exit_code == 2 or isinstance(result.exception, InputError)
    said = str(result.exception) if isinstance(result.exception, InputError) else result.output
    assert message in said
    assert f"{path}:{number + (old == '[' and new == '[1')}" in said
    assert said.strip().count("\n") == 0


def test_a_page_that_is_mapped_twice(tmp_path: Path) -> None:
    lines = read_lines(INTEL)
    number = line_of("map")
    header = json.loads(lines[0])
    header["phases"][-1]["events"] += 1
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([json.dumps(header), *lines[1:number], lines[number - 1], *lines[number:]]))
    with pytest.raises(InputError, match=rf"t.jsonl:{number + 1}: a map of 0xff.*, which is mapped"):
        summed_up(read_trace(path), str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kernel", "6.12"], "are needed to record a trace"),
        (["--show", "x.jsonl", "--kernel", "6.12"], "--show takes a trace that is there"),
        (["--kernel", "6.12", "--vendor", "riscv", "-o", "x.jsonl"], "no machine of QEMU has the IOMMU of 'riscv'"),
        (["--kernel", "6.12", "--vendor", "s390", "-o", "x.txt"], "a name ending in .jsonl"),
        (["--kernel", "6.12", "--vendor", "s390", "--bytes", "1GB", "-o", "x.jsonl"], "--bytes: a number was expected"),
        (["--kernel", "6.12", "--vendor", "s390", "--modules", ".", "-o", "x.jsonl"], "--modules belongs to an --image"),
        (["--kernel", "x", "--vendor", "s390", "--image", "/none", "-o", "x.jsonl"], "a kernel image was expected"),
        (["--kernel", "x", "--vendor", "s390", "--image", __file__, "--device", "nvme", "-o", "x.jsonl"], "no nvme for s390"),
        (
            ["--kernel", "x", "--vendor", "s390", "--image", __file__, "--bytes", "17MiB", "-o", "x.jsonl"],
            "not 17825792 bytes",
        ),
    ],
)
def test_what_cannot_be_recorded(words: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["oracle", "kernel", "trace", *words])
    assert message in (str(result.exception) if isinstance(result.exception, InputError) else result.output)


def test_a_guest_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*words: object, **more: object) -> None:
        raise HardwareLost("the guest has ended: Kernel panic")

    monkeypatch.setattr("iommukit_oracle.kernel.trace.initrd", lambda *words: b"")
    monkeypatch.setattr("iommukit_oracle.kernel.trace.Guest", dies)
    words = ["--kernel", "x", "--vendor", "s390", "--image", __file__, "-o", "x.jsonl"]
    result = CliRunner().invoke(cli, ["oracle", "kernel", "trace", *words])
    assert result.exit_code == 2
    assert result.output == "iommukit: no trace: the guest has ended: Kernel panic\n"


def test_a_trace_is_recorded_now(tmp_path: Path) -> None:
    try:
        find("x86_64")
        kernel = debian_kernel("6.1", "amd64")
    except InputError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no guest can be booted here: {error}")
    trace = record_trace(kernel, "intel_vtd", "nvme", 65536, "iommu.strict=1")
    write_trace(tmp_path / "now.jsonl.xz", trace)
    result = CliRunner().invoke(cli, ["oracle", "kernel", "trace", "--show", str(tmp_path / "now.jsonl.xz"), "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["work"] == {"kind": "nvme", "device": "0000:00:04.0", "amount": 65536, "result": "ok"}
    assert {group["type"] for group in answer["groups"]} == {"DMA"}
    assert answer["summary"]["peak_pages"] >= 16
    assert sum(phase["events"] for phase in answer["phases"]) == answer["summary"]["events"]
