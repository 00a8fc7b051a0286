"""Two small vendors that no development of a real one disturbs, and scenarios to play on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.errors import InputError
from iommukit.hookspecs import VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.scenario.load import load_scenario
from iommukit.scenario.model import Scenario
from iommukit.vendors import VendorRegistry


class ToyTable:
    """The format of the table TOYT: one byte, the number of units."""

    signature = "TOYT"

    def parse(self, data: bytes, source: str) -> int:
        if len(data) != 1:
            raise InputError(f"one byte was expected, not {len(data)}", source=source)
        return data[0]

    def validate(self, data: Any, source: str) -> int:
        return int(data["units"])


class Toy:
    """Everything that a matrix, a diff and a prediction need: identity, a queue, an option ``toy_iommu=on|off|verbose``."""

    title = "a toy"
    name = "toy"
    arch: tuple[str, ...] = ("x86_64",)
    capabilities = frozenset({"identity", "lazy", "pci", "identity-required"})
    expected_failures: dict[str, str] = {}

    @hookimpl
    def declare(self) -> VendorDeclaration:
        return VendorDeclaration(
            title=self.title,
            arch=self.arch,
            capabilities=self.capabilities,
            hardware_options={"units": "how many units there are"},
            expected_failures=self.expected_failures,
        )

    @hookimpl
    def firmware_formats(self) -> tuple[Any, ...]:
        return (ToyTable(),)

    @hookimpl
    def kernel_options(self, boot: BootState) -> tuple[KernelOption, ...]:
        return (KernelOption(f"{self.name}_iommu", Stage.SETUP, self._option, "on or off"),)

    def _option(self, value: str | None, boot: BootState) -> Iterator[OptionReport]:
        shown = f"{self.name}_iommu" + ("" if value is None else f"={value}")
        for word in (value or "").split(","):
            if word in ("on", "off"):
                boot.options[self.name] = word == "on"
                yield OptionReport(f"{self.name}_iommu={word}", Verdict.EFFECTIVE, f"remapping is {word}")
            elif word == "verbose":
                boot.log.append("TOY: talkative")
                yield OptionReport(f"{self.name}_iommu=verbose", Verdict.EFFECTIVE, "says more")
            else:
                yield OptionReport(shown, Verdict.UNKNOWN, "no such word")

    @hookimpl
    def discover(self, machine: Machine, boot: BootState) -> list[Unit]:
        if boot.no_iommu or not boot.options.get(self.name, boot.config.get("TOY_DEFAULT_ON", True)):
            return []
        units = machine.hardware.get("units", machine.firmware.get("TOYT", 1))
        boot.log.append(f"TOY: {units} found")
        return [Unit(f"{self.name}{number}", self.name) for number in range(units)]

    @hookimpl
    def probe_finalize(self, device: Device) -> None:
        if device.system.boot.era < Era.V6_12:
            iommu_setup_dma_ops(device)

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        return DmaApiPolicy.IDENTITY if device.facts.attributes.get("requires") == "identity" else DmaApiPolicy.ANY

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        return "lazy" in self.capabilities

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        if type is DomainType.BLOCKED or (type is DomainType.IDENTITY and "identity" not in self.capabilities):
            return None
        return Domain(type)

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        device.attached = domain


class Plain(Toy):
    """Without identity and without a queue."""

    title = "a plain one"
    name = "plain"
    capabilities = frozenset({"pci"})

    @hookimpl
    def firmware_formats(self) -> tuple[Any, ...]:
        return ()


class Knowing(Toy):
    """Knows that it breaks a rule."""

    name = "knowing"
    expected_failures = {"TOY-03": "the toy never learnt it", "TOY-01": "believed to be broken"}


class Crashing(Toy):
    """Stops with an exception as soon as it has to answer."""

    name = "crashing"

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        raise KeyError("no answer")


class Blind(Toy):
    """Finds nothing."""

    name = "blind"

    @hookimpl
    def discover(self) -> list[Unit]:
        return []


def toy_registry(*plugins: Toy) -> VendorRegistry:
    """A registry of these plugins, of the toy and the plain one without any."""
    registry = VendorRegistry()
    for plugin in plugins or (Plain(), Toy()):
        registry.register(plugin, plugin.name)
    return registry


NIC = {"name": "nic", "address": "0000:01:00.0", "id": "8086:10d3", "class": "020000", "parent": "rp1"}
PORT = {
    "name": "rp1",
    "address": "0000:00:06.0",
    "id": "1b36:000c",
    "class": "060400",
    "kind": "root_port",
    "acs": ["SV", "RR", "CR", "UF"],
}
MACHINE = {"machine": "card", "arch": "x86_64", "devices": [PORT, NIC]}

SCENARIOS: dict[str, dict[str, Any]] = {
    "live-switch": {
        "summary": "A strict group becomes lazy under a bound driver.",
        "rule": "TOY-01",
        "requires": ["lazy"],
        "boot": {"kconfig": "strict"},
        "steps": [
            {"bind": {"device": "nic", "driver": "e1000e"}},
            {"write": {"group_of": "nic", "type": "DMA-FQ"}},
        ],
        "expect": {"rfc,6.1,6.12": {"write": "ok", "nic": "DMA-FQ"}, "rfc-as-posted": {"write": "EPERM", "nic": "DMA"}},
    },
    "strict-then-bound": {
        "summary": "A lazy group made strict still serves its driver.",
        "rule": "TOY-02",
        "requires": ["lazy"],
        "boot": {"kconfig": "lazy"},
        "steps": [
            {"write": {"group_of": "nic", "type": "DMA"}},
            {"bind": {"device": "nic", "driver": "e1000e"}},
            {"dma": {"device": "nic"}},
        ],
        "expect": {"*": {"write": "ok", "nic": "DMA"}},
    },
    "mistaken": {
        "summary": "Expects what no kernel does.",
        "rule": "TOY-03",
        "boot": {"kconfig": "strict"},
        "expect": {"rfc": {"nic": "identity"}},
    },
    "default": {
        "summary": "What a kernel does when nobody says anything.",
        "boot": {"cmdline": "iommu=pt amd_iommu=on"},
        "expect": {"rfc": {"default": "IDENTITY"}},
    },
}


def toy_document(name: str) -> dict[str, Any]:
    """A scenario's document, machine inline."""
    return {"scenario": name, "machine": MACHINE, **SCENARIOS[name]}


def toy_scenario(name: str, **changes: Any) -> Scenario:
    """A scenario, with some of its keys replaced."""
    return load_scenario({**toy_document(name), **changes}, source=name)


def toy_scenarios() -> list[Scenario]:
    """All of them."""
    return [toy_scenario(name) for name in SCENARIOS]
