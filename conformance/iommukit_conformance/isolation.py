"""Which functions nothing keeps apart: a second opinion on groups, by pairs and not by search.

Two functions belong together if one of them can speak with the other's requester id, or if traffic between them need not pass
the root of the bus.  Every such pair is joined; what is joined through others belongs together as well.  This shares nothing
with the core's ``pci_device_group``, which searches upward among groups that exist already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from iommukit.device import DeviceFacts, DeviceKind
from iommukit.machine.model import Machine
from iommukit.machine.topology import build_topology
from iommukit_conformance.lab import ISOLATED, Spec

KEEPS_APART = frozenset(ISOLATED)

PORTS = frozenset({DeviceKind.ROOT_PORT, DeviceKind.DOWNSTREAM_PORT})
TAKES_OVER = frozenset({DeviceKind.PCIE_TO_PCI_BRIDGE, DeviceKind.PCI_TO_PCIE_BRIDGE, DeviceKind.PCI_BRIDGE})
"""Bridges that pass requests on under an id of their own."""
NEVER = TAKES_OVER | {DeviceKind.CONVENTIONAL, DeviceKind.EVENT_COLLECTOR}


@dataclass(frozen=True)
class Function:
    """A function and the ports and bridges above it, nearest first."""

    facts: DeviceFacts
    above: tuple[DeviceFacts, ...]

    @property
    def name(self) -> str:
        """The machine file's name."""
        return self.facts.name


def functions(machine: Machine) -> list[Function]:
    """The functions of a machine, with what is above them."""
    placed = build_topology(machine).devices
    found: list[Function] = []
    for device in placed:
        above = []
        at = device.parent
        while at is not None:
            above.append(placed[at].facts)
            at = placed[at].parent
        found.append(Function(device.facts, tuple(above)))
    return found


def keeps_apart(facts: DeviceFacts) -> bool:
    """Whether a function sends everything towards the root (PCIe 6.12: access control services)."""
    if facts.kind in NEVER:
        return False
    if facts.kind not in PORTS and not facts.multifunction:
        return True
    return facts.acs is not None and facts.acs >= KEEPS_APART


def inseparable(machine: Machine) -> Iterator[tuple[str, str]]:
    """All pairs of functions that are joined directly, by name."""
    known = functions(machine)
    for function in known:
        above = function.above
        top = max((place for place, bridge in enumerate(above) if bridge.kind in TAKES_OVER), default=-1)
        for place, bridge in enumerate(above):
            if place > top and all(keeps_apart(each) for each in above[place:]):
                break
            yield function.name, bridge.name
    for one, two in combinations((function.facts for function in known), 2):
        a, b = one.pci, two.pci
        if a is None or b is None or (a.segment, a.bus) != (b.segment, b.bus):
            continue
        if a.devfn in two.dma_aliases or b.devfn in one.dma_aliases:
            yield one.name, two.name
        if a.slot == b.slot and one.multifunction and not keeps_apart(one) and not keeps_apart(two):
            yield one.name, two.name


def classes(machine: Machine) -> dict[str, int]:
    """A number for each function; equal numbers belong together."""
    number = {device.name: place for place, device in enumerate(machine.devices)}
    for one, two in inseparable(machine):
        old, new = number[one], number[two]
        number = {name: new if at == old else at for name, at in number.items()}
    return number


def pairs(machine: Machine, *, together: bool) -> list[tuple[str, str]]:
    """The pairs of functions that belong together, or those that do not."""
    wanted = classes(machine)
    return [(one, two) for one, two in combinations(wanted, 2) if (wanted[one] == wanted[two]) is together]


# ---- topologies to try -----------------------------------------------------------------------------------------------


def _port(name: str, address: str, kind: str = "root_port", **more: Any) -> Spec:
    return {"name": name, "address": address, "id": "1b36:000c", "class": "060400", "kind": kind, **more}


def _card(name: str, address: str, parent: str | None = None, kind: str = "endpoint", **more: Any) -> Spec:
    return {"name": name, "address": address, "id": "8086:10d3", "class": "020000", "kind": kind, "parent": parent, **more}


_SWITCH_TOP = (
    _port("root", "0000:00:01.0", acs=ISOLATED),
    _port("up", "0000:01:00.0", "upstream_port", parent="root"),
)


def _switch(**down: Any) -> tuple[Spec, ...]:
    return (
        *_SWITCH_TOP,
        _port("down1", "0000:02:01.0", "downstream_port", parent="up", **down),
        _port("down2", "0000:02:02.0", "downstream_port", parent="up", **down),
        _card("nic1", "0000:03:00.0", "down1"),
        _card("nic2", "0000:04:00.0", "down2"),
    )


def _functions(**each: Any) -> tuple[Spec, ...]:
    return (
        _port("root", "0000:00:01.0", acs=ISOLATED),
        _card("f0", "0000:01:00.0", "root", multifunction=True, **each),
        _card("f1", "0000:01:00.1", "root", multifunction=True, **each),
        _card("f2", "0000:01:00.2", "root", multifunction=True, **each),
    )


TOPOLOGIES: Mapping[str, Sequence[Spec]] = {
    "two ports with access control": (
        _port("root1", "0000:00:01.0", acs=ISOLATED),
        _port("root2", "0000:00:02.0", acs=ISOLATED),
        _card("nic1", "0000:01:00.0", "root1"),
        _card("nic2", "0000:02:00.0", "root2"),
    ),
    "two ports without": (
        _port("root1", "0000:00:01.0"),
        _port("root2", "0000:00:02.0"),
        _card("nic1", "0000:01:00.0", "root1"),
        _card("nic2", "0000:02:00.0", "root2"),
    ),
    "two ports of one slot without": (
        _port("root1", "0000:00:1c.0", multifunction=True),
        _port("root2", "0000:00:1c.1", multifunction=True),
        _card("nic1", "0000:01:00.0", "root1"),
        _card("nic2", "0000:02:00.0", "root2"),
    ),
    "two ports of one slot with access control": (
        _port("root1", "0000:00:1c.0", multifunction=True, acs=ISOLATED),
        _port("root2", "0000:00:1c.1", multifunction=True, acs=ISOLATED),
        _card("nic1", "0000:01:00.0", "root1"),
        _card("nic2", "0000:02:00.0", "root2"),
    ),
    "a port with half of access control": (
        _port("root", "0000:00:01.0", acs=("SV", "RR")),
        _card("nic", "0000:01:00.0", "root"),
    ),
    "a switch with access control": _switch(acs=ISOLATED),
    "a switch without": _switch(),
    "functions without access control": _functions(),
    "functions with access control": _functions(acs=ISOLATED),
    "conventional devices behind a bridge": (
        _port("root", "0000:00:01.0", acs=ISOLATED),
        _port("bridge", "0000:01:00.0", "pcie_to_pci_bridge", parent="root"),
        _card("old1", "0000:02:01.0", "bridge", "conventional"),
        _card("old2", "0000:02:02.0", "bridge", "conventional"),
    ),
    "conventional devices behind a conventional bridge": (
        _port("bridge", "0000:00:1e.0", "pci_bridge"),
        _card("old1", "0000:01:01.0", "bridge", "conventional"),
        _card("old2", "0000:01:02.0", "bridge", "conventional"),
        _card("nic", "0000:00:03.0"),
    ),
    "a function that speaks for another": (
        _port("root", "0000:00:01.0", acs=ISOLATED),
        _card("f0", "0000:01:00.0", "root", multifunction=True, acs=ISOLATED),
        _card("f1", "0000:01:00.1", "root", multifunction=True, acs=ISOLATED, dma_aliases=("00.0",)),
    ),
    "cards on the root bus": (_card("nic1", "0000:00:03.0"), _card("nic2", "0000:00:04.0")),
}
