"""One table of each format with every kind of structure in it, as people would write it."""

from __future__ import annotations

from typing import Any

from iommukit.machine.acpi import AcpiFormat
from iommukit.machine.viot import VIOT
from iommukit_amd_vi.firmware import IVRS
from iommukit_arm_smmu.firmware import IORT
from iommukit_intel_vtd.firmware import DMAR

Fields = dict[str, Any]

DMAR_FIELDS: Fields = {
    "oem_id": "ACME",
    "host_address_width": 38,
    "flags": ["intr_remap", "dma_ctrl_platform_opt_in"],
    "structures": [
        {
            "kind": "drhd",
            "address": "0xfed90000",
            "scopes": [
                {"kind": "endpoint", "path": ["02.0"]},
                {"kind": "bridge", "start_bus": "0x40", "path": ["1c.4", "00.0"]},
                {"kind": "namespace", "enumeration_id": 1, "path": ["15.0"]},
            ],
        },
        {
            "kind": "drhd",
            "flags": ["include_pci_all"],
            "address": 0xFED91000,
            "scopes": [
                {"kind": "ioapic", "enumeration_id": 2, "start_bus": "0xf0", "path": ["1e.7"]},
                {"kind": "hpet", "path": ["1e.6"]},
                {"kind": "0x9", "path": []},
            ],
        },
        {"kind": "rmrr", "base": "0x3d800000", "end": "0x3fffffff", "scopes": [{"kind": "endpoint", "path": ["02.0"]}]},
        {"kind": "atsr", "flags": ["all_ports"]},
        {"kind": "rhsa", "address": "0xfed91000", "proximity_domain": 1},
        {"kind": "andd", "device_number": 1, "name": "\\_SB.PCI0.I2C0", "placement": {"length": 28}},
        {"kind": "satc", "flags": ["atc_required"], "scopes": [{"kind": "endpoint", "path": ["02.0"]}]},
        {"kind": "sidp", "scopes": [{"kind": "endpoint", "flags": ["atc_hardened"], "path": ["0b.0"]}]},
        {"kind": "raw", "type": 77, "payload": "c0ffee"},
    ],
}

_ENTRIES: list[Fields] = [
    {"kind": "pad"},
    {"kind": "all", "data_setting": ["lint0_pass"]},
    {"kind": "select", "device": "0x8"},
    {"kind": "range_start", "device": "0x10", "data_setting": ["init_pass", "sysmgt1"]},
    {"kind": "range_end", "device": "0x1f"},
    {"kind": "alias_select", "device": "0x100", "source": "0xa0"},
    {"kind": "alias_range_start", "device": "0xff00", "source": "0xa5"},
    {"kind": "range_end", "device": "0xffff"},
    {"kind": "extended_select", "device": "0x200", "extended": "0x80000000"},
    {"kind": "extended_range_start", "device": "0x300", "extended": "0x80000000"},
    {"kind": "range_end", "device": "0x30f"},
    {"kind": "special", "handle": 33, "source": "0xa0", "variety": "ioapic", "data_setting": ["lint1_pass"]},
    {"kind": "special", "handle": 0, "source": "0xa0", "variety": "hpet"},
    {"kind": "raw", "type": "0x84", "payload": "00" * 15},
]

IVRS_FIELDS: Fields = {
    "info": "0x00203043",
    "blocks": [
        {"kind": "ivhd10", "device": "0x2", "address": "0xfd200000", "entries": _ENTRIES},
        {"kind": "ivhd11", "device": "0x2", "address": "0xfd200000", "efr_image": "0x246577efa2254afa", "entries": _ENTRIES},
        {
            "kind": "ivhd40",
            "device": "0x2",
            "flags": ["coherent", "iotlb_sup"],
            "address": "0xfd200000",
            "entries": [
                *_ENTRIES,
                {"kind": "acpi_hid", "device": "0xa5", "hid": "AMDI0020", "uid": "\\_SB.FUR0"},
                {"kind": "acpi_hid", "device": "0x60", "hid": "MSFT0201", "uid_format": "integer", "uid": "hex:0100"},
                {"kind": "acpi_hid", "device": "0x61", "hid": "PNP0D40", "uid_format": "none"},
            ],
        },
        {"kind": "ivmd_all", "flags": ["unity", "read"], "start": "0x1000", "length_bytes": "0x1000"},
        {"kind": "ivmd_single", "flags": ["exclusion"], "device": "0x60", "start": "0x2000", "length_bytes": "0x1000"},
        {
            "kind": "ivmd_range",
            "flags": ["unity", "read", "write"],
            "device": "0x100",
            "last_device": "0x1ff",
            "start": "0x3000",
            "length_bytes": "0x2000",
        },
        {"kind": "raw", "type": "0x51", "flags": "0x8", "payload": "00" * 28},
    ],
}

IORT_FIELDS: Fields = {
    "nodes": [
        {"kind": "its_group", "label": "its", "identifiers": [0, 1]},
        {
            "kind": "smmuv3",
            "label": "smmu",
            "base_address": "0x9050000",
            "flags": ["cohacc_override", "device_id_valid"],
            "event_gsiv": 106,
            "device_id_mapping_index": 1,
            "mappings": [
                {"id_count": "0xffff", "target": "its"},
                {"output_base": "0x10000", "target": "its", "flags": ["single"]},
            ],
        },
        {
            "kind": "smmu",
            "label": "old",
            "base_address": "0x2b400000",
            "span": "0x10000",
            "model": "mmu500",
            "flags": ["coherent_walk"],
            "global_interrupts": [{"gsiv": 105, "flags": ["edge"]}, {"gsiv": 106}],
            "context_interrupts": [{"gsiv": 107}, {"gsiv": 108}],
            "pmu_interrupts": [{"gsiv": 109}],
            "mappings": [{"id_count": "0xff", "output_base": "0x20000", "target": "its"}],
        },
        {
            "kind": "root_complex",
            "cache_coherency": 1,
            "memory_access": ["cpm", "dacs"],
            "ats": ["ats"],
            "mappings": [
                {"input_base": 0, "id_count": "0xff", "output_base": "0x100", "target": "smmu"},
                {"input_base": "0x100", "id_count": "0xfeff", "output_base": "0x100", "target": "its"},
            ],
        },
        {
            "kind": "root_complex",
            "revision": 0,
            "segment": 1,
            "memory_address_limit": None,
            "pasid_capabilities": None,
            "reserved_2": None,
            "flags": None,
            "mappings": [{"id_count": "0xf", "target": "old"}],
        },
        {
            "kind": "named_component",
            "name": "\\_SB.DMA0",
            "memory_address_limit": 40,
            "mappings": [
                {"output_base": 7, "target": "smmu", "flags": ["single"]},
                {"output_base": 9, "target": "its", "flags": ["single"]},
                {"output_base": 8, "target": "smmu", "flags": ["single"]},
            ],
        },
        {
            "kind": "pmcg",
            "page_0_base_address": "0x9060000",
            "node": "smmu",
            "mappings": [{"output_base": 3, "target": "its", "flags": ["single"]}],
        },
        {"kind": "pmcg", "revision": 0, "page_0_base_address": "0x9070000", "overflow_gsiv": 5, "page_1_base_address": None},
        {
            "kind": "rmr",
            "flags": 1,
            "ranges": [{"base": "0x80000000", "size": "0x10000"}, {"base": "0x90000000", "size": "0x20000"}],
            "mappings": [{"output_base": "0x108", "target": "smmu", "flags": ["single"]}],
        },
        {"kind": "raw", "type": "0x42", "payload": "0011223344"},
    ],
}

VIOT_FIELDS: Fields = {
    "nodes": [
        {"kind": "virtio_pci_iommu", "label": "pci", "bdf": "0x8"},
        {"kind": "virtio_mmio_iommu", "label": "mmio", "base_address": "0x1d000000"},
        {"kind": "pci_range", "endpoint_start": "0x1000", "bdf_start": 16, "bdf_end": "0xff", "output_node": "pci"},
        {
            "kind": "pci_range",
            "segment_start": 1,
            "segment_end": 2,
            "bdf_start": "0x100",
            "bdf_end": "0x1ff",
            "output_node": "mmio",
        },
        {"kind": "mmio_endpoint", "endpoint": "0x10000", "base_address": "0x1c000000", "output_node": "mmio"},
        {"kind": "raw", "type": 9, "payload": "0102030405"},
    ]
}

SAMPLES: list[tuple[AcpiFormat[Any], Fields]] = [
    (DMAR, DMAR_FIELDS),
    (IVRS, IVRS_FIELDS),
    (IORT, IORT_FIELDS),
    (VIOT, VIOT_FIELDS),
]
