"""The hardware model of one SMMUv3 (IHI 0070): registers, and what becomes of a device's request.

Configuration is decoded in ``configuration.py``, tables in ``walker.py``, commands in ``command_queue.py``; ``events.py`` writes
events.  The model knows ``layout.py`` and nothing of the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.command_queue import CommandQueue
from iommukit_arm_smmu.model.configuration import Config, Configuration, Features, Regime
from iommukit_arm_smmu.model.events import Event, EventQueue, Stopped, record
from iommukit_arm_smmu.model.walker import Walker

LOW_HALF = (1 << 32) - 1


def identification(features: Features) -> dict[int, int]:
    """The read-only registers (6.3.1 to 6.3.8): everything that Linux needs, and no more."""
    idr0 = (
        bits.IDR0_S1P.put(1 in features.stages)
        | bits.IDR0_S2P.put(2 in features.stages)
        | bits.IDR0_TTF.put(bits.TTF_AARCH64)
        | bits.IDR0_COHACC.put(features.coherent)
        | bits.IDR0_ASID16.put(1)
        | bits.IDR0_VMID16.put(2 in features.stages)
        | bits.IDR0_TTENDIAN.put(bits.TTENDIAN_LITTLE)
        | bits.IDR0_STALL_MODEL.put(bits.STALL_NONE)
        | bits.IDR0_TERM_MODEL.put(1)
        | bits.IDR0_ST_LEVEL.put(bits.TWO_LEVELS)
    )
    queues = bits.IDR1_EVENTQS.put(bits.QUEUE_BITS) | bits.IDR1_CMDQS.put(bits.QUEUE_BITS)
    idr1 = bits.IDR1_SIDSIZE.put(features.stream_bits) | queues
    idr3 = bits.IDR3_HAD.put(1) | bits.IDR3_RIL.put(1) | bits.IDR3_BBML.put(2)
    idr5 = bits.IDR5_OAS.put(bits.ADDRESS_SIZES.index(features.output_bits)) | bits.IDR5_VAX.put(features.large_addresses)
    for name, field in bits.IDR5_GRANULES.items():
        idr5 |= field.put(GRANULES[name] in features.granules)
    return {bits.IDR0: idr0, bits.IDR1: idr1, bits.IDR3: idr3, bits.IDR5: idr5, bits.AIDR: 1}


GRANULES = {"4K": 12, "16K": 14, "64K": 16}
"""Log2 of the granules' bytes."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register of 32 bits, or half of one of 64: the bits that a write changes, and the CR0 bit under which it is ignored."""

    writable: int
    locked_by: int = 0


REGISTERS: dict[int, Register] = {
    bits.CR0: Register(bits.CR0_KNOWN),
    bits.CR1: Register(0xFFF, bits.CR0_SMMUEN.mask),
    bits.CR2: Register(0x7, bits.CR0_SMMUEN.mask),
    bits.GBPA: Register(bits.GBPA_ABORT.mask | 0xFFFFF),
    bits.IRQ_CTRL: Register(0x7),
    bits.GERRORN: Register(0x1FF),
    bits.STRTAB_BASE: Register(LOW_HALF, bits.CR0_SMMUEN.mask),
    bits.STRTAB_BASE + 4: Register(LOW_HALF, bits.CR0_SMMUEN.mask),
    bits.STRTAB_BASE_CFG: Register(LOW_HALF, bits.CR0_SMMUEN.mask),
    bits.CMDQ_BASE: Register(LOW_HALF, bits.CR0_CMDQEN.mask),
    bits.CMDQ_BASE + 4: Register(LOW_HALF, bits.CR0_CMDQEN.mask),
    bits.CMDQ_PROD: Register(0xFFFFF),
    bits.CMDQ_CONS: Register(0xFFFFF, bits.CR0_CMDQEN.mask),
    bits.EVENTQ_BASE: Register(LOW_HALF, bits.CR0_EVENTQEN.mask),
    bits.EVENTQ_BASE + 4: Register(LOW_HALF, bits.CR0_EVENTQEN.mask),
    bits.EVENTQ_PROD: Register(0x800F_FFFF, bits.CR0_EVENTQEN.mask),
    bits.EVENTQ_CONS: Register(0x800F_FFFF),
}
"""The registers that can be written (6.3); interrupts are not sent, so that where they would go is not kept."""


SILENCE = Event(0, told=False)
"""An entry whose Config is abort stops requests without a word (5.2)."""


@dataclass(frozen=True, slots=True)
class Way:
    """A stream's tables: stage 1's, or stage 2's alone; stage 2 behind stage 1; whether faults are told."""

    regimes: tuple[Regime, ...]
    second: Regime | None
    told: bool


class SmmuUnit:
    """One SMMU, switched off as after a reset: everything passes (GBPA.ABORT 0)."""

    def __init__(self, memory: PhysicalMemory, features: Features) -> None:
        self.features = features
        self._registers = identification(features)
        self.walker = Walker(memory)
        self.configuration = Configuration(memory, features, self.walker.fetch)
        self.commands = CommandQueue(memory, features, self.walker, self.configuration.caches)
        self.events = EventQueue(memory)
        self._after: dict[int, Callable[[], None]] = {
            bits.CR0: self._go_on,
            bits.GERRORN: self._go_on,
            bits.STRTAB_BASE: self._strtab,
            bits.STRTAB_BASE + 4: self._strtab,
            bits.STRTAB_BASE_CFG: self._strtab,
            bits.CMDQ_BASE: self._queues,
            bits.CMDQ_BASE + 4: self._queues,
            bits.EVENTQ_BASE: self._queues,
            bits.EVENTQ_BASE + 4: self._queues,
        }
        self._error = 0
        """SMMU_GERROR: a bit that differs from GERRORN is an error that software has not acknowledged (6.3.17)."""

    # ---- registers ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register of 4 or 8 bytes (6.1.1)."""
        if size == 8:
            return self._read(offset) | self._read(offset + 4) << 32
        return self._read(offset)

    def _read(self, offset: int) -> int:
        if offset >= bits.PAGE_1:
            # The second page has the event queue's indices alone (6.2).
            offset = offset - bits.PAGE_1 if offset - bits.PAGE_1 in (bits.EVENTQ_PROD, bits.EVENTQ_CONS) else -1
        if offset == bits.CMDQ_PROD:
            return self.commands.prod
        if offset == bits.CMDQ_CONS:
            return self.commands.cons
        if offset == bits.EVENTQ_PROD:
            return self.events.prod
        if offset == bits.EVENTQ_CONS:
            return self.events.cons
        if offset == bits.GERROR:
            return self._error
        if offset == bits.CR0ACK:
            offset = bits.CR0
        elif offset == bits.IRQ_CTRLACK:
            offset = bits.IRQ_CTRL
        return self._registers.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register of 4 or 8 bytes; commands are done when it returns."""
        if size == 8:
            self._write(offset, value & LOW_HALF)
            self._write(offset + 4, value >> 32)
        else:
            self._write(offset, value)

    def _write(self, offset: int, value: int) -> None:
        if offset == bits.CMDQ_PROD:
            self.commands.prod = value & 0xFFFFF
            self._go_on()
            return
        if offset >= bits.PAGE_1:
            offset = offset - bits.PAGE_1 if offset - bits.PAGE_1 in (bits.EVENTQ_PROD, bits.EVENTQ_CONS) else -1
        register = REGISTERS.get(offset)
        if register is None or register.locked_by & self._registers.get(bits.CR0, 0):
            return
        if offset == bits.GBPA and not value & bits.GBPA_UPDATE.mask:
            return
        value &= register.writable
        if offset == bits.CMDQ_CONS:
            self.commands.cons = value
        elif offset == bits.EVENTQ_PROD:
            self.events.prod = value
        elif offset == bits.EVENTQ_CONS:
            self.events.cons = value
        else:
            self._registers[offset] = value
            after = self._after.get(offset)
            if after is not None:
                after()

    def _wide(self, offset: int) -> int:
        return self._registers.get(offset, 0) | self._registers.get(offset + 4, 0) << 32

    def _strtab(self) -> None:
        self.configuration.strtab_base = self._wide(bits.STRTAB_BASE)
        self.configuration.strtab_cfg = self._registers.get(bits.STRTAB_BASE_CFG, 0)

    def _queues(self) -> None:
        self.commands.base = self._wide(bits.CMDQ_BASE)
        self.events.base = self._wide(bits.EVENTQ_BASE)

    def _active(self, error: bits.Field) -> bool:
        return bool((self._error ^ self._registers.get(bits.GERRORN, 0)) & error.mask)

    def _raise(self, error: bits.Field) -> None:
        """Report an error that is not reported already."""
        if not self._active(error):
            self._error ^= error.mask

    def _go_on(self) -> None:
        """Commands are consumed while the queue is on and no error of it is unacknowledged (4.1.1)."""
        on = bits.CR0_CMDQEN.of(self._registers.get(bits.CR0, 0))
        if on and not self._active(bits.GERROR_CMDQ) and not self.commands.consume():
            self._raise(bits.GERROR_CMDQ)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """See ``UnitModel``: ``requester`` is the stream id, ``pasid`` the substream id."""
        if not self._enabled:
            return None if self._registers.get(bits.GBPA, 0) & bits.GBPA_ABORT.mask else iova
        try:
            way = self._way(requester, pasid)
            if way is None:
                if iova >> self.features.output_bits:
                    raise Stopped(Event(bits.F_ADDR_SIZE))
                return iova
            for regime in way.regimes:
                if regime.holds(iova):
                    return self.walker.translate(regime, way.second, iova, write)
            stage = way.regimes[0].stage if way.regimes else 1
            raise Stopped(Event(bits.F_TRANSLATION, stage=stage, ipa=iova if stage == 2 else 0, told=way.told))
        except Stopped as stopped:
            self._tell(stopped.event, requester, iova, write, pasid)
            return None

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """See ``UnitModel``: many requests at once, whose events come in their order as far as the queue has room."""
        most: int | None = self.events.room + 1
        if not self._enabled:
            stops = self._registers.get(bits.GBPA, 0) & bits.GBPA_ABORT.mask
            return np.full(len(iovas), UNMAPPED) if stops else iovas.copy()
        try:
            way = self._way(requester, pasid)
        except Stopped as stopped:
            physical = np.full(len(iovas), UNMAPPED)
            most = most if stopped.event.told else 0
        else:
            if way is None:
                physical = np.where(iovas >> np.uint64(self.features.output_bits) == 0, iovas, UNMAPPED)
            else:
                physical = self._translated(way, iovas, write)
                most = most if way.told else None
        # What was stopped is asked for again, one by one, by which it is told; more than fit the queue tell nothing more.  Where
        # faults of translation are not told, any of them all may still be another (F_WALK_EABT).
        for at in np.flatnonzero(physical == UNMAPPED)[:most]:
            self.translate(requester, int(iovas[at]), write=write, pasid=pasid)
        return physical

    def _translated(self, way: Way, iovas: Addresses, write: bool) -> Addresses:
        if len(way.regimes) == 1:
            return self.walker.translate_many(way.regimes[0], way.second, iovas, write)
        physical = np.full(len(iovas), UNMAPPED)
        for regime in way.regimes:
            half = iovas >> np.uint64(63) == np.uint64(regime.upper)
            physical[half] = self.walker.translate_many(regime, way.second, iovas[half], write)
        return physical

    @property
    def _enabled(self) -> bool:
        return bool(self._registers.get(bits.CR0, 0) & bits.CR0_SMMUEN.mask)

    def _way(self, requester: int, pasid: int | None) -> Way | None:
        """What configuration says of a stream (3.4): its tables; ``None`` where it passes.  Raises ``Stopped``."""
        stream = self.configuration.stream(requester)
        if stream.bad is not None:
            raise Stopped(stream.bad)
        if stream.config is Config.ABORT:
            raise Stopped(SILENCE)
        if pasid is not None:
            # There are no substreams (IDR1.SSIDSIZE 0).
            raise Stopped(Event(bits.C_BAD_SUBSTREAMID))
        if stream.config is Config.BYPASS:
            return None
        if stream.context is None:
            assert stream.second is not None
            return Way((stream.second,), None, stream.second.told)
        context = self.configuration.context(requester, stream)
        if context.bad is not None:
            raise Stopped(context.bad)
        return Way(context.regimes, stream.second, context.told)

    def _tell(self, event: Event, requester: int, iova: int, write: bool, pasid: int | None) -> None:
        """Record an event, unless nobody wants to know.

        Those are descriptors that ask for silence, and streams beyond the table without CR2.RECINVSID (7.3.3).
        """
        unknown = event.type == bits.C_BAD_STREAMID and not bits.CR2_RECINVSID.of(self._registers.get(bits.CR2, 0))
        if unknown or not event.told or not bits.CR0_EVENTQEN.of(self._registers.get(bits.CR0, 0)):
            return
        if not self.events.append(record(event, requester, iova, write=write, substream=pasid)):
            self._raise(bits.GERROR_EVENTQ_ABT)
