"""How fast the model is: the whole matrix in one process, and boots of large machines.

Run as ``python bench/speed.py``.  Timings of one run are compared with each other: scenario runs a second, and the boot time
for each function at three sizes, which should not grow.
"""

from __future__ import annotations

import gc
import time

from iommukit.kernel.profiles import DEFAULT, PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.report.matrix import build_matrix
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry

SIZES = (1_000, 10_000, 100_000)
FUNCTIONS = 8


def switched_machine(functions: int) -> Machine:
    """A machine of that many PCI functions: root ports, each with a switch and 8-function endpoints below it."""
    devices: list[dict[str, object]] = []
    acs = ["SV", "RR", "CR", "UF"]
    segment = 0
    while len(devices) < functions:
        bus = 1
        for port in range(1, 24):
            if len(devices) >= functions or bus > 250:
                break
            root = f"s{segment}-rp{port}"
            devices.append(
                {"name": root, "address": f"{segment:04x}:00:{port:02x}.0", "kind": "root_port", "acs": acs, "buses": f"{bus:02x}"}
            )
            upstream = f"{root}-up"
            below = bus + 1
            devices.append(
                {
                    "name": upstream,
                    "address": f"{segment:04x}:{bus:02x}:00.0",
                    "kind": "upstream_port",
                    "parent": root,
                    "buses": f"{below:02x}",
                }
            )
            bus += 2
            for slot in range(8):
                if len(devices) >= functions:
                    break
                down = f"{root}-dn{slot}"
                devices.append(
                    {
                        "name": down,
                        "address": f"{segment:04x}:{below:02x}:{slot:02x}.0",
                        "kind": "downstream_port",
                        "parent": upstream,
                        "acs": acs,
                        "buses": f"{bus:02x}",
                    }
                )
                for function in range(FUNCTIONS):
                    if len(devices) >= functions:
                        break
                    devices.append(
                        {
                            "name": f"{down}-f{function}",
                            "address": f"{segment:04x}:{bus:02x}:00.{function}",
                            "parent": down,
                            "multifunction": True,
                        }
                    )
                bus += 1
        segment += 1
    return Machine.model_validate({"machine": f"switched-{functions}", "arch": "x86_64", "devices": devices})


def bench_matrix(registry: VendorRegistry) -> None:
    """Every scenario, vendor and profile in one process; loading the files is timed apart."""
    started = time.perf_counter()
    scenarios = load_scenarios([shipped_scenarios()])
    loading = time.perf_counter() - started
    vendors, kernels = list(registry), list(PROFILES.values())
    started = time.perf_counter()
    matrix = build_matrix(scenarios, kernels, vendors, registry)
    seconds = time.perf_counter() - started
    counts = matrix.counts()
    runs = sum(counts.values())
    played = runs - counts[Outcome.NOT_APPLICABLE]
    print(f"{len(scenarios)} scenarios (loaded in {loading:.2f} s), {len(vendors)} vendors, {len(kernels)} profiles")
    print(f"{'':>24} {'runs':>8} {'seconds':>8} {'runs/s':>8}")
    print(f"{'whole matrix':>24} {runs:>8} {seconds:>8.2f} {runs / seconds:>8.0f}")
    # Again with everything realised, and counting only what was played: a lower bound for one run's cost.
    started = time.perf_counter()
    build_matrix(scenarios, kernels, vendors, registry)
    seconds = time.perf_counter() - started
    print(f"{'again, N/A not counted':>24} {played:>8} {seconds:>8.2f} {played / seconds:>8.0f}")


def bench_boot(registry: VendorRegistry) -> None:
    """Boot a machine of each size; the machine file is loaded before the clock starts."""
    vendor = registry.get("intel_vtd")
    kernel = get_kernel(DEFAULT)
    print(f"\n{'functions':>12} {'groups':>8} {'seconds':>8} {'us each':>8}")
    for size in SIZES:
        machine = switched_machine(size)
        gc.collect()
        started = time.perf_counter()
        system = start_system(kernel, vendor, registry, machine, BootSpec())
        seconds = time.perf_counter() - started
        print(f"{size:>12} {len(system.groups):>8} {seconds:>8.2f} {seconds / size * 1e6:>8.1f}")


if __name__ == "__main__":
    installed = VendorRegistry.installed()
    bench_matrix(installed)
    bench_boot(installed)
