"""The JSON that commands answer with (a contract); ``iommukit schema`` prints these as JSON Schema.

Imported where shapes are needed as data; reports import it for type checking only.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

OutcomeName = Literal["PASS", "FAIL", "XFAIL", "N/A", "UNDECIDED"]
VerdictName = Literal["effective", "ineffective", "invalid", "unknown"]
Severity = Literal["breaks", "weakens", "refuses", "differs", "improves", "cosmetic"]
Part = Literal["enabled", "units", "log", "groups", "numbers"]
VoucherName = Literal["kernel", "recording", "qemu", "facts", "contradicted"]
StandingName = Literal["agrees", "differs", "explained", "undecided", "stale", "missing"]
exact = with_config(ConfigDict(extra="forbid"))
"""No further keys."""


@exact
class GroupJson(TypedDict):
    """A group as sysfs shows it."""

    id: int
    type: str
    devices: list[str]


@exact
class OptionJson(TypedDict):
    """What became of a command-line option."""

    option: str
    verdict: VerdictName
    note: str


@exact
class BootJson(TypedDict):
    """A boot: lines printed, groups, the default policy, the options."""

    log: list[str]
    groups: list[GroupJson]
    default: NotRequired[str]
    options: NotRequired[list[OptionJson]]


@exact
class StepJson(TypedDict):
    """A step: ``ok``, an errno name or ``UNDECIDED``; new lines; the groups afterwards."""

    op: str
    result: str
    log: list[str]
    groups: list[GroupJson]
    value: NotRequired[list[str]]
    reason: NotRequired[str]


@exact
class ResultJson(TypedDict):
    """One run of a scenario under a kernel with a vendor."""

    scenario: str
    kernel: str
    vendor: str
    executor: str
    outcome: OutcomeName
    reason: NotRequired[str]
    findings: NotRequired[list[str]]
    boot: BootJson | None
    steps: list[StepJson]


@exact
class VendorJson(TypedDict):
    """A vendor by name and title."""

    name: str
    title: str


@exact
class VouchedJson(TypedDict):
    """What vouches for a cell: which real kernel it was or which recordings, what differs for a reason.

    ``tried``: the hardware part is decided on QEMU as well.
    """

    by: VoucherName
    release: NotRequired[str]
    recordings: NotRequired[list[str]]
    tried: NotRequired[bool]
    note: NotRequired[str]


@exact
class CellJson(TypedDict):
    """One scenario under one kernel with one vendor, in few words.

    ``vouched`` is null where nothing vouches for it, and absent where nobody has looked (no oracle is installed).
    """

    kernel: str
    vendor: str
    outcome: OutcomeName
    answer: str
    steps: list[str]
    types: dict[str, str]
    groups: list[list[str]]
    reason: str
    findings: list[str]
    vouched: NotRequired[VouchedJson | None]


@exact
class RowJson(TypedDict):
    """One scenario of the matrix."""

    scenario: str
    rule: str | None
    family: str
    summary: str
    kernels_differ: bool
    vendors_differ: bool
    cells: list[CellJson]


@exact
class FamilyJson(TypedDict):
    """A family of rules: how often each outcome occurs under each kernel."""

    family: str
    scenarios: int
    kernels: dict[str, dict[str, int]]


@exact
class MatrixJson(TypedDict):
    """The behaviour matrix."""

    kernels: list[str]
    vendors: list[VendorJson]
    counts: dict[str, int]
    families: list[FamilyJson]
    scenarios: list[RowJson]


@exact
class CaseJson(TypedDict):
    """A scenario with the vendors that a change shows on."""

    scenario: str
    rule: str | None
    vendors: list[str]


@exact
class ChangeJson(TypedDict):
    """One change, and the cases that show it."""

    kind: str
    severity: Severity
    where: str
    before: str
    after: str
    cases: list[CaseJson]


DiffJson = TypedDict(
    "DiffJson",
    {
        "from": str,
        "to": str,
        "vendors": list[str],
        "scenarios": int,
        "changed": int,
        "counts": dict[str, int],
        "changes": list[ChangeJson],
    },
)
DiffJson.__doc__ = "What changing the kernel changes."
exact(DiffJson)


@exact
class PredictedGroupJson(TypedDict):
    """A predicted group; ``id`` is null and ``type`` UNDECIDED where unknown ACS bits decide."""

    id: int | None
    type: str
    devices: list[str]


@exact
class UndecidedJson(TypedDict):
    """Devices whose groups depend on unknown ACS bits: with isolation everywhere, and with none."""

    devices: list[str]
    type: str
    isolated: list[list[str]]
    merged: list[list[str]]


@exact
class OptionFateJson(TypedDict):
    """What became of an option, and whether the boot is another one without it."""

    option: str
    verdict: VerdictName
    note: str
    makes_a_difference: bool


@exact
class PartJson(TypedDict):
    """One part of a prediction against the observation; ``accepted`` is the machine file's reason for a difference."""

    part: Part
    agrees: bool
    differences: list[str]
    accepted: str | None


@exact
class PredictionJson(TypedDict):
    """The predicted boot of a machine."""

    machine: str
    vendor: str
    kernel: str
    release: str
    kconfig: str | None
    cmdline: str
    enabled: bool
    reasons: list[str]
    units: list[str]
    default: str
    log: list[str]
    options: list[OptionFateJson]
    groups: list[PredictedGroupJson]
    undecided: list[UndecidedJson]
    uncovered: list[str]
    untrusted: list[str]
    warnings: list[str]
    observed: list[PartJson]


@exact
class BootsJson(TypedDict):
    """What ``iommukit boot`` answers: predictions by boot and vendor, why other vendors cannot, which plugins stopped."""

    machine: str
    predictions: list[PredictionJson]
    not_applicable: dict[str, str]
    stopped: dict[str, str]


@exact
class SmokeJson(TypedDict):
    """Whether a plugin boots a trivial machine under one kernel, and what came of it."""

    kernel: str
    works: bool
    text: str


@exact
class PluginJson(TypedDict):
    """One installed vendor plugin; a broken one has only its name, its origin and ``error``."""

    name: str
    module: str
    distribution: str | None
    version: str | None
    error: str | None
    title: NotRequired[str]
    arch: NotRequired[list[str]]
    capabilities: NotRequired[list[str]]
    hardware_options: NotRequired[dict[str, str]]
    hooks: NotRequired[list[str]]
    expected_failures: NotRequired[dict[str, str]]
    smoke: NotRequired[list[SmokeJson]]


@exact
class PluginsJson(TypedDict):
    """All installed vendor plugins."""

    plugins: list[PluginJson]


@exact
class EntryJson(TypedDict):
    """An entry of a table: its name in the specification, its address and bits as 0x… text, and what they mean."""

    name: str
    address: str
    value: str
    meaning: str


@exact
class RangeJson(TypedDict):
    """Adjoining pages with adjoining physical addresses and the same permissions.

    ``size`` counts bytes, ``pages`` the pages of each size (bytes); ``entries`` lead to the first page.  Where there is a
    ``reason``, nothing is translated and ``physical`` is null.
    """

    iova: str
    size: int
    physical: str | None
    read: bool
    write: bool
    pages: dict[str, int]
    entries: list[EntryJson]
    reason: NotRequired[str]


@exact
class DeviceWalkJson(TypedDict):
    """A device's entries and ranges; ``domain`` is the id, ASID or VMID that tags its translations."""

    requester: str
    device: str
    mode: Literal["translated", "pass-through", "blocked", "bad entry"]
    domain: int | None
    reason: str
    entries: list[EntryJson]
    ranges: list[RangeJson]


@exact
class WalkJson(TypedDict):
    """What the tables in a dump say; ``memory`` counts bytes, ``cut`` says why there may be more."""

    dump: str
    arch: str | None
    memory: int
    vendor: str
    roots: dict[str, str]
    iova: str | None
    devices: list[DeviceWalkJson]
    cut: str | None


@exact
class AgreementRowJson(TypedDict):
    """One judge on one kernel and vendor: how many ``unit``s and how many observations stand how."""

    judge: str
    unit: str
    kernel: str
    vendor: str
    cases: dict[StandingName, int]
    observations: dict[StandingName, int]


@exact
class RemarkJson(TypedDict):
    """A difference, or why there is nothing to compare; ``seen`` is empty where a case as a whole is meant."""

    standing: StandingName
    judge: str
    kernel: str
    vendor: str
    case: str
    seen: str
    reason: str


@exact
class AgreementJson(TypedDict):
    """How the model agrees with everything that vouches for it."""

    rows: list[AgreementRowJson]
    remarks: list[RemarkJson]
