"""Which devices a DMAR structure means: device scopes and how the driver matches them (VT-d specification 8.3.1).

A scope is a path from a host bridge's bus downward.  The driver binds each PCI function, as it is found, to the first unit that
names it; what a named bridge has below it belongs to the bridge's unit (``drivers/iommu/intel/dmar.c``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iommukit.device import Device, DeviceFacts
from iommukit.machine.topology import Topology
from iommukit_intel_vtd.firmware import DeviceScope, ScopeKind

BRIDGE_CLASS = 0x06


@dataclass(frozen=True, slots=True)
class PciNode:
    """A PCI function as scopes see it: its way (bus, device, function) from a root bus down."""

    facts: DeviceFacts
    way: tuple[tuple[int, int, int], ...]

    @property
    def segment(self) -> int:
        """The PCI segment."""
        assert self.facts.pci is not None
        return self.facts.pci.segment


class ScopeMismatch(Exception):
    """Firmware calls a bridge an endpoint or the other way round; the text is the kernel's line."""


def _step(facts: DeviceFacts) -> tuple[int, int, int]:
    assert facts.pci is not None
    return facts.pci.bus, facts.pci.slot, facts.pci.function


def nodes_of(topology: Topology, *, absent: bool = False) -> Iterator[PciNode]:
    """The PCI functions that are there at boot, in the order of enumeration; with ``absent`` also those to be plugged in."""
    ways: dict[int, tuple[tuple[int, int, int], ...]] = {}

    def way(index: int) -> tuple[tuple[int, int, int], ...]:
        if index not in ways:
            placed = topology.devices[index]
            above = way(placed.parent) if placed.parent is not None else ()
            ways[index] = (*above, _step(placed.facts))
        return ways[index]

    for index, placed in enumerate(topology.devices):
        if placed.facts.pci is not None and (absent or placed.facts.present):
            yield PciNode(placed.facts, way(index))


def node_of(device: Device) -> PciNode:
    """A running PCI function."""
    return PciNode(device.facts, tuple(_step(member.facts) for member in reversed(list(upward(device)))))


def upward(device: Device) -> Iterator[Device]:
    """A device and the bridges above it, nearest first."""
    at: Device | None = device
    while at is not None:
        yield at
        at = at.bus.bridge if at.bus is not None else None


def matches(node: PciNode, scope: DeviceScope, log: list[str]) -> bool:
    """Whether a scope names a function (``dmar_match_pci_path``).

    Some firmware writes the bus number that a device has after enumeration instead of a path; a path of one step is therefore also
    taken as the device's own address, with a line that says so.
    """
    if node.way[0][0] == scope.start_bus and tuple(step[1:] for step in node.way) == scope.path:
        return True
    if len(scope.path) != 1 or node.way[-1] != (scope.start_bus, *scope.path[0]):
        return False
    slot, function = scope.path[0]
    log.append(
        f"DMAR: [Firmware Bug]: RMRR entry for device {scope.start_bus:02x}:{slot:02x}.{function:x} is broken - applying workaround"
    )
    return True


def names(node: PciNode, segment: int, scopes: Sequence[DeviceScope], log: list[str]) -> bool:
    """Whether one of a structure's scopes names a function (``dmar_insert_dev_scope``).

    Raises ``ScopeMismatch`` where the scope's type and the function's header do not fit; bridges without a bridge's header
    (non-transparent ones, class 0680) may be either.
    """
    if segment != node.segment:
        return False
    for scope in scopes:
        if scope.kind not in (ScopeKind.ENDPOINT, ScopeKind.BRIDGE) or not matches(node, scope, log):
            continue
        header = node.facts.kind.is_bridge
        if scope.kind == ScopeKind.ENDPOINT:
            fits = not header
        else:
            fits = header or node.facts.base_class == BRIDGE_CLASS
        if not fits:
            raise ScopeMismatch(f"DMAR: Device scope type does not match for {node.facts.label}")
        return True
    return False
