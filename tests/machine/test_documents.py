"""Machine and scenario files: strict YAML, and one line for whatever is wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iommukit.errors import InputError
from iommukit.machine.documents import parse_documents, validate_document
from iommukit.machine.model import Machine
from iommukit.machine.topology import build_topology
from iommukit.scenario.load import load_machine, load_scenario_file


def _machine(text: str) -> Machine:
    (document,) = parse_documents(text, "m.yaml")
    return validate_document(Machine, document, text=text, source="m.yaml")


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def test_plain_words_stay_text() -> None:
    (document,) = parse_documents("{6.1: 6.10, id: 0000:01:00.0, class: 020000, on: off, n: 16, h: 0x10, t: true}", "x")
    assert document == {
        "6.1": "6.10",
        "id": "0000:01:00.0",
        "class": "020000",
        "on": "off",
        "n": 16,
        "h": 16,
        "t": True,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine: x\ndevices:\n  - {name: a, colour: red}\n", "m.yaml: line 3, devices[0].colour: no such key"),
        ("machine: x\nmachine: y\n", "m.yaml: line 2: key 'machine' appears twice"),
        ("machine: x\ndevices: [{name: a, address: '1:2'}]", "m.yaml: line 2, devices[0]: a PCI address was expected"),
        ("machine: x\ndevices: [{name: a, id: '8086'}]", "devices[0].id: vendor:device in hexadecimal was expected"),
        ("machine: x\ndevices: [{name: a, kind: tree}]", "line 2, devices[0].kind: "),
        ("machine: x\ndevices: [{name: a, parent: b}]", "a: parent 'b' is no device of this machine"),
        ("machine: x\ndevices: [{name: a, parent: b}, {name: b, parent: a}]", "parent runs in a loop: a -> b -> a"),
        ("machine: x\ndevices: [{name: a}, {name: a}]", "device name 'a' appears twice"),
        ("machine: x\ndevices: [{name: a, acs: [XX]}]", "no ACS bit 'XX'"),
        ("machine: x\ndevices: [{name: a, reserved: [{start: 9, end: 1}]}]", "end 0x1 lies before start 0x9"),
        ("machine: x\ndevices: [{name: a, dma_mask: 'wide'}]", "a number or a 0x… text was expected, got 'wide'"),
        ("machine: [", "m.yaml: line 2: "),
        ("- x", "m.yaml: a mapping was expected, not list"),
        ("{a: &x [*x]}", "m.yaml: line 1: its aliases make it too large"),
        (BOMB, "m.yaml: line 1: its aliases make it too large"),
        ("[" * 100_000, "m.yaml: line 1: is nested too deeply"),
        ("- " * 100_000, "m.yaml: line 1: is nested too deeply"),
        ("".join(" " * depth + "a:\n" for depth in range(3_000)), "is nested too deeply"),
    ],
)
def test_one_line_for_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _machine(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_machine_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        for document in parse_documents(text, "m.yaml"):
            validate_document(Machine, document, text=text, source="m.yaml")


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("{name: a, address: '00:01.0'}, {name: b, parent: a}", "parent a is no bridge or port (its kind is endpoint)"),
        (
            "{name: a, address: '00:01.0', kind: root_port}, {name: b, address: '01:00.0', parent: a},"
            " {name: c, address: '02:00.0', parent: a}",
            "c is on bus 02, but a has bus 01 below it",
        ),
        ("{name: a, address: '00:01.0', kind: root_port, buses: '00'}", "a lies below itself"),
        (
            "{name: a, address: '02:01.0', kind: root_port, buses: '01'},"
            " {name: b, address: '01:01.0', kind: pci_bridge, buses: '02'}",
            "the buses above",
        ),
    ],
)
def test_topologies_that_cannot_be(devices: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_topology(_machine(f"machine: x\ndevices: [{devices}]"))
    assert message in str(caught.value)


def test_bridges_find_their_buses() -> None:
    machine = _machine(
        "machine: x\ndevices: [{name: rp, kind: root_port}, {name: nic, parent: rp}, {name: other, address: '00:05.0'},"
        " {name: far, address: '05:00.0'}, {name: br, address: '00:06.0', kind: root_port, buses: '05-07'}]"
    )
    topology = build_topology(machine)
    placed = {entry.facts.name: entry for entry in topology.devices}
    names = list(placed)
    assert placed["nic"].parent == names.index("rp")
    assert placed["far"].parent == names.index("br")
    assert placed["nic"].facts.label == "0000:01:00.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenario: s\nmachine: no-such-machine\n", "no machine 'no-such-machine'"),
        (
            "scenario: s\nmachine: {devices: [{name: a}]}\nsteps: [{bind: {device: b}}]\n",
            "no device 'b' in the machine; there are a",
        ),
        ("scenario: s\nmachine: {}\nsteps: [{fly: {}}]\n", "steps[0].fly: no such key"),
        ("scenario: s\nmachine: {}\nsteps: [{}]\n", "a step is one operation"),
        ("scenario: s\nmachine: {}\nrule: boot7\n", "rule: "),
        ("", "is empty"),
        ("scenario: s\nmachine: {firmware: {DMAR: ../../etc/passwd}}\n", "lies outside the machine file's folder"),
        ("scenario: s\nmachine: {firmware: {DMAR: gone.aml}}\n", "gone.aml: cannot be read"),
    ],
)
def test_scenario_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_scenario_file(path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_machine_names_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"the project has .*nic-behind-root-port"):
        load_machine("nowhere")
