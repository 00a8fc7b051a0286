"""What real kernels mapped and unmapped, carried out on the page tables of the model's drivers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iommukit.dma.mapping import iommu_map, iommu_unmap
from iommukit.domain import Domain, DomainType, Prot
from iommukit.hw.platform import UNMAPPED, ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec
from iommukit.scenario.load import load_machine
from iommukit.vendors import VendorRegistry
from iommukit_oracle.traces import read_trace, shipped_traces

TRACES = sorted(shipped_traces().glob("*.jsonl.xz"))
REGISTRY = VendorRegistry.installed()
MACHINES = {"intel_vtd": "nic-on-x86", "amd_vi": "nic-on-x86", "arm_smmu": "nic-on-arm", "s390": "nic-on-s390"}


class Replayer:
    """A model of a vendor's IOMMU, with a domain for each group of a trace."""

    def __init__(self, platform: ModelPlatform, vendor: str, kernel: str) -> None:
        machine, boot = load_machine(MACHINES[vendor]), BootSpec(kconfig="strict")
        version = get_kernel(kernel)
        self.system = start_system(version, REGISTRY.get(vendor), REGISTRY, machine, boot, platform=platform)
        self.device = self.system.devices["nic"]
        if self.device.unit is None:
            version.configure(self.system, self.device)
        self.domains: dict[int | None, Domain] = {}

    def domain(self, group: int | None) -> Domain:
        """The group's domain."""
        if group not in self.domains:
            domain = self.system.alloc(self.device, DomainType.UNMANAGED)
            assert domain is not None
            self.domains[group] = domain
        return self.domains[group]


def physical(domain: Domain, iova: int, size: int, grain: int) -> list[int]:
    """What the tables give for each page of a range."""
    pages = np.arange(iova, iova + size, grain, dtype=np.uint64)
    return [int(each) for each in domain.ops.iova_to_phys(domain=domain, iova=pages)]


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".jsonl.xz"))
def test_a_kernel_s_maps_on_the_model_s_tables(path: Path) -> None:
    trace = read_trace(path)
    header = trace.header
    grain = header.page_size
    expected: dict[tuple[int | None, int], int] = {}
    with ModelPlatform() as platform:
        replayer = Replayer(platform, header.vendor, header.kernel)
        for event, group in trace.attributed():
            domain = replayer.domain(group)
            assert domain.page_sizes & -domain.page_sizes == grain
            pages = range(event.iova, event.iova + event.size, grain)
            if event.name == "map":
                at = event.number("paddr")
                assert (event.iova | at | event.size) % grain == 0
                assert set(physical(domain, event.iova, event.size, grain)) == {int(UNMAPPED)}, "nothing is mapped over a mapping"
                iommu_map(domain, event.iova, at, event.size, Prot.READ | Prot.WRITE)
                expected.update({(group, iova): at + iova - event.iova for iova in pages})
                assert physical(domain, event.iova, event.size, grain) == [expected[group, iova] for iova in pages]
            else:
                assert iommu_unmap(domain, event.iova, event.size) == event.size
                for iova in pages:
                    del expected[group, iova]
                assert set(physical(domain, event.iova, event.size, grain)) == {int(UNMAPPED)}, "nothing is left of it"
        assert expected, "a driver at rest keeps its queues mapped"
        for (group, iova), at in expected.items():
            assert physical(replayer.domain(group), iova, grain, grain) == [at]
