from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from iommukit.hookspecs import hookimpl
from iommukit.kernel.profiles import get_kernel
from iommukit.report.diff import KINDS, Change, Diff, Entry, compare_kernels
from iommukit.report.diff_page import SEVERITY_STYLE, diff_page
from iommukit.report.schemas import schema
from tests.report.toy_vendor import MACHINE, NIC, PORT, Crashing, Toy, toy_registry, toy_scenario, toy_scenarios


def diff(before: str, after: str, *scenarios: Any, plugins: tuple[Toy, ...] = (Toy(),)) -> Diff:
    registry = toy_registry(*plugins)
    return compare_kernels(scenarios or toy_scenarios(), get_kernel(before), get_kernel(after), list(registry), registry)


def shown(found: Diff) -> set[tuple[str, str, str, str]]:
    return {entry.change.look for entry in found.entries}


def case(boot: str = "", steps: tuple[dict[str, Any], ...] = (), machine: dict[str, Any] = MACHINE, kconfig: str = "lazy") -> Any:
    return toy_scenario("default", boot={"cmdline": boot, "kconfig": kconfig}, steps=list(steps), machine=machine, expect={})


def write(kind: str, device: str = "nic") -> dict[str, Any]:
    return {"write": {"group_of": device, "type": kind}}


def test_a_kernel_does_not_differ_from_itself() -> None:
    found = diff("rfc-as-posted", "rfc-as-posted")
    assert not found.entries
    assert diff_page(found, full=False).lines() == [
        "rfc-as-posted → rfc-as-posted: 0 of 4 scenarios (4 cases on toy) differ: no change"
    ]


def test_dma_that_dies_is_told_once_even_without_a_driver() -> None:
    found = diff("6.1.192", "rfc-as-posted", case("iommu.strict=1", (write("DMA"),)))
    assert ("dma-dies", "write DMA", "works (DMA)", "dead (DMA), mappings bypass the domain") in shown(found)
    with_driver = case("iommu.strict=1", (write("DMA"), {"bind": {"device": "nic"}}, {"dma": {"device": "nic"}}))
    dying = [look for look in shown(diff("6.1.192", "rfc-as-posted", with_driver)) if look[0] == "dma-dies"]
    assert len(dying) == 1


def test_dma_that_comes_back_is_the_same_change_the_other_way() -> None:
    found = diff("rfc-as-posted", "6.1.192", case("iommu.strict=1", (write("DMA"),)))
    assert ("dma-lives", "write DMA", "dead (DMA), mappings bypass the domain", "works (DMA)") in shown(found)


def test_blocking_on_purpose_is_not_dying() -> None:
    owned = case("iommu.strict=1", ({"claim": {"group_of": "nic"}},))
    assert not [look for look in shown(diff("6.1.192", "6.12", owned)) if look[0] in ("dma-dies", "group-stuck")]


class Kdump(Toy):
    @hookimpl
    def is_attach_deferred(self) -> bool:
        return True


def test_waiting_for_a_driver_is_not_dying() -> None:
    found = diff("6.1.192", "rfc", case("iommu.strict=1", (write("identity"),)), plugins=(Kdump(),))
    assert not [look for look in shown(found) if look[0] == "dma-dies"]


def test_a_group_that_a_failed_release_leaves_behind_is_stuck() -> None:
    """The posted patch blocks a group for the change and does not look at whether it gets out again (H18)."""
    step = {"inject": {"hook": "attach_dev", "error": "EIO", "after": 1}}
    found = diff("6.1.192", "rfc-as-posted", case("iommu.strict=1", (step, write("identity"))))
    stuck = [look for look in shown(found) if look[0] == "group-stuck"]
    assert stuck == [("group-stuck", "write identity", "identity, in its domain", "identity, stuck in another domain")]


UNTRUSTED = {
    **MACHINE,
    "devices": [{**PORT, "external_facing": True, "acs": None, "attributes": {"requires": "identity"}}, NIC],
}


def test_less_protection_of_an_untrusted_device_comes_first() -> None:
    found = diff("6.1", "rfc-as-posted", case(machine=UNTRUSTED))
    changes = [entry.change for entries in found.kinds().values() for entry in entries]
    assert changes[:2] == [
        Change("less-protection", "boot", "DMA-FQ", "identity (untrusted)", ("nic",)),
        Change("less-protection", "boot", "DMA-FQ", "identity", ("rp1",)),
    ]


def test_a_write_that_makes_an_untrusted_device_lazy_is_less_protection() -> None:
    alone = {**MACHINE, "devices": [{**PORT, "external_facing": True}, NIC]}
    found = diff("6.1", "6.12", case("iommu.strict=1", (write("DMA-FQ"),), alone))
    assert ("less-protection", "write DMA-FQ", "EINVAL", "ok, DMA-FQ (untrusted)") in shown(found)


def test_stricter_is_no_improvement_without_a_price() -> None:
    found = diff("6.1.192", "rfc-as-posted", case())
    assert shown(found) == {("more-protection", "boot", "DMA-FQ", "DMA")}
    (kind,) = found.kinds()
    assert kind.severity == "differs"


def test_refused_accepted_and_another_errno() -> None:
    bound = ({"bind": {"device": "nic", "driver": "e1000e"}},)
    assert shown(diff("6.1", "6.12", case("iommu.strict=1", (*bound, write("identity"))))) == {
        ("other-errno", "write identity", "EBUSY", "EPERM")
    }
    live = case("iommu.strict=1", (*bound, write("DMA-FQ")))
    assert ("write-refused", "write DMA-FQ", "ok", "EPERM") in shown(diff("6.1.192", "rfc-as-posted", live))
    assert ("write-accepted", "write DMA-FQ", "EPERM", "ok, DMA-FQ") in shown(diff("rfc-as-posted", "6.12", live))


def test_what_follows_from_a_refusal_is_not_told_again() -> None:
    live = case("iommu.strict=1", ({"bind": {"device": "nic"}}, write("DMA-FQ"), {"unbind": {"device": "nic"}}))
    kinds = {look[0] for look in shown(diff("6.1.192", "rfc-as-posted", live))}
    assert "more-protection" not in kinds
    assert "other-type" not in kinds


def test_other_groups() -> None:
    """7.2 and 6.12 group alike; a hot-plugged function's late mark makes no difference either: an artificial pair is compared."""
    from iommukit.report.diff import _difference
    from iommukit.report.observe import DeviceState

    def state(*together: str) -> DeviceState:
        return DeviceState("DMA", together, "", False, False, False, False)

    assert _difference("nic", "boot", state("nic"), state("nic", "rp1")).look == (
        "other-groups",
        "boot",
        "nic alone",
        "nic with rp1",
    )
    assert _difference("nic", "add", state("nic", "rp1"), state()).after == "nic in no group"


def test_attachments_and_log_lines_count_only_when_nothing_else_differs() -> None:
    same = case("iommu.strict=1", (write("DMA"),))
    assert ("attachments", "write DMA", "0 attachments", "2 attachments") in shown(diff("6.1.192", "rfc-as-posted", same))
    quiet = diff("6.1", "rfc", case("iommu.strict=1"))
    assert shown(quiet) == {
        (
            "log",
            "boot",
            "iommu: Default domain type: Translated (and 1 more)",
            "iommu: DMA translated domain TLB invalidation policy: strict mode (set via kernel command line)",
        )
    }


def test_a_scenario_that_only_one_kernel_can_play() -> None:
    found = diff("6.1", "5.15", case("", (write("DMA"),)))
    assert shown(found) == {("applies", "boot", "plays", "only the boot of 5.15 is modelled")}


def test_a_plugin_that_stops_in_both_is_no_change() -> None:
    assert not diff("6.1", "6.12", case(), plugins=(Crashing(),)).entries


def test_the_same_change_is_told_once_with_its_vendors() -> None:
    found = diff("6.1", "rfc-as-posted", plugins=())
    entry = next(entry for entry in found.entries if entry.change.kind == "write-refused")
    assert {name: vendors for name, (_, vendors) in entry.scenarios.items()} == {"live-switch": ["toy"]}
    assert found.hint == "rfc-as-posted is built on 6.1.192: compare with that to see its own changes alone"
    assert not diff("6.1.192", "rfc-as-posted").hint
    assert not diff("6.1", "6.12").hint


def test_json_is_as_the_schema_says_and_counts_cases_once() -> None:
    found = diff("6.1", "rfc-as-posted", plugins=())
    answer = found.to_json()
    jsonschema.validate(answer, schema("diff"))
    assert answer["changed"] == len(found.changed) <= answer["scenarios"] == 4
    assert all(0 < count <= 8 for count in answer["counts"].values())
    assert list(answer["counts"]) == [kind.name for kind in KINDS if kind.name in answer["counts"]]


def test_every_kind_has_a_severity_that_pages_know() -> None:
    assert {kind.severity for kind in KINDS} <= set(SEVERITY_STYLE)


@pytest.mark.parametrize("full", [False, True])
def test_long_lists_are_cut_unless_all_is_wanted(full: bool) -> None:
    found = Diff("a", "b", ("toy",), 9)
    change = Change("log", "boot", "x", "y")
    scenarios = [toy_scenario("default", scenario=f"s{number}") for number in range(9)]
    found.entries = [Entry(change, {scenario.scenario: (scenario, ["toy"]) for scenario in scenarios})]
    found.entries += [Entry(Change("log", "boot", f"x{number}", "y"), {"s0": (scenarios[0], ["toy"])}) for number in range(8)]
    text = "\n".join(diff_page(found, full=full).lines())
    assert ("s8" in text) is full
    assert ("and 6 more" in text) is not full
    assert ("and 3 more (--all shows them)" in text) is not full
