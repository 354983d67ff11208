"""Moves bytes one way between two non-blocking sockets, driven by the event loop, with TCP's own back-pressure.

One large buffer is shared by all flows: bytes are received into it and sent on in the same call; only what the
receiver does not take at once is kept, and while it is kept nothing more is read. An idle flow holds no memory.

recv/send with 1 MiB was measured against splice(2) through a pipe on loopback (Linux 6.18, 2 cores): 2,700–3,200 MB/s
against 2,400–2,550, at the same CPU time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_LARGE = 1 << 20
_SMALL = 1 << 16  # a slow receiver's share: what may have to be kept
_TURNS = 4  # full buffers a flow may move before others have their turn

_buffer = bytearray(_LARGE)
_view = memoryview(_buffer)


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
        self._kept = memoryview(b"")
        self._size = _SMALL
        self.moved_bytes = 0

    def start(self) -> None:
        self._loop.add_reader(self._source, self._readable)

    def stop(self) -> None:
        """Forget both sockets; the caller closes them."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _readable(self) -> None:
        try:
            for _ in range(_TURNS):
                size = self._size
                count = self._source.recv_into(_view, size)
                if count == 0:
                    self._finish()
                    return
                sent = self._send(_view[:count])
                if sent < count:
                    self._keep(bytes(_view[sent:count]))
                    return
                if count < size:
                    return
                self._size = min(2 * size, _LARGE)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            self._break(e)

    def _send(self, data: memoryview) -> int:
        try:
            sent = self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        self.moved_bytes += sent
        return sent

    def _keep(self, data: bytes) -> None:
        self._kept = memoryview(data)
        self._size = max(self._size // 2, _SMALL)
        self._loop.remove_reader(self._source)
        self._loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        try:
            self._kept = self._kept[self._send(self._kept) :]
        except OSError as e:
            self._break(e)
            return
        if not self._kept:
            self._kept = memoryview(b"")
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._readable)

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
