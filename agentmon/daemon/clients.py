"""Who is waiting for what: requests by number, and the command line that belongs to each running bottle."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from typing import Any

from agentmon import errors, wire
from agentmon.daemon.connection import Connection
from agentmon.launch.spec import Spawned


@dataclass(slots=True)
class _Waiting:
    connection: Connection
    request: wire.Request


class Clients:
    """Numbers requests so that the pure controller can name them; 0 is nobody."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._runs: dict[int, _Waiting] = {}  # slot → the `run` or `resume` request it answers
        self._failed: dict[int, str] = {}  # request → message, until the audit has it
        self._spawned: dict[int, Spawned] = {}

    def add(self, connection: Connection, request: wire.Request) -> int:
        number = next(self._numbers)
        self._waiting[number] = _Waiting(connection, request)
        return number

    def answer(self, number: int, value: Any) -> None:
        """Answer a request. One that starts a command, whose value is its slot, stays open until the bottle ends."""
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        if isinstance(value, int):
            self._runs[value] = waiting
        else:
            waiting.connection.send(wire.Reply(waiting.request.id, value))

    def fail(self, number: int, error: str, message: str, hint: str) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self._failed[number] = message
            waiting.connection.send(wire.Reply(waiting.request.id, None, error_dict(error, message, hint)))

    def outcome(self, number: int) -> str:
        """How an answered request ended: "done", or the message of its error. Can be asked once."""
        return self._failed.pop(number, "done")

    def hold(self, slot: int, spawned: Spawned) -> None:
        """Keep a launched job's descriptors until its bottle is open."""
        self._spawned[slot] = spawned

    def pid(self, slot: int) -> int:
        spawned = self._spawned.get(slot)
        return spawned.pid if spawned else 0

    def start(self, slot: int, value: dict[str, Any]) -> None:
        """The bottle is open: its client gets the descriptors."""
        spawned = self._spawned.pop(slot, None)
        waiting = self._runs.get(slot)
        fds = spawned.fds if spawned else ()
        if waiting is None:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            return
        waiting.connection.send(wire.Item(waiting.request.id, value), fds)

    def end(self, slot: int, value: Any, error: dict[str, Any] | None) -> None:
        """The bottle is gone: its client gets the summary."""
        spawned = self._spawned.pop(slot, None)
        for fd in spawned.fds if spawned else ():
            with contextlib.suppress(OSError):
                os.close(fd)
        waiting = self._runs.pop(slot, None)
        if waiting is not None:
            waiting.connection.send(wire.Reply(waiting.request.id, value, error or {}))

    def attach(self, slot: int, connection: Connection, request: wire.Request) -> None:
        """A command line whose daemon was restarted takes its place again."""
        self._runs[slot] = _Waiting(connection, request)

    def gone(self, connection: Connection) -> list[int]:
        """Forget a closed connection; the slots of the bottles it had started."""
        for number in [n for n, w in self._waiting.items() if w.connection is connection]:
            del self._waiting[number]
        slots = [slot for slot, w in self._runs.items() if w.connection is connection]
        for slot in slots:
            del self._runs[slot]
        return slots


def error_dict(error: str, message: str, hint: str) -> dict[str, Any]:
    """The error object of the control protocol."""
    exit_code = errors.BY_NAME.get(error, errors.AgentmonError).exit_code
    return {"class": error, "message": message, "hint": hint, "exit": exit_code}
