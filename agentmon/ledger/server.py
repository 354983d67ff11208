"""The ledger's socket: who is at the other end decides what may be said; answers leave after their commit.

root (the daemon)        everything; is sent Crossed unasked, before the answer of the call that crossed
agentmon-proxy           Reserve Settle Progress Release, and Totals of a running bottle
anybody else             the connection is closed
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from agentmon import errors, wire
from agentmon.channel import peer_of
from agentmon.ledger.asking import answer
from agentmon.ledger.book import Asked, Refresh, Spent
from agentmon.ledger.keeper import Keeper
from agentmon.ledger.owner import owner_of
from agentmon.ledger.reading import Reading
from agentmon.ledger.state import Owner
from agentmon.ledger.worker import Worker

_NEEDED = (concurrent.futures.thread,)  # by to_thread(); after the drop the interpreter may be out of reach
_UNANSWERED = 4096  # questions of one connection; above that it is not read
_PROXY = (wire.Reserve, wire.Settle, wire.Progress, wire.Release, wire.Totals)
_DAEMON = (
    *_PROXY, wire.OpenRun, wire.CloseRun, wire.SetBudget, wire.Enforced, wire.Audit,
    wire.Proposed, wire.Decide, wire.Undecided,
)  # fmt: skip
_MAY_ASK: dict[str, tuple[type[Asked], ...]] = {"daemon": _DAEMON, "proxy": _PROXY, "nobody": ()}


class Role(Enum):
    DAEMON = "daemon"
    PROXY = "proxy"
    NOBODY = "nobody"

    @property
    def may_ask(self) -> tuple[type[Asked], ...]:
        return _MAY_ASK[self.value]


@dataclass(frozen=True, slots=True)
class Roles:
    """Who is who, by the peer's uid."""

    daemon: frozenset[int]
    proxy: frozenset[int]

    def of(self, uid: int) -> Role:
        if uid in self.daemon:
            return Role.DAEMON
        return Role.PROXY if uid in self.proxy else Role.NOBODY


class Server:
    """Serves `sock` from `store` until stop().

    :param usage_age_s: see worker.Worker. :param reader: opens what wire.Read asks, for a ledger that is no file.
    """

    def __init__(
        self, store: Keeper, sock: socket.socket, roles: Roles, *, usage_age_s: int | None = None,
        reader: Callable[[], Reading] | None = None,
    ) -> None:  # fmt: skip
        self.roles = roles
        self.daemons: dict[_Connection, None] = {}
        self.connections: set[_Connection] = set()
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.AbstractServer | None = None
        self._ended = asyncio.Event()
        self._self = owner_of(os.getpid())
        self._reader = reader
        self._reads: set[asyncio.Task[None]] = set()
        self.worker = Worker(store, self._from_worker, self._worker_ended, usage_age_s=usage_age_s)

    async def start(self) -> None:
        self.worker.start()
        self._listener = await self._loop.create_unix_server(lambda: _Connection(self), sock=self._sock)

    async def failed(self) -> None:
        """Wait for the worker's unasked end. :raises errors.AgentmonError: always."""
        await self._ended.wait()
        raise errors.AgentmonError("the writer has failed; see what is above", "the daemon starts another ledger")

    async def stop(self) -> None:
        """Hear nobody any more, commit what was asked, answer it, close."""
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            connection.deafen()
        self.worker.stop()
        await self._ended.wait()
        for connection in list(self.connections):
            connection.transport.close()

    def refresh(self) -> None:
        """Another host has changed something. From any thread."""
        self.worker.put(_NOBODY, self._self, [Refresh()])

    def read(self, asked: wire.Read, transport: asyncio.Transport) -> None:
        """Answer a report, in a thread of its own."""
        task = self._loop.create_task(self._read(asked, transport))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _read(self, asked: wire.Read, transport: asyncio.Transport) -> None:
        if self._reader is None:
            told: wire.Message = wire.Failed(asked.id, "BadInput", "this ledger is a file", "open it read-only")
        else:
            try:
                told = await asyncio.to_thread(answer, self._reader, asked)
            except Exception as e:  # noqa: BLE001 - nobody waits for ever for a question that cannot be answered
                traceback.print_exc(file=sys.stderr)
                told = wire.Failed(asked.id, "AgentmonError", f"the ledger failed on this: {e}", "see ledger.log")
        if not transport.is_closing():
            transport.write(wire.encode(told))

    def _from_worker(self, out: list[tuple[Any, list[wire.Message | None]]], crossed: list[wire.Crossed]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, out, crossed)

    def _worker_ended(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    def _deliver(self, out: list[tuple[Any, list[wire.Message | None]]], crossed: list[wire.Crossed]) -> None:
        if crossed:
            data = b"".join(map(wire.encode, crossed))
            for daemon in self.daemons:
                daemon.transport.write(data)
        for connection, answers in out:
            connection.answer(answers)


class _Nobody:
    """Whose questions have no answer."""

    def answer(self, answers: list[wire.Message | None]) -> None: ...


_NOBODY = _Nobody()


class _Connection(asyncio.Protocol):
    """One peer. Reading stops while it has too many questions open or does not take its answers."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._frames = wire.Frames()
        self._role = Role.NOBODY
        self._owner = Owner("", 0, 0)
        self._open = 0
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = peer_of(transport.get_extra_info("socket"))
        self._role = self._server.roles.of(peer.uid)
        if self._role is Role.NOBODY:
            transport.abort()
            return
        self._owner = owner_of(peer.pid)
        self._server.connections.add(self)
        transport.write(wire.encode(wire.Ready("ledger", os.getpid())))
        if self._role is Role.DAEMON:
            self._server.daemons[self] = None
            self._ask([Spent()])

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.daemons.pop(self, None)
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._frames.feed(data)
        except wire.WireError:
            self.transport.abort()
            return
        asked: list[Asked] = []
        for message in messages:
            if isinstance(message, self._role.may_ask):
                asked.append(message)
            elif isinstance(message, wire.Read) and self._role is Role.DAEMON:
                self._server.read(message, self.transport)
            elif (id := getattr(message, "id", None)) is not None:
                what = f"{type(message).__name__} is not for this peer"
                self.transport.write(wire.encode(wire.Failed(id, "Refused", what, "only the daemon may ask this")))
        if asked:
            self._ask(asked)

    def _ask(self, asked: list[Asked]) -> None:
        self._open += len(asked)
        self._server.worker.put(self, self._owner, asked)
        self._flow()

    def answer(self, answers: list[wire.Message | None]) -> None:
        self._open -= len(answers)
        if self.transport.is_closing():
            return
        self.transport.write(b"".join(_frame(a) for a in answers if a is not None))
        self._flow()

    def pause_writing(self) -> None:
        self._full = True
        self._flow()

    def resume_writing(self) -> None:
        self._full = False
        self._flow()

    def deafen(self) -> None:
        """Read no more, for good."""
        self._full = True
        self._flow()

    def _flow(self) -> None:
        if self.transport.is_closing():
            return
        if self._full or self._open > _UNANSWERED:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


def _frame(answer: wire.Message) -> bytes:
    """A Done of Spent (id 0) is what the daemon missed; everything else is itself."""
    if isinstance(answer, wire.Done) and answer.id == 0 and isinstance(answer.value, list):
        at_ns = time.monotonic_ns()
        return b"".join(wire.encode(msgspec.structs.replace(c, at_ns=at_ns)) for c in answer.value)
    return wire.encode(answer)
