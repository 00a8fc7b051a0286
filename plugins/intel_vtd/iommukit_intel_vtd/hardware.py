"""What a machine file's ``hardware`` may say of VT-d, by the names of the specification's capability fields."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, ValidationError

from iommukit.errors import InputError
from iommukit.machine.model import Machine, Number, Strict
from iommukit_intel_vtd.capabilities import CM, DT, FS1GP, FSTS, IR, PT, SC, SMTS, SRS, SSADS, SSLPS, SSTS, Capabilities


class UnitWords(Strict):
    """The registers of one unit, as ``dmesg`` prints them."""

    cap: Number
    ecap: Number
    version: str = Field("1:0", pattern=r"^[0-9]{1,2}:[0-9]{1,2}$")

    def capabilities(self) -> Capabilities:
        """The words."""
        major, _, minor = self.version.partition(":")
        return Capabilities(self.cap, self.ecap, (int(major), int(minor)))


class VtdHardware(Strict):
    """The options.  One that is not given leaves the unit's words alone, or the table."""

    units: tuple[UnitWords, ...] | None = Field(
        None, description="capability words of each unit in the table's order: [{cap: 0x…, ecap: 0x…, version: '1:0'}]"
    )
    caching_mode: StrictBool | None = Field(None, description="CM: absent entries are cached, as emulated units do")
    pass_through: StrictBool | None = Field(None, description="PT: the unit can let a device's requests through untranslated")
    scalable_mode: StrictBool | None = Field(None, description="SMTS: tables by process address space; second_stage comes along")
    first_stage: StrictBool | None = Field(None, description="FSTS: first-stage tables in scalable mode")
    second_stage: StrictBool | None = Field(None, description="SSTS: second-stage tables in scalable mode")
    superpages: tuple[Literal["2M", "1G"], ...] | None = Field(None, description="SSLPS and FS1GP: large pages, of 2M and 1G")
    address_width: Literal[39, 48, 57] | None = Field(None, description="SAGAW and MGAW: bits of I/O virtual address")
    snoop_control: StrictBool | None = Field(None, description="SC: page-table entries can force snooping")
    device_tlb: StrictBool | None = Field(None, description="DT: devices may cache translations (an ATSR for all ports)")
    dirty_tracking: StrictBool | None = Field(None, description="SSADS: second-stage accessed and dirty bits")
    interrupt_remapping: StrictBool | None = Field(None, description="IR and the table's flag; on unless said otherwise")
    host_address_width: int | None = Field(None, ge=12, le=64, description="bits of physical address in the firmware table")
    platform_opt_in: StrictBool | None = Field(None, description="DMA_CTRL_PLATFORM_OPT_IN_FLAG of the firmware table")
    translation_pre_enabled: StrictBool | None = Field(
        None, description="this is a kdump kernel, and its predecessor left translation on"
    )

    @property
    def width(self) -> int:
        """The physical address width for a machine without a table."""
        return self.host_address_width or self.address_width or 39

    def apply(self, words: Capabilities) -> Capabilities:
        """Set in a unit's words what the machine file says."""
        if self.address_width is not None:
            words = words.with_width(self.address_width)
        if self.superpages is not None:
            words = words.with_bits(SSLPS, ("2M" in self.superpages) | ("1G" in self.superpages) << 1)
            words = words.with_bits(FS1GP, int("1G" in self.superpages))
        if self.scalable_mode is not None:
            for bits in (SMTS, SSTS, SRS):
                words = words.with_bits(bits, int(self.scalable_mode))
        for name, bits in _FLAGS.items():
            value: bool | None = getattr(self, name)
            if value is not None:
                words = words.with_bits(bits, int(value))
        return words


_FLAGS = {
    "caching_mode": CM,
    "pass_through": PT,
    "first_stage": FSTS,
    "second_stage": SSTS,
    "snoop_control": SC,
    "device_tlb": DT,
    "dirty_tracking": SSADS,
    "interrupt_remapping": IR,
}

FROM_TABLE = ("host_address_width", "platform_opt_in")
"""Options that a firmware table answers; a machine file with a table may not give them."""

OPTIONS: dict[str, str] = {name: field.description or "" for name, field in VtdHardware.model_fields.items()}

VARIANTS: dict[str, dict[str, object]] = {
    "caching-mode": {"caching_mode": True},
    "four-levels": {"address_width": 48},
    "five-levels": {"address_width": 57, "superpages": ["2M"]},
    "scalable": {"address_width": 48, "scalable_mode": True},
    "first-stage": {"address_width": 48, "scalable_mode": True, "first_stage": True},
}
"""Units whose tables or queues differ from the plain one's, which has three levels in legacy mode."""

_NOTHING = VtdHardware()


def read_hardware(machine: Machine) -> VtdHardware:
    """The machine's options.  Raises ``InputError`` naming the option that cannot be."""
    if not machine.hardware:
        return _NOTHING
    try:
        hardware = VtdHardware.model_validate(machine.hardware)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in ("hardware", *first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] != "value_error":
            message = f"{message[:1].lower()}{message[1:]}, got {str(first['input'])[:60]!r}"
        raise InputError(message, source=machine.source, place=place) from error
    if "DMAR" in machine.firmware:
        for name in FROM_TABLE:
            if getattr(hardware, name) is not None:
                message = "the machine's DMAR table says that already"
                raise InputError(message, source=machine.source, place=f"hardware.{name}")
    return hardware
