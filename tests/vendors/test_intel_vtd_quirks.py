"""The VT-d driver's quirks, and their refusal to untrusted devices."""

from __future__ import annotations

import pytest

from tests.vendors.intel_vtd import DISK, GPU, GRAPHICS_UNIT, NIC, OLD, OUTSIDE, boot, dmar, drhd, scope, types, unit_of

# ---- graphics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
def test_graphics_without_translation(kernel):
    """Before 6.12 graphics below a shared unit become identity; since, only units of their own are left out."""
    shared = boot(kernel, [GPU, NIC], "intel_iommu=on,igfx_off", kconfig="lazy")
    assert types(shared) == {"gpu": "identity" if kernel in OLD else "DMA-FQ", "nic": "DMA-FQ"}
    alone = boot(kernel, [GPU, NIC], "intel_iommu=on,igfx_off", kconfig="lazy", dmar=GRAPHICS_UNIT)
    assert types(alone) == {"gpu": "none", "nic": "DMA-FQ"}
    assert [unit.name for unit in alone.units] == ["dmar1"]
    assert types(boot(kernel, [GPU, NIC], kconfig="lazy", dmar=GRAPHICS_UNIT))["gpu"] == "DMA-FQ"


def test_a_unit_for_graphics_and_more_is_kept():
    table = dmar(drhd(0xA000, scope("02.0"), scope("04.0")), drhd(0xB000, everything=True))
    system = boot("6.12", [GPU, NIC], "intel_iommu=igfx_off", dmar=table)
    assert unit_of(system, "gpu") == "dmar0"


@pytest.mark.parametrize("number", ["29b2", "2a40", "2e90", "0044", "1606", "163d"])
def test_chipsets_whose_graphics_fail_behind_a_unit(number):
    bridge = {"name": "bridge", "address": "0000:00:00.0", "id": f"8086:{number}", "class": "060000", "kind": "conventional"}
    system = boot("6.1", [bridge, GPU])
    assert "pci 0000:00:00.0: DMAR: Disabling IOMMU for graphics on this chipset" in system.boot.log
    assert types(system)["gpu"] == "identity"
    assert types(boot("6.1", [{**bridge, "id": "8086:29c0"}, GPU]))["gpu"] == "DMA-FQ"


def test_the_old_build_option_for_graphics():
    assert types(boot("6.1", [GPU], INTEL_IOMMU_BROKEN_GFX_WA=True))["gpu"] == "identity"
    kept = boot("6.1", [GPU], dmar=GRAPHICS_UNIT, INTEL_IOMMU_BROKEN_GFX_WA=True)
    assert types(kept)["gpu"] == "identity", "the unit of its own was kept before the option spoke"


def test_write_buffer_quirk_speaks():
    bridge = {"name": "bridge", "address": "0000:00:00.0", "id": "8086:2e20", "class": "060000", "kind": "conventional"}
    assert "pci 0000:00:00.0: DMAR: Forcing write-buffer flush capability" in boot("7.2", [bridge]).boot.log


@pytest.mark.parametrize(("number", "said"), [("9a49", True), ("4680", True), ("5912", False)])
def test_graphics_that_must_stay_translated(number, said):
    system = boot("6.12", [{**GPU, "id": f"8086:{number}"}])
    assert ("pci 0000:00:02.0: DMAR: Skip IOMMU disabling for graphics" in system.boot.log) is said


# ---- Calpella --------------------------------------------------------------------------------------------------------


def calpella(control, number="0040"):
    registers = {} if control is None else {"0x52": control}
    host = {"name": "host", "address": "0000:00:00.0", "id": f"8086:{number}", "class": "060000", "kind": "conventional"}
    return [{**host, "attributes": {"registers": registers}}, GPU]


@pytest.mark.parametrize("number", ["0040", "0062", "006a"])
@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_ironlake_with_a_shadow_table_is_strict_before_the_policy_is_printed(kernel, number):
    system = boot(kernel, calpella(0x0900, number), kconfig="lazy")
    assert "pci 0000:00:00.0: DMAR: Disabling batched IOTLB flush on Ironlake" in system.boot.log
    assert any(line.strip().endswith("policy: strict mode") for line in system.boot.log)
    assert types(system)["gpu"] == "DMA"


def test_ironlake_without_a_shadow_table():
    system = boot("6.1", calpella(0x0100), kconfig="lazy")
    line = "pci 0000:00:00.0: DMAR: BIOS has allocated no shadow GTT; disabling IOMMU for graphics"
    assert line in system.boot.log
    assert types(system) == {"host": "DMA-FQ", "gpu": "identity"}


def test_ironlake_that_nobody_translates_stays_lazy():
    system = boot("6.1", calpella(0x0900), "intel_iommu=igfx_off", kconfig="lazy")
    assert types(system)["host"] == "DMA-FQ"


def test_a_register_that_is_not_given_cannot_be_read():
    assert types(boot("6.1", calpella(None), kconfig="lazy"))["gpu"] == "DMA-FQ"


# ---- Azalia ----------------------------------------------------------------------------------------------------------

NO_TLB = "Your BIOS is broken; DMA routed to ISOCH DMAR unit but no TLB space."
SOUND = {"name": "sound", "address": "0000:00:1b.0", "id": "8086:3a3e", "class": "040300", "kind": "integrated_endpoint"}


def isoch(control, *, sound=SOUND):
    hub = {"name": "hub", "address": "0000:00:14.0", "id": "8086:342e", "class": "080000", "kind": "integrated_endpoint"}
    return [{**hub, "attributes": {"registers": {"0x188": control}}}, sound]


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
@pytest.mark.parametrize(
    ("control", "identity", "line"),
    [
        (0x0, True, NO_TLB),
        ("0x100", True, NO_TLB),
        (0x1, False, None),
        (0x10, False, None),
        (0x8, False, "DMAR: Recommended TLB entries for ISOCH unit is 16; your BIOS set 8"),
    ],
)
def test_sound_without_tlb_entries(kernel, control, identity, line):
    system = boot(kernel, isoch(control), kconfig="lazy")
    assert types(system) == {"hub": "DMA-FQ", "sound": "identity" if identity else "DMA-FQ"}
    said = [text for text in system.boot.log if "ISOCH" in text]
    assert said == ([line] if line else [])


def test_sound_without_the_hub_is_left_alone():
    assert types(boot("6.12", [SOUND], kconfig="lazy"))["sound"] == "DMA-FQ"


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_untrusted_devices_trigger_no_quirk(kernel):
    """A device that claims to be the chipset's sound, plugged in from outside, is translated."""
    sound = {**SOUND, "address": "0000:01:00.0", "parent": "port", "kind": "endpoint"}
    system = boot(kernel, [OUTSIDE, *isoch(0, sound=sound)], "iommu.passthrough=1")
    assert types(system)["sound"] == "DMA"
    assert NO_TLB not in system.boot.log
    assert system.boot.log[-3:-1] == [
        "pci 0000:01:00.0: DMAR: Skipping IOMMU quirk for dev [8086:3A3E] on untrusted PCI link",
        "pci 0000:01:00.0: DMAR: Please check with your BIOS/Platform vendor about this",
    ]


def test_an_untrusted_host_bridge_disables_nothing():
    fake = {**DISK, "id": "8086:2e20"}
    system = boot("6.1", [OUTSIDE, fake, GPU])
    assert types(system)["gpu"] == "DMA-FQ"
    assert sum("Skipping IOMMU quirk for dev [8086:2E20]" in line for line in system.boot.log) == 2
