"""A small real Linux guest: Debian's kernels and busybox, booted by QEMU without KVM and without installing anything.

``packages.py`` fetches and unpacks packages, ``initramfs.py`` builds what the kernel starts from, ``boot.py`` runs it;
``mappings.py`` has it map memory for DMA, and keeps what the kernel said it mapped beside its memory.
"""
