"""Which vendors and kernels a session is about."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from iommukit.errors import InputError
from iommukit.hw.platforms import platform_factory
from iommukit.kernel.historic import Historic
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.vendors import ENTRY_POINTS, VendorRegistry
from iommukit_conformance.lab import MODEL

EMULATED = ("6.1", "7.2")
"""The kernels whose drivers are tried on an emulator, unless others are asked for."""


@dataclass(frozen=True)
class Selection:
    """The vendors by name, the kernels, all vendors that are there, and the platform that hardware cases run on.

    ``broken`` says of vendors why they cannot be loaded; a chosen one of them fails its smoke test.
    """

    registry: VendorRegistry
    vendors: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    broken: Mapping[str, str]
    hardware: str = MODEL


def select(
    vendors: Sequence[str] = (), kernels: Sequence[str] = (), plugins: Sequence[str] = (), hardware: str = MODEL
) -> Selection:
    """Choose.

    ``plugins`` are ``[name=]module[:object]`` and are registered beside the installed vendors.  Without ``vendors`` those are
    chosen, or, where there are none, all that are installed.  Without ``kernels`` all profiles are, or on an emulator those whose
    drivers differ most.  Raises ``InputError`` for a name that does not exist.
    """
    registry = VendorRegistry()
    broken: dict[str, str] = {}
    given = [_load(text) for text in plugins]
    named = {name for name, _ in given}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        if entry.name in named:
            continue  # The one that was named is meant.
        try:
            registry.register(entry.load(), entry.name)
        except InputError as error:
            broken[entry.name] = str(error)
        except Exception as error:
            broken[entry.name] = f"vendor plugin {entry.name} ({entry.value}): {type(error).__name__}: {error}"
    for name, plugin in given:
        try:
            registry.register(plugin, name)
        except InputError as error:
            broken[name] = str(error)
    there = sorted({*registry.names(), *broken})
    chosen = tuple(dict.fromkeys(vendors)) or tuple(name for name, _ in given) or tuple(there)
    for name in chosen:
        if name not in there:
            raise InputError(f"no vendor {name!r}; there are {', '.join(there) or 'none'}")
    if not chosen:
        raise InputError("no vendor is installed; name one with --vendor-plugin [NAME=]MODULE[:OBJECT]")
    if hardware != MODEL:
        platform_factory(hardware)
    return Selection(registry, chosen, _kernels(kernels or (() if hardware == MODEL else EMULATED)), broken, hardware)


def _kernels(names: Sequence[str]) -> tuple[Kernel, ...]:
    chosen: dict[str, Kernel] = {}
    for name in names or tuple(PROFILES):
        kernel = get_kernel(name)
        if isinstance(kernel, Historic):
            raise InputError(f"of kernel {name} only the boot is modelled; choose among {', '.join(PROFILES)}")
        chosen[kernel.name] = kernel
    return tuple(chosen.values())


def _load(text: str) -> tuple[str, Any]:
    """The name and the plugin of ``[name=]module[:object]``."""
    name, equals, place = text.partition("=")
    if not equals:
        name, place = "", text
    module, _, attribute = place.partition(":")
    source = f"--vendor-plugin {text}"
    try:
        plugin: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            plugin = getattr(plugin, part)
        if isinstance(plugin, type):
            plugin = plugin()
    except ModuleNotFoundError as error:
        raise InputError(f"no module {error.name!r}", source=source) from error
    except Exception as error:
        raise InputError(f"cannot be loaded: {type(error).__name__}: {error}", source=source) from error
    return name or module.rpartition(".")[2].removeprefix("iommukit_"), plugin
