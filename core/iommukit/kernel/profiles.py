"""The kernel profiles by name."""

from __future__ import annotations

import re

from iommukit.errors import InputError
from iommukit.kernel.historic import FIRST, LAST, Historic
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.linux_6_1 import Linux61, Linux61EarlierStable, Linux61Stable
from iommukit.kernel.linux_6_12 import Linux72, Linux612
from iommukit.kernel.rfc import Rfc
from iommukit.kernel.rfc_as_posted import RfcAsPosted, RfcUnconverted

DEFAULT = "rfc"
PROFILES: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (Rfc(), RfcAsPosted(), RfcUnconverted(), Linux61(), Linux612(), Linux72())
}
"""The profiles that the matrix shows."""

STABLE: dict[str, Kernel] = {kernel.name: kernel for kernel in (Linux61Stable(), Linux61EarlierStable())}
"""Further profiles: stable releases that differ from the mainline one, the newest first."""


def get_kernel(name: str) -> Kernel:
    """The profile for a name or a release.

    Takes the profiles' own names and releases as ``uname -r`` prints them: ``6.12.107`` is 6.12; 5.10 to 6.3 can boot (and no more
    is modelled of them).  Raises ``InputError`` for anything else, naming what there is.
    """
    known = PROFILES.get(name) or STABLE.get(name)
    if known is not None:
        return known
    match = re.match(r"^([0-9]{1,2})\.([0-9]{1,3})(?:[.+-]|\Z)", name)
    if match:
        release = int(match[1]), int(match[2])
        for kernel in PROFILES.values():
            if kernel.name == f"{release[0]}.{release[1]}" and release != (6, 1):
                return kernel
        if release == (6, 1):
            return _stable_61(name)
        if FIRST <= release <= LAST and (release[0] == 6 or release[1] <= 19):
            return Historic(release)
    names = ", ".join([*PROFILES, *STABLE])
    raise InputError(f"no kernel {name!r}; there are {names}, and releases from 5.10 to 6.3 for booting")


def _stable_61(name: str) -> Kernel:
    """6.1.y: rules changed in the stable series; a release is as the newest known one up to it, early ones are as mainline."""
    patch = re.match(r"^6\.1\.([0-9]+)", name)
    for known, kernel in STABLE.items():
        if patch is not None and int(patch[1]) >= int(known.rpartition(".")[2]):
            return kernel
    return PROFILES["6.1"]
