"""The commands that the driver sends, and the queues as it sees them (``arm_smmu_cmdq_build_cmd``)."""

from __future__ import annotations

from collections.abc import Sequence

from iommukit.errors import IommuError
from iommukit.hw.bus import Bus
from iommukit_arm_smmu import layout as bits

Command = tuple[int, int]
"""Two words."""

SYNC: Command = bits.OPCODE.put(bits.SYNC) | bits.SYNC_CS.put(bits.SYNC_SEV), 0
CFGI_ALL: Command = bits.OPCODE.put(bits.CFGI_STE_RANGE), bits.CFGI_RANGE.put(bits.CFGI_RANGE_ALL)
NSNH_ALL: Command = bits.OPCODE.put(bits.TLBI_NSNH_ALL), 0


def cfgi_ste(stream: int) -> Command:
    """Forget a stream table entry."""
    return bits.OPCODE.put(bits.CFGI_STE) | bits.COMMAND_SID.put(stream), bits.CFGI_LEAF.put(1)


def cfgi_cd(stream: int) -> Command:
    """Forget a stream's context descriptor of substream 0."""
    return bits.OPCODE.put(bits.CFGI_CD) | bits.COMMAND_SID.put(stream), bits.CFGI_LEAF.put(1)


def prefetch(stream: int) -> Command:
    """Fetch configuration that will be wanted soon."""
    return bits.OPCODE.put(bits.PREFETCH_CONFIG) | bits.COMMAND_SID.put(stream), 0


def tlbi_asid(asid: int) -> Command:
    """Forget all of an ASID."""
    return bits.OPCODE.put(bits.TLBI_NH_ASID) | bits.TLBI_ASID.put(asid), 0


def tlbi_vmid(vmid: int) -> Command:
    """Forget all of a VMID."""
    return bits.OPCODE.put(bits.TLBI_S12_VMALL) | bits.TLBI_VMID.put(vmid), 0


def tlbi_range(tag: int, start: int, size: int, granule: int, pgsize: int, *, leaf: bool, ranges: bool) -> list[Command]:
    """Forget ``size`` bytes from ``start`` (``__arm_smmu_tlb_inv_range``).

    ``tag``: first word without numbers; ``granule``: log2 of its bytes; ``pgsize``: the pages' size, 0 where it is not known.
    Without ``ranges`` (IDR3.RIL) each page has a command of its own.
    """
    leaf_bit = bits.TLBI_LEAF.put(leaf)
    if not ranges:
        step = pgsize if leaf and pgsize else 1 << granule
        return [(tag, at | leaf_bit) for at in range(start & -step, start + size, step)]
    pages = size >> granule
    level = 4 - (pgsize.bit_length() - 1 - 3) // (granule - 3) if leaf and pgsize else 0
    if not level and pages & bits.TLBI_NUM.mask >> bits.TLBI_NUM.low == 1:
        pages += 1  # without a level, a single page is no range
    second = leaf_bit | bits.TLBI_TTL.put(level) | bits.TLBI_TG.put((granule - 10) // 2)
    commands = []
    while pages:
        scale = (pages & -pages).bit_length() - 1
        number = pages >> scale & 0x1F
        commands.append((tag | bits.TLBI_NUM.put(number - 1) | bits.TLBI_SCALE.put(scale), start | second))
        start += number << scale + granule
        pages -= number << scale
    return commands


class CommandRing:
    """The command queue from the driver's side (``arm_smmu_cmdq_issue_cmdlist``)."""

    def __init__(self, bus: Bus, base: int, address: int, log2size: int) -> None:
        self._bus = bus
        self._quads = bus.memory.quads
        self._prod_register, self._cons_register = base + bits.CMDQ_PROD, base + bits.CMDQ_CONS
        self._base = base
        self._first = address - bus.memory.base >> 3
        self._size = 1 << log2size
        self._wrap = 2 * self._size - 1
        self.address = address
        self.log2size = log2size
        self.prod = 0
        self._cons = 0
        self.illegal: list[int] = []
        """Opcodes that the hardware refused; the driver puts a CMD_SYNC in their place and goes on."""

    def issue(self, commands: Sequence[Command], *, sync: bool = True) -> None:
        """Queue commands; with ``sync`` wait until they are done.  Raises ``ETIMEDOUT`` where the hardware does not come along."""
        queue = [*commands, SYNC] if sync else commands
        for at in range(0, len(queue), self._size - 1):
            self.put(queue[at : at + self._size - 1])
            self._bus.write(self._prod_register, 4, self.prod)
        if sync:
            self._wait(0)

    def put(self, commands: Sequence[Command]) -> None:
        """Write commands to the queue, of which the hardware is not told."""
        self._wait(self._size - len(commands))
        quads, first, mask, prod = self._quads, self._first, self._size - 1, self.prod
        for one, two in commands:
            at = first + 2 * (prod & mask)
            quads[at] = one
            quads[at + 1] = two
            prod += 1
        self.prod = prod & self._wrap

    def _wait(self, left: int) -> None:
        """Wait until at most ``left`` commands are not consumed."""
        if (self.prod - self._cons & self._wrap) <= left:
            return
        for _ in range(self._size):
            cons = self._bus.read(self._cons_register, 4)
            self._cons = cons & self._wrap
            if (self.prod - self._cons & self._wrap) <= left:
                return
            if not self.skip_error(cons):
                break
        raise IommuError("ETIMEDOUT", "CMD_SYNC timeout")

    def skip_error(self, cons: int | None = None) -> bool:
        """Replace a command that stopped the queue (``arm_smmu_cmdq_skip_err``).  False where none did."""
        error, known = (self._bus.read(self._base + offset, 4) for offset in (bits.GERROR, bits.GERRORN))
        if not (error ^ known) & bits.GERROR_CMDQ.mask:
            return False
        if cons is None:
            cons = self._bus.read(self._cons_register, 4)
        if bits.CMDQ_ERR.of(cons) == bits.CERROR_ILL:
            at = self._first + 2 * (cons & self._size - 1)
            self.illegal.append(bits.OPCODE.of(self._quads[at]))
            self._quads[at], self._quads[at + 1] = bits.OPCODE.put(bits.SYNC), 0
        self._bus.write(self._base + bits.GERRORN, 4, known ^ bits.GERROR_CMDQ.mask)
        return True
