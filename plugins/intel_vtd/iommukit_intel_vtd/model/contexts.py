"""The hardware's way from a requester to its page tables: root, context and PASID tables (VT-d specification 3.4, 3.5, 9)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from iommukit.errors import InputError
from iommukit.hw.memory import TableReader
from iommukit_intel_vtd.capabilities import DT, FS5LP, FSTS, PASID, PT, RPS, SAGAW, SC, SMPWC, SMTS, SRS, SSADS, SSTS, Capabilities
from iommukit_intel_vtd.layout import PAGE, RTADDR_TTM, TTM_ABORT, TTM_LEGACY, TTM_SCALABLE, Reason


class Use(enum.Enum):
    """What becomes of a request."""

    STOP = "stopped"
    PASS = "passed through"
    FIRST = "first stage"
    SECOND = "second stage"


@dataclass(frozen=True, slots=True)
class Entry:
    """One table entry on the way: its name, where it is, its words."""

    name: str
    address: int
    words: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Route:
    """What the entries of a requester say, as the context and PASID caches keep it.

    ``domain`` and ``pasid`` tag its translations; ``root`` is the first page table, which has ``levels`` levels.
    ``quiet``: faults are not recorded (FPD).
    """

    use: Use
    domain: int = 0
    pasid: int = 0
    root: int = 0
    levels: int = 0
    reason: Reason | None = None
    quiet: bool = False
    snooped: bool = True
    """First stage: the walk snoops caches, so that accessed and dirty bits can be set (PWSNP)."""
    no_execute: bool = False
    """First stage: entries may forbid execution (NXE)."""
    legacy: bool = True
    path: list[Entry] = field(default_factory=list)
    tag: int = 0
    """What tags its translations (``tag_of``)."""


def tag_of(domain: int, pasid: int | None = None) -> int:
    """What tags translations: the domain id, and in the first stage the PASID as well (6.2.1)."""
    return domain if pasid is None else 1 << 40 | pasid << 16 | domain


class _Stopped(Exception):
    def __init__(self, reason: Reason) -> None:
        self.reason = reason


def _bits(high: int, low: int) -> int:
    """A mask of the bits ``high``..``low``, written as in the specification."""
    return (1 << high + 1) - (1 << low)


class DeviceTables:
    """Decodes the entries of one unit's tables.

    ``address_bits`` is the host address width: bits of addresses from there on are reserved (HAW).
    """

    def __init__(self, memory: TableReader, words: Capabilities, address_bits: int) -> None:
        self._memory = memory
        self._words = words
        self._beyond = _bits(63, address_bits)
        self._levels = {aw: 2 + aw for aw in (1, 2, 3) if words.get(SAGAW) >> aw & 1}
        """Levels of second-stage tables by the code of the address width (AW)."""

    def route(self, rtaddr: int, requester: int, pasid: int | None = None) -> Route:
        """What the tables say of a requester's requests, without or with a PASID."""
        route = Route(Use.STOP)
        mode = rtaddr >> RTADDR_TTM & 3
        try:
            if mode == TTM_LEGACY:
                self._legacy(route, rtaddr, requester, pasid)
            elif mode == TTM_SCALABLE and self._words.has(SMTS):
                route.legacy = False
                self._scalable(route, rtaddr, requester, pasid)
            else:
                # Abort mode stops everything and records nothing (11.4.5).
                route.quiet = mode == TTM_ABORT
                raise _Stopped(Reason.ROOT_ACCESS)
        except _Stopped as stopped:
            route.use, route.reason = Use.STOP, stopped.reason
        route.tag = tag_of(route.domain, route.pasid if route.use is Use.FIRST else None)
        return route

    def _read(self, route: Route, name: str, address: int, count: int, reason: Reason) -> tuple[int, ...]:
        try:
            words = tuple(self._memory.word(address + 8 * number) for number in range(count))
        except InputError as error:
            raise _Stopped(reason) from error
        route.path.append(Entry(name, address, words))
        return words

    def _require(self, condition: bool, reason: Reason) -> None:
        if not condition:
            raise _Stopped(reason)

    # ---- legacy mode -------------------------------------------------------------------------------------------------

    def _legacy(self, route: Route, rtaddr: int, requester: int, pasid: int | None) -> None:
        # Root entry (9.1): P 0, CTP 63:12; all else is reserved.
        at = (rtaddr & -PAGE) + (requester >> 8) * 16
        low, high = self._read(route, "root entry", at, 2, Reason.ROOT_ACCESS)
        self._require(bool(low & 1), Reason.ROOT_ABSENT)
        self._require(not low & (_bits(11, 1) | self._beyond) and not high, Reason.ROOT_RESERVED)
        # Context entry (9.3): P 0, FPD 1, TT 3:2, SSPTPTR 63:12; AW 66:64, DID 87:72.
        at = (low & -PAGE) + (requester & 0xFF) * 16
        low, high = self._read(route, "context entry", at, 2, Reason.CONTEXT_ACCESS)
        route.quiet = bool(low >> 1 & 1)
        self._require(bool(low & 1), Reason.CONTEXT_ABSENT)
        self._require(not low & (_bits(11, 4) | self._beyond), Reason.CONTEXT_RESERVED)
        self._require(not high & (_bits(63, 24) | 1 << 7), Reason.CONTEXT_RESERVED)
        route.domain = high >> 8 & 0xFFFF
        type_, width = low >> 2 & 3, high & 7
        self._require(width in self._levels, Reason.CONTEXT_INVALID)
        self._require(type_ != 3, Reason.CONTEXT_INVALID)
        self._require(type_ != 1 or self._words.has(DT), Reason.CONTEXT_INVALID)
        self._require(type_ != 2 or self._words.has(PT), Reason.CONTEXT_INVALID)
        self._require(pasid is None, Reason.SM_NO_PASID_IN_LEGACY)
        if type_ == 2:
            route.use = Use.PASS
        else:
            route.use, route.root, route.levels = Use.SECOND, low & -PAGE, self._levels[width]

    # ---- scalable mode -----------------------------------------------------------------------------------------------

    def _scalable(self, route: Route, rtaddr: int, requester: int, pasid: int | None) -> None:
        # Scalable-mode root entry (9.2): each half P 0, pointer 63:12; the upper half is for devices 16 to 31.
        devfn = requester & 0xFF
        at = (rtaddr & -PAGE) + (requester >> 8) * 16 + (devfn >> 7) * 8
        (root,) = self._read(route, "root entry", at, 1, Reason.SM_ROOT_ACCESS)
        self._require(bool(root & 1), Reason.SM_ROOT_ABSENT)
        self._require(not root & (_bits(11, 1) | self._beyond), Reason.SM_ROOT_RESERVED)
        # Scalable-mode context entry (9.4): P 0, FPD 1, DTE 2, PASIDE 3, PRE 4, PDTS 11:9, PASIDDIRPTR 63:12; RID_PASID 83:64,
        # RID_PRIV 84.
        at = (root & -PAGE) + (devfn & 0x7F) * 32
        low, rid, *rest = self._read(route, "context entry", at, 4, Reason.SM_CONTEXT_ACCESS)
        route.quiet = bool(low >> 1 & 1)
        self._require(bool(low & 1), Reason.SM_CONTEXT_ABSENT)
        self._require(not low & (_bits(8, 5) | self._beyond), Reason.SM_CONTEXT_RESERVED)
        self._require(not rid & _bits(63, 21) and not any(rest), Reason.SM_CONTEXT_RESERVED)
        self._require(not low >> 2 & 1 or self._words.has(DT), Reason.SM_CONTEXT_INVALID)
        self._require(not low >> 3 & 1 or self._words.has(PASID), Reason.SM_CONTEXT_INVALID)
        limit = 1 << (low >> 9 & 7) + 13
        if pasid is None:
            pasid = rid & _bits(19, 0)
            self._require(not pasid or self._words.has(RPS), Reason.SM_CONTEXT_RESERVED)
            self._require(pasid < limit, Reason.SM_RID_PASID)
        else:
            self._require(bool(low >> 3 & 1), Reason.SM_PASID_DISABLED)
            self._require(pasid < limit, Reason.SM_PASID_TOO_LARGE)
        route.pasid = pasid
        # PASID directory entry (9.5): P 0, FPD 1, SMPTBLPTR 63:12.
        at = (low & -PAGE) + (pasid >> 6) * 8
        (directory,) = self._read(route, "PASID directory entry", at, 1, Reason.SM_DIRECTORY_ACCESS)
        route.quiet |= bool(directory >> 1 & 1)
        self._require(bool(directory & 1), Reason.SM_DIRECTORY_ABSENT)
        self._require(not directory & (_bits(11, 2) | self._beyond), Reason.SM_DIRECTORY_RESERVED)
        at = (directory & -PAGE) + (pasid & 63) * 64
        self._pasid(route, self._read(route, "PASID table entry", at, 8, Reason.SM_PASID_ACCESS))

    def _pasid(self, route: Route, entry: tuple[int, ...]) -> None:
        """PASID table entry (9.6).

        P 0, FPD 1, AW 4:2, SSEE 5, PGTT 8:6, SSADE 9, SSPTPTR 63:12; DID 79:64, PWSNP 87, PGSNP 88; SRE 128, FSPM 131:130,
        NXE 133, FSPTPTR 191:140.
        """
        low, second, first = entry[0], entry[1], entry[2]
        words = self._words
        route.quiet |= bool(low >> 1 & 1)
        self._require(bool(low & 1), Reason.SM_PASID_ABSENT)
        route.domain = second & 0xFFFF
        route.snooped = bool(second >> 23 & 1)
        reserved = (
            low & (_bits(11, 10) | self._beyond)
            or second & _bits(22, 16)
            or first & self._beyond
            or (low >> 9 & 1 and not words.has(SSADS))
            or (route.snooped and not words.has(SMPWC))
            or (second >> 24 & 1 and not words.has(SC))
            or (first & 1 and not words.has(SRS))
        )
        self._require(not reserved, Reason.SM_PASID_RESERVED)
        match low >> 6 & 7:
            case 1:
                mode = first >> 2 & 3
                self._require(words.has(FSTS) and (mode == 0 or (mode == 1 and words.has(FS5LP))), Reason.SM_PASID_INVALID)
                route.use, route.root, route.levels = Use.FIRST, first & -PAGE, 4 + mode
                route.no_execute = bool(first >> 5 & 1)
            case 2:
                width = low >> 2 & 7
                self._require(words.has(SSTS) and width in self._levels, Reason.SM_PASID_INVALID)
                route.use, route.root, route.levels = Use.SECOND, low & -PAGE, self._levels[width]
            case 4:
                self._require(words.has(PT), Reason.SM_PASID_INVALID)
                route.use = Use.PASS
            case _:
                raise _Stopped(Reason.SM_PASID_INVALID)

    # ---- all that there is -------------------------------------------------------------------------------------------

    def requesters(self, rtaddr: int) -> Iterator[int]:
        """The requester ids with a present context entry, rising.

        A context table outside the memory counts as one, that of its first device.  Raises ``InputError`` for a root table there.
        """
        scalable = rtaddr >> RTADDR_TTM & 3 == TTM_SCALABLE
        for bus in range(256):
            for half in (0, 1):
                if half and not scalable:
                    continue
                root = self._memory.word((rtaddr & -PAGE) + bus * 16 + half * 8)
                if not root & 1:
                    continue
                width, count = (4, 128) if scalable else (2, 256)
                try:
                    first_words = self._memory.table(root & -PAGE, width * count)[::width]
                except InputError:
                    yield bus << 8 | half << 7
                    continue
                for devfn, word in enumerate(first_words.tolist()):
                    if word & 1:
                        yield bus << 8 | half << 7 | devfn


class ContextCache:
    """Device entries that the unit has read (6.2.2).

    With caching mode absent and bad entries are kept too, under domain id 0 (6.1).  In scalable mode the entry of the context and
    that of the PASID table are kept together, and either invalidation removes them.
    """

    def __init__(self, caching_mode: bool) -> None:
        self._caching_mode = caching_mode
        self._routes: dict[tuple[int, int | None], Route] = {}

    def get(self, requester: int, pasid: int | None) -> Route | None:
        """What is cached for a requester."""
        return self._routes.get((requester, pasid))

    def keep(self, requester: int, pasid: int | None, route: Route) -> None:
        """Keep what was read, where it may be kept."""
        if route.use is not Use.STOP:
            self._routes[requester, pasid] = route
        elif self._caching_mode:
            route.domain = 0
            self._routes[requester, pasid] = route

    def clear(self) -> None:
        """Forget all."""
        self._routes.clear()

    def forget_domain(self, domain: int) -> None:
        """Forget a domain's entries; scalable-mode context entries have no domain, and all of them go (6.5.2.1)."""
        self._drop(lambda requester, route: route.domain == domain or not route.legacy)

    def forget_devices(self, domain: int, requester: int, function_mask: int) -> None:
        """Forget the entries of a requester, or of several functions: ``function_mask`` as in the descriptor's FM."""
        ignored = (0b000, 0b100, 0b110, 0b111)[function_mask]
        self._drop(
            lambda found, route: not (found ^ requester) & ~ignored & 0xFFFF and (route.domain == domain or not route.legacy)
        )

    def forget_pasid(self, domain: int, pasid: int | None) -> None:
        """Forget the scalable-mode entries of a domain, and of one PASID in it unless that is ``None`` (6.5.2.2)."""
        self._drop(lambda _, route: not route.legacy and route.domain == domain and (pasid is None or route.pasid == pasid))

    def forget_pasids(self) -> None:
        """Forget all PASID-table entries."""
        self._drop(lambda _, route: not route.legacy)

    def _drop(self, concerns: Callable[[int, Route], bool]) -> None:
        for key in [key for key, route in self._routes.items() if concerns(key[0], route)]:
            del self._routes[key]
