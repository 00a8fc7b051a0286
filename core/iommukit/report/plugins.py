"""The installed vendor plugins: what they say of themselves, and whether they work at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from iommukit.errors import InputError, NotApplicable
from iommukit.hookspecs import CAPABILITIES
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.report.page import Page, Span, counted, listed
from iommukit.report.runs import crash
from iommukit.vendors import ENTRY_POINTS, HOOKS, Vendor, VendorRegistry, vendor_entry_points

if TYPE_CHECKING:
    from iommukit.report.shapes import PluginJson, SmokeJson

TRIVIAL_MACHINES: tuple[Machine, ...] = tuple(
    Machine.model_validate({"machine": f"smoke-{kind}", "devices": [{"name": "device", "kind": kind, **more}]})
    for kind, more in (
        ("endpoint", {"id": "8086:10d3", "class": "020000"}),
        ("platform", {}),
        ("zpci", {}),
    )
)
"""One device each: a network card, a platform device, a function of s390.  A plugin is tried on the first that it can realise."""


@dataclass(frozen=True, slots=True)
class Smoke:
    """One kernel's trivial boot: whether the plugin works, and what came of it."""

    kernel: str
    works: bool
    text: str

    def to_json(self) -> SmokeJson:
        """As ``iommukit plugins --json`` writes it."""
        return {"kernel": self.kernel, "works": self.works, "text": self.text}


@dataclass(slots=True)
class Plugin:
    """An installed plugin.  ``error`` says why it cannot be used; ``vendor`` is ``None`` then."""

    name: str
    module: str
    distribution: str | None = None
    version: str | None = None
    vendor: Vendor | None = None
    error: str | None = None
    smoke: list[Smoke] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """It cannot be used, or a smoke test failed."""
        return self.error is not None or any(not smoke.works for smoke in self.smoke)

    def to_json(self) -> PluginJson:
        """As ``iommukit plugins --json`` writes it."""
        answer: PluginJson = {
            "name": self.name,
            "module": self.module,
            "distribution": self.distribution,
            "version": self.version,
            "error": self.error,
        }
        if self.vendor is not None:
            declaration = self.vendor.declaration
            answer["title"] = declaration.title
            answer["arch"] = list(declaration.arch)
            answer["capabilities"] = sorted(declaration.capabilities)
            answer["hardware_options"] = dict(declaration.hardware_options)
            answer["hooks"] = implemented(self.vendor)
            answer["expected_failures"] = dict(declaration.expected_failures)
        if self.smoke:
            answer["smoke"] = [smoke.to_json() for smoke in self.smoke]
        return answer


def implemented(vendor: Vendor) -> list[str]:
    """The hooks that a vendor implements, in the order of ``hookspecs``."""
    return [hook for hook in HOOKS if hook in vendor.ops.implemented]


def installed(registry: VendorRegistry) -> list[Plugin]:
    """Load every installed plugin into a registry, one after another; what cannot be loaded has its ``error``."""
    found = []
    for entry in vendor_entry_points():
        plugin = _described(entry)
        found.append(plugin)
        try:
            plugin.vendor = registry.load(entry)
        except InputError as error:
            plugin.error = str(error)
    # Registering a plugin rebinds those before it.
    for plugin in found:
        if plugin.vendor is not None:
            plugin.vendor = registry.get(plugin.name)
    return found


def registered(registry: VendorRegistry) -> list[Plugin]:
    """The plugins of a registry that was filled by hand."""
    return [
        Plugin(vendor.name, getattr(vendor.plugin, "__name__", type(vendor.plugin).__name__), vendor=vendor) for vendor in registry
    ]


def _described(entry: EntryPoint) -> Plugin:
    distribution = entry.dist
    return Plugin(
        entry.name,
        entry.value,
        distribution.name if distribution is not None else None,
        distribution.version if distribution is not None else None,
    )


def smoke_test(vendor: Vendor, registry: VendorRegistry) -> list[Smoke]:
    """Boot a trivial machine under every profile: the plugin must find a unit, accept the device and give it a group."""
    return [_smoke(vendor, registry, kernel) for kernel in PROFILES.values()]


def _smoke(vendor: Vendor, registry: VendorRegistry, kernel: Kernel) -> Smoke:
    refusals: dict[str, None] = {}
    for machine in TRIVIAL_MACHINES:
        try:
            system = start_system(kernel, vendor, registry, machine, BootSpec())
        except NotApplicable as error:
            refusals[str(error)] = None
            continue
        except Exception as error:
            return Smoke(kernel.name, False, f"stopped by {crash(error)} on {machine.machine}")
        if not system.units:
            return Smoke(kernel.name, False, f"discover found no unit on {machine.machine}")
        group = next(iter(system.devices.values())).group
        if group is None:
            return Smoke(kernel.name, False, f"the device of {machine.machine} is in no group")
        return Smoke(kernel.name, True, f"{counted(len(system.units), 'unit')}, {group.sysfs_type}")
    return Smoke(kernel.name, False, f"no trivial machine can be realised: {'; '.join(refusals)}")


# ---- page ------------------------------------------------------------------------------------------------------------


def plugins_page(plugins: Iterable[Plugin]) -> Page:
    """Each plugin with what it declares; broken ones say why."""
    page = Page()
    for plugin in plugins:
        page.blank()
        source = f"{plugin.distribution} {plugin.version}" if plugin.distribution else "registered by hand"
        page.line(Span(plugin.name, "name"), Span(f"  {plugin.module}, {source}", "dim"))
        if plugin.vendor is not None:
            _declared(page, plugin.vendor)
        if plugin.error is not None:
            page.line(Span("broken", "bad"), f": {plugin.error}", indent=2)
        _smoked(page, plugin.smoke)
    if not page.parts:
        page.line(f"no vendor plugin is installed (entry points {ENTRY_POINTS})")
    return page


def _declared(page: Page, vendor: Vendor) -> None:
    declaration = vendor.declaration
    hooks = implemented(vendor)
    missing = [name for name in CAPABILITIES if name not in declaration.capabilities]
    page.line(f"{declaration.title}, on {listed(declaration.arch)}", indent=2)
    page.line(
        Span("has", "head"), f"  {listed(name for name in CAPABILITIES if name in declaration.capabilities) or 'nothing'}", indent=2
    )
    if missing:
        page.line(Span(f"lacks  {listed(missing)}", "dim"), indent=2)
    page.line(Span("hooks", "head"), f"  {len(hooks)} of {len(HOOKS)}: {listed(hooks)}", indent=2)
    if declaration.hardware_options:
        page.line(Span("hardware options", "head"), indent=2)
        page.pairs([(name, Span(text, "dim")) for name, text in declaration.hardware_options.items()], indent=4)
    if declaration.expected_failures:
        page.line(Span("knowingly breaks", "head"), indent=2)
        page.pairs([(Span(rule, "warn"), reason) for rule, reason in declaration.expected_failures.items()], indent=4)


def _smoked(page: Page, smoke: Iterable[Smoke]) -> None:
    by_look: dict[tuple[bool, str], list[str]] = {}
    for each in smoke:
        by_look.setdefault((each.works, each.text), []).append(each.kernel)
    for (works, text), kernels in by_look.items():
        page.line(Span("works" if works else "BROKEN", "good" if works else "bad"), f": {text}  ({listed(kernels)})", indent=2)
