"""Realistic mistakes in using an SMMUv3: the driver with one thing wrong, each for the rule that must reject it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from iommukit.device import Unit
from iommukit.domain import Domain, Prot
from iommukit.hookspecs import Mistake, hookimpl
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.commands import Command
from iommukit_arm_smmu.hardware import Running
from iommukit_arm_smmu.smmu import SmmuDomain

TLBI_VA = frozenset({bits.TLBI_NH_VA, bits.TLBI_S2_IPA})
TLBI_DOMAIN = frozenset({bits.TLBI_NH_ASID, bits.TLBI_S12_VMALL})

Wrapper = Generator[None, Any, Any]


class WrongUnit:
    """The driver with one thing changed in a unit once it runs."""

    def __init__(self, change: Callable[[Running], None]) -> None:
        self._change = change

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Wrapper:
        """Change it."""
        answer = yield
        self._change(unit.state.running)
        return answer


class WrongCommands(WrongUnit):
    """The driver with some commands changed, or left out where ``change`` answers ``None``; only in a hook, if one is named."""

    def __init__(self, opcodes: frozenset[int], change: Callable[[Command], Command | None], *, during: str = "") -> None:
        super().__init__(self._listen)
        self._opcodes = opcodes
        self._alter = change
        self._during = during
        self._inside = ""

    def _listen(self, running: Running) -> None:
        ring = running.ring
        honest = ring.issue

        def issue(commands: Sequence[Command], *, sync: bool = True) -> None:
            if self._inside != self._during:
                honest(commands, sync=sync)
                return
            wrong = (self._alter(one) if bits.OPCODE.of(one[0]) in self._opcodes else one for one in commands)
            honest([one for one in wrong if one is not None], sync=sync)

        vars(ring)["issue"] = issue

    def _within(self, hook: str) -> Wrapper:
        self._inside = hook if hook == self._during else ""
        try:
            return (yield)
        finally:
            self._inside = ""

    @hookimpl(wrapper=True)
    def attach_dev(self) -> Wrapper:
        """Notice it."""
        return (yield from self._within("attach_dev"))

    @hookimpl(wrapper=True)
    def domain_free(self) -> Wrapper:
        """Notice it."""
        return (yield from self._within("domain_free"))


class WrongDescriptors:
    """The driver with some bits wrong in the pages and blocks that it maps at stage 1."""

    def __init__(self, change: Callable[[int, int], int]) -> None:
        self._change = change

    @hookimpl(wrapper=True)
    def domain_alloc(self) -> Wrapper:
        """Give the domain a wrong format."""
        domain: Domain | None = yield
        if isinstance(domain, SmmuDomain) and domain.context is not None:
            format = domain.context.format
            honest = format.leaf
            vars(format)["leaf"] = lambda level, pgsize, prot: self._change(honest(level, pgsize, prot), prot)
        return domain


def _without(field: bits.Field, value: int = -1) -> Callable[[int, int], int]:
    """Clear a field, or some bits of it."""
    return lambda entry, prot: entry & ~(field.mask & (value << field.low))


def _no_sync(running: Running) -> None:
    honest = running.ring.issue

    def issue(commands: Sequence[Command], *, sync: bool = True) -> None:
        invalidates = any(bits.OPCODE.of(one[0]) in TLBI_VA | TLBI_DOMAIN for one in commands)
        honest(commands, sync=sync and not invalidates)

    vars(running.ring)["issue"] = issue


def _no_doorbell(running: Running) -> None:
    honest = running.ring.issue

    def issue(commands: Sequence[Command], *, sync: bool = True) -> None:
        if any(bits.OPCODE.of(one[0]) in TLBI_VA for one in commands):
            running.ring.put(commands)
        else:
            honest(commands, sync=sync)

    vars(running.ring)["issue"] = issue


def _narrow_input(running: Running) -> None:
    honest = running.contexts.words

    def words(context: Any) -> tuple[int, ...]:
        first, *rest = honest(context)
        return (first + bits.CD_TSZ[0].put(1), *rest)

    vars(running.contexts)["words"] = words


def _other_asid(command: Command) -> Command:
    return command[0] ^ bits.TLBI_ASID.put(0x100), command[1]


def _one_page_less(command: Command) -> Command:
    """The last granule of a range is left out; of a single one nothing can be."""
    pages = bits.TLBI_NUM.of(command[0]) + 1 << bits.TLBI_SCALE.of(command[0])
    if pages == 1 or pages > 32:
        return command
    first = command[0] & ~bits.TLBI_NUM.mask & ~bits.TLBI_SCALE.mask
    return first | bits.TLBI_NUM.put(pages - 2), command[1]


def _leaf_only(command: Command) -> Command:
    return command[0], command[1] | bits.TLBI_LEAF.mask


def _last_level(command: Command) -> Command:
    """TTL 3 for every leaf."""
    leaf = bits.TLBI_LEAF.of(command[1])
    return command[0], command[1] | bits.TLBI_TTL.put(3) if leaf else command[1]


def _nothing(command: Command) -> None:
    return None


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "arm-no-access-flag",
        "It leaves the access flag of pages clear, although nobody sets it on the first access.",
        "PT-12",
        lambda: WrongDescriptors(_without(bits.PTE_AF)),
    ),
    Mistake(
        "arm-read-only-bit-lost",
        "It never sets AP[2], so that what may only be read can be written.",
        "PT-10",
        lambda: WrongDescriptors(_without(bits.PTE_AP, bits.AP_READ_ONLY)),
    ),
    Mistake(
        "arm-privileged-pages",
        "It leaves AP[1] clear: the pages are the privileged software's alone, and devices are not privileged.",
        "PT-12",
        lambda: WrongDescriptors(_without(bits.PTE_AP, bits.AP_UNPRIVILEGED)),
        unseen="QEMU does not look at AP[1]",
    ),
    Mistake(
        "arm-read-only-inverted",
        "It sets AP[2] where writing is asked for, so that what may be written cannot be.",
        "PT-12",
        lambda: WrongDescriptors(lambda entry, prot: entry ^ bits.PTE_AP.put(bits.AP_READ_ONLY) if prot & Prot.WRITE else entry),
    ),
    Mistake(
        "arm-global-pages",
        "It leaves nG clear, so that one domain's cached translations answer for every other.",
        "ATTACH-07",
        lambda: WrongDescriptors(_without(bits.PTE_NG)),
        unseen="QEMU tags all translations by ASID",
    ),
    Mistake(
        "arm-other-asid",
        "It invalidates under another ASID than the domain's.",
        "TLB-01",
        lambda: WrongCommands(frozenset({bits.TLBI_NH_VA}), _other_asid),
    ),
    Mistake(
        "arm-other-asid-for-all",
        "It empties the TLB of another ASID when a flush queue is emptied.",
        "TLB-09",
        lambda: WrongCommands(frozenset({bits.TLBI_NH_ASID}), _other_asid),
    ),
    Mistake(
        "arm-no-sync",
        "It queues invalidations without a CMD_SYNC behind them, so that nothing says when they are done.",
        "TLB-01",
        lambda: WrongUnit(_no_sync),
        unseen="QEMU invalidates when it reads the command",
    ),
    Mistake(
        "arm-no-doorbell",
        "It writes invalidations into the queue and does not move SMMU_CMDQ_PROD.",
        "TLB-01",
        lambda: WrongUnit(_no_doorbell),
    ),
    Mistake(
        "arm-one-page-less",
        "It takes a range's NUM for its length, and invalidates all but the last page.",
        "TLB-02",
        lambda: WrongCommands(TLBI_VA, _one_page_less),
    ),
    Mistake(
        "arm-leaf-only",
        "It invalidates leaves alone, although a table of the range is given back.",
        "TLB-18",
        lambda: WrongCommands(TLBI_VA, _leaf_only),
        unseen="QEMU keeps no addresses of tables",
    ),
    Mistake(
        "arm-last-level",
        "It says of every invalidation that it is of last-level pages, blocks as well.",
        "TLB-04",
        lambda: WrongCommands(TLBI_VA, _last_level),
        unseen="QEMU looks at TTL for single granules only",
    ),
    Mistake(
        "arm-stale-stream",
        "It changes a stream table entry without CMD_CFGI_STE.",
        "ATTACH-05",
        lambda: WrongCommands(frozenset({bits.CFGI_STE}), _nothing, during="attach_dev"),
        unseen="QEMU drops all of a stream's configuration at CMD_CFGI_CD, which is sent as well",
    ),
    Mistake(
        "arm-stale-context",
        "It changes a context descriptor without CMD_CFGI_CD.",
        "ATTACH-06",
        lambda: WrongCommands(frozenset({bits.CFGI_CD}), _nothing, during="attach_dev"),
    ),
    Mistake(
        "arm-asid-used-again",
        "It gives an ASID back with translations still cached under it.",
        "TLB-17",
        lambda: WrongCommands(TLBI_DOMAIN, _nothing, during="domain_free"),
    ),
    Mistake(
        "arm-narrow-input",
        "It writes a T0SZ that is one too large, so that the upper half of the aperture is not translated.",
        "PT-13",
        lambda: WrongUnit(_narrow_input),
    ),
)
