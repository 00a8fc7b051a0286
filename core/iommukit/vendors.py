"""Finding vendors and reaching one of them.

``VendorOps`` is the relay that reaches only the vendor owning a device.  A hook with one plain implementation is bound to
that function directly; where a wrapper or a further plugin (a tracer, a counter, a quirk) has been registered, the call goes
through pluggy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from iommukit.errors import InputError
from iommukit.hookspecs import CAPABILITIES, PROJECT, FlushQueueOptions, VendorDeclaration, VendorSpec
from iommukit.kernel.cmdline import KernelOption
from iommukit.policy import DmaApiPolicy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from iommukit.kernel.boot import BootState

ENTRY_POINTS = "iommukit.vendors"

HOOKS: tuple[str, ...] = tuple(name for name in vars(VendorSpec) if not name.startswith("_"))


def _default_group(device: Any) -> Any:
    from iommukit.kernel.grouping import generic_device_group, pci_device_group

    return pci_device_group(device) if device.facts.pci is not None else generic_device_group(device)


def _first_unit(device: Any, units: Any) -> Any:
    return units[0] if units else None


DEFAULTS: dict[str, Callable[..., Any]] = {
    "firmware_formats": lambda: (),
    "kernel_options": lambda boot: (),
    "discover": lambda machine, boot: (),
    "probe_device": _first_unit,
    "device_group": _default_group,
    "get_resv_regions": lambda device: (),
    "is_attach_deferred": lambda device: False,
    "def_domain_type": lambda device: DmaApiPolicy.ANY,
    "flush_queue_options": lambda device: FlushQueueOptions(),
    "capable": lambda device, capability: False,
    "set_dev_blocked": lambda device: False,
    "requester": lambda device: device.facts.pci.rid if device.facts.pci is not None else 0,
    "take_faults": lambda unit: (),
    "table_roots": dict,
    "walk_tables": lambda memory, roots, requester, iova: (),
    "mistakes": lambda: (),
}
"""What the core takes for an unimplemented hook; hooks not listed answer ``None``."""

_NONE_IS_AN_ANSWER = frozenset({"probe_device"})


class VendorOps:
    """One vendor's hooks as plain callables, keyword arguments only, with the defaults filled in."""

    def __init__(self, manager: pluggy.PluginManager, name: str, others: list[Any]) -> None:
        self.implemented: set[str] = set()
        specification = VendorSpec()
        for hook in HOOKS:
            caller = manager.subset_hook_caller(hook, others)
            implementations = caller.get_hookimpls()
            if any(not (found.hookwrapper or found.wrapper) for found in implementations):
                self.implemented.add(hook)
            arguments = tuple(inspect.signature(getattr(specification, hook)).parameters)
            setattr(self, hook, _bind(hook, caller, implementations, arguments, self))

    def __getattr__(self, hook: str) -> Callable[..., Any]:
        raise AttributeError(f"no hook {hook!r}")


def _bind(hook: str, caller: Any, implementations: list[Any], arguments: tuple[str, ...], ops: VendorOps) -> Callable[..., Any]:
    default = DEFAULTS.get(hook)
    if hook == "prefer_dma_api_fq":

        def default(device: Any) -> bool:
            return bool(ops.capable(device=device, capability="deferred_flush"))

    if not implementations:
        return default or (lambda **_: None)
    call: Callable[..., Any] = caller
    only = implementations[0]
    if len(implementations) == 1 and not (only.hookwrapper or only.wrapper):
        if set(only.argnames) == set(arguments):
            call = only.function
        else:
            names, function = only.argnames, only.function

            def call(**given: Any) -> Any:
                return function(**{name: given[name] for name in names})

    if default is None or (hook in _NONE_IS_AN_ANSWER and hook in ops.implemented):
        return call
    chosen, fallback = call, default

    def with_default(**given: Any) -> Any:
        answer = chosen(**given)
        return fallback(**given) if answer is None else answer

    return with_default


@dataclass(slots=True)
class Vendor:
    """One registered vendor."""

    name: str
    plugin: Any
    declaration: VendorDeclaration
    ops: VendorOps

    def has(self, capability: str) -> bool:
        """Whether the vendor declares a capability; an unknown name is a mistake of the caller."""
        if capability not in CAPABILITIES:
            raise InputError(f"no capability {capability!r}; there are {', '.join(sorted(CAPABILITIES))}")
        return capability in self.declaration.capabilities


def vendor_entry_points() -> list[EntryPoint]:
    """What installed distributions offer as vendors, by name."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


class VendorRegistry:
    """All vendors, found through entry points or registered by hand."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(VendorSpec)
        self._plugins: dict[str, Any] = {}
        self._declarations: dict[str, VendorDeclaration] = {}
        self._vendors: dict[str, Vendor] = {}
        self._options: dict[Any, list[KernelOption]] = {}
        self._wrappers: list[Any] = []

    @classmethod
    def installed(cls) -> VendorRegistry:
        """The vendors that installed distributions offer.

        Raises ``InputError`` for a plugin that cannot be imported or misspells a hook.
        """
        registry = cls()
        for entry in vendor_entry_points():
            registry.load(entry)
        return registry

    def load(self, entry: EntryPoint) -> Vendor:
        """Import and add what an entry point names.  Raises ``InputError``, whatever stops the import."""
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:
            message = f"cannot be loaded: {type(error).__name__}: {error}"
            raise InputError(message, source=f"vendor plugin {entry.name} ({entry.value})") from error
        return self.register(plugin, entry.name)

    def register(self, plugin: Any, name: str) -> Vendor:
        """Add a vendor.  Raises ``InputError`` for a misspelt hook, a wrong argument, a missing declaration, or a second time."""
        if name in self._plugins or self._manager.is_registered(plugin):
            raise InputError("is registered already, under this name or another", source=f"vendor plugin {name}")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            self._drop(plugin)
            raise InputError(" ".join(str(error).split()), source=f"vendor plugin {name}") from error
        try:
            self._declarations[name] = self._declaration(plugin, name)
        except InputError:
            self._drop(plugin)
            raise
        self._plugins[name] = plugin
        self._rebind()
        return self._vendors[name]

    def _declaration(self, plugin: Any, name: str) -> VendorDeclaration:
        """What a registered plugin declares, asked once."""
        source = f"vendor plugin {name}"
        for hook in HOOKS:
            function = getattr(plugin, hook, None)
            if inspect.ismodule(function):
                raise InputError(f"a module of it has the name of the hook {hook}, and stands in its place", source=source)
            if callable(function) and not hasattr(function, f"{PROJECT}_impl"):
                raise InputError(f"{hook} has the name of a hook but is not marked @hookimpl", source=source)
        others = list(self._plugins.values())
        try:
            declaration = VendorOps(self._manager, name, others).declare()
        except (Exception, SystemExit) as error:
            raise InputError(f"declare is stopped by {type(error).__name__}: {error}", source=source) from error
        if declaration is None:
            raise InputError("hook 'declare' is missing or answers None", source=source)
        if not isinstance(declaration, VendorDeclaration):
            raise InputError(f"declare answers a {type(declaration).__name__}, no VendorDeclaration", source=source)
        return declaration

    def wrapped(self, plugin: Any) -> VendorRegistry:
        """A second registry of the same vendors whose calls also pass through ``plugin``, inside what was wrapped around these."""
        registry = VendorRegistry()
        for wrapper in (plugin, *self._wrappers):
            registry._manager.register(wrapper)
            registry._wrappers.append(wrapper)
        for name, vendor in self._plugins.items():
            registry.register(vendor, name)
        return registry

    def wrap(self, plugin: Any, name: str | None = None) -> None:
        """Add a plugin that is no vendor: a tracer, a counter, a fault injector, a quirk.  It sees every vendor's calls."""
        self._manager.register(plugin, name)
        self._manager.check_pending()
        self._wrappers.append(plugin)
        self._rebind()

    def unwrap(self, plugin: Any) -> None:
        """Remove what ``wrap`` added."""
        self._manager.unregister(plugin)
        self._wrappers.remove(plugin)
        self._rebind()

    def _drop(self, plugin: Any) -> None:
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)

    def _rebind(self) -> None:
        self._options.clear()
        vendors: dict[str, Vendor] = {}
        for name, plugin in self._plugins.items():
            others = [other for other in self._plugins.values() if other is not plugin]
            ops = VendorOps(self._manager, name, others)
            vendors[name] = Vendor(name, plugin, self._declarations[name], ops)
        self._vendors = vendors

    def options(self, boot: BootState) -> list[KernelOption]:
        """The command-line options of every driver that is compiled for the booting architecture."""
        key = (boot.era, boot.release, boot.arch, tuple(sorted(boot.config.items())))
        known = self._options.get(key)
        if known is None:
            answers = [vendor.ops.kernel_options(boot=boot) for vendor in self if boot.arch in vendor.declaration.arch]
            # A plugin's nonsense must not stop the others; the conformance suite names it.
            known = [option for answer in answers for option in answer if isinstance(option, KernelOption)]
            self._options[key] = known
        return known

    def __iter__(self) -> Iterator[Vendor]:
        return iter(self._vendors.values())

    def __contains__(self, name: str) -> bool:
        return name in self._vendors

    def get(self, name: str) -> Vendor:
        """The vendor of that name.  Raises ``InputError`` naming those that exist."""
        vendor = self._vendors.get(name)
        if vendor is None:
            raise InputError(f"no vendor {name!r}; installed: {', '.join(sorted(self._vendors)) or 'none'}")
        return vendor

    def names(self) -> list[str]:
        """All names, in order of registration."""
        return list(self._vendors)
