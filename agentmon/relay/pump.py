"""Moves bytes one way between two non-blocking sockets, driven by the event loop, with TCP's own back-pressure.

Bytes go from socket to pipe to socket by splice(2), never through this process. The pipe is borrowed for the turn;
only a flow whose receiver does not take everything at once keeps it, and while it keeps it nothing more is read. An
idle flow holds no pipe and no memory. Why not recv and send: docs/adr/0019.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from agentmon.relay import pipes

_SMALL = 1 << 16  # a slow receiver's share: what may have to be kept
_TURNS = 8  # full pipes a flow may move before others have their turn


class Pump:
    """`ended(None)` is called once when `source` has ended and all of it was passed on (`sink` is shut down then), or
    `ended(error)` when either side broke."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        ended: Callable[[OSError | None], None],
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._ended = ended
        self._pipe: pipes.Pipe | None = None
        self._size = _SMALL
        self.moved_bytes = 0

    def start(self) -> None:
        self._loop.add_reader(self._source, self._readable)

    def stop(self) -> None:
        """Forget both sockets; the caller closes them."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        self._return_pipe()

    def _readable(self) -> None:
        try:
            pipe = self._pipe = pipes.lend()
            for _ in range(_TURNS):
                count = pipe.fill(self._source.fileno(), self._size)
                if count == 0:
                    self._finish()
                    return
                if not self._drained(pipe):
                    self._size = max(self._size // 2, _SMALL)
                    self._loop.remove_reader(self._source)
                    self._loop.add_writer(self._sink, self._writable, pipe)
                    return
                if count == self._size:
                    self._size = min(2 * count, pipes.LARGE)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            self._break(e)
            return
        self._return_pipe()

    def _writable(self, pipe: pipes.Pipe) -> None:
        try:
            if not self._drained(pipe):
                return
        except OSError as e:
            self._break(e)
            return
        self._return_pipe()
        self._loop.remove_writer(self._sink)
        self._loop.add_reader(self._source, self._readable)

    def _drained(self, pipe: pipes.Pipe) -> bool:
        self.moved_bytes += pipe.drain(self._sink.fileno())
        return pipe.held == 0

    def _return_pipe(self) -> None:
        if self._pipe is not None:
            pipes.give_back(self._pipe)
            self._pipe = None

    def _finish(self) -> None:
        self.stop()
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as e:
            self._ended(e)
            return
        self._ended(None)

    def _break(self, error: OSError) -> None:
        self.stop()
        self._ended(error)
