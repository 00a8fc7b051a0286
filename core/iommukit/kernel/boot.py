"""Boot: from build options and the command line to the system's default policy and the lines that say so.

Two vocabularies exist.  ``TypeDefault`` is Linux as released: a default *domain type* plus a strictness flag.  ``PolicyDefault``
is the posted patch with its holes resolved: one ``DmaApiPolicy``; the profile ``rfc-as-posted`` puts the holes back in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from iommukit.domain import DomainType
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict, kstrtobool
from iommukit.policy import DmaApiPolicy, Era

BY_CMDLINE = "(set via kernel command line)"
ENCRYPTION_LINE = "iommu: Memory encryption detected - Disabling default IOMMU Passthrough"


class SystemDefault(Protocol):
    """The system-wide default, as options and drivers change it and the core reads it."""

    strict: bool
    chosen_by_cmdline: bool
    """The command line chose between identity and translation."""

    def set_passthrough(self, *, cmdline: bool) -> None:
        """``iommu_set_default_passthrough``."""

    def set_translated(self, *, cmdline: bool) -> None:
        """``iommu_set_default_translated``."""

    def set_strict(self) -> None:
        """``iommu_set_dma_strict``: only ever adds strictness."""

    def set_strict_cmdline(self, strict: bool) -> None:
        """``iommu.strict=``."""

    def passthrough(self) -> bool:
        """``iommu_default_passthrough``."""

    def settle(self, kconfig: str, memory_encryption: bool) -> list[str]:
        """``iommu_subsys_init``: decide, and return the lines printed."""

    def domain_type(self) -> DomainType:
        """The domain type that a device without an opinion gets."""

    def policy(self) -> DmaApiPolicy:
        """The same as a policy."""


@dataclass(slots=True)
class TypeDefault:
    """``iommu_def_domain_type`` and ``iommu_dma_strict`` (6.1, 6.12, 7.2).

    ``trailing_space``: 6.1 ends a line without a suffix in a blank.
    """

    trailing_space: bool = False
    type: DomainType | None = None
    strict: bool = False
    chosen_by_cmdline: bool = False
    strict_by_cmdline: bool = False

    def set_passthrough(self, *, cmdline: bool) -> None:
        """Make identity the default."""
        self.chosen_by_cmdline |= cmdline
        self.type = DomainType.IDENTITY

    def set_translated(self, *, cmdline: bool) -> None:
        """Make translation the default."""
        self.chosen_by_cmdline |= cmdline
        self.type = DomainType.DMA

    def set_strict(self) -> None:
        """Make translation strict; identity stays."""
        self.strict = True
        if self.type is DomainType.DMA_FQ:
            self.type = DomainType.DMA

    def set_strict_cmdline(self, strict: bool) -> None:
        """Take ``iommu.strict=``."""
        self.strict = strict
        self.strict_by_cmdline = True

    def passthrough(self) -> bool:
        """Whether identity is the default so far."""
        return self.type is DomainType.IDENTITY

    def settle(self, kconfig: str, memory_encryption: bool) -> list[str]:
        """Decide the type; memory encryption only overrules a build option."""
        lines: list[str] = []
        if not self.chosen_by_cmdline:
            self.type = DomainType.IDENTITY if kconfig == "passthrough" else DomainType.DMA
            if self.type is DomainType.IDENTITY and memory_encryption:
                lines.append(ENCRYPTION_LINE)
                self.type = DomainType.DMA
        if self.type is not DomainType.IDENTITY and not self.strict:
            self.type = DomainType.DMA_FQ
        assert self.type is not None
        lines.append(self._line(f"iommu: Default domain type: {self.type.label}", self.chosen_by_cmdline))
        if self.type is not DomainType.IDENTITY:
            mode = "strict" if self.strict else "lazy"
            lines.append(self._line(f"iommu: DMA domain TLB invalidation policy: {mode} mode", self.strict_by_cmdline))
        return lines

    def _line(self, text: str, by_cmdline: bool) -> str:
        suffix = " " + BY_CMDLINE if by_cmdline else " " if self.trailing_space else ""
        return text + suffix

    def domain_type(self) -> DomainType:
        """The default domain type."""
        assert self.type is not None
        return self.type

    def policy(self) -> DmaApiPolicy:
        """The default as a policy."""
        return _POLICY_OF[self.domain_type()]


_POLICY_OF = {
    DomainType.IDENTITY: DmaApiPolicy.IDENTITY,
    DomainType.DMA: DmaApiPolicy.STRICT,
    DomainType.DMA_FQ: DmaApiPolicy.LAZY,
}
_TYPE_OF = {policy: type for type, policy in _POLICY_OF.items()}


@dataclass(slots=True)
class PolicyDefault:
    """``dma_api_default_policy``, resolved: LAZY is reachable (H1) and unset is not identity (H2)."""

    default: DmaApiPolicy = DmaApiPolicy.ANY
    strict: bool = False
    chosen_by_cmdline: bool = False
    strict_by_cmdline: bool = False

    def set_passthrough(self, *, cmdline: bool) -> None:
        """Make identity the default."""
        self.chosen_by_cmdline |= cmdline
        self.default = DmaApiPolicy.IDENTITY

    def set_translated(self, *, cmdline: bool) -> None:
        """Make translation the default; how lazy it is follows in ``settle``."""
        self.chosen_by_cmdline |= cmdline
        self.default = DmaApiPolicy.STRICT

    def set_strict(self) -> None:
        """Make translation strict."""
        self.strict = True
        if self.default is DmaApiPolicy.LAZY:
            self.default = DmaApiPolicy.STRICT

    def set_strict_cmdline(self, strict: bool) -> None:
        """Take ``iommu.strict=``."""
        self.strict = strict
        self.strict_by_cmdline = True

    def passthrough(self) -> bool:
        """Whether identity is the default so far."""
        return self.default is DmaApiPolicy.IDENTITY

    def settle(self, kconfig: str, memory_encryption: bool) -> list[str]:
        """Decide the policy; the printed word is the resolved policy (H22)."""
        lines: list[str] = []
        if not self.chosen_by_cmdline:
            if kconfig != "passthrough":
                self.set_translated(cmdline=False)
            elif memory_encryption:
                lines.append(ENCRYPTION_LINE)
                self.set_translated(cmdline=False)
            else:
                self.set_passthrough(cmdline=False)
        self._settle_translated()
        lines.append(self._line())
        return lines

    def _settle_translated(self) -> None:
        if self.default is not DmaApiPolicy.IDENTITY:
            self.default = DmaApiPolicy.STRICT if self.strict else DmaApiPolicy.LAZY

    def _line(self) -> str:
        if self.default is DmaApiPolicy.IDENTITY:
            suffix = BY_CMDLINE if self.chosen_by_cmdline else ""
            return f"iommu: Default domain type: Passthrough {suffix}"
        suffix = BY_CMDLINE if self.strict_by_cmdline else ""
        return f"iommu: DMA translated domain TLB invalidation policy: {self._mode()} mode {suffix}"

    def _mode(self) -> str:
        return "lazy" if self.default is DmaApiPolicy.LAZY else "strict"

    def domain_type(self) -> DomainType:
        """The policy as a domain type."""
        return _TYPE_OF[self.default]

    def policy(self) -> DmaApiPolicy:
        """The default policy."""
        return self.default


class PostedPolicyDefault(PolicyDefault):
    """The patch as posted: LAZY cannot come from boot, and the printed word is the flag, not the policy (H1, H2, H22)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(default=DmaApiPolicy.IDENTITY)

    def _settle_translated(self) -> None:
        if self.default is DmaApiPolicy.LAZY and self.strict:
            self.default = DmaApiPolicy.STRICT

    def _mode(self) -> str:
        return "strict" if self.strict else "lazy"


@dataclass(slots=True)
class BootState:
    """A kernel being started: what it was built with and told, and what its parts have made of that.

    Drivers read ``era``, ``arch``, ``config``, ``memory_encryption`` and ``options``, change the default through the methods, and
    leave log lines.
    """

    era: Era
    release: tuple[int, int]
    arch: str
    kconfig: str
    default: SystemDefault
    cmdline: str = ""
    off_is_final: bool = True
    """Whether ``iommu=off`` is the last word, as it is in newer kernels, or a platform's wish for protection overrules it."""
    memory_encryption: bool = False
    config: dict[str, bool] = field(default_factory=dict)
    """Build options by name; a missing one has the value that the reader names."""
    options: dict[str, Any] = field(default_factory=dict)
    """What options asked for, by a name that their reader chooses."""
    log: list[str] = field(default_factory=list)
    reports: list[OptionReport] = field(default_factory=list)
    no_iommu: bool = False
    """``iommu=off`` (x86)."""
    forcedac: bool = False
    """``iommu.forcedac``: I/O addresses above 4 GiB at once."""
    acs_requested: bool = False
    """Somebody called ``pci_request_acs``."""
    untrusted: frozenset[str] = frozenset()
    """Names of the devices that the PCI scan has found untrusted; drivers skip quirks for them."""

    def set_dma_strict(self) -> None:
        """Make translation strict from now on (``iommu_set_dma_strict``)."""
        self.default.set_strict()

    def set_default_passthrough(self, *, cmdline: bool = False) -> None:
        """Make identity the default (``iommu_set_default_passthrough``)."""
        self.default.set_passthrough(cmdline=cmdline)

    def default_passthrough(self) -> bool:
        """Whether identity is the default (``iommu_default_passthrough``)."""
        return self.default.passthrough()


def set_passthrough_option(value: bool, boot: BootState) -> None:
    """What ``iommu.passthrough=``, ``iommu=pt`` and ``iommu=nopt`` have in common."""
    if value:
        boot.default.set_passthrough(cmdline=True)
    else:
        boot.default.set_translated(cmdline=True)


def _passthrough(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    chosen = kstrtobool(value)
    shown = _shown("iommu.passthrough", value)
    if chosen is None:
        yield OptionReport(shown, Verdict.INVALID, "a boolean was expected; nothing changed")
        return
    set_passthrough_option(chosen, boot)
    yield OptionReport(shown, Verdict.EFFECTIVE, "default is identity" if chosen else "default is translated")


def _strict(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    chosen = kstrtobool(value)
    shown = _shown("iommu.strict", value)
    if chosen is None:
        yield OptionReport(shown, Verdict.INVALID, "a boolean was expected; nothing changed")
        return
    boot.default.set_strict_cmdline(chosen)
    yield OptionReport(shown, Verdict.EFFECTIVE, "translated domains are strict" if chosen else "translated domains are lazy")


def _forcedac(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    shown = _shown("iommu.forcedac", value)
    chosen = kstrtobool(value)
    if chosen is None:
        yield OptionReport(shown, Verdict.INVALID, "a boolean was expected; nothing changed")
    else:
        boot.forcedac = chosen
        yield OptionReport(shown, Verdict.INEFFECTIVE, "places I/O addresses; no part in the policy")


X86_NOT_POLICY = (
    "force",
    "noforce",
    "biomerge",
    "merge",
    "nomerge",
    "panic",
    "nopanic",
    "soft",
    "allowdac",
    "nodac",
    "forcesac",
)


def _iommu_x86(value: str | None, boot: BootState) -> Iterable[OptionReport]:
    """``arch/x86/kernel/pci-dma.c:iommu_setup``: a comma list, matched by prefix; ``usedac`` ends it, with an answer of 1."""
    if value is None:
        yield OptionReport("iommu", Verdict.INVALID, "a value was expected; nothing changed")
        return
    tokens = value.split(",")
    for position, token in enumerate(tokens):
        shown = f"iommu={token}"
        if token.startswith("off"):
            boot.no_iommu = True
            yield OptionReport(shown, Verdict.EFFECTIVE, "asks for no IOMMU")
        elif token.startswith("pt"):
            set_passthrough_option(True, boot)
            yield OptionReport(shown, Verdict.EFFECTIVE, "default is identity: devices reach all memory")
        elif token.startswith("nopt"):
            set_passthrough_option(False, boot)
            yield OptionReport(shown, Verdict.EFFECTIVE, "default is translated")
        elif token.startswith("usedac"):
            rest = tokens[position + 1 :]
            note = f"ends the list; ignored: {','.join(rest)}" if rest else "no part in the policy"
            yield OptionReport(shown, Verdict.INEFFECTIVE, note, malformed=True)
            return
        elif token.startswith(X86_NOT_POLICY):
            yield OptionReport(shown, Verdict.INEFFECTIVE, "no part in the policy")
        else:
            hint = "; strictness is iommu.strict=1" if token == "strict" else ""
            yield OptionReport(shown, Verdict.UNKNOWN, f"no such word{hint}")


def _shown(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


CORE_OPTIONS = (
    KernelOption("iommu.passthrough", Stage.EARLY, _passthrough, "identity (1) or translated (0) by default"),
    KernelOption("iommu.strict", Stage.EARLY, _strict, "strict (1) or lazy (0) invalidation of translated domains"),
    KernelOption("iommu.forcedac", Stage.EARLY, _forcedac, "use addresses above 4 GiB at once"),
)
X86_OPTIONS = (KernelOption("iommu", Stage.EARLY, _iommu_x86, "off, pt, nopt and words that are no policy"),)


def core_options(arch: str) -> tuple[KernelOption, ...]:
    """The options that the core and the architecture read."""
    return CORE_OPTIONS + (X86_OPTIONS if arch == "x86_64" else ())


def looks_like_iommu_option(name: str) -> bool:
    """Whether an option that nobody reads was probably meant for the IOMMU."""
    lowered = name.lower()
    return "iommu" in lowered or "smmu" in lowered
