"""QEMU's emulated IOMMUs as the other hardware: a platform on which the drivers run as they run on the vendors' models.

No guest operating system runs in that QEMU, and no KVM is needed: its processor halts, registers are reached by the qtest
protocol, the guest's memory is a file that both processes map, and devices of QEMU do the DMA.  On s390, where registers are
reached by instructions alone, a tiny guest executes them one by one.

``platform.py`` puts it together: ``QemuPlatform`` is what the entry point group ``iommukit.platforms`` calls ``qemu``.
"""
