"""HTTP/2 for the stand-ins: what they write as HTTP/1.1, told as frames.

h11 reads what one writes as a client would; head, data and trailers then go out under the peer's flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11

_OF_THE_CONNECTION = {b"connection", b"transfer-encoding", b"keep-alive"}
Answer = Callable[[str, str, dict[str, str], bytes, Any], Awaitable[None]]  # method, target, headers, body, writer


class Session:
    """One connection. `gone` is called when the peer resets a stream or leaves while an answer is under way."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, gone: Callable[[], None]
    ) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.writer = writer
        self.more = asyncio.Condition()  # the peer takes more bytes than before
        self._reader, self._answer, self._gone = reader, answer, gone
        self._asked: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the peer closes."""
        self.h2.initiate_connection()
        self.flush()
        try:
            while data := await self._reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    await self._take(event)
                self.flush()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        for number in list(self._tasks):
            self._end(number)
        self.writer.close()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.writer.write(data)

    async def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._asked[event.stream_id] = dict(event.headers), bytearray()
        elif isinstance(event, h2.events.DataReceived):
            self._asked[event.stream_id][1].extend(event.data)
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._tasks[event.stream_id] = asyncio.ensure_future(self._run(event.stream_id))
        elif isinstance(event, h2.events.StreamReset):
            self._end(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            async with self.more:
                self.more.notify_all()

    def _end(self, number: int) -> None:
        task = self._tasks.pop(number, None)
        if task is not None and not task.done():
            task.cancel()
            self._gone()

    async def _run(self, number: int) -> None:
        headers, body = self._asked.pop(number)
        method, target = headers.pop(":method"), headers.pop(":path")
        headers["host"] = headers.pop(":authority")
        stream = Stream(self, number, method)
        with contextlib.suppress(ConnectionError, h2.exceptions.StreamClosedError):
            await self._answer(method, target, headers, bytes(body), stream)
            await stream.drain()


class Stream:
    """What a stand-in takes for an asyncio.StreamWriter."""

    def __init__(self, session: Session, number: int, method: str) -> None:
        self.transport = self
        self._session, self._number = session, number
        self._waiting: deque[tuple[list[tuple[str, str]] | None, bytes, bool]] = deque()  # head, data, end
        self._over = False
        self._h11 = h11.Connection(h11.CLIENT)
        self._h11.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._h11.send(h11.EndOfMessage())

    def write(self, data: bytes) -> None:
        if not data or self._over:
            return
        self._h11.receive_data(data)
        while (event := self._h11.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.InformationalResponse | h11.Response):
                status = [(":status", str(event.status_code))]
                self._waiting.append((status + _fields(event.headers), b"", False))
            elif isinstance(event, h11.Data):
                self._waiting.append((None, bytes(event.data), False))
            elif isinstance(event, h11.EndOfMessage):
                self._over = True
                self._waiting.append((_fields(event.headers) or None, b"", True))
                return

    async def drain(self) -> None:
        """Send what is waiting, as far and as fast as the peer takes it."""
        session, number = self._session, self._number
        while self._waiting:
            head, data, end = self._waiting.popleft()
            if head is not None:
                session.h2.send_headers(number, head, end_stream=end)
            elif end:
                session.h2.end_stream(number)
            while data:
                room = min(session.h2.local_flow_control_window(number), session.h2.max_outbound_frame_size)
                if room > 0:
                    session.h2.send_data(number, data[:room])
                    data = data[room:]
                session.flush()
                if data and room <= 0:
                    async with session.more:
                        await session.more.wait()
            session.flush()
            await session.writer.drain()

    def is_closing(self) -> bool:
        return self._session.writer.is_closing()

    def close(self) -> None:
        """In the middle of an answer: the stream breaks off."""
        if not self._over:
            self._over = True
            self._session.h2.reset_stream(self._number, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self._session.flush()

    abort = close


def _fields(headers: Any) -> list[tuple[str, str]]:
    return [(k.decode().lower(), v.decode("latin1")) for k, v in headers if k.lower() not in _OF_THE_CONNECTION]
