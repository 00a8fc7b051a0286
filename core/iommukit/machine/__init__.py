"""Machines: files, PCI topology, firmware tables."""
