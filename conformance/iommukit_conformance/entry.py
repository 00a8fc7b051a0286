"""What pytest loads at every start (entry point ``pytest11``): nothing, unless the suite is asked for.

The options of the suite must exist when the command line is parsed, which a ``conftest.py`` inside the package is too late for.  A
run of other tests must not pay for it, nor find its own ``--vendor`` taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PACKAGE = "iommukit_conformance"
PLUGIN = f"{PACKAGE}.plugin"


def asked_for(arguments: list[str]) -> bool:
    """Whether a command line names the suite: as a package (``--pyargs``), or by a path inside it."""
    from pathlib import Path

    home = Path(__file__).parent
    for argument in arguments:
        place = argument.partition("::")[0]
        if place == PACKAGE or place.startswith(PACKAGE + "."):
            return True
        if not place.startswith("-") and PACKAGE in place and Path(place).absolute().is_relative_to(home):
            return True
    return False


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin before the command line is parsed for good."""
    if asked_for(args):
        early_config.pluginmanager.import_plugin(PLUGIN)
