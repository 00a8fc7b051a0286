"""One SMMUv3 that is switched on, as its driver runs it: registers, stream table, queues, and what the domains need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iommukit.domain import DomainType
from iommukit.errors import IommuError
from iommukit.hw.bus import Bus
from iommukit.hw.fault import Fault, FaultKind
from iommukit.policy import Era
from iommukit_arm_smmu import commands, entries
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.contexts import DESCRIPTOR_SIZE, Context, Contexts
from iommukit_arm_smmu.smmu import Numbers

CMDQ_LIMIT, EVENTQ_LIMIT = 16, 15
"""Log2 of the most entries that the driver takes: queues of 1 MiB."""
FIRST_LEVEL_LIMIT, SPLIT = 17, 8
"""Log2 of the most first-level descriptors, and of the entries of a second-level table."""
GRAIN = 0x400
"""The smallest piece of memory (bytes)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the machine says of the hardware, to be found again in its registers."""

    stages: frozenset[int]
    granules: frozenset[str]
    output_bits: int
    coherent: bool
    stream_bits: int


EVENTS: dict[int, FaultKind] = {
    bits.C_BAD_STREAMID: FaultKind.BLOCKED,
    bits.F_STE_FETCH: FaultKind.BAD_ENTRY,
    bits.C_BAD_STE: FaultKind.BAD_ENTRY,
    bits.F_STREAM_DISABLED: FaultKind.BLOCKED,
    bits.C_BAD_SUBSTREAMID: FaultKind.BAD_ENTRY,
    bits.F_CD_FETCH: FaultKind.BAD_ENTRY,
    bits.C_BAD_CD: FaultKind.BAD_ENTRY,
    bits.F_WALK_EABT: FaultKind.BAD_TABLE,
    bits.F_TRANSLATION: FaultKind.NOT_MAPPED,
    bits.F_ADDR_SIZE: FaultKind.OUT_OF_RANGE,
    bits.F_ACCESS: FaultKind.BAD_TABLE,
    bits.F_PERMISSION: FaultKind.PERMISSION,
}
"""The events in words that all architectures share; those below 0x10 but F_WALK_EABT carry no address."""


class Running:
    """One unit that is on.  ``expected`` is checked first: ``ENODEV`` where the registers say otherwise."""

    def __init__(self, bus: Bus, base: int, expected: Expected, era: Era, asids: Numbers, *, stop_unattached: bool) -> None:
        self.bus = bus
        self.memory = bus.memory
        self.base = base
        self.era = era
        self.stop_unattached = stop_unattached
        self._descriptors: dict[int, int] = {}
        """Since 6.9: the context descriptor of each first stream id of a device."""
        self._identify(expected)
        self._tables: dict[int, int] = {}
        """Second-level stream tables by first-level index."""
        self._strtab = self._allocate_stream_table()
        self.ring = self._queue(bits.CMDQ_BASE, self._queue_bits(bits.IDR1_CMDQS, CMDQ_LIMIT), bits.COMMAND_SIZE)
        self.contexts = Contexts(self.memory, self.ring, era, self.output_bits, asids, self._limits, ranges=self._ranges)
        self._event_bits = self._queue_bits(bits.IDR1_EVENTQS, EVENTQ_LIMIT)
        self._events = self.memory.pages.alloc(bits.EVENT_SIZE << self._event_bits)
        self._event_cons = 0
        self._reset()

    # ---- registers ---------------------------------------------------------------------------------------------------

    def _read(self, offset: int) -> int:
        return self.bus.read(self.base + offset, 4)

    def _write(self, offset: int, value: int) -> None:
        self.bus.write(self.base + offset, 4, value)

    def _write_wide(self, offset: int, value: int) -> None:
        self.bus.write(self.base + offset, 8, value)

    def _acknowledged(self, offset: int, acknowledgement: int, value: int) -> None:
        """Write a register and wait until it is in force (``arm_smmu_write_reg_sync``)."""
        self._write(offset, value)
        if self._read(acknowledgement) != value:
            raise IommuError("ENODEV", f"register {offset:#x} is not acknowledged")

    def _identify(self, expected: Expected) -> None:
        """Read what the hardware is (``arm_smmu_device_hw_probe``)."""
        idr0, idr1, idr3, idr5 = (self._read(offset) for offset in (bits.IDR0, bits.IDR1, bits.IDR3, bits.IDR5))
        code = bits.IDR5_OAS.of(idr5)
        found = Expected(
            frozenset(stage for stage, field in ((1, bits.IDR0_S1P), (2, bits.IDR0_S2P)) if field.of(idr0)),
            frozenset(name for name, field in bits.IDR5_GRANULES.items() if field.of(idr5)),
            bits.ADDRESS_SIZES[code] if code < len(bits.ADDRESS_SIZES) else 48,
            bool(bits.IDR0_COHACC.of(idr0)),
            bits.IDR1_SIDSIZE.of(idr1),
        )
        if found != expected:
            names = [name for name in Expected.__slots__ if getattr(found, name) != getattr(expected, name)]
            told = "; ".join(f"{name} is {_shown(getattr(found, name))}, not {_shown(getattr(expected, name))}" for name in names)
            raise IommuError("ENODEV", f"the SMMU at {self.base:#x} is not what the machine says: {told}")
        if not bits.IDR0_TTF.of(idr0) & bits.TTF_AARCH64 or bits.IDR0_TTENDIAN.of(idr0) == 0b11:
            raise IommuError("ENODEV", "AArch64 tables in little endian are needed")
        self._idr1 = idr1
        self.output_bits = found.output_bits
        self.stream_bits = found.stream_bits
        self._limits = {1: 1 << (16 if bits.IDR0_ASID16.of(idr0) else 8), 2: 1 << (16 if bits.IDR0_VMID16.of(idr0) else 8)}
        self._ranges = bool(bits.IDR3_RIL.of(idr3))
        self.two_levels = bool(bits.IDR0_ST_LEVEL.of(idr0) & bits.TWO_LEVELS) and self.stream_bits > SPLIT

    def _queue_bits(self, field: bits.Field, limit: int) -> int:
        return min(field.of(self._idr1), limit)

    def _queue(self, register: int, log2size: int, entry: int) -> commands.CommandRing:
        return commands.CommandRing(self.bus, self.base, self.memory.pages.alloc(entry << log2size), log2size)

    def _reset(self) -> None:
        """Bring the unit up (``arm_smmu_device_reset``)."""
        if self._read(bits.CR0) & bits.CR0_SMMUEN.mask:
            self._update_gbpa(bits.GBPA_ABORT.mask)
        self._acknowledged(bits.CR0, bits.CR0ACK, 0)
        self._write(bits.CR1, bits.CR1_WRITE_BACK)
        self._write(bits.CR2, bits.CR2_PTM.mask | bits.CR2_RECINVSID.mask)
        self._write_wide(bits.STRTAB_BASE, self._strtab | bits.BASE_RA.mask)
        self._write(bits.STRTAB_BASE_CFG, self._strtab_cfg)
        self._write_wide(bits.CMDQ_BASE, self.ring.address | self.ring.log2size | bits.QUEUE_RWA.mask)
        self._write(bits.CMDQ_PROD, 0)
        self._write(bits.CMDQ_CONS, 0)
        enabled = bits.CR0_CMDQEN.mask
        self._acknowledged(bits.CR0, bits.CR0ACK, enabled)
        self.ring.issue((commands.CFGI_ALL,))
        self.ring.issue((commands.NSNH_ALL,))
        self._write_wide(bits.EVENTQ_BASE, self._events | self._event_bits | bits.QUEUE_RWA.mask)
        self._write(bits.PAGE_1 + bits.EVENTQ_PROD, 0)
        self._write(bits.PAGE_1 + bits.EVENTQ_CONS, 0)
        enabled |= bits.CR0_EVENTQEN.mask
        self._acknowledged(bits.CR0, bits.CR0ACK, enabled)
        self._acknowledged(bits.IRQ_CTRL, bits.IRQ_CTRLACK, bits.IRQ_GERROR.mask | bits.IRQ_EVENTQ.mask)
        self._acknowledged(bits.CR0, bits.CR0ACK, enabled | bits.CR0_SMMUEN.mask)

    def _update_gbpa(self, value: int) -> None:
        self._write(bits.GBPA, value | bits.GBPA_UPDATE.mask)
        if self._read(bits.GBPA) & bits.GBPA_UPDATE.mask:
            raise IommuError("ENODEV", "GBPA is not responding")

    # ---- the stream table --------------------------------------------------------------------------------------------

    def _allocate_stream_table(self) -> int:
        """The stream table: its address, and ``_strtab_cfg`` (``arm_smmu_init_strtab``)."""
        if self.two_levels:
            first = min(self.stream_bits - SPLIT, FIRST_LEVEL_LIMIT)
            self.stream_limit = 1 << first + SPLIT
            self._strtab_cfg = (
                bits.STRTAB_FMT.put(bits.FMT_TWO_LEVEL) | bits.STRTAB_LOG2SIZE.put(first + SPLIT) | bits.STRTAB_SPLIT.put(SPLIT)
            )
            return self.memory.pages.alloc(max(GRAIN, bits.L1STD_SIZE << first))
        self.stream_limit = 1 << self.stream_bits
        self._strtab_cfg = bits.STRTAB_FMT.put(bits.FMT_LINEAR) | bits.STRTAB_LOG2SIZE.put(self.stream_bits)
        address = self.memory.pages.alloc(max(GRAIN, bits.STE_SIZE << self.stream_bits))
        self._fill(address, self.stream_limit)
        return address

    def _initial(self) -> entries.Words:
        return entries.abort_entry() if self.stop_unattached else entries.bypass_entry()

    def _fill(self, address: int, count: int) -> None:
        words = self.memory.table(address, bits.STE_WORDS * count)
        for index, word in enumerate(self._initial()):
            words[index :: bits.STE_WORDS] = word

    def insert(self, streams: Sequence[int]) -> None:
        """Have table entries for a device's streams (``arm_smmu_init_sid_strtab``).  Raises ``ERANGE``, ``ENOMEM``."""
        for stream in streams:
            if stream >= self.stream_limit:
                raise IommuError("ERANGE", f"stream {stream:#x} lies beyond the stream table")
        for index in {stream >> SPLIT for stream in streams} - self._tables.keys() if self.two_levels else ():
            table = self.memory.pages.alloc(bits.STE_SIZE << SPLIT)
            self._fill(table, 1 << SPLIT)
            self._tables[index] = table
            self.memory.set_word(self._strtab + bits.L1STD_SIZE * index, table | bits.L1STD_SPAN.put(SPLIT + 1))

    def entry_address(self, stream: int) -> int:
        """Where a stream's entry is."""
        if self.two_levels:
            return self._tables[stream >> SPLIT] + bits.STE_SIZE * (stream & (1 << SPLIT) - 1)
        return self._strtab + bits.STE_SIZE * stream

    def _install(self, streams: Sequence[int], target: entries.Words) -> None:
        """Write the entry of each stream (``arm_smmu_install_ste_for_dev``)."""
        for stream in dict.fromkeys(streams):
            address = self.entry_address(stream)

            def sync(stream: int = stream) -> None:
                self.ring.issue((commands.cfgi_ste(stream),))

            if self.era >= Era.V6_12:
                entries.change_entry(self.memory, address, target, entries.entry_used, sync)
            else:
                entries.replace_entry(self.memory, address, target, sync)
            self.ring.issue((commands.prefetch(stream),), sync=False)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def attach(self, streams: Sequence[int], context: Context | None, kind: DomainType, *, attached: bool) -> None:
        """Let a device's streams use a domain; ``attached`` says that they use one now.

        Before 6.9 through an entry that stops or passes everything (``arm_smmu_detach_dev``); later without a gap where the
        hardware allows it.  Raises ``ENOMEM`` with nothing changed.
        """
        if self.era < Era.V6_12:
            if attached:
                self._install(streams, self._initial())
            self._install(streams, self._target(context, kind, context.descriptor if context is not None else None))
            return
        descriptor = None
        if context is not None and context.stage == 1:
            descriptor = self._descriptor(streams[0])
            self._write_descriptor(streams, descriptor, self.contexts.words(context))
        self._install(streams, self._target(context, kind, descriptor))
        if descriptor is None:
            self._clear_descriptor(streams)

    def _target(self, context: Context | None, kind: DomainType, descriptor: int | None) -> entries.Words:
        if context is None:
            return entries.bypass_entry() if kind is DomainType.IDENTITY else entries.abort_entry()
        if context.stage == 1:
            assert descriptor is not None
            return entries.first_stage_entry(descriptor)
        return entries.second_stage_entry(context.table.root, context.format, context.number)

    def release(self, streams: Sequence[int], *, passes: bool) -> None:
        """Leave a device's streams as they were before it came, and give its context descriptor back.

        ``passes``: firmware insists on a direct region, which is left open then (since 6.11).
        """
        self._install(streams, entries.bypass_entry() if passes and self.era >= Era.V6_12 else self._initial())
        self._clear_descriptor(streams)
        descriptor = self._descriptors.pop(streams[0], None)
        if descriptor is not None:
            self.memory.pages.free(descriptor, DESCRIPTOR_SIZE)

    def block(self, streams: Sequence[int]) -> None:
        """Stop a device's streams."""
        self._install(streams, entries.abort_entry())
        self._clear_descriptor(streams)

    def _descriptor(self, stream: int) -> int:
        """A device's context descriptor, kept by its first stream (``arm_smmu_alloc_cd_tables``)."""
        found = self._descriptors.get(stream)
        if found is None:
            found = self._descriptors[stream] = self.memory.pages.alloc(DESCRIPTOR_SIZE)
        return found

    def _write_descriptor(self, streams: Sequence[int], address: int, target: entries.Words) -> None:
        def sync() -> None:
            self.ring.issue([commands.cfgi_cd(stream) for stream in dict.fromkeys(streams)])

        entries.change_entry(self.memory, address, target, entries.context_used, sync)

    def _clear_descriptor(self, streams: Sequence[int]) -> None:
        address = self._descriptors.get(streams[0])
        if address is not None:
            self._write_descriptor(streams, address, entries.NOTHING)

    # ---- events ------------------------------------------------------------------------------------------------------

    def take_faults(self) -> list[Fault]:
        """Empty the event queue (``arm_smmu_evtq_thread``) and acknowledge errors (``arm_smmu_gerror_handler``)."""
        size = 1 << self._event_bits
        prod = self._read(bits.PAGE_1 + bits.EVENTQ_PROD)
        faults = []
        while (self._event_cons ^ prod) & 2 * size - 1:
            words = self.memory.table(self._events + bits.EVENT_SIZE * (self._event_cons & size - 1), 4).tolist()
            faults.append(_fault(*words))
            self._event_cons = self._event_cons + 1 & 2 * size - 1
        if faults or prod & bits.EVENTQ_OVERFLOW.mask:
            # The overflow flag is acknowledged by copying it (7.4).
            self._write(bits.PAGE_1 + bits.EVENTQ_CONS, self._event_cons | prod & bits.EVENTQ_OVERFLOW.mask)
        error, known = self._read(bits.GERROR), self._read(bits.GERRORN)
        if error != known:
            self.ring.skip_error()
            self._write(bits.GERRORN, error)
        return faults


def _fault(first: int, second: int, address: int, _: int) -> Fault:
    kind = bits.EVENT_TYPE.of(first)
    stream = bits.EVENT_SID.of(first)
    if kind < bits.F_TRANSLATION and kind != bits.F_WALK_EABT:
        return Fault(EVENTS.get(kind, FaultKind.BAD_ENTRY), stream, None, None, kind)
    return Fault(EVENTS.get(kind, FaultKind.BAD_ENTRY), stream, address, not bits.EVENT_READ.of(second), kind)


def _shown(value: object) -> str:
    return ", ".join(str(one) for one in sorted(value)) if isinstance(value, frozenset) else str(value)
