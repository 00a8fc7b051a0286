"""The nodes of the IORT table.

Tables are those of Arm's IO Remapping Table specification, DEN 0049E.b, chapter 3; where none is named, the node type's own
table is meant.  Nodes refer to each other by ``label``; the table holds offsets.  Addresses are physical, in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from iommukit.machine.acpi import (
    U8,
    U16,
    U32,
    Address,
    As8,
    As32,
    Block,
    Code,
    Count,
    Hex8,
    Hex32,
    Hex64,
    Int,
    Length,
    Name,
    Offset,
    Payload,
    Problem,
    Ref32,
    Reference,
    Structure,
    Tag,
    Zero8,
    Zero16,
    Zero32,
)


class MappingFlags(IntFlag):
    """Flags of an ID mapping (table 4)."""

    SINGLE = 1


class IdMapping(Structure):
    """Input ids ``input_base``..``input_base + id_count`` become ids from ``output_base`` on at ``target`` (table 4).

    ``id_count`` is the number of ids less one, as in the table.  A single mapping gives ``output_base`` for any input.
    """

    input_base: Hex32 = 0
    id_count: Hex32 = Field(0, title="Number of IDs")
    output_base: Hex32 = 0
    target: Ref32 = Field(title="Output Reference")
    flags: As32[MappingFlags] = MappingFlags(0)

    @property
    def single(self) -> bool:
        """Whether the mapping is for a device that has one id and needs no input."""
        return MappingFlags.SINGLE in self.flags

    @property
    def input_last(self) -> int:
        """The last input id."""
        return self.input_base + self.id_count

    def findings(self) -> Iterator[Problem]:
        """Ids have 32 bits."""
        if not self.single and max(self.input_base, self.output_base) + self.id_count >> 32:
            yield Problem("id_count", "the ids go beyond 32 bits", "error")


class Node(Block):
    """What all nodes share (table 3); ``label`` is how others refer to the node, and is not in the table."""

    newest: ClassVar[int] = 0xFF
    """The newest revision that this description knows."""

    label: str | None = None
    type: ClassVar[Tag]
    length: ClassVar[Length] = Length(2)
    revision: U8 = 0
    identifier: Hex32 = 0

    def findings(self) -> Iterator[Problem]:
        """Newer revisions may mean something else."""
        if self.revision > self.newest:
            yield Problem("revision", f"revision {self.revision} is newer than {self.newest}, the newest known")


class MappedNode(Node):
    """A node that maps ids to other nodes."""

    targets: ClassVar[tuple[str, ...]] = ("its_group",)
    """The kinds of node that mappings may lead to."""

    mapping_count: ClassVar[Count] = Count(4, "mappings")
    mapping_offset: ClassVar[Offset] = Offset(4, "mappings")
    if TYPE_CHECKING:  # each kind declares it after its own fields
        mappings: tuple[IdMapping, ...] = ()

    @property
    def own_mapping(self) -> int | None:
        """The index of the mapping that is for the node's own interrupts, and not for ids that pass through it."""
        return None

    def map(self, id_: int) -> tuple[str, int] | None:
        """Where an id goes: the label of the next node and the id there; ``None`` where no mapping has it.

        Of two mappings that have the id the first counts, unless the id is the last of the first mapping and the first of the
        second: firmware that wrote the number of ids without subtracting one meant the second.  Linux does the same.
        """
        found: tuple[str, int] | None = None
        for index, mapping in enumerate(self.mappings):
            if index == self.own_mapping:
                continue
            if mapping.single:
                if isinstance(self, NamedComponent | RootComplex):
                    return mapping.target, mapping.output_base
                continue
            if not mapping.input_base <= id_ <= mapping.input_last:
                continue
            if found is not None and id_ != mapping.input_base:
                continue
            found = mapping.target, mapping.output_base + id_ - mapping.input_base
            if mapping.id_count == 0 or id_ != mapping.input_last:
                break
        return found

    def findings(self) -> Iterator[Problem]:
        """Input ids belong to one mapping."""
        yield from super().findings()
        own = self.own_mapping
        ranges = [(i, m) for i, m in enumerate(self.mappings) if i != own and not m.single]
        for (i, one), (j, two) in combinations(ranges, 2):
            if one.input_base <= two.input_last and two.input_base <= one.input_last:
                touching = two.input_base == one.input_last or one.input_base == two.input_last
                what = "shares its first or last input id with" if touching else "overlaps"
                severity: Literal["warning", "error"] = "warning" if touching else "error"
                yield Problem(f"mappings[{j}].input_base", f"the range {what} mappings[{i}]", severity)


class ItsGroup(Node):
    """A group of interrupt translation services (type 0, table 12)."""

    newest: ClassVar[int] = 1
    kind: Literal["its_group"] = "its_group"
    type: ClassVar[Tag] = Tag(1, 0)
    mapping_count: Zero32 = 0
    mapping_offset: Zero32 = 0
    its_count: ClassVar[Count] = Count(4, "identifiers")
    identifiers: tuple[U32, ...] = Field((), title="GIC ITS Identifier Array")


class AllocationHints(IntFlag):
    """Cache allocation of a coherent device (memory access properties)."""

    TRANSIENT = 1
    WRITE_ALLOCATE = 2
    READ_ALLOCATE = 4
    OVERRIDE = 8


class MemoryAccess(IntFlag):
    """How a device reaches memory (memory access properties): a coherent path, attributes of its own, write-back forced."""

    CPM = 1
    DACS = 2
    CANWBS = 4


def _coherency(node: NamedComponent | RootComplex) -> Iterator[Problem]:
    if node.cache_coherency > 1:
        yield Problem("cache_coherency", f"{node.cache_coherency:#x} is neither 0 nor 1")
    if MemoryAccess.CPM | MemoryAccess.DACS in node.memory_access and not node.cache_coherency & 1:
        yield Problem("memory_access", "a device with coherent path and attributes is coherent, but coherency is 0")


class NamedComponent(MappedNode):
    """A device of the ACPI namespace (type 1).  ``memory_address_limit`` counts the address bits that the device drives."""

    newest: ClassVar[int] = 4
    targets: ClassVar[tuple[str, ...]] = ("smmu", "smmuv3", "its_group")
    kind: Literal["named_component"] = "named_component"
    type: ClassVar[Tag] = Tag(1, 1)
    revision: U8 = 4
    flags: Annotated[int, Int(4, hex=True, reserved_bits=0xFFFFFFC0)] = Field(0, title="Node Flags")
    cache_coherency: Hex32 = Field(0, title="Cache Coherent Attribute")
    allocation_hints: As8[AllocationHints] = AllocationHints(0)
    reserved: Zero16 = 0
    memory_access: As8[MemoryAccess] = Field(MemoryAccess(0), title="Memory Access Flags")
    memory_address_limit: U8 = Field(0, title="Device Memory Address Size Limit")
    name: Name = Field(title="Device Object Name")
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")

    @property
    def stall_supported(self) -> bool:
        """Whether the device's transactions may be stalled (flags bit 0)."""
        return bool(self.flags & 1)

    @property
    def pasid_bits(self) -> int:
        """Substream id bits that the device drives (flags bits 5:1)."""
        return self.flags >> 1 & 0x1F

    def findings(self) -> Iterator[Problem]:
        """Coherency has two values, and a rule."""
        yield from super().findings()
        yield from _coherency(self)


class AtsAttribute(IntFlag):
    """What a root complex supports of ATS (table 17)."""

    ATS = 1
    PRI = 2
    PASID_FORWARDING = 4


class RootComplexFlags(IntFlag):
    """Flags of a root complex, revision 4 on (table 17)."""

    PASID = 1


class RootComplex(MappedNode):
    """A PCI root complex (type 2, table 17); its input ids are requester ids of its segment."""

    newest: ClassVar[int] = 4
    targets: ClassVar[tuple[str, ...]] = ("smmu", "smmuv3", "its_group")
    kind: Literal["root_complex"] = "root_complex"
    type: ClassVar[Tag] = Tag(1, 2)
    revision: U8 = 4
    cache_coherency: Hex32 = Field(0, title="Cache Coherent Attribute")
    allocation_hints: As8[AllocationHints] = AllocationHints(0)
    reserved: Zero16 = 0
    memory_access: As8[MemoryAccess] = Field(MemoryAccess(0), title="Memory Access Flags")
    ats: As32[AtsAttribute] = Field(AtsAttribute(0), title="ATS Attribute")
    segment: Hex32 = Field(0, title="PCI Segment Number")
    memory_address_limit: U8 | None = Field(64, title="Memory Address Size Limit")
    pasid_capabilities: U16 | None = 0
    reserved_2: Zero8 | None = 0
    flags: As32[RootComplexFlags] | None = RootComplexFlags(0)
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")

    def findings(self) -> Iterator[Problem]:
        """Coherency has two values, and a rule."""
        yield from super().findings()
        yield from _coherency(self)


class InterruptFlags(IntFlag):
    """Flags of an SMMUv1 or v2 interrupt (type 3)."""

    EDGE = 1


class Interrupt(Structure):
    """An interrupt of an SMMUv1 or v2."""

    gsiv: U32
    flags: As32[InterruptFlags] = InterruptFlags(0)


class SmmuModel(Code):
    """What an SMMUv1 or v2 is (type 3)."""

    SMMUV1 = 0
    SMMUV2 = 1
    MMU400 = 2
    MMU500 = 3
    MMU401 = 4
    THUNDERX = 5


class SmmuFlags(IntFlag):
    """Flags of an SMMUv1 or v2 (type 3)."""

    DVM = 1
    COHERENT_WALK = 2


class Smmu(MappedNode):
    """An SMMUv1 or SMMUv2 (type 3): ``span`` bytes of registers; the global interrupts are NSgIrpt and NSgCfgIrpt."""

    newest: ClassVar[int] = 3
    kind: Literal["smmu"] = "smmu"
    type: ClassVar[Tag] = Tag(1, 3)
    revision: U8 = 3
    base_address: Address
    span: Hex64
    model: As32[SmmuModel] = SmmuModel.SMMUV2
    flags: As32[SmmuFlags] = SmmuFlags(0)
    global_interrupt_offset: ClassVar[Offset] = Offset(4, "global_interrupts")
    context_interrupt_count: ClassVar[Count] = Count(4, "context_interrupts")
    context_interrupt_offset: ClassVar[Offset] = Offset(4, "context_interrupts")
    pmu_interrupt_count: ClassVar[Count] = Count(4, "pmu_interrupts")
    pmu_interrupt_offset: ClassVar[Offset] = Offset(4, "pmu_interrupts")
    global_interrupts: tuple[Interrupt, Interrupt] = (Interrupt(gsiv=0), Interrupt(gsiv=0))
    context_interrupts: tuple[Interrupt, ...] = ()
    pmu_interrupts: tuple[Interrupt, ...] = ()
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")


class SmmuV3Model(Code):
    """What an SMMUv3 is (table 9)."""

    GENERIC = 0
    HISILICON_HI161X = 1
    CAVIUM_CN99XX = 2


class SmmuV3Flags(IntFlag):
    """Flags of an SMMUv3 (table 9)."""

    COHACC_OVERRIDE = 1
    HTTU_ACCESS = 2
    HTTU_DIRTY = 4
    PROXIMITY_VALID = 8
    DEVICE_ID_VALID = 16


class SmmuV3(MappedNode):
    """An SMMUv3 (type 4, table 9).  Interrupts are GSIVs, 0 where the unit sends a message instead."""

    newest: ClassVar[int] = 5
    kind: Literal["smmuv3"] = "smmuv3"
    type: ClassVar[Tag] = Tag(1, 4)
    revision: U8 = 5
    base_address: Address
    flags: As32[SmmuV3Flags] = SmmuV3Flags(0)
    reserved: Zero32 = 0
    vatos_address: Address = 0
    model: As32[SmmuV3Model] = SmmuV3Model.GENERIC
    event_gsiv: U32 = 0
    pri_gsiv: U32 = 0
    gerr_gsiv: U32 = 0
    sync_gsiv: U32 = 0
    proximity_domain: U32 | None = 0
    device_id_mapping_index: U32 | None = 0
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")

    @property
    def own_mapping(self) -> int | None:
        """The mapping for the unit's own messages.

        Revision 0 has none.  Before revision 5 it counts unless all interrupts are GSIVs; from then on a flag says so.
        """
        if self.revision < 1 or self.device_id_mapping_index is None:
            return None
        wired = all((self.event_gsiv, self.pri_gsiv, self.gerr_gsiv, self.sync_gsiv))
        valid = not wired if self.revision < 5 else SmmuV3Flags.DEVICE_ID_VALID in self.flags
        return self.device_id_mapping_index if valid and self.device_id_mapping_index < len(self.mappings) else None


class Pmcg(MappedNode):
    """A performance monitor counter group (type 5), of the node ``node`` if it belongs to one."""

    newest: ClassVar[int] = 2
    kind: Literal["pmcg"] = "pmcg"
    type: ClassVar[Tag] = Tag(1, 5)
    revision: U8 = 2
    page_0_base_address: Address
    overflow_gsiv: U32 = Field(0, title="Overflow Interrupt GSIV")
    node: Annotated[str | None, Reference(4, nullable=True)] = Field(None, title="Node Reference")
    page_1_base_address: Address | None = 0
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")

    @property
    def own_mapping(self) -> int | None:
        """The one mapping, where the overflow interrupt is a message."""
        return 0 if self.mappings and not self.overflow_gsiv else None


class MemoryRange(Structure):
    """A range of reserved memory (type 6): ``size`` bytes from ``base`` on, whole pages of 64 KiB."""

    base: Address = Field(title="Physical Range Offset")
    size: Hex64 = Field(title="Physical Range Length")
    reserved: Zero32 = 0


class Rmr(MappedNode):
    """Memory that a device goes on using (type 6); the mappings say through which stream ids of which SMMU."""

    newest: ClassVar[int] = 3
    targets: ClassVar[tuple[str, ...]] = ("smmu", "smmuv3")
    kind: Literal["rmr"] = "rmr"
    type: ClassVar[Tag] = Tag(1, 6)
    revision: U8 = 3
    flags: Annotated[int, Int(4, hex=True, reserved_bits=0xFFFFFC00)] = 0
    range_count: ClassVar[Count] = Count(4, "ranges")
    range_offset: ClassVar[Offset] = Offset(4, "ranges")
    ranges: tuple[MemoryRange, ...] = Field((), title="Memory Range Descriptor")
    mappings: tuple[IdMapping, ...] = Field((), title="ID Mapping")

    @property
    def remapping_permitted(self) -> bool:
        """Whether the memory may be mapped elsewhere (flags bit 0): Linux then takes the region for relaxable."""
        return bool(self.flags & 1)

    @property
    def privileged(self) -> bool:
        """Whether accesses are privileged (flags bit 1)."""
        return bool(self.flags & 2)

    @property
    def attributes(self) -> int:
        """Memory attributes (flags bits 9:2): 0 to 3 device memory, 4 uncached, 5 write-back."""
        return self.flags >> 2 & 0xFF


class RawNode(Node):
    """A node of a type that is not known here; others may refer to it."""

    kind: Literal["raw"] = "raw"
    type: Hex8  # type: ignore[assignment,misc]
    payload: Payload = b""


IortNode = Annotated[ItsGroup | NamedComponent | RootComplex | Smmu | SmmuV3 | Pmcg | Rmr | RawNode, Field(discriminator="kind")]
