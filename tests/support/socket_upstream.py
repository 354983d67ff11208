"""A WebSocket server of the outside world (the `websockets` library) in a thread, and a bottle's client."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.client import ClientConnection, connect

from tests.support.proxy_rig import Rig

Script = Callable[[ServerConnection], Awaitable[None]]


async def echo(peer: ServerConnection) -> None:
    async for message in peer:
        await peer.send(message)


class SocketUpstream:
    """`seen`: every message; `heads`: the headers of every handshake; `closed`: (code, reason) of every end."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self.address = address
        self.script: Script = echo
        self.seen: list[str | bytes] = []
        self.heads: list[dict[str, str]] = []
        self.closed: list[tuple[int | None, str | None]] = []
        self.ended = threading.Event()
        self._context = context
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        options: dict[str, Any] = {"max_size": 64 << 20, "ping_interval": None}
        async with (
            serve(self._serve, self.address, 443, ssl=self._context, **options),
            serve(self._serve, self.address, 80, **options),
        ):
            self._up.set()
            await self._stop.wait()

    async def _serve(self, peer: ServerConnection) -> None:
        assert peer.request is not None
        self.heads.append({k.lower(): v for k, v in peer.request.headers.raw_items()})
        receive = peer.recv

        async def noted(*args: Any, **kwargs: Any) -> Any:
            message = await receive(*args, **kwargs)
            self.seen.append(message)
            return message

        peer.recv = noted  # type: ignore[method-assign]
        try:
            await self.script(peer)
            await peer.close()
        finally:
            await peer.wait_closed()
            self.closed.append((peer.close_code, peer.close_reason))
            self.ended.set()

    def fresh(self) -> None:
        self.script = echo
        self.seen.clear()
        self.heads.clear()
        self.closed.clear()
        self.ended.clear()

    def stop(self) -> None:
        assert self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def dial(rig: Rig, url: str, **options: Any) -> ClientConnection:
    """The bottle's client, after its handshake."""
    scheme, _, rest = url.partition("://")
    sock: Any = rig.connect(rest.partition("/")[0], 443 if scheme == "wss" else 80)
    sock.settimeout(None)
    if scheme == "wss":
        tls, (sock, end) = sock, socket.socketpair()
        threading.Thread(target=_carry, args=(tls, end), daemon=True).start()
    options.setdefault("ping_interval", None)
    return connect(
        f"ws://{rest}", sock=sock, open_timeout=10, close_timeout=5, max_size=64 << 20, legacy=True, **options
    )


def _carry(tls: ssl.SSLSocket, end: socket.socket) -> None:
    """Both directions in one thread, until either side ends. The library reads in a thread of its own while it writes
    in another, which one TLS connection is not made for: now and then its handshake hung or the connection broke."""
    other = {tls: end, end: tls}
    with tls, end, contextlib.suppress(OSError):
        while True:
            for side in [tls] if tls.pending() else select.select([tls, end], [], [])[0]:
                side.setblocking(False)
                try:
                    data = side.recv(1 << 16)
                except ssl.SSLWantReadError:  # a record of TLS itself
                    continue
                finally:
                    side.setblocking(True)
                if not data:
                    return
                other[side].sendall(data)
