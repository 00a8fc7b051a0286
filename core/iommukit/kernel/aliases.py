"""DMA aliases: under which requester ids, and through which bridges, a function's DMA arrives (``drivers/pci/search.c``)."""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.device import Device, DeviceKind

_TRANSPARENT = frozenset({DeviceKind.ROOT_PORT, DeviceKind.UPSTREAM_PORT, DeviceKind.DOWNSTREAM_PORT})


def real_dma_device(device: Device) -> Device:
    """The function that masters the bus for this one (``pci_real_dma_dev``)."""
    name = device.facts.real_dma_device
    return device.system.devices[name] if name else device


def add_dma_alias(device: Device, devfn: int) -> None:
    """Note that a function's DMA may carry another device-function number of its bus (``pci_add_dma_alias``)."""
    address = device.facts.pci
    assert address is not None
    if devfn not in device.dma_aliases:
        device.dma_aliases = (*device.dma_aliases, devfn)
        device.system.aliased_buses.add((address.segment, address.bus))


def dma_aliases(device: Device) -> Iterator[tuple[Device, int]]:
    """The function itself, its quirks' aliases and the bridges that take over its requests, upward.

    Yields the device that stands for the request and the 16-bit requester id (``pci_for_each_dma_alias``).
    """
    device = real_dma_device(device)
    address = device.facts.pci
    assert address is not None
    yield device, address.rid
    for devfn in device.dma_aliases:
        yield device, address.bus << 8 | devfn
    bus = device.bus
    while bus is not None and bus.bridge is not None:
        bridge = bus.bridge
        if bridge.facts.attributes.get("translation_root"):
            return
        if bridge.facts.kind not in _TRANSPARENT:
            assert bridge.facts.pci is not None
            takes_over = bridge.facts.kind is DeviceKind.PCIE_TO_PCI_BRIDGE or bridge.facts.attributes.get("pcie_bridge_alias")
            yield bridge, bus.number << 8 if takes_over else bridge.facts.pci.rid
        bus = bridge.bus


def are_aliases(one: Device, other: Device) -> bool:
    """Whether two functions of a bus can use each other's requester id (``pci_devs_are_dma_aliases``)."""
    a, b = one.facts, other.facts
    assert a.pci is not None and b.pci is not None
    return (
        b.pci.devfn in one.dma_aliases
        or a.pci.devfn in other.dma_aliases
        or real_dma_device(one) is other
        or real_dma_device(other) is one
    )
