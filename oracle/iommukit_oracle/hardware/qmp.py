"""QEMU's monitor protocol, as much as is needed: one question, one answer, and events that are waited for.

The library ``qemu.qmp`` is built around asyncio; for one command at a time over a connected socket this is all there is to it.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from iommukit.errors import HardwareLost

KEPT = 100
"""How many events are kept for somebody who waits for one."""


class Monitor:
    """A client of the protocol.  Raises ``HardwareLost``, as ``lost`` words it, where QEMU has died or does not answer."""

    def __init__(self, connection: socket.socket, lost: Callable[[str], HardwareLost]) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._lost = lost
        self._ready = False
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def _read(self, until: tuple[str, ...]) -> Any:
        """The next message that has one of these keys; events before it are kept."""
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise self._lost("does not answer its monitor") from error
            if not line:
                raise self._lost("closed its monitor")
            message = json.loads(line)
            for key in until:
                if key in message:
                    return message
            if "event" in message:
                self._events.append(message)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Carry out a command and answer what it returns.  Raises ``ValueError`` with QEMU's words for one that it refuses."""
        if not self._ready:
            self._read(("QMP",))
            self._ready = True
            self.ask("qmp_capabilities")
        try:
            self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise self._lost("does not listen to its monitor") from error
        answer = self._read(("return", "error"))
        if "error" in answer:
            raise ValueError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_for(self, event: str, **data: Any) -> dict[str, Any]:
        """Wait for an event with these data and answer all of its data; one that has come before and was not waited for counts."""
        while True:
            message = self._events.popleft() if self._events else self._read(("event",))
            found: dict[str, Any] = message.get("data", {})
            if message["event"] == event and data.items() <= found.items():
                return found

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._connection.close()
