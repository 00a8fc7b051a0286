"""What hardware is made of: physical memory, buses, a clock, page tables, TLBs, and the platforms that put them together.

Nothing here knows a vendor.  A vendor's hardware model and its driver both stand on these pieces, and meet only in memory, in
registers and, on s390, in instructions.
"""
