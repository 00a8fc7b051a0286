"""The plugin's package as pluggy sees it."""

import importlib
import pkgutil

import iommukit_amd_vi


def test_no_module_takes_a_hooks_place():
    """Importing a module of the package sets an attribute of its name."""
    names = {module.name for module in pkgutil.iter_modules(iommukit_amd_vi.__path__)}
    assert not names & set(iommukit_amd_vi.__all__)
    for name in names:
        importlib.import_module(f"iommukit_amd_vi.{name}")
    assert all(callable(getattr(iommukit_amd_vi, hook)) for hook in iommukit_amd_vi.__all__)
