"""Machine files become machines of QEMU, or a reason why not."""

import shlex
import struct
from typing import Any

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.machine.model import BootSpec, Machine
from iommukit.scenario.load import load_machine, load_scenarios, shipped_scenarios
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel.cases import cases
from iommukit_oracle.kernel.executor import unsaid
from iommukit_oracle.kernel.firmware import from_lines, with_regions
from iommukit_oracle.kernel.plan import make_plan
from iommukit_oracle.kernel.realisation import NO_NP_CACHE, Inexpressible, Plugging, Realisation, Region
from iommukit_oracle.kernel.realise import realise, reasons
from iommukit_oracle.qemu_machine import machine_of
from iommukit_oracle.recording import GroupEntry, PciEntry, Recording

KERNELS = ("6.1", "6.12", "7.2")


def _made(name: str, vendor: str = "intel_vtd", kernel: str = "6.12", **boot: object) -> Realisation:
    return realise(load_machine(name), BootSpec.model_validate(boot), vendor, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_most_cases_can_be_realised_and_the_rest_say_why(kernel: str) -> None:
    registry = VendorRegistry.installed()
    found = list(cases(load_scenarios([shipped_scenarios()]), [get_kernel(kernel)], list(registry)))
    why = reasons([(case.machine, case.scenario.boot, case.vendor.name, kernel) for case in found])
    assert why.pop("") > 0.65 * len(found)
    assert all(reason.startswith(("QEMU", "Debian", "slot", "firmware", "only", "a port")) for reason in why), why


def test_boots_are_shared_by_what_is_booted() -> None:
    registry = VendorRegistry.installed()
    scenarios = load_scenarios([shipped_scenarios()])
    plan = make_plan(scenarios, [get_kernel("6.12")], [registry.get("intel_vtd")])
    played = [case.scenario.scenario for boot in plan.boots for case in boot.cases]
    assert len(played) == len(set(played))
    assert len(plan.boots) < len(played) / 2
    for boot in plan.boots:
        assert boot.cases == sorted(boot.cases, key=lambda case: bool(case.scenario.steps))


def test_addresses_are_those_that_firmware_gives() -> None:
    made = _made("nic-behind-root-port")
    assert {name: placed.address for name, placed in made.placed.items()} == {"rp1": "0000:00:06.0", "nic": "0000:01:00.0"}
    assert made.placed["nic"].plugging is Plugging.QMP
    assert made.placed["rp1"].plugging is Plugging.SYSFS
    assert made.acs == ("0000:00:06.0",)


def test_a_port_without_access_control_gets_none() -> None:
    made = _made("nic-behind-open-port")
    assert "disable-acs=on" in made.devices[0]
    assert made.acs == ()


def test_functions_of_a_slot_are_not_intels() -> None:
    made = _made("two-functions")
    assert [placed.properties["driver"] for placed in made.placed.values()] == ["virtio-net-pci"] * 2
    assert all(placed.properties["multifunction"] == "on" for placed in made.placed.values())


def test_what_is_plugged_into_the_root_bus_gets_a_port() -> None:
    device = {"name": "nic", "address": "0000:00:04.0", "id": "8086:10d3", "class": "020000", "present": False}
    made = realise(Machine.model_validate({"machine": "m", "devices": [device]}), BootSpec(), "intel_vtd", "6.12")
    assert [device.partition(",")[0] for device in made.devices] == ["pcie-root-port"]
    assert made.placed["nic"].address == "0000:01:00.0"
    assert made.acs == ("0000:00:04.0",)


@pytest.mark.parametrize(
    ("vendor", "kernel", "kconfig", "words"),
    [
        ("intel_vtd", "6.1", "lazy", ""),
        ("intel_vtd", "6.1", "strict", "iommu.strict=1"),
        ("arm_smmu", "7.2", "strict", ""),
        ("arm_smmu", "7.2", "passthrough", "iommu.passthrough=1 iommu.strict=0"),
        ("s390", "6.1", "lazy", "iommu.strict=0"),
        ("s390", "6.12", "lazy", ""),
    ],
)
def test_words_stand_for_the_build(vendor: str, kernel: str, kconfig: str, words: str) -> None:
    made = _made("nic-alone", vendor, kernel, kconfig=kconfig, cmdline="quiet")
    assert made.cmdline == f"{words} quiet".strip()
    assert bool(made.notes) >= bool(words)


def test_amd_has_no_np_cache_unless_the_machine_says_so() -> None:
    assert _made("nic-alone", "amd_vi").qemu == NO_NP_CACHE
    cached = Machine.model_validate({"machine": "m", "hardware": {"np_cache": True, "guest_translation": True, "ppr": True}})
    assert realise(cached, BootSpec(), "amd_vi", "6.12").qemu == ""


@pytest.mark.parametrize("feature", ["guest_translation", "ppr"])
def test_amds_features_are_those_that_qemu_has(feature: str) -> None:
    machine = Machine.model_validate({"machine": "m", "hardware": {feature: False}})
    with pytest.raises(Inexpressible, match=feature):
        realise(machine, BootSpec(), "amd_vi", "6.12")


@pytest.mark.parametrize(
    ("vendor", "numbers"),
    [("intel_vtd", {("pvscsi", "8086:3a3e"), ("vmxnet3", "8086:342e")}), ("arm_smmu", {("pvscsi", "19e5:a12e")})],
)
def test_devices_that_the_kernel_knows_by_their_numbers_are_given_these(vendor: str, numbers: set[tuple[str, str]]) -> None:
    scenarios = [each for each in load_scenarios([shipped_scenarios()]) if each.scenario == "required-identity-write-auto"]
    (boot,) = make_plan(scenarios, [get_kernel("6.12")], [VendorRegistry.installed().get(vendor)]).boots
    assert set(boot.realisation.numbers) == numbers


def test_a_model_has_one_set_of_numbers() -> None:
    port = {"kind": "root_port"}
    ports = [
        {"name": "one", "address": "0000:00:06.0", **port},
        {"name": "two", "address": "0000:00:07.0", "id": "8086:8a1d", **port},
    ]
    with pytest.raises(Inexpressible, match="pcie-root-port cannot be 1b36:000c and 8086:8a1d at once"):
        realise(Machine.model_validate({"machine": "m", "devices": ports}), BootSpec(), "amd_vi", "6.12")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"acs": ["SV"], "kind": "root_port"}, "cannot be given ACS SV"),
        ({"id": "8086:2a40"}, "has no device 8086:2a40"),
        ({"attributes": {"registers": {"0x52": 0}}}, "cannot be given registers"),
        ({"kind": "root_port", "id": "8086:8c11"}, "is 1b36:000c, not 8086:8c11"),
        ({"kind": "platform", "address": "arm-smmu-test"}, "has no platform"),
    ],
)
def test_what_qemu_lacks_is_named(device: dict[str, object], reason: str) -> None:
    machine = Machine.model_validate({"machine": "m", "devices": [{"name": "d", **device}]})
    with pytest.raises(Inexpressible, match=reason):
        realise(machine, BootSpec(), "intel_vtd", "6.12")


@pytest.mark.parametrize(
    ("boot", "vendor", "parts"),
    [
        ({"kconfig": "strict"}, "intel_vtd", {"Default domain type", "invalidation policy"}),
        ({"kconfig": "strict", "cmdline": "iommu.strict=0"}, "intel_vtd", {"Default domain type"}),
        ({"kconfig": "strict", "cmdline": "iommu.strict=banana"}, "intel_vtd", {"Default domain type", "invalidation policy"}),
        ({"kconfig": "lazy", "cmdline": "iommu=pt"}, "amd_vi", {"invalidation policy"}),
        ({"kconfig": "lazy", "cmdline": "iommu=pt"}, "arm_smmu", {"Default domain type", "invalidation policy"}),
        ({"cmdline": "-- iommu.strict=1"}, "intel_vtd", set()),
    ],
)
def test_lines_that_say_nothing_of_the_command_line(boot: dict[str, str], vendor: str, parts: set[str]) -> None:
    assert set(unsaid(BootSpec.model_validate(boot), vendor)) == parts


def test_a_kernel_built_with_vt_d_off_is_told_so() -> None:
    off: dict[str, Any] = {"kconfig": "strict", "cmdline": "intel_iommu=on", "config": {"INTEL_IOMMU_DEFAULT_ON": False}}
    assert _made("nic-alone", **off).cmdline == "intel_iommu=off iommu.strict=1 intel_iommu=on"
    assert _made("nic-alone", "amd_vi", **off).cmdline == "iommu.strict=1 intel_iommu=on"
    with pytest.raises(Inexpressible, match="INTEL_IOMMU_DEFAULT_ON=y"):
        _made("opt-in", **off)


def test_the_chipsets_own_bridge_is_there_already() -> None:
    isa: dict[str, object] = {"name": "isa", "address": "0000:00:1f.0", "id": "8086:2918"}
    made = realise(_machine([isa]), BootSpec(), "intel_vtd", "6.12")
    assert made.devices == ()
    assert made.placed["isa"].address == "0000:00:1f.0"
    with pytest.raises(Inexpressible, match="has no device 8086:2918"):
        realise(_machine([{**isa, "address": "0000:00:1e.0"}]), BootSpec(), "intel_vtd", "6.12")
    with pytest.raises(Inexpressible, match="has no device 8086:2918"):
        realise(_machine([isa]), BootSpec(), "arm_smmu", "6.12")


def _machine(devices: list[dict[str, object]]) -> Machine:
    return Machine.model_validate({"machine": "m", "devices": devices})


def test_memory_that_firmware_reserves_is_taken_from_the_guest() -> None:
    region = {"start": 0x1FFD_D000, "end": 0x1FFD_EFFF}
    usb: dict[str, object] = {
        "name": "usb",
        "address": "0000:00:0b.0",
        "id": "8086:a12f",
        "reserved": [{**region, "type": "direct-relaxable"}],
    }
    made = realise(_machine([usb]), BootSpec(kconfig="strict", cmdline="quiet"), "intel_vtd", "6.12")
    assert made.cmdline == "iommu.strict=1 memmap=0x2000$0x1ffdd000 quiet"
    (told,) = made.regions
    assert told.address == made.placed["usb"].address == "0000:00:0b.0"
    assert told.text == "0x000000001ffdd000-0x000000001ffdefff-direct-relaxable"
    assert any("memmap" in note for note in made.notes)


def test_a_machine_as_run_has_the_regions_that_were_made() -> None:
    """Also of a device that is not there at boot, and only for the one of a group that has it."""
    region = {"start": 0x1FFD_D000, "end": 0x1FFD_DFFF}
    devices: list[dict[str, object]] = [
        {"name": "rp1", "address": "0000:00:06.0", "kind": "root_port"},
        {"name": "dev", "address": "0000:01:00.0", "parent": "rp1", "present": False, "reserved": [region]},
        {"name": "disk", "address": "0000:00:09.0", "id": "1b36:0010", "multifunction": True},
        {"name": "raid", "address": "0000:00:09.1", "id": "8086:2822", "multifunction": True, "reserved": [region]},
    ]
    made = realise(_machine(devices), BootSpec(), "intel_vtd", "6.12")
    text = made.regions[0].text
    recording = Recording(
        id="r",
        kernel="6.12",
        vendor="intel_vtd",
        arch="amd64",
        cmdline=made.cmdline,
        qemu_args=shlex.join(["qemu", "-M", "q35", *(word for device in made.devices for word in ("-device", device))]),
        groups=(GroupEntry(id=0, type="DMA", devices=("0000:00:09.0", "0000:00:09.1"), reserved=(text,)),),
        pci=tuple(
            PciEntry.model_validate({"bdf": placed.address, "id": "1b36:0010"}) for placed in made.placed.values() if placed.present
        ),
        firmware={region.address: (region.text,) for region in made.regions},
    )
    machine = machine_of(recording, {"0000:01:00.0": "e1000e"})
    assert {spec.name for spec in machine.devices if spec.reserved} == {"0000:01:00.0", "0000:00:09.1"}


def test_a_table_with_a_region_is_a_table() -> None:
    head = bytearray(48)
    head[:4] = b"DMAR"
    struct.pack_into("<I", head, 4, 48)
    region = Region(0x1FFD_D000, 0x1FFD_DFFF, 0x58, ((0x0B, 0),))
    table = with_regions("DMAR", bytes(head), [region], opt_in=True)
    assert len(table) == struct.unpack_from("<I", table, 4)[0] == 48 + 32
    assert sum(table) & 0xFF == 0
    assert table[37] & 4
    assert struct.unpack_from("<QQ", table, 56) == (0x1FFD_D000, 0x1FFD_DFFF)


def test_a_table_read_as_lines_keeps_its_last_newlines() -> None:
    table = b"IVRS" + struct.pack("<I", 40) + b"\n" * 16 + bytes(14) + b"\n\n"
    lines = table.decode("latin-1").rstrip("\n").split("\n")
    assert from_lines(lines) == table
