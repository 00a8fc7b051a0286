"""The model against every recorded boot of a real kernel."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import execute
from iommukit_oracle import replay as replaying
from iommukit_oracle.logs import compare_lines, compare_order, policy_lines
from iommukit_oracle.observations import Observation, Replay, Verdict, summary
from iommukit_oracle.qemu_machine import profile_of
from iommukit_oracle.recording import Recording
from iommukit_oracle.replay import main, replay, written_text
from tests.recordings.conftest import replayed, shipped

NAMES = list(shipped())


@pytest.mark.parametrize("name", NAMES)
def test_the_model_does_what_the_kernel_did(name):
    outcome = replayed(name)
    assert [str(difference) for difference in outcome.differences] == []
    assert len(outcome.agreed) >= 2 + 3 * len(shipped()[name].groups) + 3 * len(shipped()[name].writes)


def test_nothing_is_left_out():
    counts = Counter(seen.kind for name in NAMES for seen in replayed(name).agreed)
    assert len(NAMES) == 528
    assert counts["write"] >= sum(len(recording.writes) for recording in shipped().values()) == 4424
    assert counts["group"] > sum(len(recording.groups) for recording in shipped().values()) > 4_900
    assert counts["type"] > 20_000
    assert counts["regions"] > 11_000
    assert counts["log"] > 10_000
    assert counts["bind"] > 900
    assert counts["write log"] > 300
    assert counts["claim"] == 10
    assert counts["dma"] == sum(event.startswith("@F|") for recording in shipped().values() for event in recording.events)


def test_what_is_undecided_is_a_race_or_an_unrecorded_write():
    reasons = Counter(seen.reason for name in NAMES for seen in replayed(name).undecided)
    assert set(reasons) == {"two processes raced", "a race decided it", "an unrecorded write made it"}
    assert sum(reasons.values()) <= 20


def test_known_differences_are_lines_that_the_model_does_not_print():
    known = [seen for name in NAMES for seen in replayed(name).known]
    assert {seen.kind for seen in known} == {"log"}
    assert all(seen.got == "nothing" for seen in known)
    assert {seen.reason.split(": ")[0] for seen in known} == {"not-modelled"}
    assert not any("Default domain type" in seen.expected or "invalidation policy" in seen.expected for seen in known)


def test_debians_own_option_is_a_known_difference(registry):
    def change(data):
        for entry in data["pci"]:
            if entry["bdf"] == "0000:00:03.0":
                entry.update({"id": "0x8086:0x5917", "class": "0x030000"})
        next(group for group in data["groups"] if group["devices"] == ["0000:00:03.0"])["type"] = "identity"

    debian = replay(changed("6.12-intel_vtd-none", change), registry)
    assert debian.differences == []
    assert [seen.reason.split(":")[0] for seen in debian.known if seen.kind == "type"] == ["debian-integrated-graphics"]
    own_build = replay(changed("rfc-as-posted-intel_vtd-none", change), registry)
    assert [difference.kind for difference in own_build.differences] == ["type"]


def test_the_table_counts_boots_and_observations():
    rows = summary(replayed(name) for name in NAMES).splitlines()
    assert rows[0].split()[:4] == ["kernel", "vendor", "boots", "agrees"]
    cells = {tuple(row.split()[:2]): row.split()[2:] for row in rows[1:-1]}
    assert cells["6.1", "amd_vi"][0] == "35"
    assert all(cell[2] == "0" for cell in cells.values())
    assert rows[-1].split()[:2] == ["all", "528"]


# ---- a comparison that cannot fail is none ---------------------------------------------------------------------------


def changed(name: str, change) -> Recording:
    data = json.loads(shipped()[name].model_dump_json(by_alias=True))
    change(data)
    return Recording.model_validate(data)


def refuse_a_write(data):
    write = next(write for write in data["writes"] if write["result"] == "ok" and write["type_before"] != write["type_after"])
    write["result"] = "Device or resource busy"


def another_errno(data):
    next(write for write in data["writes"] if write["result"] != "ok")["result"] = "Cannot allocate memory"


def another_type_after(data):
    next(write for write in data["writes"] if write["result"] == "ok")["type_after"] = "blocked"


def another_type_before(data):
    data["writes"][0]["type_before"] = "blocked"


def a_line_of_a_write(data):
    data["writes"][0]["dmesg"] = ["iommu: Group has gone fishing"]


def another_boot_type(data):
    data["groups"][0]["type"] = "blocked"


def another_group_number(data):
    data["groups"][0]["id"] = 99


def another_member(data):
    data["groups"][0]["devices"] = ["0000:00:0a.0"]


def another_region(data):
    data["groups"][0]["reserved"] = ["0x0000000000001000-0x0000000000001fff-direct"]


def a_missing_line(data):
    data["iommu_log"] = [line for line in data["iommu_log"] if "Default domain type" not in line]


def a_blank_more(data):
    data["iommu_log"] = [line + " " if "Default domain type" in line else line for line in data["iommu_log"]]


def lines_in_another_order(data):
    data["iommu_log"] = data["iommu_log"][::-1]


def another_snapshot(data):
    data["snapshots"]["end"][0]["type"] = "blocked"


def a_failed_bind(data):
    at = next(number for number, event in enumerate(data["events"]) if event.startswith("@B|") and event.endswith("|0:"))
    data["events"][at] = data["events"][at][:-2] + "1:Cannot allocate memory"


CHANGES = {
    refuse_a_write: "write",
    another_errno: "write",
    another_type_after: "type",
    another_type_before: "type",
    a_line_of_a_write: "write log",
    another_boot_type: "type",
    another_group_number: "group",
    another_member: "group",
    another_region: "regions",
    a_missing_line: "log",
    a_blank_more: "log",
    lines_in_another_order: "log order",
    another_snapshot: "type",
    a_failed_bind: "bind",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["6.12-amd_vi-sysfs-lazy-np-7.2-nonpcache", "6.1-amd_vi-sysfs-npcache"])
def test_a_recording_that_says_otherwise_differs(name, change, registry):
    outcome = replay(changed(name, change), registry)
    assert CHANGES[change] in {difference.kind for difference in outcome.differences}


@pytest.mark.parametrize("verdict", ["works", "no answer rc=1 rx=0 tx=0 carrier=1"])
def test_a_functional_test_that_went_otherwise_differs(verdict, registry):
    def change(data):
        was = "|no answer" if verdict == "works" else "|works"
        at = next(number for number, event in enumerate(data["events"]) if event.startswith("@F|") and was in event)
        fields = data["events"][at].split("|")
        data["events"][at] = "|".join([*fields[:4], verdict])

    outcome = replay(changed("rfc-as-posted-intel_vtd-h15-strict1", change), registry)
    assert [difference.kind for difference in outcome.differences] == ["dma"]


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("6.1-amd_vi-sysfs-lazy-np-7.2-nonpcache", "6.12"),
        ("6.12-amd_vi-sysfs-lazy-np-7.2-nonpcache", "6.1.192"),
        ("6.1-intel_vtd-untrustedswitch-pt1", "6.1"),
        ("7.2-arm_smmu-none", "6.12"),
        ("6.12-s390-sysfs-lazy", "6.1.192"),
        ("rfc-as-posted-intel_vtd-none", "rfc"),
        ("rfc-as-posted-intel_vtd-none", "rfc-unconverted"),
        ("rfc-unconverted-amd_vi-none", "rfc-as-posted"),
    ],
)
def test_a_kernel_is_not_another(name, profile, registry, monkeypatch):
    monkeypatch.setattr(replaying, "profile_of", lambda recording: profile)
    assert replay(shipped()[name], registry).differences


# ---- the pieces ------------------------------------------------------------------------------------------------------


def test_a_replay_is_a_scenario_with_the_same_results(registry):
    name = "6.12-intel_vtd-hotplug-lazy"
    outcome = replayed(name)
    assert outcome.scenario is not None
    recording = shipped()[name]
    result = execute(outcome.scenario, get_kernel(profile_of(recording)), registry.get("intel_vtd"), registry)
    assert len(result.steps) == len(outcome.scenario.steps)
    end = recording.snapshots["h10-rescan"]
    assert {(group.id, group.type) for group in result.steps[-1].groups} == {(group.id, group.type) for group in end}


def test_what_reached_the_kernel():
    assert written_text("DMA") == "DMA\n"
    assert written_text("") == "\n"
    assert written_text("raw:DMA") == "DMA"
    assert written_text(r"raw:DMA\n\n") == "DMA\n\n"
    assert written_text(r"raw:identity\0x") == "identity\0x"


def test_a_difference_reads_as_a_sentence():
    seen = Observation("type", "boot, group 3", "DMA", "identity", Verdict.DIFFERS)
    assert str(seen) == "boot, group 3: type: the kernel has DMA, the model identity"


def test_lines_are_counted_and_ordered():
    assert list(compare_lines(["a", "a", "b"], ["a", "c"])) == [
        ('"a"', '"a"'),
        ('"a"', "nothing"),
        ('"b"', "nothing"),
        ("nothing", '"c"'),
    ]
    assert compare_order(["a", "b", "x"], ["b", "a", "y"]) == ("a; b", "b; a")


def test_a_policy_line_is_compared_even_if_the_model_never_prints_it():
    line = "AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug."
    assert policy_lines([line, "ACPI: DMAR"], [line]) == [line]
    assert policy_lines([line, "iommu: x "], []) == ["iommu: x "]


def test_a_machine_that_a_vendor_cannot_build_is_undecided(registry, monkeypatch):
    monkeypatch.setitem(replaying.machine_of.__globals__["HARDWARE"], "s390", lambda recording, arguments: {"no_such": 1})
    outcome = replay(shipped()["6.12-s390-none"], registry)
    assert [seen.verdict for seen in outcome.observations] == [Verdict.UNDECIDED]
    assert "no_such" in outcome.undecided[0].reason


# ---- the program -----------------------------------------------------------------------------------------------------


def write_lines(path, *recordings: Recording):
    path.write_text("".join(recording.model_dump_json(by_alias=True) + "\n" for recording in recordings))
    return str(path)


def test_the_program_prints_the_table(tmp_path, capsys):
    path = write_lines(tmp_path / "one.jsonl", shipped()["6.12-s390-none"], shipped()["7.2-arm_smmu-none"])
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert "arm_smmu" in out


def test_the_program_prints_differences(tmp_path, capsys):
    path = write_lines(tmp_path / "one.jsonl", changed("6.12-s390-none", another_boot_type))
    assert main([path]) == 1
    assert "6.12-s390-none, boot, group 0: type: the kernel has blocked, the model DMA-FQ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: "), (["/nowhere.jsonl"], "/nowhere.jsonl: cannot be read"), (["notes.txt"], "notes.txt: is no recording")],
)
def test_the_program_refuses_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.out == ""


def test_an_empty_replay_has_an_empty_table():
    assert summary([Replay("a", "6.1", "s390")]).splitlines()[1].split() == ["6.1", "s390", "1", "0", "0", "0", "0"]
