"""The vendor interface, on one page.

A vendor is a module (or any object) with functions marked ``@hookimpl``, registered through the entry point group
``iommukit.vendors``; the entry point's name is the vendor's name.  The four vendors of this project register in the same
way.  A hook is called for one device, and only the vendor that owns the device is asked.  An implementation may leave out
arguments that it does not need.  A hook that a vendor does not implement has the default named under *returns*.

Every hook answers for the kernel generation in ``device.system.boot.era``: one plugin models a driver through its releases.

**Errors.** A driver refuses by raising ``IommuError("ENOMEM")`` or another errno name; nothing may have changed then.  A vendor
that cannot build what a machine file asks for raises ``NotApplicable(reason)`` from ``discover``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from iommukit.policy import DmaApiPolicy

if TYPE_CHECKING:
    from iommukit.device import Device, Unit
    from iommukit.domain import Domain, DomainType
    from iommukit.group import Group
    from iommukit.hw.bus import ModelBus
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import TableReader
    from iommukit.hw.platform import Addresses, UnitModel
    from iommukit.hw.walk import Walk
    from iommukit.kernel.boot import BootState
    from iommukit.kernel.cmdline import KernelOption
    from iommukit.machine.acpi import TableFormat
    from iommukit.machine.model import Machine
    from iommukit.regions import ReservedRegion

PROJECT = "iommukit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class VendorDeclaration:
    """What a vendor says of itself.

    ``arch``: the machine files' architectures that it exists on (``x86_64``, ``aarch64``, ``s390x``, ``riscv64``).
    ``capabilities``: names from ``CAPABILITIES`` that hold for at least one modelled release.  ``hardware_options``: the keys of a
    machine's ``hardware`` mapping that it understands, each with one line of explanation; a machine that asks for another key is
    not this vendor's.  ``expected_failures``: rules that the driver knowingly breaks, each with the reason; a case of such a rule
    that passes is a failure.  ``hardware_variants``: by name, hardware (such keys, with values) whose page tables, TLB or queues
    differ from the plain machine's; the suite's hardware rules are tried on each.  ``unseen``: mistakes that every driver can make
    (``iommukit_conformance.wrong.slips``) and that do no harm on this hardware, with the reason: where each invalidation takes
    everything, half a range is no mistake.
    """

    title: str
    arch: tuple[str, ...]
    capabilities: frozenset[str]
    hardware_options: Mapping[str, str] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    hardware_variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


CAPABILITIES: Mapping[str, str] = {
    "identity": "offers identity domains",
    "lazy": "supports a flush queue",
    "pci": "translates for PCI functions behind ports and bridges",
    "trust": "its platform marks external-facing ports, so that devices can be untrusted (from 6.1.176 on: x86_64 only)",
    "identity-required": "has a device that requires identity (example_device('identity-required'))",
    "strict-required": "has a device that requires translated DMA (example_device('strict-required'))",
    "lazy-preferred": "has a device that prefers a flush queue (example_device('lazy-preferred'))",
    "no-lazy": "has a device without a flush queue (example_device('no-lazy'))",
    "direct-regions": "firmware can ask for 1:1 regions that stay",
    "relaxable-regions": "firmware can ask for 1:1 regions that assignment may drop",
    "superpages": "maps pages larger than the granule",
    "write-only": "page tables can let a device write without letting it read",
    "pasid": "process address spaces",
    "resv-firmware": "reports reserved regions from firmware",
    "legacy-strict-option": "has a vendor option of its own for strict mode",
}
"""The capabilities that a scenario or a test may ask for.  A test asks for a capability, never for a vendor."""


@dataclass(frozen=True, slots=True)
class ExampleDevice:
    """A device of a vendor for a role: what the machine file would say.

    ``device`` holds the keys of a machine file's device (``id``, ``class``, ``kind``, …) without ``name``; ``companions`` are
    further whole devices that have to be there; ``hardware`` is what the IOMMU must be able to do.
    """

    device: Mapping[str, Any]
    companions: Sequence[Mapping[str, Any]] = ()
    hardware: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlushQueueOptions:
    """``entries`` a ring holds (a power of two), ``timeout_ns`` until the timer flushes, one ring for all CPUs or one each."""

    entries: int = 256
    timeout_ns: int = 10_000_000
    single_queue: bool = False


@dataclass(slots=True)
class Gather:
    """What an unmap has collected for one invalidation (``struct iommu_iotlb_gather``): bytes ``start``..``end``, inclusive."""

    start: int = (1 << 64) - 1
    end: int = 0
    pgsize: int = 0
    """The page size of all of it (bytes), 0 while nothing was gathered."""
    queued: bool = False
    """A flush queue takes it: the driver need not remember what can only be used by ``iotlb_sync``."""
    freed: list[tuple[int, int]] = field(default_factory=list)
    """Tables that no entry names any more, to be freed once the invalidation is done: address and size (bytes)."""

    @property
    def empty(self) -> bool:
        """Nothing was gathered."""
        return self.end < self.start

    def apart(self, start: int, size: int) -> bool:
        """Whether a range neither overlaps nor touches what was gathered (``iommu_iotlb_gather_is_disjoint``)."""
        return not self.empty and (start + size < self.start or start > self.end + 1)

    def add(self, start: int, size: int, pgsize: int = 0) -> None:
        """Extend the range by ``size`` bytes from ``start`` (``iommu_iotlb_gather_add_range``)."""
        self.start = min(self.start, start)
        self.end = max(self.end, start + size - 1)
        self.pgsize = pgsize or self.pgsize


@dataclass(frozen=True, slots=True)
class Emulation:
    """A machine of QEMU with a vendor's IOMMU.

    ``binary`` is the suffix of ``qemu-system-…``; ``arguments`` follow it, without memory, devices and monitors; ``machine`` is
    the document of the same machine for the kernel, with the devices ``nic``, ``second`` and, where there is one, ``bulk``,
    at the addresses (on s390 with the attributes ``uid`` and ``fid``) at which QEMU is to have them: it is given a device for each,
    ``edu`` (``1234:11e8``), for ``bulk`` ``lsi53c895a`` (``1000:0012``), on s390 always ``virtio-blk-pci`` (``1af4:1042``).
    ``deviations`` names what that QEMU does not model or gets wrong, by rule, with the reason: such a rule must fail there, and
    is an error once it passes.  ``absent`` names rules that cannot be tried there at all, with the reason; ``unseen`` mistakes
    in using hardware (``Mistake.name``) that do no harm there, with the reason.  ``lowest`` is the first physical address (bytes)
    that page tables can name there.  ``config`` are build options of the kernel that is run there, as in a scenario's ``boot``.
    ``variants``: by name, further machines whose page tables, TLB or queues differ from this, the plain one; each is complete,
    with its own ``deviations``, and the suite's hardware rules are tried on each.
    """

    binary: str
    arguments: Sequence[str]
    machine: Mapping[str, Any]
    memory_base: int = 0
    memory_size: int = 256 << 20
    deviations: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    lowest: int = 0
    config: Mapping[str, bool] = field(default_factory=dict)
    variants: Mapping[str, Emulation] = field(default_factory=dict)

    def machine_of(self, variant: str) -> Emulation:
        """A variant by its name, the plain machine by the empty one."""
        return self.variants[variant] if variant else self


@dataclass(frozen=True, slots=True)
class Mistake:
    """A realistic mistake in using hardware: the driver with ``wrapper()`` around its hooks.

    ``sentence`` says what is wrong with the driver; ``rule`` is the rule that must reject it; ``unseen`` says why QEMU
    cannot see it, where it cannot.  ``wrapper`` makes a plugin of hook wrappers.
    """

    name: str
    sentence: str
    rule: str
    wrapper: Callable[[], object]
    unseen: str = ""


class VendorSpec:
    """All hooks.  Each docstring has the same sections."""

    # ---- declaration -------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def declare(self) -> VendorDeclaration:  # type: ignore[empty-body]
        """Say what the vendor is and has.

        Called when: the plugin is registered.
        Returns: the declaration.  Every vendor implements it.
        Errors: none.
        Linux counterpart: none; the suite needs it.
        """

    @hookspec(firstresult=True)
    def firmware_formats(self) -> Sequence[TableFormat[Any]] | None:
        """Name the firmware tables that the vendor reads.

        Called when: a machine file carries firmware.
        Returns: one format for each table signature (``DMAR``, ``IVRS``, ``IORT``).  Default: none.
        Errors: a format's ``parse`` raises ``FirmwareError``.
        Linux counterpart: ``dmar_table_init``, ``amd_iommu_detect``, ``acpi_iort_init``.
        """

    @hookspec(firstresult=True)
    def kernel_options(self, boot: BootState) -> Sequence[KernelOption] | None:
        """Name the command-line options that the driver registers.

        Called when: a kernel of one of the vendor's architectures parses its command line, whether or not the vendor's
        hardware is there: a driver's options are compiled in.
        Arguments: ``boot``, of which only ``era``, ``arch`` and ``config`` are settled.
        Returns: the options.  Default: none.
        Errors: none; an option's ``apply`` reports what it does not understand.
        Linux counterpart: ``__setup("intel_iommu=", …)``, ``module_param`` and the like.
        """

    # ---- hardware ----------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def early_quirks(self, machine: Machine, boot: BootState) -> None:
        """Apply what happens before the core prints its policy.

        Called when: after the command line, before the policy lines.
        Arguments: ``machine`` as the vendor realises it; ``boot`` takes ``set_dma_strict()`` and log lines.
        Returns: nothing.
        Errors: ``FirmwareError``, ``NotApplicable``, as for ``discover``.
        Linux counterpart: PCI header fixups (``quirk_calpella_no_shadow_gtt``), detection of the firmware table.
        """

    @hookspec(firstresult=True)
    def discover(self, machine: Machine, boot: BootState) -> Sequence[Unit]:  # type: ignore[empty-body]
        """Find the IOMMUs of a machine, from its firmware tables or, where it carries none, from its hardware options.

        Called when: after the policy lines (``rootfs_initcall``), under ``boot.no_iommu`` (``iommu=off``) too, where it
        answers no unit.
        Arguments: ``machine``; ``boot``, which takes late changes (``set_dma_strict()``, ``set_default_passthrough()``) and
        log lines, and holds what the options asked for.
        Returns: the units in the order in which they register; empty where DMA remapping stays off.
        Errors: ``FirmwareError`` for an unusable table, ``NotApplicable`` where the vendor cannot build the machine.
        Linux counterpart: ``intel_iommu_init``, ``amd_iommu_init``, ``arm_smmu_device_probe``, ``zpci_init_iommu``.
        """

    @hookspec(firstresult=True)
    def example_device(self, role: str, boot: BootState) -> ExampleDevice | None:
        """Give a device of this vendor for a role.

        Called when: a machine file names a ``role`` in place of ids.
        Arguments: ``role``, such as ``identity-required``, ``strict-required``, ``lazy-preferred``, ``no-lazy``,
        ``direct-region``, ``relaxable-region``.
        Returns: the example, or ``None`` where the vendor has none in this release (the scenario is N/A then).
        Errors: none.
        Linux counterpart: the quirk lists of the driver.
        """

    # ---- devices -----------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """Say which unit translates for a device.

        Called when: a unit registers, a device is added, or (``Unit.probes_at_bind``) a driver binds.
        Arguments: ``units`` as ``discover`` returned them.
        Returns: the unit, or ``None`` where none does.  Default: the first unit.
        Errors: ``IommuError``: the device stays without an IOMMU.
        Linux counterpart: ``iommu_ops.probe_device``.
        """

    @hookspec(firstresult=True)
    def probe_finalize(self, device: Device) -> None:
        """Finish a device's probe after its group has its domain.

        Called when: after attaching, and after a change of the group's type.
        Returns: nothing.  Before 6.12 every driver but arm64's sets up the DMA API here (``iommu_setup_dma_ops`` of
        ``iommukit.dma.setup``); without it mapping calls bypass the domain.  Later the core does it.
        Errors: none.
        Linux counterpart: ``iommu_ops.probe_finalize``.
        """

    @hookspec(firstresult=True)
    def release_device(self, device: Device) -> None:
        """Forget a device.

        Called when: it leaves the system.
        Returns: nothing.  The driver detaches it from its domain; the core clears ``device.attached`` afterwards.
        Errors: none.
        Linux counterpart: ``iommu_ops.release_device``.
        """

    @hookspec(firstresult=True)
    def device_group(self, device: Device) -> Group:  # type: ignore[empty-body]
        """Choose a device's group.

        Called when: a unit has accepted the device.
        Returns: an existing group or a new one, by ``pci_device_group``, ``generic_device_group`` or the vendor's own rule.
        Default: ``pci_device_group`` for PCI, else ``generic_device_group``.
        Errors: ``IommuError("EINVAL")``: the device stays without an IOMMU.
        Linux counterpart: ``iommu_ops.device_group``.
        """

    @hookspec(firstresult=True)
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:  # type: ignore[empty-body]
        """List the device's reserved regions (bytes, inclusive).

        Called when: direct mappings are made, IOVA space is reserved, or ``reserved_regions`` is read.
        Returns: regions in any order, overlapping or not, among them ``device.facts.reserved``: what the machine file reserves is
        reported, or the machine is refused with ``NotApplicable`` from ``discover``.  Default: none.
        Errors: none.
        Linux counterpart: ``iommu_ops.get_resv_regions``.
        """

    @hookspec(firstresult=True)
    def is_attach_deferred(self, device: Device) -> bool:  # type: ignore[empty-body]
        """Say whether attaching waits for the driver's first mapping.

        Called when: before the core attaches a default domain.
        Returns: True in a kdump kernel whose predecessor left translation on.  Default: False.
        Errors: none.
        Linux counterpart: ``iommu_ops.is_attach_deferred``.
        """

    # ---- policy ------------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def def_domain_type(self, device: Device) -> DmaApiPolicy:  # type: ignore[empty-body]
        """Say what a device requires.

        Called when: a group's type is decided: at boot, when a device joins, when root writes ``type``.
        Returns: ``IDENTITY`` or ``STRICT`` where the device cannot work otherwise; ``ANY`` for no opinion (the default).  ``LAZY``
        is a wish: the posted patch and a 6.1 core take it for a requirement, ``rfc`` for a preference that ranks below the command
        line.  The core knows of untrusted devices itself.  Implement it even to answer ``ANY``: ``rfc-unconverted``
        misreads answers, and has nothing to misread without one.
        Errors: none.
        Linux counterpart: ``iommu_ops.def_domain_type`` (0, IDENTITY, DMA, DMA_FQ).
        """

    @hookspec(firstresult=True)
    def prefer_dma_api_fq(self, device: Device) -> bool:  # type: ignore[empty-body]
        """Say whether a flush queue works for the device.

        Called when: a lazy domain is set up.
        Returns: False where an unmap must be flushed at once.  Default: ``capable(device, "deferred_flush")``.
        Errors: none.
        Linux counterpart: ``prefer_dma_api_fq`` of the posted patch, ``IOMMU_CAP_DEFERRED_FLUSH`` since 6.3.
        """

    @hookspec(firstresult=True)
    def flush_queue_options(self, device: Device) -> FlushQueueOptions:  # type: ignore[empty-body]
        """Size the flush queue.

        Called when: a flush queue starts.
        Returns: the options.  Default: 256 entries a CPU, 10 ms.
        Errors: ``IommuError("ENOMEM")``: the queue does not start.
        Linux counterpart: ``iommu_dma_init_fq``, ``iommu_dma_options``.
        """

    @hookspec(firstresult=True)
    def capable(self, device: Device, capability: str) -> bool:  # type: ignore[empty-body]
        """Answer for a capability.

        Called when: the core or a user such as VFIO asks.
        Arguments: ``capability``: ``cache_coherency``, ``deferred_flush``, ``interrupt_remapping``, ``noexec``,
        ``pre_boot_protection``, ``enforce_cache_coherency``, ``dirty_tracking``.
        Returns: True or False.  Default: False.
        Errors: none.
        Linux counterpart: ``iommu_ops.capable``.
        """

    # ---- domains -----------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Allocate a domain, or hand out a static one.

        Called when: a default domain, a blocking domain or an unmanaged domain is needed.
        Arguments: ``type``.  Since 6.12, and with the posted patch, a driver never sees ``DMA_FQ``: a queue is the core's business.
        Returns: the domain, or ``None`` where the driver has no such type.
        Errors: ``IommuError("ENOMEM")``.
        Linux counterpart: ``iommu_ops.domain_alloc`` and, since 6.6, ``identity_domain`` and ``blocked_domain``.
        """

    @hookspec(firstresult=True)
    def domain_free(self, domain: Domain) -> None:
        """Take a domain back.

        Called when: no device is attached any more; never for a static domain.
        Returns: nothing.
        Errors: none.
        Linux counterpart: ``iommu_domain_ops.free``.
        """

    @hookspec(firstresult=True)
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """Put a device into a domain.

        Called when: a group changes its domain; device by device.
        Returns: nothing.  A vendor that implements it sets ``device.attached = domain`` as its last act; for others the core does.
        Errors: ``IommuError``; the device stays in the domain that it was in, and ``device.attached`` says so.
        Linux counterpart: ``iommu_domain_ops.attach_dev``.
        """

    @hookspec(firstresult=True)
    def set_dev_blocked(self, device: Device) -> bool:  # type: ignore[empty-body]
        """Stop all DMA of a device at once.

        Called when: the last domain of a leaving device is detached.
        Returns: True when done (the driver sets ``device.attached = None``).  Default: False, and the core detaches.
        Errors: none.
        Linux counterpart: ``release_domain``; ``set_dev_pasid`` of the blocked domain.
        """

    # ---- page tables: in bulk ----------------------------------------------------------------------------------------
    #
    # The core calls these for domains of devices whose unit has a bus; a domain that is in use on no bus has no tables.

    @hookspec(firstresult=True)
    def map_pages(self, domain: Domain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:  # type: ignore[empty-body]
        """Map ``pgcount`` pages of ``pgsize`` bytes.

        Called when: the DMA API, a direct region or an owner such as VFIO maps.
        Arguments: ``iova`` and ``paddr`` in bytes, aligned to ``pgsize``, one of ``domain.page_sizes``; ``prot`` is a mask of
        ``iommukit.domain.Prot``.
        Returns: bytes mapped.  Default: the vendor has no page tables, and DMA is undecided.
        Errors: ``EFAULT`` (``ERANGE`` in some drivers) outside the aperture, ``EEXIST`` over a mapping, ``EINVAL`` for a protection
        that the format cannot express, ``ENOMEM``; the tables then translate as before.
        Linux counterpart: ``iommu_domain_ops.map_pages``.
        """

    @hookspec(firstresult=True)
    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:  # type: ignore[empty-body]
        """Unmap ``pgcount`` pages of ``pgsize`` bytes.

        Called when: whoever mapped unmaps.
        Arguments: as for ``map_pages``; ``gather`` takes the range that must be invalidated and, in ``gather.freed``, the tables
        that no entry names any more: hardware may still be walking them.
        Returns: bytes unmapped, from ``iova`` on: fewer where nothing more is mapped, more where a larger page went as a whole.
        Errors: none.
        Linux counterpart: ``iommu_domain_ops.unmap_pages``.
        """

    @hookspec(firstresult=True)
    def iova_to_phys(self, domain: Domain, iova: Addresses) -> Addresses:  # type: ignore[empty-body]
        """Translate addresses by the tables, as the driver reads them.

        Called when: somebody asks.
        Arguments: ``iova``: an array of addresses (bytes, ``uint64``).
        Returns: an array of the physical addresses, ``iommukit.hw.platform.UNMAPPED`` where nothing is mapped.
        Errors: none.
        Linux counterpart: ``iommu_domain_ops.iova_to_phys``.
        """

    # ---- the TLB -----------------------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def flush_iotlb_all(self, domain: Domain) -> None:
        """Invalidate everything cached of a domain.

        Called when: a flush queue is emptied.
        Returns: nothing; on return no device uses an old translation.
        Errors: none.
        Linux counterpart: ``iommu_domain_ops.flush_iotlb_all``.
        """

    @hookspec(firstresult=True)
    def iotlb_sync(self, domain: Domain, gather: Gather) -> None:
        """Invalidate what an unmap has gathered, then free the tables in ``gather.freed`` and empty that list.

        Called when: after an unmap, unless a flush queue takes it; a queue frees the tables after ``flush_iotlb_all``.
        Returns: nothing; on return no device uses the old translations.
        Errors: none.
        Linux counterpart: ``iommu_domain_ops.iotlb_sync``.
        """

    @hookspec(firstresult=True)
    def iotlb_sync_map(self, domain: Domain, iova: int, size: int) -> None:
        """Make new entries visible (bytes).

        Called when: after a map, for hardware that caches absent entries or shadows tables.
        Returns: nothing.
        Errors: ``IommuError`` since 6.7: the map is undone.
        Linux counterpart: ``iommu_domain_ops.iotlb_sync_map``.
        """

    # ---- the hardware itself -----------------------------------------------------------------------------------------

    @hookspec(firstresult=True)
    def create_unit(self, bus: ModelBus, unit: Unit) -> UnitModel | None:
        """Build the hardware model of a unit, switched off as after a reset, and put its registers on the bus.

        Called when: a kernel starts on the platform ``model``, for each unit that ``discover`` returned, before ``start_unit``.
        Arguments: ``bus.attach`` takes registers; on s390 ``bus.instructions`` is the machine's.  ``unit`` says what the hardware
        can do.  The model decodes raw bits by the specification and shares no code with the driver's page tables.
        Returns: the model.  Default: the vendor models no hardware, and DMA is undecided.
        Errors: ``IommuError("ENODEV")`` where the configuration cannot be built.
        Linux counterpart: none, it is the hardware.
        """

    @hookspec(firstresult=True)
    def start_unit(self, unit: Unit) -> None:
        """Bring a unit up: tables, queues, registers, translation on.

        Called when: a kernel starts on a platform, after ``discover`` and before any device is probed; ``unit.bus`` is set.
        Without a platform ``unit.bus`` is ``None``, this hook is not called, and the driver decides policy and writes nothing.
        Arguments: ``unit.bus`` is all that the driver may touch: behind it stands a model or an emulator.
        Returns: nothing.
        Errors: ``IommuError("ENODEV")`` where the hardware is not what the machine file or the firmware said.
        Linux counterpart: ``init_dmars``, ``enable_iommus``, ``arm_smmu_device_reset``, ``zpci_enable_device``.
        """

    @hookspec(firstresult=True)
    def requester(self, device: Device) -> int:  # type: ignore[empty-body]
        """The name under which the hardware knows a device's requests.

        Called when: the device does DMA on the platform ``model``, or a fault is matched with a device.
        Returns: a number.  Default: the PCI requester id (bus, device, function).
        Errors: none.
        Linux counterpart: the source id, device id, stream id or function handle that the driver's tables are indexed by.
        """

    @hookspec(firstresult=True)
    def take_faults(self, unit: Unit) -> Sequence[Fault]:  # type: ignore[empty-body]
        """Read the faults that the hardware has recorded since the last call, and make room for more.

        Called when: an interrupt would tell of them.
        Returns: the faults, oldest first.  Default: none.
        Errors: none.
        Linux counterpart: ``dmar_fault``, ``iommu_poll_events``, ``arm_smmu_evtq_thread``, ``zpci_event_error``.
        """

    @hookspec(firstresult=True)
    def table_roots(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Name the registers that ``walk_tables`` starts from, each with one line of explanation; the first is required.

        Called when: ``iommukit walk`` reads its arguments.
        Returns: for example ``{"rtaddr": "RTADDR_REG: the root table's address and mode"}``.  Default: none.
        Errors: none.
        Linux counterpart: ``/sys/kernel/debug/iommu``.
        """

    @hookspec(firstresult=True)
    def walk_tables(  # type: ignore[empty-body]
        self, memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None
    ) -> Iterable[Walk]:
        """Decode the tables in a memory as the hardware would.

        Called when: ``iommukit walk`` looks at a dump.
        Arguments: ``memory``, of this machine or of another; ``roots``: values of the registers in ``table_roots``;
        ``requester``: the only device, or ``None`` for all that have an entry; ``iova``: the only address (bytes), or ``None`` for
        the whole map.  ``iommukit.hw.decode`` goes through radix tables of any format.
        Returns: one walk for each device.  Default: the vendor's tables cannot be read.
        Errors: ``InputError`` for an address outside the memory and for a root that cannot be.
        Linux counterpart: ``domain_translation_struct`` in debugfs.
        """

    @hookspec(firstresult=True)
    def emulation(self, version: tuple[int, int]) -> Emulation | None:
        """Say which machines of QEMU have this vendor's IOMMU, so that the driver can be run on them.

        Called when: the conformance suite or ``iommukit oracle hardware`` runs on QEMU.
        Arguments: ``version`` of that QEMU, major and minor.
        Returns: the plain machine with its variants, or ``None`` where that QEMU has none.  Default: none.
        Errors: none.
        Linux counterpart: none; it is an independent judge of the bits that the driver writes.
        """

    @hookspec(firstresult=True)
    def mistakes(self) -> Sequence[Mistake]:  # type: ignore[empty-body]
        """Give realistic mistakes in using this vendor's hardware, so that the suite can be tested on it.

        Called when: the suite tests itself.
        Returns: the mistakes.  Default: none; mistakes that every driver can make are the suite's own.
        Errors: none.
        Linux counterpart: none.
        """
