"""Kernels: boot, groups, sysfs, hotplug and ownership, and one small file for each profile."""
