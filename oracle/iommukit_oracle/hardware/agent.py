"""The s390x guest that executes one instruction at a time: its code as bytes, beside ``agent.S``, and how it is booted."""

from __future__ import annotations

import struct

ORIGIN = 0x10000
MAILBOX = 0x3000
REQUEST, DONE, REGISTERS, INTERRUPTION, INSTRUCTION = 0x00, 0x08, 0x10, 0x48, 0x80
"""The mailbox's fields, by offset (bytes): see ``agent.S``."""

LISTING = """
c010 0000 0050   start:    larl    %r1, control
eb00 1000 002f             lctlg   %c0, %c0, 0(%r1)
c0cf 0000 3000             llilf   %r12, MAILBOX
a7a9 0000                  lghi    %r10, 0
c0d1 0001 86a0   busy:     lgfi    %r13, LOOKS
e3b0 c000 0004   look:     lg      %r11, 0(%r12)
ecba 0017 6064             cgrjlh  %r11, %r10, serve
a7d7 fffa                  brctg   %r13, look
b205 c050                  stck    0x50(%r12)
e330 c050 0004             lg      %r3, 0x50(%r12)
c23a 000f a000             algfi   %r3, TICK
e330 c050 0024             stg     %r3, 0x50(%r12)
b206 c050                  sckc    0x50(%r12)
c010 0000 0031             larl    %r1, waiting
b2b2 1000                  lpswe   0(%r1)
b904 00ab        serve:    lgr     %r10, %r11
e548 c048 0000             mvghi   0x48(%r12), 0
eb49 c010 0004             lmg     %r4, %r9, 0x10(%r12)
4400 c080                  ex      %r0, 0x80(%r12)
b222 0030                  ipm     %r3
eb49 c010 0024             stmg    %r4, %r9, 0x10(%r12)
8830 001c                  srl     %r3, 28
b916 0033                  llgfr   %r3, %r3
e330 c040 0024             stg     %r3, 0x40(%r12)
e3a0 c008 0024   done:     stg     %r10, 0x08(%r12)
a7f4 ffca                  j       busy
e330 008e 0091   program:  llgh    %r3, PROGRAM_CODE
e330 c048 0024             stg     %r3, 0x48(%r12)
a7f4 fff5                  j       done
a7d9 0001        woken:    lghi    %r13, 1
a7f4 ffc1                  j       look
0707                       nopr    %r7
00000000 00000800 control: .quad   0x800
01020001 80000000 waiting: .quad   0x0102000180000000
00000000 00000000          .quad   0
"""
CODE = bytes.fromhex("".join(line[:17].replace(" ", "") for line in LISTING.splitlines()))
PROGRAM, WOKEN = 0x86, 0x96
"""Offsets of the two handlers."""

_START_PSW, _EXTERNAL_NEW, _PROGRAM_NEW = 0x000, 0x1B0, 0x1D0
_SHORT_MASK, _LONG_MASK = 0x0008_0000, 0x1_8000_0000
"""Masks of a short and of a long PSW: 31-bit addressing to begin with, then 64-bit; no interruptions."""


def image() -> bytes:
    """Memory from 0 on as QEMU's ``-kernel`` loads it: the assigned storage locations of the architecture, and the agent."""
    low = bytearray(ORIGIN)
    struct.pack_into(">II", low, _START_PSW, _SHORT_MASK, 0x8000_0000 | ORIGIN)
    struct.pack_into(">QQ", low, _EXTERNAL_NEW, _LONG_MASK, ORIGIN + WOKEN)
    struct.pack_into(">QQ", low, _PROGRAM_NEW, _LONG_MASK, ORIGIN + PROGRAM)
    return bytes(low) + CODE
