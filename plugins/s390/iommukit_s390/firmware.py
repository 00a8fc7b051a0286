"""What s390 has in place of a firmware table: the answers of the CLP instruction, as a JSON document.

CLP (call logical processor) lists the PCI functions of a partition and answers queries about a function and about a function
group.  ``docs/clp.md`` describes the document.  Names are those of the query responses; addresses are PCI addresses, in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iommukit.machine.acpi import (
    U8,
    U16,
    Finding,
    Hex8,
    Hex16,
    Hex32,
    Hex64,
    Problem,
    TableFormat,
    load_json,
)

BARS = 6
"""Base address registers that a function may have."""

PFT_ISM = 5
"""The function type of an internal shared memory device; Linux gives it no flush queue."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClpBar(_Model):
    """A base address register of a function: ``size`` bytes, a power of two."""

    index: Annotated[int, Field(ge=0, lt=BARS)]
    address: Hex64 = 0
    size: Hex64

    @model_validator(mode="after")
    def _power_of_two(self) -> ClpBar:
        if self.size.bit_count() != 1:
            raise ValueError(f"size {self.size:#x} is no power of two")
        return self


class ClpFunction(_Model):
    """A PCI function: its entry in the list, and the answer of Query PCI Function."""

    fid: Hex32 = Field(description="function id, chosen by the machine's configuration")
    fh: Hex32 = Field(description="function handle; bit 31: the function is enabled")
    uid: Hex32 = Field(0, description="user-defined id, 0: none; with uid_checking it is the PCI domain")
    vendor: Hex16 = 0
    device: Hex16 = 0
    configured: bool = Field(True, description="list: the function is configured, not only standby or reserved")
    pchid: Hex16 = Field(0, description="physical channel id")
    vfn: U16 = Field(0, description="virtual function number, 0: the physical function")
    pft: U8 = Field(0, description="function type: 5 is ISM")
    port: U8 = 0
    pfgid: Hex8 = Field(description="the function's group")
    sdma: Hex64 = Field(0, description="first PCI address that DMA may use")
    edma: Hex64 = Field(0xFFFFFFFFFFFFFFFF, description="last PCI address that DMA may use")
    bars: tuple[ClpBar, ...] = ()
    rid: Hex16 | None = Field(None, description="the requester id, where the platform tells it (rid_avail)")
    utility_string: Annotated[str, Field(max_length=64)] = ""
    rtr: bool | None = Field(None, description="relaxed translation; absent: as the group says")

    @model_validator(mode="after")
    def _consistent(self) -> ClpFunction:
        if self.edma < self.sdma:
            raise ValueError(f"edma {self.edma:#x} lies before sdma {self.sdma:#x}")
        if len({bar.index for bar in self.bars}) != len(self.bars):
            raise ValueError("two bars have the same index")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the handle is that of an enabled function."""
        return bool(self.fh >> 31)


class ClpGroup(_Model):
    """A function group: the answer of Query PCI Function Group."""

    gid: Hex8 = Field(description="group id, what a function's pfgid names")
    version: U8 = 0
    refresh: bool = Field(False, description="the hypervisor shadows translation tables: new entries need a refresh too")
    frame: bool = Field(False, description="1 MiB and 2 GiB frames may be mapped")
    rtr: bool = Field(False, description="relaxed translation: functions may run without translation tables")
    dasm: Hex64 = Field(0, description="DMA address space mask")
    msia: Hex64 = Field(0, description="address that message interrupts are written to")
    mui: U16 = Field(4000, description="measurement block update interval, in milliseconds")
    noi: Annotated[int, Field(ge=0, le=0xFFF)] = Field(128, description="number of interrupts")
    maxstbl: Annotated[int, Field(ge=0, le=0x1FFF)] = Field(128, description="largest store block, in bytes")
    dtsm: Hex8 = Field(0x40, description="supported designation types of translation tables, a mask")
    maxfaal: U16 = 0
    dnoi: Annotated[int, Field(ge=0, le=0xFFF)] = 0
    maxcpu: U16 = 0


class ClpConfiguration(_Model):
    """What CLP answers in one partition."""

    clp: Literal[1] = 1
    uid_checking: bool = Field(False, description="list: user-defined ids are unique, so that they name PCI domains")
    functions: tuple[ClpFunction, ...]
    groups: tuple[ClpGroup, ...]

    def function(self, fid: int) -> ClpFunction | None:
        """The function of that id."""
        return next((function for function in self.functions if function.fid == fid), None)

    def group(self, function: ClpFunction) -> ClpGroup:
        """A function's group."""
        return next(group for group in self.groups if group.gid == function.pfgid)

    def tlb_refresh(self, function: ClpFunction) -> bool:
        """Whether newly valid translations have to be refreshed."""
        return self.group(function).refresh

    def relaxed_translation(self, function: ClpFunction) -> bool:
        """Whether the function may do DMA without translation tables (rtr), so that identity is possible."""
        return self.group(function).rtr if function.rtr is None else function.rtr

    def pci_address(self, function: ClpFunction) -> str:
        """Segment, bus, slot and function as Linux numbers them: the user-defined id, or else the place in the list."""
        unique = self.uid_checking and function.uid
        domain = function.uid if unique else self.functions.index(function)
        return (
            f"{domain:04x}:00:00.0" if function.rid is None else f"{domain:04x}:00:{function.rid >> 3 & 31:02x}.{function.rid & 7}"
        )


class ClpFormat(TableFormat[ClpConfiguration]):
    """CLP answers as a JSON document."""

    def parse(self, data: bytes | str, source: str | None = None) -> ClpConfiguration:
        """Parse the document; ``InputError`` names the line or the field."""
        return self.validate(load_json(data, source), source)

    def build(self, table: ClpConfiguration) -> bytes:
        """The document, without what has its default value."""
        return (json.dumps({"clp": table.clp, **self.fields(table)}, indent=2) + "\n").encode()

    def faults(self, table: ClpConfiguration) -> Iterator[Problem]:
        """Ids that name two things or nothing."""
        groups = {group.gid for group in table.groups}
        for i, group in enumerate(table.groups):
            if group.gid in {other.gid for other in table.groups[:i]}:
                yield Problem(f"groups[{i}].gid", f"{group.gid:#x} is the id of another group too")
        for i, function in enumerate(table.functions):
            others = table.functions[:i]
            for key in ("fid", "fh"):
                value = getattr(function, key)
                if value in {getattr(other, key) for other in others}:
                    yield Problem(f"functions[{i}].{key}", f"{value:#x} belongs to another function too")
            if function.pfgid not in groups:
                yield Problem(f"functions[{i}].pfgid", f"there is no group {function.pfgid:#x}")
            if table.uid_checking:
                if function.uid and function.uid in {other.uid for other in others}:
                    yield Problem(f"functions[{i}].uid", f"{function.uid:#x} belongs to another function too")
                if function.uid >> 16:
                    yield Problem(f"functions[{i}].uid", f"{function.uid:#x} has more than the 16 bits of a PCI domain")

    def lint(self, table: ClpConfiguration) -> list[Finding]:
        """What is doubtful: DMA ranges that are no whole pages, groups without functions.  There are no offsets."""
        found = []
        for i, function in enumerate(table.functions):
            if function.sdma % 4096 or (function.edma + 1) % 4096:
                message = f"{function.sdma:#x}..{function.edma:#x} are no whole pages of 4 KiB"
                found.append(Finding("warning", self.signature, 0, f"functions[{i}].sdma", message))
        used = {function.pfgid for function in table.functions}
        for i, group in enumerate(table.groups):
            if group.gid not in used:
                found.append(Finding("warning", self.signature, 0, f"groups[{i}].gid", "no function is in this group"))
        return found


CLP = ClpFormat("CLP", ClpConfiguration)
