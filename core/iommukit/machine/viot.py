"""The VIOT table: which devices paravirtual IOMMUs (virtio-iommu) translate for.

Sections are those of the VIOT chapter of the ACPI specification, 5.2.34.  It belongs to no vendor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from iommukit.machine.acpi import (
    U8,
    U16,
    AcpiFormat,
    Address,
    Block,
    Count,
    Hex8,
    Hex16,
    Hex32,
    Length,
    Offset,
    Payload,
    Problem,
    Raw,
    Ref16,
    Table,
    Tag,
    Zero8,
    Zero32,
    Zero64,
)


class Node(Block):
    """What all nodes share; ``label`` is how other nodes refer to one, and is not in the table."""

    label: str | None = None


class PciRange(Node):
    """PCI functions below an IOMMU (5.2.34.1): segments and bus/device/function numbers, both inclusive.

    The endpoint ids that the IOMMU sees count up from ``endpoint_start``.
    """

    kind: Literal["pci_range"] = "pci_range"
    type: ClassVar[Tag] = Tag(1, 1)
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    endpoint_start: Hex32 = 0
    segment_start: U16 = Field(0, title="PCI Segment Start")
    segment_end: U16 = Field(0, title="PCI Segment End")
    bdf_start: Hex16 = Field(title="PCI BDF Start")
    bdf_end: Hex16 = Field(title="PCI BDF End")
    output_node: Ref16
    reserved_2: Annotated[bytes, Raw(6, zero=True)] = bytes(6)

    def endpoint(self, segment: int, bdf: int) -> int | None:
        """The endpoint id of a PCI function, if it belongs to this range."""
        if not (self.segment_start <= segment <= self.segment_end and self.bdf_start <= bdf <= self.bdf_end):
            return None
        return ((segment - self.segment_start) << 16) + bdf - self.bdf_start + self.endpoint_start

    def findings(self) -> Iterator[Problem]:
        """A range starts before it ends."""
        if self.segment_end < self.segment_start or self.bdf_end < self.bdf_start:
            yield Problem("bdf_end", "the range ends before it starts", "error")


class MmioEndpoint(Node):
    """One memory-mapped device below an IOMMU (5.2.34.2), found by the address of its registers."""

    kind: Literal["mmio_endpoint"] = "mmio_endpoint"
    type: ClassVar[Tag] = Tag(1, 2)
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    endpoint: Hex32 = Field(title="Endpoint ID")
    base_address: Address
    output_node: Ref16
    reserved_2: Annotated[bytes, Raw(6, zero=True)] = bytes(6)


class VirtioPciIommu(Node):
    """A virtio-iommu that is a PCI function (5.2.34.3)."""

    kind: Literal["virtio_pci_iommu"] = "virtio_pci_iommu"
    type: ClassVar[Tag] = Tag(1, 3)
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    segment: U16 = Field(0, title="PCI Segment")
    bdf: Hex16 = Field(title="PCI BDF Number")
    reserved_2: Zero64 = 0


class VirtioMmioIommu(Node):
    """A virtio-iommu with memory-mapped registers (5.2.34.4)."""

    kind: Literal["virtio_mmio_iommu"] = "virtio_mmio_iommu"
    type: ClassVar[Tag] = Tag(1, 4)
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    reserved_2: Zero32 = 0
    base_address: Address


class RawNode(Node):
    """A node of a type that is not known here."""

    kind: Literal["raw"] = "raw"
    type: Hex8
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    payload: Payload = b""


Iommu = VirtioPciIommu | VirtioMmioIommu
ViotNode = Annotated[PciRange | MmioEndpoint | VirtioPciIommu | VirtioMmioIommu | RawNode, Field(discriminator="kind")]


class Viot(Table):
    """The Virtual I/O Translation table (5.2.34)."""

    signature: ClassVar[Tag] = Tag(4, b"VIOT")
    revision: U8 = 0
    node_count: ClassVar[Count] = Count(2, "nodes")
    node_offset: ClassVar[Offset] = Offset(2, "nodes")
    reserved: Zero64 = 0
    nodes: tuple[ViotNode, ...] = ()

    def iommu(self, segment: int, bdf: int) -> tuple[Iommu, int] | None:
        """The IOMMU that translates for a PCI function, and the function's endpoint id there."""
        for node in self.nodes:
            if isinstance(node, PciRange) and (endpoint := node.endpoint(segment, bdf)) is not None:
                return self._output(node), endpoint
        return None

    def iommu_at(self, base_address: int) -> tuple[Iommu, int] | None:
        """The IOMMU that translates for the memory-mapped device at an address, and the device's endpoint id there."""
        for node in self.nodes:
            if isinstance(node, MmioEndpoint) and node.base_address == base_address:
                return self._output(node), node.endpoint
        return None

    def _output(self, node: PciRange | MmioEndpoint) -> Iommu:
        found = next(other for other in self.nodes if other.label == node.output_node)
        assert isinstance(found, VirtioPciIommu | VirtioMmioIommu)
        return found

    def faults(self) -> Iterator[Problem]:
        """Devices are below an IOMMU, not below each other."""
        labels = {node.label: node for node in self.nodes}
        for i, node in enumerate(self.nodes):
            if isinstance(node, PciRange | MmioEndpoint):
                target = labels[node.output_node]
                if not isinstance(target, VirtioPciIommu | VirtioMmioIommu):
                    yield Problem(f"nodes[{i}].output_node", f"{node.output_node!r} is no IOMMU but a {target.kind}")


VIOT: AcpiFormat[Viot] = AcpiFormat(Viot)
