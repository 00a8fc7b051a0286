"""A small real Linux guest: Debian's kernels, Perl and an agent, booted by QEMU without KVM and without installing anything.

``packages.py`` fetches and unpacks packages, ``kernels.py`` finds kernels in them; ``initramfs.py`` and ``userland.py`` build what
a kernel starts from, ``agent.pl`` among it; ``boot.py`` runs it, on a QEMU as it is or as ``variants.py`` makes it, with UEFI from
``uefi.py``.  ``plugging.py`` has devices come and go.  ``mappings.py`` has the guest map memory for DMA, and keeps what the kernel
said it mapped beside its memory.
"""
