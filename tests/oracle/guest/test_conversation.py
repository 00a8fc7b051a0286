"""What is said between the host and a guest's agent, with a program in place of QEMU that plays guest and monitor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iommukit.errors import HardwareLost
from iommukit_oracle.guest.boot import MACHINES, Guest
from iommukit_oracle.hardware.qemu import Program

QEMU = """#!{python}
import json, os, socket, sys, time
def connected(name):
    word = next(word for word in sys.argv if word.startswith(f"socket,id={{name}},fd="))
    return socket.socket(fileno=int(word.rpartition("=")[2]))
console, qmp = connected("console"), connected("qmp")
def say(text): console.sendall(text.encode())
say("[ 0.1] early\\r\\n\\r\\n")
lines = console.makefile()
{guest}
"""
READY = 'say(\'@{"ready":"x86_64"}\\n\')\n'
ECHO = "for line in lines: say('@' + json.dumps({'answer': line[:-1].split('\\t')}) + '\\n')\n"
MONITOR = """
import threading
def monitor():
    qmp.sendall(b'{"QMP": {}}\\n')
    for line in qmp.makefile():
        asked = json.loads(line)
        if asked["execute"] == "refused":
            answer = [{"error": {"desc": "no"}}]
        else:
            events = [{"event": "DELETED", "data": {"device": name, "path": "/"}} for name in asked["arguments"].get("names", ())]
            answer = [*events[:1], {"return": {}}, *events[1:]]
        for message in answer: qmp.sendall(json.dumps(message).encode() + b"\\n")
threading.Thread(target=monitor, daemon=True).start()
"""
Start = Callable[[str], Guest]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a guest whose side of the conversation is a piece of Python."""

    def make(guest: str) -> Guest:
        program = tmp_path / "qemu"
        program.write_text(QEMU.format(python=sys.executable, guest=guest))
        program.chmod(0o755)
        (tmp_path / "kernel").write_bytes(b"")
        return Guest(
            MACHINES["intel"],
            tmp_path / "kernel",
            b"",
            "iommu=pt",
            options="caching-mode=on",
            devices=("edu",),
            extra=("-S",),
            program=Program("x86_64", str(program), "7.2.0"),
        )

    return make


def test_words_travel_whatever_is_in_them(start: Start) -> None:
    with start(READY + ECHO) as guest:
        assert guest.ask("write", "/a b", "x\n", "", "100%\t\x00é") == ["write", "/a b", "x%0a", "", "100%25%09%00%e9"]
        assert guest.console() == "[ 0.1] early"


def test_a_machine_is_made_of_its_arguments(start: Start) -> None:
    with start(READY + ECHO) as guest:
        given = " ".join(guest.arguments)
    assert "-device intel-iommu,intremap=on,caching-mode=on -S -device edu" in given
    assert guest.arguments[-1] == "console=ttyS0 no_timer_check quiet panic=-1 iommu=pt"


def test_a_kernel_may_speak_between_answers(start: Start) -> None:
    with start(READY + 'lines.readline(); say(\'[ 1.0] late\\r\\n[ 1.1] half@{"answer":"ok"}\\n\')\n' + ECHO) as guest:
        assert guest.ask("hello") == "ok"
        assert guest.console().splitlines() == ["[ 0.1] early", "[ 1.0] late", "[ 1.1] half"]


PANIC = "say('[ 2.0] Kernel panic - not syncing: gone\\r\\n\\r\\n[ 2.1] Rebooting\\r\\n')\n"


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (PANIC, "the guest has ended: [ 2.0] Kernel panic - not syncing: gone"),
        ("say('[ 2.1] Rebooting\\r\\n')\n", "the guest has ended: [ 2.1] Rebooting"),
        ("print('qemu: no such thing', flush=True); time.sleep(0.1)\n", "the guest has ended: qemu: no such thing / [ 0.1] early"),
    ],
)
def test_a_guest_that_does_not_come_up(guest: str, words: str, start: Start) -> None:
    with pytest.raises(HardwareLost) as caught:
        start(guest)
    assert str(caught.value) == words


def test_a_guest_that_dies_of_a_command(start: Start) -> None:
    with start(READY + 'lines.readline()\nsay(\'@{"answer":["[ 1.9] Oops\\r\\n\')\n' + PANIC) as guest:
        with pytest.raises(HardwareLost, match=r"^the guest has ended: \[ 2.0\] Kernel panic - not syncing: gone$"):
            guest.ask("write", "/sys/x", "1")
        with pytest.raises(HardwareLost):
            guest.ask("hello")


def test_a_guest_that_is_silent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iommukit_oracle.guest.boot.TIMEOUT", 0.4)
    with start(READY + "time.sleep(60)\n") as guest, pytest.raises(HardwareLost, match="the guest has not answered for 0 s"):
        guest.ask("hello")


def test_events_are_kept_for_who_waits_for_them(start: Start) -> None:
    with start(MONITOR + READY + ECHO) as guest:
        guest.monitor.ask("plug", names=["a", "b", "c"])
        guest.monitor.ask("more")
        assert guest.monitor.wait_for("DELETED", device="b") == {"device": "b", "path": "/"}
        assert guest.monitor.wait_for("DELETED", device="c")["device"] == "c"
        with pytest.raises(ValueError, match="refused: no"):
            guest.monitor.ask("refused")
