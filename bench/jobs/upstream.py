"""A fast stand-in for api.anthropic.com: `upstream.py CERT ADDRESS`. Says "ready" and serves until its stdin ends.

model bench-json     one JSON message of 2 KB
model bench-sse      200 deltas as fast as they can be written, each a chunk and a TLS record of its own
model bench-paced    100 deltas, 20 ms apart, the first at once; each carries the
                         CLOCK_MONOTONIC nanoseconds at which it was written
GET /bulk?n=BYTES    so many bytes
"""

import asyncio
import json
import ssl
import sys
import time

USAGE = {"input_tokens": 120, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 200}
MESSAGE = {"id": "msg_bench", "type": "message", "role": "assistant", "model": "claude-bench", "content": []}
BODY = json.dumps(
    MESSAGE | {"content": [{"type": "text", "text": "word " * 340}], "stop_reason": "end_turn", "usage": USAGE}
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(kind: str, **data: object) -> bytes:
    text = f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


FIRST = event("message_start", message=MESSAGE | {"usage": USAGE | {"output_tokens": 1}})
START = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
DELTA = delta("some words ")
LAST = event("content_block_stop", index=0) + event(
    "message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 200}
)
STOP = event("message_stop") + b"0\r\n\r\n"


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""
        self.work: set[asyncio.Task[None]] = set()

    def connection_lost(self, _why: Exception | None) -> None:
        for task in self.work:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if b"bench-sse" in body:
                self.sse()
            elif b"bench-paced" in body:
                self.start(self.paced(100, 0.02))
            elif b"bench-slow" in body:
                self.start(self.paced(4, 1.0))
            else:
                self.transport.write(ANSWER)

    def start(self, work: object) -> None:
        task = asyncio.ensure_future(work)
        self.work.add(task)
        task.add_done_callback(self.work.discard)

    def sse(self) -> None:
        write = self.transport.write
        write(HEAD + FIRST)
        write(START)
        for _ in range(200):
            write(DELTA)
        write(LAST)
        write(STOP)

    async def paced(self, deltas: int, pause_s: float) -> None:
        self.transport.write(HEAD + FIRST + START)
        for _ in range(deltas):
            self.transport.write(delta(f"t={time.monotonic_ns()};"))
            await asyncio.sleep(pause_s)
        self.transport.write(LAST + STOP)


async def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    loop = asyncio.get_running_loop()
    await loop.create_server(Server, sys.argv[2], 443, ssl=context, backlog=512)
    print("ready", flush=True)
    stop = asyncio.Event()
    loop.add_reader(0, stop.set)
    await stop.wait()


asyncio.run(main())
