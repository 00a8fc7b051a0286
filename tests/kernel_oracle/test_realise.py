"""Machine files become machines of QEMU, or a reason why not."""

import struct

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


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"acs": ["SV"], "kind": "root_port"}, "cannot be given ACS SV"),
        ({"id": "8086:2a40"}, "has no device 8086:2a40"),
        ({"attributes": {"registers": {"0x52": 0}}}, "cannot be given registers"),
        ({"kind": "root_port", "id": "8086:8c10"}, "is 1b36:000c, not 8086:8c10"),
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
