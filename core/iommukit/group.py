"""Groups: the smallest sets of devices that an IOMMU can keep apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.domain import Domain

if TYPE_CHECKING:
    from iommukit.device import Device


@dataclass(slots=True, eq=False)
class Group:
    """``struct iommu_group``.

    ``default_domain`` is what the DMA API uses, ``domain`` what is attached now, ``owner`` a token that only its holder
    has (``None`` while drivers use the DMA API), ``owner_count`` the number of such drivers, or at least 1 with an owner.
    """

    id: int
    devices: list[Device] = field(default_factory=list)
    default_domain: Domain | None = None
    domain: Domain | None = None
    blocking_domain: Domain | None = None
    owner: object | None = None
    owner_count: int = 0

    @property
    def sysfs_type(self) -> str:
        """What ``/sys/kernel/iommu_groups/<id>/type`` prints (without the newline)."""
        return self.default_domain.type.sysfs if self.default_domain else "unknown"
