"""Linux 5.10 to 6.3 as far as boot goes: enough to predict a real machine's log and groups.

They differ from 6.1 in what they print and in the order in which devices meet their units.
"""

from __future__ import annotations

from dataclasses import dataclass

from iommukit.domain import DomainType
from iommukit.kernel.boot import SystemDefault, TypeDefault
from iommukit.kernel.linux_6_1 import Linux61
from iommukit.policy import Era

FIRST, LAST = (5, 10), (6, 3)
PRINTS_INVALIDATION = (5, 14)
HAS_QUEUE_TYPE = (5, 15)
"""Before, a lazy domain had the same type as a strict one."""
PROBES_UNIT_BY_UNIT = (6, 1)


@dataclass(slots=True)
class OldDefault(TypeDefault):
    """A default of a kernel before 6.1."""

    release: tuple[int, int] = FIRST

    def settle(self, kconfig: str, memory_encryption: bool) -> list[str]:
        """As 6.1, without the line that came later."""
        lines = TypeDefault.settle(self, kconfig, memory_encryption)
        if self.release < PRINTS_INVALIDATION:
            lines = [line for line in lines if "invalidation policy" not in line]
        return lines

    def domain_type(self) -> DomainType:
        """DMA_FQ only where it exists."""
        kind = TypeDefault.domain_type(self)
        return DomainType.DMA if kind is DomainType.DMA_FQ and self.release < HAS_QUEUE_TYPE else kind


class Historic(Linux61):
    """One release between 5.10 and 6.3; only its boot is modelled."""

    summary = "boot only"
    era = Era.V6_1

    def __init__(self, release: tuple[int, int]) -> None:
        self.version = release  # type: ignore[misc]
        self.name = f"{release[0]}.{release[1]}"  # type: ignore[misc]
        self.unit_by_unit = release >= PROBES_UNIT_BY_UNIT

    def new_default(self) -> SystemDefault:
        """The default of that release."""
        return OldDefault(trailing_space=True, release=self.version)
