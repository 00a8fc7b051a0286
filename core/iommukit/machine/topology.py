"""From a machine file's devices to facts with addresses and parents settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iommukit.device import DeviceFacts, DeviceKind, PciAddress
from iommukit.errors import InputError
from iommukit.machine.model import DeviceSpec, Machine
from iommukit.regions import RegionType, ReservedRegion


@dataclass(frozen=True, slots=True)
class Placed:
    """One device with its place: ``parent`` is an index into the topology, ``secondary`` the bus number below a bridge."""

    facts: DeviceFacts
    parent: int | None
    secondary: int | None


@dataclass(frozen=True, slots=True)
class Topology:
    """All devices of a machine in the order of enumeration.

    ``aliased_buses``: buses (segment, number) on which some function has DMA aliases.
    """

    devices: tuple[Placed, ...]
    aliased_buses: frozenset[tuple[int, int]]


def build_topology(machine: Machine) -> Topology:
    """Settle addresses, parents and bus numbers.

    Devices without an address get one: below their parent, or the first free slot of bus 0.  Raises ``InputError`` where a
    parent is no bridge or lies on another segment than its address says.
    """
    source = machine.source
    specs = machine.devices
    index = {spec.name: position for position, spec in enumerate(specs)}
    numbers: list[tuple[int, int, int, int] | None] = [spec.pci_numbers() for spec in specs]
    secondary = _secondary_buses(specs, index, numbers, source)
    _assign_addresses(specs, index, numbers, secondary, source)
    by_bus = {(address[0], bus): at for at, bus in secondary.items() if (address := numbers[at])}
    placed = []
    aliased = set()
    for position, spec in enumerate(specs):
        address = numbers[position]
        parent = index[spec.parent] if spec.parent else None
        if parent is None and address is not None:
            parent = by_bus.get((address[0], address[1]))
        if parent == position:
            raise InputError(f"{spec.name} lies below itself", source=source, place=f"devices[{position}]")
        facts = _facts(spec, address)
        placed.append(Placed(facts, parent, secondary.get(position)))
        if address is not None and (facts.dma_aliases or facts.real_dma_device):
            aliased.add((address[0], address[1]))
    _reject_bus_loops(placed, source)
    return Topology(tuple(placed), frozenset(aliased))


def _secondary_buses(
    specs: tuple[DeviceSpec, ...],
    index: Mapping[str, int],
    numbers: list[tuple[int, int, int, int] | None],
    source: str,
) -> dict[int, int]:
    """The bus below each bridge: as written, as its children say, else a fresh one."""
    secondary: dict[int, int] = {}
    for position, spec in enumerate(specs):
        if spec.buses:
            secondary[position] = int(spec.buses[:2], 16)
    for position, spec in enumerate(specs):
        if spec.parent is None:
            continue
        above = index[spec.parent]
        if not specs[above].kind.is_bridge:
            kind = specs[above].kind.value
            raise InputError(
                f"parent {spec.parent} is no bridge or port (its kind is {kind})", source=source, place=f"devices[{position}]"
            )
        address = numbers[position]
        if address is None:
            continue
        if secondary.setdefault(above, address[1]) != address[1]:
            message = f"{spec.name} is on bus {address[1]:02x}, but {spec.parent} has bus {secondary[above]:02x} below it"
            raise InputError(message, source=source, place=f"devices[{position}].address")
    used = {number[1] for number in numbers if number} | set(secondary.values())
    fresh = 1
    for position, spec in enumerate(specs):
        if spec.kind.is_bridge and position not in secondary:
            while fresh in used:
                fresh += 1
            if fresh > 0xFF:
                break
            secondary[position] = fresh
            used.add(fresh)
    return secondary


def _assign_addresses(
    specs: tuple[DeviceSpec, ...],
    index: Mapping[str, int],
    numbers: list[tuple[int, int, int, int] | None],
    secondary: dict[int, int],
    source: str,
) -> None:
    used = {number for number in numbers if number}
    for position, spec in enumerate(specs):
        if not spec.kind.is_pci or numbers[position] is not None:
            continue
        if spec.kind is DeviceKind.ZPCI:
            candidates = ((segment, 0, 0, 0) for segment in range(1, 0x10000))
        else:
            bus = secondary.get(index[spec.parent], 0) if spec.parent else 0
            candidates = ((0, bus, slot, 0) for slot in range(0 if spec.parent else 1, 32))
        found = next((candidate for candidate in candidates if candidate not in used), None)
        if found is None:
            raise InputError("no free address on its bus; write one", source=source, place=f"devices[{position}]")
        used.add(found)
        numbers[position] = found


def _reject_bus_loops(placed: list[Placed], source: str) -> None:
    depth: dict[int, int] = {}
    for position in range(len(placed)):
        path: list[int] = []
        at: int | None = position
        while at is not None and at not in depth:
            if len(path) > len(placed):
                name = placed[position].facts.name
                raise InputError(f"the buses above {name} run in a loop", source=source, place=f"devices[{position}]")
            path.append(at)
            at = placed[at].parent
        base = depth[at] if at is not None else 0
        for distance, member in enumerate(reversed(path), start=1):
            depth[member] = base + distance


def _facts(spec: DeviceSpec, numbers: tuple[int, int, int, int] | None) -> DeviceFacts:
    address = PciAddress(*numbers) if numbers else None
    vendor, _, device = (spec.id or "0:0").partition(":")
    attributes: dict[str, Any] = dict(spec.attributes)
    if spec.capabilities:
        attributes["capabilities"] = spec.capabilities
    return DeviceFacts(
        name=spec.name,
        label=str(address) if address else spec.address or spec.name,
        kind=spec.kind,
        pci=address,
        vendor_id=int(vendor, 16),
        device_id=int(device, 16),
        class_code=int(spec.class_code or "0", 16),
        acs=frozenset(spec.acs) if isinstance(spec.acs, tuple) else None,
        acs_unknown=spec.acs == "unknown",
        multifunction=spec.multifunction,
        external_facing=spec.external_facing,
        usb4_host_interface=spec.usb4_host_interface,
        dma_aliases=tuple(_devfn(alias) for alias in spec.dma_aliases),
        real_dma_device=spec.real_dma_device,
        role=spec.role,
        reserved=tuple(ReservedRegion(r.start, r.end, RegionType(r.type)) for r in spec.reserved),
        dma_mask=spec.dma_mask,
        driver=spec.driver,
        present=spec.present,
        attributes=attributes,
    )


def _devfn(text: str) -> int:
    slot, _, function = text.partition(".")
    return int(slot, 16) << 3 | int(function, 16)
