"""One connection of a bottle, from its first byte to its last."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agentmon.lookup import LookupRefused, Lookups
from agentmon.relay import gate
from agentmon.relay.dial import dial
from agentmon.relay.hello import ALERT_INTERNAL, BadHello, HelloReader, alert_record
from agentmon.relay.pump import Pump
from agentmon.views import View

HELLO_S = 5.0
KEEPALIVE_S = 60  # of silence before a peer is asked whether it is there; as long again for _PROBES
HALF_CLOSED_S = 300.0  # of silence in the other direction after one has ended: an answer may take long, not for ever
_PROBES = 4
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close() sends RST
_READ = 1 << 14


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a flow waits, in seconds: for a whole hello, for a silent peer's kernel, for the second end."""

    hello_s: float = HELLO_S
    keepalive_s: int = KEEPALIVE_S
    half_closed_s: float = HALF_CLOSED_S

    def watch(self, sock: socket.socket) -> None:
        """Let the kernel find out that the peer is gone. See tcp(7)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, self.keepalive_s // _PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every flow uses. `refused(slot, port, reason, host, rule)` and the like report; its answer, if any, is
    awaited while the client's socket with that port is still open. `view(slot)`: the policy now."""

    lookups: Lookups
    port: int
    view: Callable[[int], View | None]
    refused: Callable[[int, int, str, str, str], Awaitable[None] | None]
    failed: Callable[[int, str, str], None]
    observed: Callable[[int, str], None]
    patience: Patience


@dataclass(eq=False, slots=True)
class Flow:
    """`host` is set once the name was admitted: from then on a policy that no longer admits it aborts the flow."""

    slot: int
    client: socket.socket
    port: int  # the client's
    around: Surroundings
    host: str = ""
    upstream: socket.socket | None = None
    aborted: bool = False
    _pumps: list[Pump] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None
    _second_end: asyncio.TimerHandle | None = None

    def start(self, ended: Callable[[Flow], None]) -> None:
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(lambda task: self._over(task, ended))

    def abort(self) -> None:
        """Reset both sides, at once where bytes are already being moved. The task ends by itself."""
        self.aborted = True
        if self._pumps:
            self._close(reset=True)
        if self._task is not None:
            # Before that, the event loop may still watch the sockets: they are closed when the task has let go of
            # them, else a new socket with the same number would lose its registration.
            self._task.cancel()

    def _over(self, task: asyncio.Task[None], ended: Callable[[Flow], None]) -> None:
        self._close(reset=self.aborted)
        ended(self)
        if not task.cancelled():
            task.result()  # a bug shows in the log, it does not vanish

    async def _run(self) -> None:
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.around.patience.watch(self.client)
        reader = HelloReader()
        try:
            async with asyncio.timeout(self.around.patience.hello_s):
                host = await self._server_name(reader)
        except BadHello as e:
            await self._refuse(e.reason, "", e.alert)
            return
        except TimeoutError:
            await self._refuse("slow", "", 0)
            return
        except OSError:
            return
        if host and await self._admit(host) and await self._connect():
            try:
                await self._relay(bytes(reader.raw))
            except OSError:
                self._close(reset=True)

    async def _server_name(self, reader: HelloReader) -> str:
        """:returns: "" when the client left before it said anything."""
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self.client, _READ)
            if not data:
                if reader.raw:
                    raise BadHello("not-tls", 0, "the connection ended within the ClientHello")
                return ""
            if (host := reader.feed(data)) is not None:
                return host

    async def _admit(self, host: str) -> bool:
        view = self.around.view(self.slot)
        if view is None:
            return False
        verdict = gate.decide(view, host, self.around.port)
        if not verdict.allowed:
            await self._refuse(verdict.reason, host, verdict.alert, verdict.rule)
            return False
        self.host = host
        if verdict.observed:
            self.around.observed(self.slot, host)
        return True

    async def _connect(self) -> bool:
        try:
            addresses = await self.around.lookups.lookup(self.slot, self.host, self.around.port)
            self.upstream = await dial(addresses, self.around.port)
        except LookupRefused as e:
            if e.reason == "denied":
                await self._refuse("default", self.host, gate.DENIED)
            else:
                await self._fail(e.reason)
            return False
        except OSError:
            await self._fail("unreachable")
            return False
        self.around.patience.watch(self.upstream)
        return True

    async def _relay(self, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        upstream = self.upstream
        assert upstream is not None
        await loop.sock_sendall(upstream, first)
        over = loop.create_future()
        open_ways = 2

        def ended(error: OSError | None) -> None:
            nonlocal open_ways
            open_ways -= 1
            if over.done():
                return
            if error is not None:
                over.set_exception(error)
            elif open_ways == 0:
                over.set_result(None)
            else:
                self._await_second_end(over, -1)

        self._pumps = [Pump(loop, self.client, upstream, ended), Pump(loop, upstream, self.client, ended)]
        for pump in self._pumps:
            pump.start()
        try:
            await over
        finally:
            if self._second_end is not None:
                self._second_end.cancel()

    def _await_second_end(self, over: asyncio.Future[None], moved: int) -> None:
        """End a half-closed flow that moves nothing: its client may be gone, and nothing is read that would say so."""
        if over.done():
            return
        now = sum(pump.moved_bytes for pump in self._pumps)
        if now == moved:
            over.set_exception(TimeoutError("half-closed and silent"))
            return
        wait_s = self.around.patience.half_closed_s
        self._second_end = asyncio.get_running_loop().call_later(wait_s, self._await_second_end, over, now)

    async def _refuse(self, reason: str, host: str, alert: int, rule: str = "") -> None:
        named = self.around.refused(self.slot, self.port, reason, host, rule)
        if named is not None:
            await named
        await self._alert(alert)

    async def _fail(self, reason: str) -> None:
        self.around.failed(self.slot, reason, self.host)
        await self._alert(ALERT_INTERNAL)

    async def _alert(self, alert: int) -> None:
        try:
            if alert:
                self.client.send(alert_record(alert))
            self.client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client is gone, or its window is shut: it learns from the close

    def _close(self, *, reset: bool) -> None:
        for pump in self._pumps:
            pump.stop()
        self._pumps = []
        for sock in (self.client, self.upstream):
            if sock is not None and sock.fileno() >= 0:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
