"""One client connection: mitmproxy's handler, bounded in what it buffers, whose hooks are ours and fail closed.

client bytes ─▶ server_event ─▶ Entry ─ TLS ─ NextLayer ─ edge_layers.Layer ─ hooks ─▶ edge.Hooks
cut(ending)  ─▶ server_event(CutStreams) ──────────────────────▲
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol

from mitmproxy import http
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, mode_specs, server_hooks
from mitmproxy.proxy.server import LiveConnectionHandler

from agentmon.proxy.edge_layers import CutStreams, Ending, Entry
from agentmon.proxy.shares import Shares

HEAD_BYTES = 256 << 10  # what a client may send while no request of its is under way
BODY_BYTES = 32 << 20  # of a request that has to be whole before it is forwarded
HEAD_S = 30.0  # for the handshake and the first request's head; for each later head once it has begun
BODY_S = 300.0  # for a body that has to be whole
_HOOKS_S = 0.003  # a hook that takes longer is asking somebody, and looks at the cut when it has its answer
_CLOSE_S = 0.1
_UPSTREAM_STREAMS = 100  # connections to one address that one client connection may have
_MODE = mode_specs.ProxyMode.parse("regular")

ExcInfo = Literal[True] | tuple[type[BaseException], BaseException, TracebackType | None] | None


class HookTable(Protocol):
    """edge.Hooks: a method `on_NAME(connection, data)` for every hook it wants, sync or async."""

    shares: Shares

    def failed(self, connection: Connection, what: str, error: str) -> None: ...
    def gone(self, connection: Connection) -> None: ...


class Connection(LiveConnectionHandler):
    """:param slot: whose it is, by its source address. :param port: 443 (TLS) or 80."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        options: Options,
        hooks: HookTable,
        slot: int,
        port: int,
    ) -> None:
        super().__init__(reader, writer, options, _MODE)
        self.hooks = hooks
        self.slot = slot
        self.port = port
        self.source = int(self.client.peername[1])  # the client's port: names its process
        self.sni: str | None = None  # canonical, once the hello was read
        self.streaming = 0  # requests whose bodies pass through
        self.buffering = 0  # requests whose bodies are collected
        self.dialled: dict[str, str] = {}  # host → vetted address, so that connections are used again
        self._allowance = HEAD_BYTES
        self._aborted = False
        self._deciding = 0  # requests whose head is being decided; until then nothing more is read
        self._decided = asyncio.Event()
        self._decided.set()
        self._free = asyncio.Event()  # nothing is read from either side while a message is being judged
        self._free.set()
        self._under_way = 0  # requests whose head has come and that are not over
        self._collecting = 0  # bytes that came while bodies were being collected
        self._taken = 0  # of the bottle's share
        self._deadline: asyncio.TimerHandle | None = None
        self._begin_head()
        self.max_conns = collections.defaultdict(lambda: asyncio.Semaphore(_UPSTREAM_STREAMS))
        self.layer = Entry(self.layer.context, tls=port == 443)

    async def serve(self) -> None:
        """Until both sides have closed."""
        try:
            await self.handle_client()
        finally:
            self._end_head()
            self.give(self._taken)
            for io in self.transports.values():  # a handler that is cancelled twice leaves its socket open
                if io.writer is not None:
                    io.writer.close()
            self.hooks.gone(self)

    # ── hooks ──

    async def handle_hook(self, hook: commands.StartHook) -> None:
        method = getattr(self.hooks, f"on_{hook.name}", None)
        if method is None:
            return
        with self.timeout_watchdog.disarm():
            try:
                (data,) = hook.args()
                result = method(self, data)
                if inspect.isawaitable(result):
                    await result
            except Exception as e:  # noqa: BLE001  fail closed: what a hook did not decide does not go on
                if isinstance(hook, server_hooks.ServerConnectHook):
                    hook.data.server.error = "closed by agentmon"  # it is dialled otherwise
                if isinstance(getattr(hook, "flow", None), http.HTTPFlow):
                    kill(hook.flow)  # type: ignore[attr-defined]
                self._fail(f"hook {hook.name}", e)

    def log(self, message: str, level: int = logging.INFO, exc_info: ExcInfo = None) -> None:
        """mitmproxy's own log: only that it crashed matters, and that ends the connection."""
        if exc_info is not None:
            error = exc_info[1] if isinstance(exc_info, tuple) else message
            self._fail("mitmproxy", error)

    def _fail(self, what: str, error: object) -> None:
        text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
        self.hooks.failed(self, what, text)
        self.abort()

    # ── limits ──

    async def server_event(self, event: events.Event) -> None:
        if self._aborted and isinstance(event, events.DataReceived | events.OpenConnectionCompleted):
            return  # what arrives while the connections are being closed would still be acted on
        if isinstance(event, events.DataReceived):
            await self._free.wait()
            if event.connection is self.client:
                await self._decided.wait()
                if not self._under_way and self._deadline is None and self.client.alpn != b"h2":
                    self._begin_head()
                if self.buffering:
                    if not self.take(len(event.data)):
                        return
                    self._collecting += len(event.data)
                self._allowance -= len(event.data)
                if self._allowance < 0 and not self.streaming:
                    self.hooks.failed(self, "limit", "the client sent more than a request may have")
                    self.abort()
                    return
            else:
                self.allow()
        await super().server_event(event)

    def allow(self) -> None:
        """Set what the client may send from now on, after requests began or ended."""
        self._allowance = HEAD_BYTES + self.buffering * BODY_BYTES

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """While a request's head is looked at, its body stays with the client."""
        self._end_head()
        self._deciding += 1
        self._decided.clear()
        try:
            yield
        finally:
            self._deciding -= 1
            if not self._deciding:
                self._decided.set()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While one message of a WebSocket is judged, those behind it stay where they are, in either direction."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def began(self) -> None:
        """A request's head has come."""
        self._under_way += 1

    def ended(self) -> None:
        """It is over."""
        self._under_way -= 1

    def take(self, count: int) -> bool:
        """So many bytes are kept for this connection; False, and its end, where its bottle has too many already."""
        if self.hooks.shares.take(self.slot, count):
            self._taken += count
            return True
        self.hooks.failed(self, "limit", "the bottle's requests, answers and messages are too large together")
        self.abort()
        return False

    def give(self, count: int) -> None:
        """They are not kept any more."""
        count = min(count, self._taken)
        self._taken -= count
        self.hooks.shares.give(self.slot, count)

    def collected(self, size: int) -> int:
        """A body of `size` bytes is whole: of what was taken for it, that is kept until the request is over."""
        kept = min(self._collecting, size)
        self._collecting -= kept
        if not self.buffering:
            self.give(self._collecting)
            self._collecting = 0
        return kept

    def _begin_head(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEAD_S, self.too_slow, "no request", HEAD_S)

    def _end_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def too_slow(self, what: str, limit_s: float) -> None:
        self.hooks.failed(self, "limit", f"{what} within {limit_s:.0f} s")
        self.abort()

    # ── ending ──

    def abort(self) -> None:
        """Close both sides now; what was written before still leaves. May be called again."""
        if self._aborted:
            return
        self._aborted = True
        self.client.error = self.client.error or "closed by agentmon"
        io = self.transports.get(self.client)
        if io is not None:
            if io.handler is not None:
                io.handler.cancel("closed by agentmon")
            elif io.writer is not None:
                io.writer.close()

    async def cut(self, ending: Callable[[http.HTTPFlow], Ending | None]) -> int:
        """End the streams `ending` names and, if there were any, this connection; how many. See closed()."""
        closed = 0
        until = time.monotonic() + _HOOKS_S
        while True:
            event = CutStreams(ending)
            await self.server_event(event)
            closed += event.closed
            if not event.waiting or time.monotonic() > until:
                break
            await asyncio.sleep(0)
        return closed

    async def closed(self) -> None:
        """Wait until the client's side is closed, briefly."""
        io = self.transports.get(self.client)
        if io is not None and io.handler is not None:
            await asyncio.wait({io.handler}, timeout=_CLOSE_S)


def kill(flow: http.HTTPFlow) -> None:
    """Let nothing of this flow go on; no-op where it is over."""
    if flow.killable:
        flow.kill()  # type: ignore[no-untyped-call]


def peer_of(writer: asyncio.StreamWriter) -> str:
    """The source address of a connection; "" where it is gone already."""
    name: Any = writer.get_extra_info("peername")
    return str(name[0]) if name else ""
