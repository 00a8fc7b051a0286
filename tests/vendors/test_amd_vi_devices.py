"""AMD-Vi devices: what they require, which unit serves them, groups and reserved regions."""

from __future__ import annotations

import pytest

from iommukit.errors import NotApplicable
from iommukit.policy import DmaApiPolicy
from tests.vendors.amd_vi import (
    AMD,
    DIRECT,
    EVERYTHING,
    GPU,
    HT,
    KERNELS,
    MSI,
    NEW,
    NIC,
    PORT,
    SOUTHBRIDGE,
    boot,
    case_id,
    device,
    regions,
    select,
    span,
    table,
)

# ---- what devices require --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "old", "new"),
    [
        (["ats", "pri", "pasid"], True, True),
        (["pasid"], False, True),
        (["ats", "pasid"], False, True),
        (["ats", "pri"], False, False),
        ([], False, False),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_which_capabilities_make_identity_required(kernel, capabilities, old, new):
    system = boot(kernel, {**GPU, "capabilities": capabilities})
    expected = DmaApiPolicy.IDENTITY if (new if kernel in NEW else old) else DmaApiPolicy.ANY
    assert AMD.ops.def_domain_type(device=system.devices["gpu"]) is expected


@pytest.mark.parametrize(
    ("more", "required"),
    [
        ({}, True),
        ({"hardware": {"guest_translation": False}}, False),
        ({"hardware": {"ppr": False}}, False),
        ({"encryption": True}, False),
        ({"cmdline": "amd_iommu=force_isolation"}, False),
        ({"cmdline": "amd_iommu=force_isolation iommu=pt"}, True),
        ({"cmdline": "amd_iommu=force_isolation", "kconfig": "passthrough"}, True),
        ({"cmdline": "iommu.strict=1"}, True),
    ],
    ids=case_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_when_pasids_require_identity(kernel, more, required):
    system = boot(kernel, GPU, **more)
    answer = AMD.ops.def_domain_type(device=system.devices["gpu"])
    assert answer is (DmaApiPolicy.IDENTITY if required else DmaApiPolicy.ANY)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pasids_below_an_external_port(kernel):
    """The old driver sees no ATS there; the newer one answers for untrusted devices itself."""
    external = {**PORT, "external_facing": True}
    system = boot(kernel, external, {**NIC, "capabilities": ["ats", "pri", "pasid"]}, cmdline="iommu=pt")
    nic = system.devices["nic"]
    assert nic.untrusted
    expected = DmaApiPolicy.STRICT if kernel in NEW else DmaApiPolicy.ANY
    assert AMD.ops.def_domain_type(device=nic) is expected
    assert (nic.sysfs_type, system.devices["port"].sysfs_type) == ("DMA", "identity")


def test_features_are_each_units_own_before_6_7_and_shared_later():
    both = [table(select(0x10), own=0x0002, efr=0x29D3), table(select(0x18), own=0x4002, efr=0x29C3 & ~0x10)]
    firmware = {"info": 1, "blocks": [entry["blocks"][0] for entry in both]}
    bug = "AMD-Vi: [Firmware Bug]: Found inconsistent EFR/EFR2 0x29c3,0x0 (global 0x29d3,0x0) on iommu1 (0000:40:00.2)."
    for kernel in KERNELS:
        system = boot(kernel, GPU, firmware=firmware)
        assert bug in system.boot.log
        answer = AMD.ops.def_domain_type(device=system.devices["gpu"])
        assert answer is (DmaApiPolicy.ANY if kernel in NEW else DmaApiPolicy.IDENTITY)


# ---- which devices have an IOMMU -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "covered"),
    [
        ([EVERYTHING], {"00:00.0", "00:01.0", "00:03.0", "00:14.0"}),
        ([select(0x08), select(0x18)], {"00:01.0", "00:03.0"}),
        (span(0x08, 0x18), {"00:01.0", "00:03.0"}),
        (span(0x03, 0xFFFE), {"00:01.0", "00:03.0", "00:14.0"}),
        ([SOUTHBRIDGE, select(0xA0)], {"00:14.0"}),
        # The highest id of a select, a range or an alias ends the driver's tables: special devices do not extend them.
        ([SOUTHBRIDGE, select(0x08)], {"00:01.0"}),
        ([{"kind": "alias_select", "device": 0x18, "source": 0x08}], {"00:01.0", "00:03.0"}),
        ([{"kind": "extended_select", "device": 0x18, "extended": 1 << 31}], {"00:03.0"}),
        (
            [{"kind": "alias_range_start", "device": 0x08, "source": 0x08}, {"kind": "range_end", "device": 0x18}],
            {"00:01.0", "00:03.0"},
        ),
        ([], set()),
    ],
    ids=case_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_device_entries(kernel, entries, covered):
    devices = [device(at) for at in ("00:00.0", "00:00.2", "00:01.0", "00:03.0", "00:14.0")]
    system = boot(kernel, *devices, firmware=table(*entries))
    assert {d.name for d in system.devices.values() if d.unit} == covered
    assert {d.name for d in system.devices.values() if d.group} == covered


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_iommu_translates_for_itself(kernel):
    firmware = table(EVERYTHING, own=0x0008)
    assert boot(kernel, device("00:01.0"), device("00:00.2"), firmware=firmware).devices["00:01.0"].group is None


@pytest.mark.parametrize(
    ("types", "chosen"),
    [
        (["ivhd10"], 0x10),
        (["ivhd10", "ivhd11"], 0x11),
        (["ivhd10", "ivhd11", "ivhd40"], 0x40),
        # The last block of the first unit counts, not the highest type.
        (["ivhd40", "ivhd10"], 0x10),
    ],
)
def test_which_blocks_win(types, chosen):
    blocks = [table(select(0x08 * at), type=name)["blocks"][0] for at, name in enumerate(types, start=1)]
    names = [f"00:0{at}.0" for at in range(1, len(types) + 1)]
    system = boot("6.1", *map(device, names), firmware={"info": 1, "blocks": blocks})
    numbers = {"ivhd10": 0x10, "ivhd11": 0x11, "ivhd40": 0x40}
    expected = {name for name, kind in zip(names, types, strict=True) if numbers[kind] == chosen}
    assert {d.name for d in system.devices.values() if d.group} == expected


def test_a_later_unit_overrules_an_earlier_one():
    firmware = table(EVERYTHING, own=0x0002, blocks=table(*span(0x4003, 0x40FF), own=0x4002)["blocks"])
    system = boot("6.1", device("00:01.0"), device("40:00.2"), device("40:01.0"), firmware=firmware)
    assert {name: d.unit and d.unit.name for name, d in system.devices.items()} == {
        "00:01.0": "ivhd0",
        "40:00.2": None,
        "40:01.0": "ivhd1",
    }


def test_segments_have_their_own_tables():
    firmware = table(EVERYTHING, blocks=table(select(0x08), own=0x0010, segment=1)["blocks"])
    other = {"name": "s1", "address": "0001:00:01.0", "id": "1022:149c", "kind": "integrated_endpoint"}
    lost = {"name": "s2", "address": "0002:00:01.0", "id": "1022:149c", "kind": "integrated_endpoint"}
    system = boot("6.1", device("00:01.0"), other, lost, firmware=firmware)
    assert [system.devices[name].unit and system.devices[name].unit.name for name in ("00:01.0", "s1", "s2")] == [
        "ivhd0",
        "ivhd1",
        None,
    ]


def test_without_a_table_every_function_but_the_iommu_is_covered():
    own = {**device("00:01.0", id="1022:0008"), "class": "080600"}
    system = boot("6.1", device("00:00.0"), own, device("00:00.2"), cmdline="amd_iommu=irtcachedis")
    assert {d.name for d in system.devices.values() if d.group} == {"00:00.0", "00:00.2"}
    assert "AMD-Vi: iommu0 (0x0008) : IRT cache is disabled" in system.boot.log


# ---- groups ----------------------------------------------------------------------------------------------------------


def alias(device, source):
    return {"kind": "alias_select", "device": device, "source": source}


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_alias_on_the_same_bus_groups(kernel):
    entries = [*span(0x08, 0xFFFE), alias(0x18, 0x08)]
    system = boot(kernel, device("00:01.0"), device("00:02.0"), device("00:03.0"), firmware=table(*entries))
    groups = {frozenset(member.name for member in group.devices) for group in system.groups.values()}
    assert groups == {frozenset({"00:01.0", "00:03.0"}), frozenset({"00:02.0"})}


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_alias_on_another_bus_does_not(kernel):
    entries = [*span(0x08, 0xFFFE), alias(0x0100, 0x18)]
    system = boot(kernel, PORT, NIC, device("00:03.0"), firmware=table(*entries))
    assert len(system.groups) == 3


def test_an_alias_makes_its_target_a_covered_device():
    """Probing a device makes its IOMMU serve the ids that it uses; a device met later under such an id has an IOMMU."""
    entries = [select(0x10), select(0xFFFF)]
    alone = boot("6.1", device("00:02.0"), device("00:03.0"), firmware=table(*entries))
    assert alone.devices["00:03.0"].group is None
    quirky = device("00:02.0", dma_aliases=["03.0"])
    shared = boot("6.1", quirky, device("00:03.0"), firmware=table(*entries))
    assert shared.devices["00:03.0"].group is shared.devices["00:02.0"].group is not None


def acpi(name, hid="AMDI0020", uid="ID00"):
    return {"name": name, "address": f"{hid}:{name}", "kind": "platform", "attributes": {"hid": hid, "uid": uid}}


def hid(device, uid="", hid="AMDI0020"):
    return {"kind": "acpi_hid", "device": device, "hid": hid, "uid_format": "string" if uid else "none", "uid": uid}


@pytest.mark.parametrize("kernel", KERNELS)
def test_acpi_devices_of_one_requester_id_share_a_group(kernel):
    entries = [EVERYTHING, hid(0xA5, "ID00"), hid(0xA5, "ID01"), hid(0xA6, "ID02")]
    devices = [acpi(f"u{n}", uid=f"ID0{n}") for n in range(4)]
    system = boot(kernel, *devices, firmware=table(*entries, type="ivhd40"))
    assert system.devices["u0"].group is system.devices["u1"].group is not None
    assert system.devices["u2"].group not in (None, system.devices["u0"].group)
    assert system.devices["u3"].group is None
    root = "0xa0" if kernel == "7.2" else "160"
    assert f"AMD-Vi: ivrs, add hid:AMDI0020, uid:ID00, rdevid:{root}" in system.boot.log


def test_acpi_devices_are_only_read_from_type_40():
    system = boot("6.1", acpi("u0"), firmware=table(EVERYTHING, hid(0xA5, "ID00"), type="ivhd11"))
    assert system.devices["u0"].group is None


def test_an_entry_without_a_unique_id_is_for_all():
    system = boot("6.1", acpi("u0"), acpi("u1", uid="X"), firmware=table(EVERYTHING, hid(0xA5), type="ivhd40"))
    assert system.devices["u0"].group is system.devices["u1"].group is not None


def test_a_numeric_unique_id_counts_by_its_first_byte():
    entry = {**hid(0xA5), "uid_format": "integer", "uid": "hex:0300000000000000"}
    system = boot("6.1", acpi("u3", uid=3), acpi("u4", uid=4), firmware=table(EVERYTHING, entry, type="ivhd40"))
    assert (system.devices["u3"].group is None, system.devices["u4"].group is None) == (False, True)


@pytest.mark.parametrize(("entries", "found"), [(1, NEW), (2, ())])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_only_entry_of_a_hardware_id_is_taken_since_6_12(kernel, entries, found):
    named = [hid(0xA5, f"\\_SB.FUR{n}") for n in range(entries)]
    system = boot(kernel, acpi("u0"), firmware=table(EVERYTHING, *named, type="ivhd40"))
    assert (system.devices["u0"].group is not None) is (kernel in found)
    plural = "s" if entries > 1 else ""
    complaint = f"AMD-Vi: [Firmware Bug]: No ACPI device matched UID, but {entries} device{plural} matched HID."
    assert system.lines.count(f"platform AMDI0020:u0: {complaint}") == (kernel in NEW)


# ---- reserved regions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_of_every_device(kernel):
    assert regions(boot(kernel), "nic") == [MSI, HT]


def memory(kind, flags, start=0x7000000, length=0x2000, **more):
    return {"kind": kind, "flags": flags, "start": start, "length_bytes": length, **more}


UNITY = ["unity", "read", "write"]


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        (memory("ivmd_all", UNITY), {"00:01.0", "00:02.0", "00:03.0"}),
        (memory("ivmd_single", UNITY, device=0x10), {"00:02.0"}),
        (memory("ivmd_range", UNITY, device=0x08, last_device=0x10), {"00:01.0", "00:02.0"}),
        (memory("ivmd_all", ["read", "write"]), set()),
        (memory("ivmd_all", UNITY, length=0), set()),
        # The driver takes an exclusion range for a unity map.
        (memory("ivmd_single", ["exclusion"], device=0x18), {"00:03.0"}),
        # It reads the segment from bytes that the specification reserves.
        (memory("ivmd_all", UNITY, reserved=1), set()),
    ],
    ids=case_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_definitions(kernel, definition, named):
    names = ("00:01.0", "00:02.0", "00:03.0")
    system = boot(kernel, *map(device, names), firmware=table(EVERYTHING, blocks=[definition]))
    line = "0x0000000007000000 0x0000000007001fff direct"
    for name in names:
        assert regions(system, name) == ([line] if name in named else []) + [MSI, HT]
        expected = {(0x7000000, 0x7001FFF)} if name in named else set()
        assert system.devices[name].group.default_domain.direct == expected


@pytest.mark.parametrize(
    ("start", "length", "line"),
    [
        (0x7000001, 0x1000, "0x0000000007001000 0x0000000007001fff direct"),
        (0x7000000, 0x1001, "0x0000000007000000 0x0000000007001fff direct"),
    ],
)
def test_memory_definitions_are_rounded_up(start, length, line):
    definition = memory("ivmd_all", UNITY, start, length)
    system = boot("6.1", device("00:01.0"), firmware=table(EVERYTHING, blocks=[definition]))
    assert regions(system, "00:01.0")[0] == line


@pytest.mark.parametrize("firmware", [None, table(EVERYTHING)])
def test_a_machine_files_direct_region(firmware):
    system = boot("6.1", device("00:01.0", reserved=[DIRECT]), device("00:02.0"), firmware=firmware)
    assert regions(system, "00:01.0")[0] == "0x000000001ffdd000 0x000000001ffddfff direct"
    assert regions(system, "00:02.0") == [MSI, HT]


@pytest.mark.parametrize(
    ("kind", "reason"), [("direct-relaxable", "no relaxable regions"), ("reserved", "never mapped"), ("msi", "fixed")]
)
def test_regions_that_no_table_expresses(kind, reason):
    with pytest.raises(NotApplicable, match=reason):
        boot("6.1", device("00:01.0", reserved=[{**DIRECT, "type": kind}]))


def test_the_interrupt_window_may_be_named():
    window = {"start": 0xFEE00000, "end": 0xFEEFFFFF, "type": "msi"}
    assert regions(boot("6.1", device("00:01.0", reserved=[window])), "00:01.0") == [MSI, HT]
