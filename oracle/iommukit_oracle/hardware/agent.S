# The mailbox agent: an s390x guest that executes one instruction at a time for whoever shares its memory.
#
# Part of iommukit, GPL-2.0-only.  agent.py holds the same as bytes; its test assembles this file where there is an assembler:
#   s390x-linux-gnu-as -march=z10 -o agent.o agent.S && s390x-linux-gnu-objcopy -O binary agent.o agent.bin
#
# The mailbox, by offset:
#   0x00 number of the request       0x08 number of the last request that is done
#   0x10 %r4 to %r9, both ways       0x40 condition code      0x48 program interruption code, 0 for none
#   0x50 when to look again          0x80 the instruction
#
# After each request it looks for the next one without a pause, for a millisecond or so.  Then it waits, and the clock comparator
# wakes it every 250 microseconds: an idle guest costs little of the host's time.

        .set    MAILBOX, 0x3000
        .set    PROGRAM_CODE, 0x8e              # lowcore: program interruption code, a halfword
        .set    LOOKS, 100000                   # before it waits
        .set    TICK, 250 << 12                 # 250 microseconds of the TOD clock, whose bit 51 is a microsecond
        .text
start:
        larl    %r1, control
        lctlg   %c0, %c0, 0(%r1)
        llilf   %r12, MAILBOX
        lghi    %r10, 0                         # the last request that is done
busy:   lgfi    %r13, LOOKS
look:   lg      %r11, 0(%r12)
        cgrjlh  %r11, %r10, serve
        brctg   %r13, look
        stck    0x50(%r12)
        lg      %r3, 0x50(%r12)
        algfi   %r3, TICK
        stg     %r3, 0x50(%r12)
        sckc    0x50(%r12)
        larl    %r1, waiting
        lpswe   0(%r1)
serve:  lgr     %r10, %r11
        mvghi   0x48(%r12), 0
        lmg     %r4, %r9, 0x10(%r12)
        ex      %r0, 0x80(%r12)                 # EXECUTE fetches its target afresh each time
        ipm     %r3
        stmg    %r4, %r9, 0x10(%r12)
        srl     %r3, 28
        llgfr   %r3, %r3
        stg     %r3, 0x40(%r12)
done:   stg     %r10, 0x08(%r12)
        j       busy
program:                                        # the program-interruption new PSW leads here
        llgh    %r3, PROGRAM_CODE
        stg     %r3, 0x48(%r12)
        j       done
woken:                                          # the external new PSW leads here
        lghi    %r13, 1                         # one look
        j       look
        .balign 8
control:
        .quad   0x800                           # control register 0: clock-comparator interruptions
waiting:
        .quad   0x0102000180000000, 0           # PSW: external interruptions, wait, 64-bit addressing; nothing is executed there
