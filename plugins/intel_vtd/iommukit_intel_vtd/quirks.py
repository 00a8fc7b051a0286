"""What the driver does differently for particular devices.

Tables of device ids and the registers that decide; a device that the PCI scan found untrusted never triggers any of them
(``risky_device``).  A register that the machine file does not give counts as one that cannot be read: the quirk then does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from iommukit.device import DeviceFacts
from iommukit.kernel.boot import BootState

INTEL = 0x8086

AZALIA = (INTEL, 0x3A3E)
"""The sound device of Tylersburg chipsets."""
SYSTEM_MANAGEMENT = (INTEL, 0x342E)
"""The chipset's function whose VTISOCHCTRL says how sound DMA is routed."""
VTISOCHCTRL = 0x188
ISOCH_BYPASSED = 1 << 0
ISOCH_TLB_ENTRIES = 0x1C
ISOCH_TLB_RECOMMENDED = 0x10

GGC = 0x52
"""Graphics control of Calpella host bridges (16 bits)."""
GGC_VT_ENABLED = 0x8 << 8

GRAPHICS_BROKEN = frozenset(
    {
        *(0x29B2,),  # Q35
        *(0x2A40, 0x2E00, 0x2E10, 0x2E20, 0x2E30, 0x2E40, 0x2E90),  # GM45 and G4x
        *(0x0044,),  # QM57 and QS57
        *(family << 4 | unit for family in (0x160, 0x161, 0x162, 0x163) for unit in (0x2, 0x6, 0xA, 0xB, 0xD, 0xE)),  # Broadwell
    }
)
"""Chipsets whose graphics fail behind their remapping unit."""

WRITE_BUFFER = frozenset({0x2A40, 0x2E00, 0x2E10, 0x2E20, 0x2E30, 0x2E40, 0x2E90})
"""Chipsets that need a write-buffer flush and do not say so."""

CALPELLA = frozenset({0x0040, 0x0062, 0x006A})
"""Host bridges whose graphics need a shadow table that firmware may not have allocated."""

KEEP_TRANSLATION = frozenset({0x45, 0x46, 0x4C, 0x4E, 0x7D, 0x8A, 0x98, 0x9A, 0xA7})
"""Upper bytes of the ids of graphics devices during whose use translation must not be switched off."""


@dataclass(slots=True)
class Quirks:
    """What the quirks have found."""

    broken_graphics: bool = False
    azalia_identity: bool = False
    """Sound must see physical addresses (``IDENTMAP_AZALIA``)."""
    write_buffer_flush: bool = False


def is_display(facts: DeviceFacts) -> bool:
    """Base class 03 (``IS_GFX_DEVICE``)."""
    return facts.kind.is_pci and facts.base_class == 0x03


def is_usb(facts: DeviceFacts) -> bool:
    """Class 0c03 (``IS_USB_DEVICE``)."""
    return facts.kind.is_pci and facts.class_code >> 8 == 0x0C03


def is_isa_bridge(facts: DeviceFacts) -> bool:
    """Class 0601."""
    return facts.kind.is_pci and facts.class_code >> 8 == 0x0601


def rmrr_is_relaxable(facts: DeviceFacts) -> bool:
    """Whether a device's reserved memory may be given up when it is assigned to a guest (``device_rmrr_is_relaxable``)."""
    return is_usb(facts) or is_display(facts)


def register(facts: DeviceFacts, offset: int) -> int | None:
    """A register of configuration space from the machine file's ``attributes: {registers: {0x188: 0}}``."""
    for key, value in facts.attributes.get("registers", {}).items():
        if _number(key) == offset:
            return _number(value)
    return None


def _number(value: int | str) -> int:
    return int(value, 0) if isinstance(value, str) else value


def risky(facts: DeviceFacts, boot: BootState) -> bool:
    """Whether a device is untrusted, so that a quirk is left out; says so in two lines."""
    if facts.name not in boot.untrusted:
        return False
    boot.log.append(
        f"pci {facts.label}: DMAR: Skipping IOMMU quirk for dev [{facts.vendor_id:04X}:{facts.device_id:04X}] on untrusted PCI link"
    )
    boot.log.append(f"pci {facts.label}: DMAR: Please check with your BIOS/Platform vendor about this")
    return True


# ---- while the PCI buses are scanned ---------------------------------------------------------------------------------


def _broken_graphics(facts: DeviceFacts, quirks: Quirks, boot: BootState, mapped: bool) -> None:
    boot.log.append(f"pci {facts.label}: DMAR: Disabling IOMMU for graphics on this chipset")
    quirks.broken_graphics = True


def _write_buffer(facts: DeviceFacts, quirks: Quirks, boot: BootState, mapped: bool) -> None:
    boot.log.append(f"pci {facts.label}: DMAR: Forcing write-buffer flush capability")
    quirks.write_buffer_flush = True


def _calpella(facts: DeviceFacts, quirks: Quirks, boot: BootState, mapped: bool) -> None:
    control = register(facts, GGC)
    if control is None:
        return
    if not control & GGC_VT_ENABLED:
        boot.log.append(f"pci {facts.label}: DMAR: BIOS has allocated no shadow GTT; disabling IOMMU for graphics")
        quirks.broken_graphics = True
    elif mapped:
        boot.log.append(f"pci {facts.label}: DMAR: Disabling batched IOTLB flush on Ironlake")
        boot.set_dma_strict()


def _keep_translation(facts: DeviceFacts, quirks: Quirks, boot: BootState, mapped: bool) -> None:
    boot.log.append(f"pci {facts.label}: DMAR: Skip IOMMU disabling for graphics")


FIXUPS: tuple[tuple[Callable[[DeviceFacts], bool], Callable[[DeviceFacts, Quirks, BootState, bool], None]], ...] = (
    (lambda facts: facts.device_id in GRAPHICS_BROKEN, _broken_graphics),
    (lambda facts: facts.device_id in WRITE_BUFFER, _write_buffer),
    (lambda facts: facts.device_id in CALPELLA, _calpella),
    (lambda facts: is_display(facts) and facts.device_id >> 8 in KEEP_TRANSLATION, _keep_translation),
)
"""For Intel's devices, as each is found: which, and what then.  They run whether or not remapping is on."""


def scan_fixups(devices: Iterable[DeviceFacts], map_graphics: bool, boot: BootState) -> Quirks:
    """Run the fixups over the devices in the order of enumeration (``DECLARE_PCI_FIXUP_HEADER``).

    ``map_graphics`` is False where the command line excludes graphics already.
    """
    quirks = Quirks()
    for facts in devices:
        if facts.vendor_id != INTEL:
            continue
        for concerns, fix in FIXUPS:
            if concerns(facts) and not risky(facts, boot):
                fix(facts, quirks, boot, map_graphics and not quirks.broken_graphics)
    return quirks


# ---- when remapping is switched on -----------------------------------------------------------------------------------


def check_isoch(devices: Iterable[DeviceFacts], quirks: Quirks, boot: BootState) -> None:
    """Find the firmware that routes sound to the isochronous unit and gives that no TLB (``check_tylersburg_isoch``)."""
    first_of: dict[tuple[int, int], DeviceFacts] = {}
    for facts in devices:
        first_of.setdefault(facts.ids, facts)
    if AZALIA not in first_of or risky(first_of[AZALIA], boot):
        return
    if SYSTEM_MANAGEMENT not in first_of or risky(first_of[SYSTEM_MANAGEMENT], boot):
        return
    control = register(first_of[SYSTEM_MANAGEMENT], VTISOCHCTRL)
    if control is None or control & ISOCH_BYPASSED:
        return
    entries = control & ISOCH_TLB_ENTRIES
    if entries == ISOCH_TLB_RECOMMENDED:
        return
    if entries == 0:
        boot.log.append("Your BIOS is broken; DMA routed to ISOCH DMAR unit but no TLB space.")
        quirks.azalia_identity = True
    else:
        boot.log.append(f"DMAR: Recommended TLB entries for ISOCH unit is 16; your BIOS set {entries}")
