"""Stream ids: who may have which, and what follows from sharing one.

An SMMU knows a device by its stream ids.  SMMUv3 looks them up in a table and the driver refuses two devices with one id.
SMMUv2 matches them against a small set of entries (id and mask); devices that share an entry share a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from iommukit.device import Device
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.aliases import dma_aliases
from iommukit.policy import Era

HISILICON_PTT = (0x19E5, 0xA12E)
"""HiSilicon's PCIe tune and trace device, which traces into physical memory."""

QCOM_CLIENTS: dict[str, Era] = {
    "qcom,adreno": Era.V6_1,
    "qcom,adreno-gmu": Era.V6_1,
    "qcom,mdp4": Era.V6_1,
    "qcom,mdss": Era.V6_1,
    "qcom,sc7180-mdss": Era.V6_1,
    "qcom,sc7180-mss-pil": Era.V6_1,
    "qcom,sc7280-mdss": Era.V6_1,
    "qcom,sc7280-mss-pil": Era.V6_1,
    "qcom,sc8180x-mdss": Era.V6_1,
    "qcom,sdm845-mdss": Era.V6_1,
    "qcom,sdm845-mss-pil": Era.V6_1,
    "qcom,sm8250-mdss": Era.V6_1,
    "qcom,qcm2290-mdss": Era.V6_12,
    "qcom,sc8280xp-mdss": Era.V6_12,
    "qcom,sdm670-mdss": Era.V6_12,
    "qcom,sm6350-mdss": Era.V6_12,
    "qcom,sm6375-mdss": Era.V6_12,
    "qcom,sm8150-mdss": Era.V6_12,
    "qcom,x1e80100-mdss": Era.V6_12,
    "qcom,glymur-mdss": Era.V7_2,
    "qcom,sar2130p-mdss": Era.V7_2,
    "qcom,sm6115-mdss": Era.V7_2,
}
"""Devices that manage their tables themselves or run since the boot loader, by the first release that lets them pass
(``qcom_smmu_client_of_match``)."""


def is_qcom_client(device: Device, era: Era) -> bool:
    """Whether Qualcomm's hooks want the device untranslated (attribute ``compatible``: a text or a list)."""
    named = device.facts.attributes.get("compatible", ())
    names = (named,) if isinstance(named, str) else named
    return any(name in QCOM_CLIENTS and QCOM_CLIENTS[name] <= era for name in names)


def requester_ids(device: Device) -> list[int]:
    """The requester ids under which a PCI function's DMA arrives, its own first."""
    return [rid for _, rid in dma_aliases(device)]


class Streams(Protocol):
    """The stream ids of one unit."""

    def claim(self, device: Device, ids: Sequence[int], era: Era) -> None:
        """Take a device's ids, all or none.  Raises ``IommuError``, whose reason is the line that the driver prints."""

    def release(self, device: Device) -> None:
        """Give a device's ids back."""


Live = Callable[[Device], bool]
"""Whether a device's claim counts: a device that meets its unit at bind has none before that."""


@dataclass(slots=True)
class StreamTable:
    """SMMUv3: at most one device for each id (``arm_smmu_insert_master``)."""

    id_bits: int
    live: Live
    owners: dict[int, Device] = field(default_factory=dict)

    def claim(self, device: Device, ids: Sequence[int], era: Era) -> None:
        """See ``Streams``; an id that the device itself has twice is no conflict."""
        for sid in ids:
            if sid >> self.id_bits:
                raise IommuError("ERANGE")
            owner = self.owners.get(sid)
            if owner is None or owner is device or not self.live(owner):
                continue
            if era >= Era.V7_2:
                line = f"Aliasing StreamID {sid:#x} (from {owner.label}) unsupported, expect DMA to be broken"
                raise IommuError("ENODEV", line)
            raise IommuError("EINVAL", f"stream {sid} already in tree from dev {owner.label}")
        self.release(device)
        self.owners.update(dict.fromkeys(ids, device))

    def release(self, device: Device) -> None:
        """See ``Streams``."""
        self.owners = {sid: owner for sid, owner in self.owners.items() if owner is not device}


@dataclass(slots=True, eq=False)
class Entry:
    """One stream-map entry: ids that equal ``id`` outside ``mask``."""

    id: int
    mask: int
    group: Group | None = None

    def covers(self, id: int, mask: int) -> bool:
        """Every id of the other match is one of this."""
        return mask & self.mask == mask and not (id ^ self.id) & ~self.mask

    def meets(self, id: int, mask: int) -> bool:
        """Some id is in both."""
        return not (id ^ self.id) & ~(self.mask | mask)


@dataclass(slots=True)
class StreamMap:
    """SMMUv2: a few entries that devices share (``arm_smmu_master_alloc_smes``).

    A claimed id is ``mask << 16 | id``, as device trees have it.
    """

    size: int
    id_bits: int
    live: Live
    claims: dict[Device, list[Entry]] = field(default_factory=dict)

    def claim(self, device: Device, ids: Sequence[int], era: Era) -> None:
        """See ``Streams``.  ``EINVAL`` for an overlap that is no inclusion, ``ENOSPC`` where all entries are taken."""
        limit = (1 << min(self.id_bits, 16)) - 1
        pairs = [(packed & 0xFFFF, packed >> 16) for packed in ids]
        for sid, mask in pairs:
            if sid & ~limit:
                raise IommuError("EINVAL", f"stream ID {sid:#x} out of range for SMMU ({limit:#x})")
            if mask & ~limit:
                raise IommuError("EINVAL", f"SMR mask {mask:#x} out of range for SMMU ({limit:#x})")
        self.claims = {owner: held for owner, held in self.claims.items() if owner is not device and self.live(owner)}
        entries = list(dict.fromkeys(entry for held in self.claims.values() for entry in held))
        self.claims[device] = [self._find(entries, sid, mask) for sid, mask in pairs]

    def _find(self, entries: list[Entry], sid: int, mask: int) -> Entry:
        """The entry for an id (``arm_smmu_find_sme``): one that covers it, else a fresh one."""
        for entry in entries:
            if entry.covers(sid, mask):
                return entry
            if entry.meets(sid, mask):
                raise IommuError("EINVAL")
        if len(entries) >= self.size:
            raise IommuError("ENOSPC")
        entries.append(Entry(sid, mask))
        return entries[-1]

    def release(self, device: Device) -> None:
        """See ``Streams``; an entry that nobody uses any more forgets its group."""
        self.claims.pop(device, None)

    def group_of(self, device: Device) -> Group | None:
        """The group that a device's entries have (``arm_smmu_device_group``).

        The kernel keeps what the last entry says: a group found earlier is lost again where the last entry has none.
        ``EINVAL`` where two entries in succession have different groups.
        """
        found: Group | None = None
        for entry in self.claims[device]:
            if found is not None and entry.group is not None and found is not entry.group:
                raise IommuError("EINVAL")
            found = entry.group
        return found

    def remember(self, device: Device, group: Group) -> None:
        """Write a new group to all entries of a device."""
        for entry in self.claims[device]:
            entry.group = group
