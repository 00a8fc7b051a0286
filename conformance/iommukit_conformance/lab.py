"""The place where a case is carried out: one vendor under one kernel, with a recorder around the driver."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.hookspecs import Emulation, ExampleDevice
from iommukit.kernel.boot import BootState
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.start import new_boot_state, start_system
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import Era
from iommukit.scenario.executor import execute
from iommukit.scenario.judge import judge
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Result
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.case import CRASH_RULE, Finding, HarnessFault
from iommukit_conformance.invariants import Watch
from iommukit_conformance.recorder import Recorder

Spec = Mapping[str, Any]

NIC: Spec = {"name": "nic", "id": "8086:10d3", "class": "020000", "kind": "endpoint"}
"""An ordinary network card, fit for every architecture."""
SECOND: Spec = {"name": "second", "id": "8086:10d3", "class": "020000", "kind": "endpoint"}

MODEL = "model"
"""The platform on which cases run unless told otherwise."""

ISOLATED = ("SV", "RR", "CR", "UF")


@dataclass(frozen=True)
class Run:
    """A scenario that was carried out and watched."""

    scenario: Scenario
    result: Result | None
    """The judged result; ``None`` after a crash."""
    findings: tuple[Finding, ...]
    checked: Counter[str]
    crash: tuple[Finding, ...] = ()
    """What a crash says of the driver."""
    fault: str = ""
    """What is wrong with the scenario or the model."""


class Bench:
    """The vendors of one session on one kind of hardware, with a recorder around them, and their labs."""

    def __init__(self, registry: VendorRegistry, hardware: str = MODEL) -> None:
        self.recorder = Recorder()
        self.hardware = hardware
        """The platform's name on which hardware cases run."""
        self.registry = registry.wrapped(self.recorder)
        self._labs: dict[tuple[str, str], Lab] = {}

    def lab(self, vendor: str, kernel: Kernel) -> Lab:
        """The lab of a vendor and a kernel."""
        key = (vendor, kernel.name)
        if key not in self._labs:
            self._labs[key] = Lab(self, self.registry.get(vendor), kernel)
        return self._labs[key]


class Lab:
    """One vendor under one kernel."""

    def __init__(self, bench: Bench, vendor: Vendor, kernel: Kernel) -> None:
        self.bench = bench
        self.registry = bench.registry
        self.recorder = bench.recorder
        self.vendor = vendor
        self.kernel = kernel
        self.hardware = bench.hardware
        self.emulation: Emulation | None = None
        """The emulator's plain machine with its variants, once a hardware case has asked for it."""
        self.trying = ""
        """The rule that a hardware case is about."""
        self._machines: dict[str, Machine] = {}
        self._runs: dict[str, Run] = {}
        self.scenarios_too = True
        """Watched rules are watched in the shipped scenarios as well, not only in drills."""

    # ---- questions ---------------------------------------------------------------------------------------------------

    @property
    def era(self) -> Era:
        """The generation of drivers."""
        return self.kernel.era

    @property
    def ops(self) -> Any:
        """The vendor's hooks."""
        return self.vendor.ops

    def require(self, *capabilities: str) -> None:
        """Raise ``NotApplicable`` where the vendor lacks one of these."""
        for capability in capabilities:
            if not self.vendor.has(capability):
                raise NotApplicable(f"{self.vendor.name} lacks {capability}")

    def with_kernel(self, kernel: Kernel) -> Lab:
        """The same vendor's lab under another kernel."""
        return self.bench.lab(self.vendor.name, kernel)

    def example(self, role: str) -> ExampleDevice | None:
        """The vendor's example for a role in this release."""
        answer: ExampleDevice | None = self.ops.example_device(role=role, boot=self.boot_state())
        return answer

    def boot_state(self, **boot: Any) -> BootState:
        """A boot state before anything was parsed."""
        return new_boot_state(self.kernel, self.vendor.declaration.arch[0], BootSpec(**boot))

    # ---- running systems ---------------------------------------------------------------------------------------------

    def machine(self, *devices: Spec, hardware: Spec | None = None, **more: Any) -> Machine:
        """A machine of these devices."""
        fields = {"machine": "lab", "devices": devices, "hardware": hardware or {}, **more}
        return self.document(fields)

    two_cards = (NIC, SECOND)

    def document(self, fields: Mapping[str, Any]) -> Machine:
        """A whole machine document."""
        key = json.dumps(fields, sort_keys=True, default=str)
        if key not in self._machines:
            self._machines[key] = Machine.model_validate(fields)
        return self._machines[key]

    def start(self, machine: Machine, **boot: Any) -> System:
        """Boot a machine.  Raises ``NotApplicable`` where the vendor does not have it."""
        boot.setdefault("kconfig", "lazy")
        return start_system(self.kernel, self.vendor, self.registry, machine, BootSpec(**boot))

    def boot(self, *devices: Spec, hardware: Spec | None = None, **boot: Any) -> System:
        """Boot a machine of these devices, with the build option ``lazy`` unless told otherwise."""
        return self.start(self.machine(*devices, hardware=hardware), **boot)

    def plain(self, **boot: Any) -> Device:
        """An ordinary network card on a freshly booted machine.  Raises ``NotApplicable`` where the vendor gives it no unit."""
        return self.translated(self.boot(NIC, **boot).devices["nic"])

    def role(self, role: str, **boot: Any) -> Device:
        """A device in a role, on a freshly booted machine."""
        device = self.boot({"name": "device", "role": role}, **boot).devices["device"]
        return self.translated(device)

    def translated(self, device: Device) -> Device:
        """The device, if a unit translates for it."""
        if device.unit is None:
            raise NotApplicable(f"{self.vendor.name} has no unit for {device.label} in {self.kernel.name}")
        return device

    def alloc(self, device: Device, kind: DomainType) -> Domain | None:
        """Ask for a domain; ``None`` for either kind of refusal."""
        try:
            domain: Domain | None = device.system.vendor.ops.domain_alloc(device=device, type=kind)
        except IommuError:
            return None
        return domain

    # ---- runs --------------------------------------------------------------------------------------------------------

    def run(self, scenario: Scenario) -> Run:
        """Carry out a scenario, watched, once; what is watched for does not touch the scenario's own verdict."""
        if scenario.scenario not in self._runs:
            self._runs[scenario.scenario] = self._run(scenario)
        return self._runs[scenario.scenario]

    def _run(self, scenario: Scenario) -> Run:
        recorder = self.recorder
        recorder.begin()
        result, crash, fault = None, [], ""
        try:
            watch = Watch(scenario, recorder, self.kernel.name)
            result = judge(scenario, execute(scenario, self.kernel, self.vendor, self.registry, watchers=(watch,)))
        except Exception as error:
            try:
                crash = self.blame(error)
            except HarnessFault as known:
                fault = str(known)
        found = dict.fromkeys((*recorder.findings, *crash))
        named = tuple(Finding(each.rule, f"{scenario.scenario}, {each.text}") for each in found)
        return Run(scenario, result, named, recorder.checked, tuple(crash), fault)

    # ---- blame -------------------------------------------------------------------------------------------------------

    def blame(self, error: Exception) -> list[Finding]:
        """What a crash says of the driver.  Raises ``HarnessFault`` where the driver has no part in it."""
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno} in {last.name}"
        text = f"{type(error).__name__}: {error} ({place})"
        already = list(self.recorder.findings)
        if already:
            return [*already, Finding(CRASH_RULE, f"and so: {text}")] if self._is_driver(error) else already
        if isinstance(error, InputError) and str(error).startswith("vendor plugin"):
            return [Finding("DRV-23", str(error))]
        if self._is_driver(error):
            return [Finding(CRASH_RULE, text)]
        raise HarnessFault(text) from error

    def _is_driver(self, error: Exception) -> bool:
        """Whether the driver's own code is on the stack."""
        owners = plugin_modules(self.vendor.plugin)
        trace = error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_globals.get("__name__", "")
            if any(name == owner or name.startswith(owner + ".") for owner in owners):
                return True
            trace = trace.tb_next
        return False


def plugin_modules(plugin: Any) -> Sequence[str]:
    """The modules that a plugin's code is in: its package, or the modules of its classes."""
    name = getattr(plugin, "__name__", None)
    if isinstance(name, str):
        return (name,)
    return tuple(kind.__module__ for kind in type(plugin).__mro__ if kind is not object)
