"""Finding platforms: what installed distributions offer to run a kernel on, by name.

A platform is a callable in the entry point group ``iommukit.platforms``: it takes a vendor (``iommukit.vendors.Vendor``) and the
name of a variant of its hardware, the empty one for the plain hardware, and answers a fresh ``Platform`` with that in it.  It
raises ``NotApplicable`` where it has no such hardware, and ``InputError`` where it cannot be had on this computer.  Whoever calls
it closes the platform; all platforms are context managers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from iommukit.errors import InputError
from iommukit.hw.platform import ModelPlatform, Platform

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "iommukit.platforms"

PlatformFactory = Callable[[Any, str], Platform]


def model(vendor: Any, variant: str) -> ModelPlatform:
    """The platform ``model``: the vendor's own hardware models, which are what the machine document says."""
    return ModelPlatform()


def _entries() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def platform_names() -> list[str]:
    """The names of all platforms that are installed."""
    return sorted(_entries())


def platform_factory(name: str) -> PlatformFactory:
    """What makes the platform of that name.  Raises ``InputError`` naming those that exist, or for one that cannot be imported."""
    entries = _entries()
    if name not in entries:
        raise InputError(f"no hardware {name!r}; installed: {', '.join(sorted(entries)) or 'none'}")
    entry = entries[name]
    try:
        return cast(PlatformFactory, entry.load())
    except (Exception, SystemExit) as error:
        message = f"cannot be loaded: {type(error).__name__}: {error}"
        raise InputError(message, source=f"platform {entry.name} ({entry.value})") from error
