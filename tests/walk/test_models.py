"""What every vendor's driver writes into memory, read back by its ``walk_tables``: all formats, page sizes and rights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import pytest

from iommukit.device import Device
from iommukit.dma.mapping import iommu_map, iommu_unmap
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import InputError
from iommukit.hw.bus import ModelBus
from iommukit.hw.platform import ModelPlatform
from iommukit.hw.walk import Leaf, Mode, Walk
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec
from iommukit.report.walk import merge
from iommukit.scenario.load import load_machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry.installed()
Roots = Callable[[ModelBus, int, Domain], Mapping[str, int]]
VENDORS: dict[str, tuple[str, Roots]] = {
    "intel_vtd": ("nic-on-x86", lambda bus, base, domain: {"rtaddr": bus.read(base + 0x20, 8)}),
    "amd_vi": ("nic-on-x86", lambda bus, base, domain: {"devtab": bus.read(base, 8)}),
    "arm_smmu": (
        "nic-on-arm",
        lambda bus, base, domain: {"strtab_base": bus.read(base + 0x80, 8), "strtab_base_cfg": bus.read(base + 0x88, 4)},
    ),
    # An anchor is no register: the driver hands it to an instruction.
    "s390": ("nic-on-s390", lambda bus, base, domain: {"iota": domain.iota}),
}
"""By vendor: a machine, and the registers as its hardware has them."""


class Place:
    """A booted system whose card is in a domain of its own."""

    def __init__(self, vendor: str, bases: list[int]) -> None:
        machine, self._roots = VENDORS[vendor]
        self.vendor = REGISTRY.get(vendor)
        self.platform = ModelPlatform()
        kernel = get_kernel("7.2")
        self.system: System = start_system(
            kernel, self.vendor, REGISTRY, load_machine(machine), BootSpec(kconfig="strict"), platform=self.platform
        )
        self.bus = self.platform.bus
        self._base = bases[0] if bases else 0
        self.device: Device = self.system.devices["nic"]
        if self.device.unit is None:
            kernel.configure(self.system, self.device)
        domain = self.system.alloc(self.device, DomainType.UNMANAGED)
        assert domain is not None
        self.domain = domain
        self.system.attach(self.device, domain)

    def roots(self) -> Mapping[str, int]:
        return self._roots(self.bus, self._base, self.domain)

    def walk(self, iova: int | None = None) -> Walk:
        requester = self.vendor.ops.requester(device=self.device)
        (found,) = self.vendor.ops.walk_tables(memory=self.bus.memory, roots=self.roots(), requester=requester, iova=iova)
        return found


@pytest.fixture(params=VENDORS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    bases: list[int] = []
    attach = ModelBus.attach

    def noted(bus: ModelBus, base: int, size: int, registers: object) -> None:
        bases.append(base)
        attach(bus, base, size, registers)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelBus, "attach", noted)
    found = Place(request.param, bases)
    yield found
    found.platform.close()


def random_map(place: Place, dice: random.Random) -> list[Leaf]:
    """Map ranges of all page sizes, some that go on where another ends, and unmap some again."""
    sizes = [1 << bit for bit in range(12, 31) if place.domain.page_sizes >> bit & 1]
    rights = [Prot.READ, Prot.READ | Prot.WRITE] + ([Prot.WRITE] if place.vendor.has("write-only") else [])
    first, last = place.domain.aperture
    at = max(first + (1 << 30), 1 << 32) & -(1 << 30)
    mapped = []
    physical = 1 << 31
    for _ in range(120):
        size = dice.choice(sizes)
        length = size * dice.choice([1, 1, 2, 3])
        if size >= 1 << 30:
            length = size
        if dice.random() < 0.5:
            at += dice.choice([1, 2, 700]) << 12
            physical = dice.randrange(1 << 10, 1 << 18) << 12
        at, physical = -(-at // size) * size, -(-physical // size) * size
        if at + length > last:
            break
        prot = dice.choice(rights)
        iommu_map(place.domain, at, physical, length, prot)
        if dice.random() < 0.2:
            assert iommu_unmap(place.domain, at, length) == length
        else:
            mapped.append(Leaf(at, physical, length, bool(prot & Prot.READ), bool(prot & Prot.WRITE)))
        at, physical = at + length, physical + length
    assert len(mapped) > 50
    return mapped


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_finds_what_the_driver_mapped(place: Place, seed: int) -> None:
    dice = random.Random(seed)
    mapped = random_map(place, dice)
    walk = place.walk()
    assert walk.mode is Mode.TRANSLATED

    def seen(leaves: list[Leaf]) -> list[tuple[int, int, int, bool, bool]]:
        return [(each.iova, each.physical, each.size, each.read, each.write) for each in merge(leaves)]

    leaves = [leaf for leaf in walk.pages if leaf.iova >= mapped[0].iova]
    assert not [leaf for leaf in leaves if leaf.reason]
    assert seen(leaves) == seen(mapped)
    for leaf in dice.sample(mapped, 20):
        iova = leaf.iova + dice.randrange(leaf.size)
        (page,) = place.walk(iova).pages
        assert page.physical + iova - page.iova == leaf.physical + iova - leaf.iova
        assert (page.read, page.write) == (leaf.read, leaf.write)
        assert all(place.bus.memory.holds(step.address) for step in page.path)
        assert all(step.meaning for step in page.path)
    (nothing,) = place.walk(mapped[-1].iova + mapped[-1].size + (1 << 30)).pages
    assert nothing.reason


def test_a_walk_of_all_devices_has_the_one(place: Place) -> None:
    requester = place.vendor.ops.requester(device=place.device)
    iommu_map(place.domain, 1 << 32, 1 << 31, 0x1000, Prot.READ | Prot.WRITE)
    walks = {
        walk.requester: walk
        for walk in place.vendor.ops.walk_tables(memory=place.bus.memory, roots=place.roots(), requester=None, iova=None)
    }
    # On s390 a root is one function's, whose handle the tables do not tell.
    walk = walks[requester] if requester in walks else walks[0]
    assert any(leaf.physical == 1 << 31 for leaf in walk.pages)
    assert all(step.meaning for step in walk.steps)


def test_a_root_outside_the_memory(place: Place) -> None:
    roots = {name: value | 0xF_F000_0000_0000 for name, value in place.roots().items()}
    try:
        walks = list(place.vendor.ops.walk_tables(memory=place.bus.memory, roots=roots, requester=None, iova=None))
    except InputError:
        return
    assert all(leaf.reason for walk in walks for leaf in walk.pages)
