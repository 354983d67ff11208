"""The life of an unprivileged service process (resolver, relay, proxy, ledger): import, bind, drop, serve.

    daemon ─ nsenter --net=… python -m agentmon.resolver CONFIG ─▶ main(): modules are imported (as root: the
    interpreter may live in a 0700 home) ─▶ listeners are bound ─▶ drop() ─▶ control connections are served

The daemon connects to the service, not the other way round, so a service outlives a daemon and is adopted by
the next one. Only uid 0 may speak on a control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import encodings.idna
import grp
import json
import os
import pwd
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agentmon import wire
from agentmon.channel import Channel, peer_of

# Codecs are imported when first looked up; after the drop the interpreter's directory may be closed to us.
_CODECS = (encodings.idna,)
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_DUMPABLE = 4


def read_config(argv: list[str]) -> dict[str, Any]:
    """The JSON object in the file that the daemon named; the only argument of every service."""
    if len(argv) != 2:
        print(f"error: {argv[0]} is started by the agentmon daemon, not by hand", file=sys.stderr)
        print("hint: agentmon daemon", file=sys.stderr)
        raise SystemExit(2)
    config: dict[str, Any] = json.loads(Path(argv[1]).read_text())
    return config


def listen_unix(path: Path, *, group: str = "") -> socket.socket:
    """A listening Unix socket, mode 0600, or 0660 for `group`; replaces a stale one. Needs to own the directory."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    old = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(old)
    if group:
        os.chown(path, 0, grp.getgrnam(group).gr_gid)
        path.chmod(0o660)
    sock.listen(128)
    return sock


def listen_tcp(address: str, port: int, *, backlog: int = 1024) -> socket.socket:
    """A non-blocking TCP listener on one address of either family.

    The protocol is named so that asyncio knows accepted sockets for TCP and sets TCP_NODELAY on them: without it an
    answer in two writes waits 40 ms for the peer's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def drop(user: str) -> None:
    """Become `user` for good: its own groups (agentmon-svc opens the sockets between services), no capabilities, no
    way to gain any.

    :raises KeyError: the user does not exist. :raises PermissionError: not started as root.
    """
    entry = pwd.getpwnam(user)
    os.setgroups(os.getgrouplist(user, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve_unix(sock: socket.socket, connected: Connected) -> asyncio.AbstractServer:
    """Serve a listen_unix() socket after the drop: its directory may be out of reach, its file is the daemon's."""
    options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}  # else it is stat()ed
    return await asyncio.start_unix_server(connected, sock=sock, **options)


Answer = Callable[[Any, Channel], Awaitable[wire.Message | None]]


class Control:
    """Serves control connections: says Ready, passes each message to `answer`, sends back what it returns.

    `report()` sends an event to the daemon. Events that a slow
    or absent daemon does not take are counted; the next one that gets through is preceded by a `lost` event.
    """

    MAX_BACKLOG_BYTES = 1 << 20
    NAMED_S = 0.1  # what naming a process may delay the answer to its first refused question

    def __init__(
        self, service: str, sock: socket.socket, answer: Answer, uids: frozenset[int] = frozenset({0})
    ) -> None:
        self._service = service
        self._sock = sock
        self._answer = answer
        self._uids = uids
        self.channels: dict[Channel, None] = {}  # in order of arrival
        self.lost = 0  # events nobody took

    async def start(self) -> asyncio.AbstractServer:
        return await serve_unix(self._sock, self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_of(writer.get_extra_info("socket")).uid not in self._uids:
            writer.close()
            return
        channel = Channel(reader, writer)
        channel.send(wire.Ready(self._service, os.getpid()))
        self.channels[channel] = None
        try:
            with contextlib.suppress(wire.WireError):
                async for message in channel.messages():
                    reply = await self._answer(message, channel)
                    if reply is not None:
                        channel.send(reply)
        finally:
            self.channels.pop(channel, None)
            channel.close()

    def report(self, event: dict[str, Any]) -> None:
        channel = self.daemon()
        if channel is None or channel.backlog_bytes > self.MAX_BACKLOG_BYTES:
            self.lost += 1
            return
        if self.lost:
            channel.send(wire.Report({"kind": "lost", "layer": self._service, "count": self.lost}))
            self.lost = 0
        channel.send(wire.Report(event))

    async def report_of(self, event: dict[str, Any], slot: int, proto: str, port: int) -> None:
        """As report(), naming the process that holds `port` in the bottle; returns after NAMED_S at most."""
        channel = self.daemon()
        if channel is None or channel.backlog_bytes > self.MAX_BACKLOG_BYTES:
            self.report(event)
            return
        with contextlib.suppress(TimeoutError, ConnectionError):
            await channel.call(wire.Report(event, slot, proto, port, channel.next_id()), self.NAMED_S)

    def daemon(self) -> Channel | None:
        """The connected daemon, for questions (Commit) and events; the newest one when a restart overlaps, None while
        it is away."""
        return next((c for c in reversed(self.channels) if not c.closed), None)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a service until SIGTERM; SIGINT is ignored (a terminal's Ctrl-C is the command line's business)."""

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        task = asyncio.ensure_future(main())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(body())
