"""Starting a kernel on a machine: from build options to a running system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommukit.errors import NotApplicable
from iommukit.kernel.boot import BootState, core_options, looks_like_iommu_option
from iommukit.kernel.cmdline import apply_cmdline
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.realise import realise
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec, Machine
from iommukit.machine.topology import Topology, build_topology
from iommukit.policy import Era
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.hw.platform import Platform


def new_boot_state(kernel: Kernel, arch: str, boot: BootSpec) -> BootState:
    """The state before anything has been parsed."""
    kconfig = boot.kconfig or kernel.default_kconfig(arch)
    default = kernel.new_default()
    # iommu_dma_strict is initialised by the build option; identity builds start lazy.
    default.strict = kconfig == "strict"
    return BootState(
        era=kernel.era,
        release=kernel.version,
        arch=arch,
        kconfig=kconfig,
        default=default,
        cmdline=boot.cmdline,
        off_is_final=kernel.off_is_final,
        memory_encryption=boot.memory_encryption,
        config=dict(boot.config),
    )


def parse_cmdline(state: BootState, registry: VendorRegistry) -> None:
    """Run the command line through the core's options and those of every driver compiled for the architecture."""
    if not state.cmdline:
        return
    options = [*core_options(state.arch), *registry.options(state)]
    state.reports = apply_cmdline(state, options, looks_like_iommu_option)


class _Prepared:
    """Realised machines with their topologies, by machine, vendor and driver generation: a scenario run needs no new one.

    Keys are the objects themselves; they are kept alive here, so that an address is not reused for another.
    """

    LIMIT = 4096

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, Era], tuple[Machine, Vendor, tuple[Machine, Topology] | NotApplicable]] = {}

    def get(self, machine: Machine, vendor: Vendor, state: BootState) -> tuple[Machine, Topology]:
        """The machine as the vendor has it, and its topology.  Raises what ``realise`` and ``build_topology`` raise."""
        key = (id(machine), id(vendor), state.era)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self.LIMIT:
                self._known.clear()
            answer: tuple[Machine, Topology] | NotApplicable
            try:
                realised = realise(machine, vendor, state)
                answer = realised, build_topology(realised)
            except NotApplicable as error:
                answer = error
            found = self._known[key] = (machine, vendor, answer)
        if isinstance(found[2], NotApplicable):
            raise NotApplicable(*found[2].args)
        return found[2]


_prepared = _Prepared()


def start_system(
    kernel: Kernel,
    vendor: Vendor,
    registry: VendorRegistry,
    machine: Machine,
    boot: BootSpec,
    *,
    assume_acs: bool = True,
    platform: Platform | None = None,
) -> System:
    """Boot a machine, on hardware where a platform is given.

    Returns the running system; ``system.boot.log`` holds the policy lines and the drivers' lines, ``system.lines`` what followed
    (groups, warnings).  Raises ``NotApplicable``, ``InputError``, ``FirmwareError``.
    """
    arch = machine.arch or vendor.declaration.arch[0]
    state = new_boot_state(kernel, arch, boot)
    realised, topology = _prepared.get(machine, vendor, state)
    parse_cmdline(state, registry)
    system = System(kernel, vendor, realised, topology, state, assume_acs=assume_acs)
    state.untrusted = frozenset(device.name for device in system.present_devices() if device.untrusted)
    vendor.ops.early_quirks(machine=realised, boot=state)
    state.log.extend(state.default.settle(state.kconfig, state.memory_encryption))
    system.units = list(vendor.ops.discover(machine=realised, boot=state))
    if platform is not None:
        system.power_on(platform)
    kernel.start(system, drivers_loaded=boot.drivers == "loaded")
    return system
