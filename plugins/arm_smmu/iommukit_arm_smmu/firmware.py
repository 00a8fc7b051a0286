"""The IORT table: how requester ids become stream ids of SMMUs and device ids of interrupt translation services.

The specification is Arm's IO Remapping Table, DEN 0049E.b, chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from iommukit.machine.acpi import U8, AcpiFormat, Count, Offset, Problem, Table, Tag, Zero32
from iommukit_arm_smmu.firmware_nodes import (
    AllocationHints,
    AtsAttribute,
    IdMapping,
    Interrupt,
    InterruptFlags,
    IortNode,
    ItsGroup,
    MappedNode,
    MappingFlags,
    MemoryAccess,
    MemoryRange,
    NamedComponent,
    Node,
    Pmcg,
    RawNode,
    Rmr,
    RootComplex,
    RootComplexFlags,
    Smmu,
    SmmuFlags,
    SmmuModel,
    SmmuV3,
    SmmuV3Flags,
    SmmuV3Model,
)

__all__ = [
    "IORT",
    "AllocationHints",
    "AtsAttribute",
    "IdMapping",
    "Interrupt",
    "InterruptFlags",
    "Iort",
    "ItsGroup",
    "Mapped",
    "MappedNode",
    "MappingFlags",
    "MemoryAccess",
    "MemoryRange",
    "NamedComponent",
    "Node",
    "Pmcg",
    "RawNode",
    "Rmr",
    "RootComplex",
    "RootComplexFlags",
    "Smmu",
    "SmmuFlags",
    "SmmuModel",
    "SmmuV3",
    "SmmuV3Flags",
    "SmmuV3Model",
]

N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True)
class Mapped(Generic[N]):
    """An id that has arrived: at which node, and as what."""

    node: N
    id: int


class Iort(Table):
    """The IO Remapping Table (table 2)."""

    signature: ClassVar[Tag] = Tag(4, b"IORT")
    revision: U8 = 6
    node_count: ClassVar[Count] = Count(4, "nodes")
    node_offset: ClassVar[Offset] = Offset(4, "nodes")
    reserved: Zero32 = 0
    nodes: tuple[IortNode, ...] = ()

    def of_kind(self, kind: type[N]) -> tuple[N, ...]:
        """The nodes of one class, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, kind))

    def node(self, label: str) -> Node:
        """The node of that label, which has to be there."""
        return next(node for node in self.nodes if node.label == label)

    @property
    def smmus(self) -> tuple[Smmu | SmmuV3, ...]:
        """The IOMMUs, in the order of the table."""
        return tuple(node for node in self.nodes if isinstance(node, Smmu | SmmuV3))

    def root_complex(self, segment: int) -> RootComplex | None:
        """The first root complex of a PCI segment."""
        return next((node for node in self.of_kind(RootComplex) if node.segment == segment), None)

    def named_component(self, name: str) -> NamedComponent | None:
        r"""The component of that ACPI path, such as ``\_SB.GED0``."""
        return next((node for node in self.of_kind(NamedComponent) if node.name == name), None)

    def follow(self, start: Node, id_: int, kinds: tuple[type[N], ...]) -> Mapped[N] | None:
        """Follow an id from node to node, up to the first of one of ``kinds``; ``None`` where a node does not map it."""
        node = start
        for _ in self.nodes:
            if isinstance(node, kinds):
                return Mapped(node, id_)
            step = node.map(id_) if isinstance(node, MappedNode) else None
            if step is None:
                return None
            node, id_ = self.node(step[0]), step[1]
        return Mapped(node, id_) if isinstance(node, kinds) else None

    def map_rid(self, segment: int, rid: int) -> Mapped[Smmu | SmmuV3] | None:
        """The SMMU that translates for a PCI requester id (bus, device, function), and the stream id there."""
        root = self.root_complex(segment)
        return self.follow(root, rid, (Smmu, SmmuV3)) if root else None

    def device_id(self, segment: int, rid: int) -> Mapped[ItsGroup] | None:
        """The ITS group that takes a PCI function's message interrupts, and the device id there."""
        root = self.root_complex(segment)
        return self.follow(root, rid, (ItsGroup,)) if root else None

    def streams(self, component: NamedComponent) -> tuple[Mapped[Smmu | SmmuV3], ...]:
        """The stream ids of a named component: one for each single mapping that leads to an SMMU."""
        found: list[Mapped[Smmu | SmmuV3]] = []
        for mapping in component.mappings:
            start = self.node(mapping.target)
            arrived: Mapped[Smmu | SmmuV3] | None = None
            if mapping.single:
                arrived = self.follow(start, mapping.output_base, (Smmu, SmmuV3))
            if arrived is not None:
                found.append(arrived)
        return tuple(found)

    def own_device_id(self, node: SmmuV3 | Pmcg) -> Mapped[ItsGroup] | None:
        """The ITS group that takes the node's own message interrupts, and its device id there."""
        if node.own_mapping is None:
            return None
        mapping = node.mappings[node.own_mapping]
        return self.follow(self.node(mapping.target), mapping.output_base, (ItsGroup,))

    def reserved_memory(self, smmu: Smmu | SmmuV3, stream: int) -> tuple[Rmr, ...]:
        """The reserved memory that a stream id of an SMMU goes on using."""
        return tuple(
            rmr
            for rmr in self.of_kind(Rmr)
            if any(
                mapping.target == smmu.label and 0 <= stream - mapping.output_base <= mapping.id_count for mapping in rmr.mappings
            )
        )

    def faults(self) -> Iterator[Problem]:
        """Mappings lead somewhere, not back."""
        numbers = {node.label: i for i, node in enumerate(self.nodes) if node.label is not None}
        edges = [
            [(j, numbers.get(mapping.target, -1)) for j, mapping in enumerate(node.mappings)]
            if isinstance(node, MappedNode)
            else []
            for node in self.nodes
        ]
        settled: set[int] = set()
        for start in range(len(self.nodes)):
            open_ = [start]
            paths = [iter(edges[start])]
            while open_:
                j, target = next(paths[-1], (-1, -1))
                if j < 0:
                    settled.add(open_.pop())
                    paths.pop()
                elif target in open_:
                    chain = " -> ".join(f"nodes[{i}]" for i in [*open_[open_.index(target) :], target])
                    yield Problem(f"nodes[{open_[-1]}].mappings[{j}].target", f"the mappings run in a loop: {chain}")
                    return
                elif target >= 0 and target not in settled:
                    open_.append(target)
                    paths.append(iter(edges[target]))

    def findings(self) -> Iterator[Problem]:
        """What concerns several nodes."""
        roots: dict[int, int] = {}
        for i, node in enumerate(self.nodes):
            for j, mapping in enumerate(node.mappings if isinstance(node, MappedNode) else ()):
                target = self.node(mapping.target)
                if isinstance(node, MappedNode) and target.kind not in node.targets:  # type: ignore[attr-defined]
                    what = f"a {node.kind} cannot map to a {target.kind}"  # type: ignore[attr-defined]
                    yield Problem(f"nodes[{i}].mappings[{j}].target", what, "error")
            if isinstance(node, RootComplex) and roots.setdefault(node.segment, i) != i:
                where = f"nodes[{roots[node.segment]}]"
                yield Problem(f"nodes[{i}].segment", f"{where} is a root complex of segment {node.segment} too")


IORT: AcpiFormat[Iort] = AcpiFormat(Iort)
