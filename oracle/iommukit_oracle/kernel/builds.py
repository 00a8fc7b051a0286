"""What Debian's kernels are built with, and the words of a command line that come to another build."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iommukit.machine.model import BootSpec
from iommukit_oracle.kernel.realisation import Inexpressible

BUILT: Mapping[str, Callable[[str], str]] = {
    "amd64": lambda kernel: "lazy",
    "arm64": lambda kernel: "strict",
    "s390x": lambda kernel: "strict" if kernel == "6.1" else "lazy",
}
"""By Debian's architecture: the policy that its kernels are built with."""
WORDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("lazy", "strict"): ("iommu.strict=1",),
    ("lazy", "passthrough"): ("iommu.passthrough=1",),
    ("strict", "lazy"): ("iommu.strict=0",),
    # A kernel built for passthrough starts lazy.
    ("strict", "passthrough"): ("iommu.passthrough=1", "iommu.strict=0"),
}
"""From what was built to what is wanted: the words that come to the same."""
OFF = "intel_iommu=off"
"""What a kernel built with VT-d off does by itself; the word refuses firmware's wish for protection besides."""
CONFIG = {"INTEL_IOMMU_DEFAULT_ON": True, "INTEL_IOMMU_SCALABLE_MODE_DEFAULT_ON": True, "INTEL_IOMMU_FLOPPY_WA": True}
"""Further options of Debian's builds that scenarios name."""


def words_for_build(boot: BootSpec, vendor: str, kernel: str, arch: str, *, opt_in: bool) -> tuple[tuple[str, ...], list[str]]:
    """The words that stand for a kernel's configuration, and what to say of them.  Raises ``Inexpressible``."""
    if boot.memory_encryption:
        raise Inexpressible("QEMU emulates no memory encryption")
    words: tuple[str, ...] = ()
    notes: list[str] = []
    for name, value in boot.config.items():
        about_this = vendor == "intel_vtd" or not name.startswith("INTEL_")
        if not about_this or CONFIG.get(name, False) is value:
            continue
        if name != "INTEL_IOMMU_DEFAULT_ON" or opt_in:
            raise Inexpressible(f"Debian's kernels are built with {name}={'y' if CONFIG.get(name) else 'n'}")
        words = (OFF,)
        notes.append(f"{OFF} stands for a kernel built with {name}=n")
    built = BUILT[arch](kernel)
    if boot.kconfig not in (None, built):
        policy = WORDS[built, boot.kconfig or built]
        words = (*words, *policy)
        notes.append(f"{' '.join(policy)} stands for a kernel built {boot.kconfig}")
    return words, notes
