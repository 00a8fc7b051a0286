"""A device table entry as the hardware reads it (2.2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from iommukit_amd_vi.layout import (
    DTE_DOMAIN,
    DTE_EX,
    DTE_GCR3_14_12,
    DTE_GCR3_30_15,
    DTE_GCR3_51_31,
    DTE_GIOV,
    DTE_GLX,
    DTE_GUEST_PAGING_MODE,
    DTE_GV,
    DTE_HAD,
    DTE_HOST_ROOT,
    DTE_IR,
    DTE_IW,
    DTE_MODE,
    DTE_RESERVED,
    DTE_SA,
    DTE_SE,
    DTE_TV,
    DTE_V,
    GLX_SUP,
    GT_SUP,
    HATS,
    HD_SUP,
    NO_HOST_TABLES,
)

READ, WRITE = 1, 2
"""Accesses, as masks of what is allowed: IR and IW of entries, shifted down."""


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A decoded entry.

    ``illegal`` says what is wrong with it.  ``allow`` is a mask of ``READ`` and ``WRITE``; ``mode`` the levels of the host tables,
    0 for none; ``root`` their address.  ``gcr3`` is the address of the GCR3 table, ``None`` without guest tables, and
    ``gcr3_levels`` how many levels that table has; ``guest_levels`` counts the levels of a guest table.  ``without_pasid``:
    requests without a PASID use the guest table of PASID 0 (GIoV).
    """

    bits: int
    valid: bool
    translated: bool
    illegal: str
    domain: int
    mode: int
    root: int
    allow: int
    gcr3: int | None
    gcr3_levels: int
    guest_levels: int
    without_pasid: bool
    excluded: bool
    silent: bool
    silent_after_first: bool


def decode(bits: int, features: int) -> DeviceEntry:
    """Decode an entry of 256 bits for an IOMMU with these features (its EFR)."""
    guest = bool(DTE_GV.get(bits))
    return DeviceEntry(
        bits=bits,
        valid=bool(DTE_V.get(bits)),
        translated=bool(DTE_TV.get(bits)),
        illegal=_what_is_wrong(bits, features) if DTE_V.get(bits) else "",
        domain=DTE_DOMAIN.get(bits),
        mode=DTE_MODE.get(bits),
        root=DTE_HOST_ROOT.get(bits) << 12,
        allow=READ * DTE_IR.get(bits) | WRITE * DTE_IW.get(bits),
        gcr3=_gcr3(bits) if guest else None,
        gcr3_levels=1 + DTE_GLX.get(bits),
        guest_levels=4 + DTE_GUEST_PAGING_MODE.get(bits),
        without_pasid=guest and bool(DTE_GIOV.get(bits)),
        excluded=bool(DTE_EX.get(bits)),
        silent=bool(DTE_SA.get(bits)),
        silent_after_first=bool(DTE_SE.get(bits)),
    )


def _gcr3(bits: int) -> int:
    """The GCR3 table's address, from three fields."""
    return DTE_GCR3_14_12.get(bits) << 12 | DTE_GCR3_30_15.get(bits) << 15 | DTE_GCR3_51_31.get(bits) << 31


def _what_is_wrong(bits: int, features: int) -> str:
    """Why a valid entry is illegal for an IOMMU with these features; empty where it is not (2.5.2)."""
    if bits & DTE_RESERVED:
        return "a reserved bit is set"
    if DTE_HAD.get(bits) and not HD_SUP.get(features):
        return "HAD without HDSup"
    if not DTE_TV.get(bits):
        return ""
    most = 0 if HATS.get(features) == NO_HOST_TABLES else 4 + HATS.get(features)
    if DTE_MODE.get(bits) > most:
        return f"mode {DTE_MODE.get(bits)}, and there are {most} levels at most"
    if not DTE_GV.get(bits):
        return ""
    if not GT_SUP.get(features):
        return "GV without GTSup"
    if DTE_GLX.get(bits) > GLX_SUP.get(features):
        return f"GLX {DTE_GLX.get(bits)}, and GLXSup is {GLX_SUP.get(features)}"
    if DTE_MODE.get(bits):
        return "guest tables over host tables are not modelled"
    return "" if DTE_GUEST_PAGING_MODE.get(bits) == 0 else "guest tables of five levels are not modelled"
