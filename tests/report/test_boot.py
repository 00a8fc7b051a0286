from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

from iommukit.errors import InputError, NotApplicable
from iommukit.machine.model import CapturedBoot, Machine
from iommukit.report.boot import PredictedGroup, Prediction, UndecidedGroups, predict, vendors_of
from iommukit.report.boots import captured_boots
from iommukit.report.option_effects import without
from iommukit.report.schemas import schema
from tests.report.toy_vendor import MACHINE, NIC, PORT, Plain, Toy, toy_registry

SWITCHED = "iommu: Default domain type: Passthrough (set via kernel command line)"


def boot(
    cmdline: str = "", *, machine: Mapping[str, Any] = MACHINE, kernel: str = "6.1", observed: Any = None, **more: Any
) -> Prediction:
    captured = {"kernel": kernel, "boot": {"cmdline": cmdline, **more}, "observed": observed}
    registry = toy_registry(Toy())
    return predict(Machine.model_validate(machine), CapturedBoot.model_validate(captured), registry, registry.get("toy"))


# ---- on or off, and why ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmdline", "config", "enabled", "reason"),
    [
        ("", {}, True, "this kernel uses the IOMMUs that it finds, unless told otherwise"),
        ("iommu=off", {}, False, "iommu=off on the command line: without it remapping is on"),
        ("quiet toy_iommu=verbose,off", {}, False, "toy_iommu=off on the command line: without it remapping is on"),
        ("iommu=off toy_iommu=off", {}, False, "iommu=off, toy_iommu=off on the command line: without all of them remapping is on"),
        ("", {"TOY_DEFAULT_ON": False}, False, "this kernel was built to leave it off; toy_iommu=on would switch it on"),
        ("toy_iommu=on", {"TOY_DEFAULT_ON": False}, True, "toy_iommu=on on the command line: without it remapping is off"),
    ],
)
def test_on_or_off_and_why(cmdline: str, config: dict[str, bool], enabled: bool, reason: str) -> None:
    prediction = boot(cmdline, config=config)
    assert (prediction.enabled, prediction.reasons) == (enabled, (reason,))
    assert prediction.units == (("toy0",) if enabled else ())


def test_nothing_to_switch_on() -> None:
    prediction = boot(machine={**MACHINE, "hardware": {"units": 0}})
    assert prediction.reasons == ("the driver finds no IOMMU that it can use",)


@pytest.mark.parametrize(
    ("cmdline", "option", "rest"),
    [
        ("a iommu=pt b", "iommu=pt", "a b"),
        ("iommu=pt,soft", "iommu=pt", "iommu=soft"),
        ("iommu=soft,pt", "iommu=soft", "iommu=pt"),
        ("iommu=pt iommu=pt,pt", "iommu=pt", ""),
        ("iommu iommu=x", "iommu", "iommu=x"),
        ("arm-smmu.disable_bypass=1 x", "arm_smmu.disable_bypass=1", "x"),
        ("iommu=x", "iommu=y", "iommu=x"),
        ('root="a b" iommu=pt', "iommu=pt", '"root=a b"'),
        ("iommu.strict=1", "iommu.strict=1", ""),
        ("amd_iommu=xoff amd_iommu=on", "amd_iommu=off", "amd_iommu=on"),
    ],
)
def test_leaving_an_option_out(cmdline: str, option: str, rest: str) -> None:
    assert without(cmdline, option) == rest


def test_options_and_whether_they_matter() -> None:
    prediction = boot("iommu=pt iommu.strict=1 amd_iommu=on toy_iommu=verbose iommu=soft")
    assert [(fate.option, fate.verdict, fate.matters) for fate in prediction.options] == [
        ("iommu=pt", "effective", True),
        ("iommu.strict=1", "effective", False),
        ("amd_iommu=on", "unknown", False),
        ("toy_iommu=verbose", "effective", False),
        ("iommu=soft", "ineffective", False),
    ]


def test_two_options_that_each_switch_it_off_both_matter() -> None:
    assert all(fate.matters for fate in boot("iommu=off toy_iommu=off").options)


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_identity_is_no_protection() -> None:
    assert boot("iommu=pt").warnings == ("iommu=pt: identity is no protection: 2 of 2 devices can reach all memory",)
    required = {**MACHINE, "devices": [PORT, {**NIC, "attributes": {"requires": "identity"}}]}
    assert boot(machine=required).warnings == ("identity is no protection: 1 of 2 devices can reach all memory",)


def test_policy_lines_without_an_iommu() -> None:
    assert boot("iommu=off").warnings == (
        "no IOMMU is on: every device reaches all memory",
        "the kernel prints 'iommu: Default domain type: Translated' all the same: that line does not mean that an IOMMU is on",
    )


def test_options_that_users_believe_in() -> None:
    assert boot("iommu=strict toy_iommu=pt iommu.strict=maybe intel_iommu=on").warnings == (
        "iommu=strict does nothing: no such word; strictness is iommu.strict=1",
        "toy_iommu=pt does nothing: no such word",
        "iommu.strict=maybe does nothing: a boolean was expected; nothing changed",
        "intel_iommu=on does nothing: no reader in this kernel",
    )


def test_a_line_that_promises_what_is_not() -> None:
    assert boot(kernel="rfc-as-posted").warnings == (
        "the kernel prints 'iommu: DMA translated domain TLB invalidation policy: lazy mode', but translated groups are DMA",
    )
    assert not boot(kernel="rfc").warnings


def test_an_untrusted_device_that_is_not_strict() -> None:
    port = {**PORT, "external_facing": True, "acs": None, "attributes": {"requires": "identity"}}
    prediction = boot(machine={**MACHINE, "devices": [port, NIC]}, kernel="rfc-as-posted")
    assert prediction.untrusted == ("0000:01:00.0",)
    assert prediction.warnings[0] == "0000:01:00.0 is untrusted and identity, not strictly translated"


# ---- groups ----------------------------------------------------------------------------------------------------------

UNKNOWN = {
    **MACHINE,
    "devices": [
        {"name": "a", "address": "0000:00:01.0", "kind": "endpoint"},
        {**PORT, "acs": "unknown"},
        NIC,
        {"name": "z", "address": "0000:00:1f.0", "kind": "endpoint"},
    ],
}


def test_what_unknown_acs_bits_decide_is_undecided() -> None:
    prediction = boot(machine=UNKNOWN)
    assert prediction.groups == (
        PredictedGroup(0, "DMA-FQ", ("0000:00:01.0",)),
        PredictedGroup(None, "DMA-FQ", ("0000:00:1f.0",)),
    )
    port, nic = "0000:00:06.0", "0000:01:00.0"
    assert prediction.undecided == (UndecidedGroups((port, nic), ((port,), (nic,)), ((port, nic),), "DMA-FQ"),)


def test_known_acs_bits_leave_nothing_undecided() -> None:
    assert not boot().undecided
    assert [group.number for group in boot().groups] == [0, 1]


@pytest.mark.parametrize("observed", [[["a"], ["b"], ["c"]], [["a", "b"], ["c"]], [["a", "b", "c"]]])
def test_observed_groups_between_the_extremes(observed: list[list[str]]) -> None:
    cluster = UndecidedGroups(("a", "b", "c"), (("a",), ("b",), ("c",)), (("a", "b", "c"),), "DMA")
    assert cluster.allows([frozenset(group) for group in observed])


@pytest.mark.parametrize(
    ("observed", "allowed"),
    [
        ([["a", "b"], ["c"], ["d"]], True),
        ([["a", "b"], ["c", "d"]], True),
        ([["a"], ["b"], ["c", "d"]], False),
        ([["a", "b", "c"], ["d"]], False),
        ([["a", "b"], ["c"]], False),
    ],
)
def test_observed_groups_that_nothing_explains(observed: list[list[str]], allowed: bool) -> None:
    """a and b share requester ids whatever the bits say; c and d never join them; d must be somewhere."""
    cluster = UndecidedGroups(("a", "b", "c", "d"), (("a", "b"), ("c",), ("d",)), (("a", "b"), ("c", "d")), "DMA")
    assert cluster.allows([frozenset(group) for group in observed]) is allowed


def test_devices_that_no_unit_covers() -> None:
    class Picky(Toy):
        from iommukit.hookspecs import hookimpl as _hookimpl

        @_hookimpl
        def probe_device(self, device: Any, units: Any) -> Any:
            return units[0] if device.name == "nic" else None

    registry = toy_registry(Picky())
    prediction = predict(Machine.model_validate(MACHINE), CapturedBoot(kernel="6.1"), registry)
    assert prediction.uncovered == ("0000:00:06.0",)
    assert len(prediction.groups) == 1


# ---- against an observation ------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "enabled": True,
    "units": ["toy0"],
    "log": ["iommu: Default domain type: Translated ", "iommu: DMA domain TLB invalidation policy: lazy mode", "TOY: 1 found"],
    "groups": [["0000:00:06.0"], ["0000:01:00.0"]],
}


def test_an_observation_that_agrees() -> None:
    prediction = boot(observed=GOOD)
    assert [part.part for part in prediction.comparison] == ["enabled", "units", "log", "groups", "numbers"]
    assert all(part.agrees for part in prediction.comparison)
    assert not prediction.finding


@pytest.mark.parametrize(
    ("part", "changes", "difference"),
    [
        ("enabled", {"enabled": False}, "predicted on, was off"),
        ("units", {"units": ["toy1"]}, "predicted toy0, was toy1"),
        ("log", {"log": GOOD["log"][:2]}, "predicted, not printed: TOY: 1 found"),
        ("log", {"log": [*GOOD["log"], "TOY: late"]}, "printed, not predicted: TOY: late"),
        ("groups", {"groups": [["0000:00:06.0", "0000:01:00.0"]]}, "predicted [0000:00:06.0], was [0000:00:06.0, 0000:01:00.0]"),
        ("groups", {"groups": [["0000:00:06.0"]]}, "predicted [0000:01:00.0], was in no group"),
        ("groups", {"groups": [*GOOD["groups"], ["0000:02:00.0"]]}, "predicted 0000:02:00.0 in no group, was in [0000:02:00.0]"),
        ("numbers", {"groups": GOOD["groups"][::-1]}, "predicted group 0 for 0000:00:06.0, was 1"),
    ],
)
def test_a_difference_is_a_finding_unless_it_is_listed(part: str, changes: dict[str, Any], difference: str) -> None:
    prediction = boot(observed={**GOOD, **changes})
    found = {each.part: each.differences for each in prediction.comparison if not each.agrees}
    assert set(found) == {part}
    assert found[part][0] == difference
    assert prediction.finding
    excused = boot(observed={**GOOD, **changes, "differs": {part: "the data cannot tell"}})
    assert not excused.finding
    assert not excused.stale


def test_an_excuse_that_is_none_any_more() -> None:
    assert boot(observed={**GOOD, "differs": {"log": "a reason"}}).stale == ("log",)
    with pytest.raises(InputError, match="no part 'weather'; there are enabled, units, log, groups, numbers"):
        boot(observed={**GOOD, "differs": {"weather": "rain"}})


def test_unknown_acs_bits_excuse_only_what_they_decide() -> None:
    a, port, nic, z = "0000:00:01.0", "0000:00:06.0", "0000:01:00.0", "0000:00:1f.0"
    seen = {"enabled": True}
    assert not boot(machine=UNKNOWN, observed={**seen, "groups": [[a], [port], [nic], [z]]}).finding
    assert not boot(machine=UNKNOWN, observed={**seen, "groups": [[a], [port, nic], [z]]}).finding
    wrong = boot(machine=UNKNOWN, observed={**seen, "groups": [[a, port], [nic], [z]]})
    assert wrong.finding


def test_an_iommu_that_was_off_had_no_groups() -> None:
    off = {"enabled": False}
    assert {part.part for part in boot("iommu=off", observed=off).comparison} == {"enabled", "groups", "numbers"}
    assert boot(observed=off).finding


# ---- vendors and boots -----------------------------------------------------------------------------------------------


def test_tables_choose_the_vendor() -> None:
    registry = toy_registry()
    neutral = Machine.model_validate(MACHINE)
    tabled = Machine.model_validate({**MACHINE, "firmware": {"TOYT": {"units": 2}}})
    assert [vendor.name for vendor in vendors_of(neutral, registry)] == ["plain", "toy"]
    assert predict(tabled, CapturedBoot(kernel="6.1"), registry).units == ("toy0", "toy1")
    with pytest.raises(InputError, match="card: belongs to no vendor in particular: plain, toy"):
        predict(neutral, CapturedBoot(kernel="6.1"), registry)
    with pytest.raises(InputError, match="card: firmware: no installed vendor reads TOYT"):
        vendors_of(tabled, toy_registry(Plain()))
    with pytest.raises(NotApplicable):
        predict(neutral.model_copy(update={"arch": "s390x"}), CapturedBoot(kernel="6.1"), registry, registry.get("toy"))


def test_an_override_makes_another_boot_without_an_observation() -> None:
    machine = Machine.model_validate(
        {
            **MACHINE,
            "captured": [{"kernel": "6.1", "boot": {"cmdline": "quiet"}, "observed": GOOD}, {"kernel": "5.15", "observed": GOOD}],
        }
    )
    assert [each.observed is not None for each in captured_boots(machine, None, {})] == [True, True]
    assert [each.observed is not None for each in captured_boots(machine, "6.1", {})] == [True, False]
    (only,) = captured_boots(machine, "6.1", {"cmdline": "iommu=pt"})
    assert (only.kernel, only.boot.cmdline, only.observed) == ("6.1", "iommu=pt", None)
    (neutral,) = captured_boots(Machine.model_validate(MACHINE), None, {})
    assert neutral.kernel == "rfc"
    with pytest.raises(InputError, match="boot: cmdline: string should have at most 4096 characters"):
        captured_boots(machine, None, {"cmdline": "x" * 5000})


def test_json_is_as_the_schema_says() -> None:
    predictions = [boot("iommu=pt amd_iommu=on", observed=GOOD), boot(machine=UNKNOWN), boot("iommu=off")]
    answer = {"machine": "card", "predictions": [each.to_json() for each in predictions], "not_applicable": {}, "stopped": {}}
    jsonschema.validate(answer, schema("boot"))
