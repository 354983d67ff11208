"""Connects to the first of several vetted addresses that answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

ATTEMPT_S = 5.0
HEAD_START_S = 0.25  # before the next address is tried as well (RFC 8305, section 5)


async def dial(addresses: Sequence[str], port: int) -> socket.socket:
    """A connected non-blocking socket; attempts overlap, the losers are closed.

    :raises OSError: of the last address, when none answered (TimeoutError included).
    """
    pending: set[asyncio.Task[socket.socket]] = set()
    waiting = list(addresses)
    failed: OSError = OSError("no address to dial")
    try:
        while waiting or pending:
            if waiting:
                pending.add(asyncio.ensure_future(_connect(waiting.pop(0), port)))
            done, pending = await asyncio.wait(
                pending, timeout=HEAD_START_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            won: socket.socket | None = None
            for task in done:
                error = task.exception()
                if isinstance(error, OSError):
                    failed = error
                elif error is not None:
                    raise error
                elif won is None:
                    won = task.result()
                else:
                    task.result().close()
            if won is not None:
                return won
        raise failed
    finally:
        for task in pending:
            task.cancel()
            task.add_done_callback(_close_late)


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect(address: str, port: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    )
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(ATTEMPT_S):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        undo.pop_all()
    return sock
