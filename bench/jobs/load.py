"""HTTP load over kept TLS connections, in a process of its own; options as JSON in argv[1], results as JSON on stdout.

    {"to": [ADDRESS, PORT], "source": ADDRESS, "connect": "HOST:PORT" or "", "ca": FILE, "sni": NAME,
     "kind": "json" | "sse" | "paced", "clients": N, "seconds": S, "body_bytes": B (optional)}

Every client has its connection and one answer before the window begins; then "go" is printed.
Result: requests, seconds (of the window), latency_ms, first_ms (first delta), delay_ms (paced deltas): lists.
"""

import asyncio
import json
import re
import socket
import ssl
import sys
import time

STAMP = re.compile(rb"t=(\d+);")


class Client(asyncio.Protocol):
    """One request, and from go() on again and again until the deadline; `done` is the future of the present phase."""

    def __init__(self, request: bytes, done: asyncio.Future) -> None:
        self.request, self.done = request, done
        self.out: dict = {"requests": 0, "latency_ms": [], "first_ms": [], "delay_ms": []}
        self.deadline = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def go(self, out: dict, deadline: float, done: asyncio.Future) -> None:
        self.out, self.deadline, self.done = out, deadline, done
        self.send()

    def send(self) -> None:
        self.buffer = b""
        self.need = 0
        self.first = 0.0
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if b"t=" in data:
            stamp = time.monotonic_ns()
            self.out["delay_ms"] += [(stamp - int(t)) / 1e6 for t in STAMP.findall(data)]
        self.buffer += data
        if not self.need:
            self.head()
        if not self.first and self.need < 0 and b"content_block_delta" in self.buffer:
            self.first = now
        if (self.need > 0 and len(self.buffer) >= self.need) or (self.need < 0 and data.endswith(b"0\r\n\r\n")):
            self.out["requests"] += 1
            self.out["latency_ms"].append((now - self.began) * 1000)
            if self.first:
                self.out["first_ms"].append((self.first - self.began) * 1000)
            if now < self.deadline:
                self.send()
            else:
                self.done.set_result(None)

    def head(self) -> None:
        """need: the length of the whole answer, -1 for a chunked one."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            self.done.set_exception(RuntimeError(self.buffer[:500].decode("latin1")))
            self.transport.abort()
        elif b"content-length:" in head:
            self.need = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        else:
            self.need = -1

    def connection_lost(self, why: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"closed early: {why}"))


def dial(options: dict) -> socket.socket:
    """A TCP connection, through CONNECT where the options say so."""
    sock = socket.create_connection(tuple(options["to"]), 10, (options["source"], 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options["connect"]:
        sock.sendall(f"CONNECT {options['connect']} HTTP/1.1\r\nHost: {options['connect']}\r\n\r\n".encode())
        assert b" 200 " in sock.recv(4096)
    sock.setblocking(False)
    return sock


async def main() -> None:
    options = json.loads(sys.argv[1])
    said = "Say something about measuring. " * (options.get("body_bytes", 310) // 31)
    body = {
        "model": f"claude-bench-{options['kind']}", "max_tokens": 256, "stream": options["kind"] != "json",
        "messages": [{"role": "user", "content": said}],
    }  # fmt: skip
    text = json.dumps(body).encode()
    request = (
        f"POST /v1/messages HTTP/1.1\r\nHost: {options['sni']}\r\nx-api-key: sk-bench\r\n"
        f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    ).encode() + text
    context = ssl.create_default_context(cafile=options["ca"])
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the stand-in authority names no key identifiers
    loop = asyncio.get_running_loop()
    done = [loop.create_future() for _ in range(options["clients"])]
    clients = [Client(request, future) for future in done]
    for client in clients:
        await loop.create_connection(
            lambda client=client: client, sock=dial(options), ssl=context, server_hostname=options["sni"]
        )
    await asyncio.gather(*done)
    print("go", flush=True)
    out: dict = {"requests": 0, "latency_ms": [], "first_ms": [], "delay_ms": []}
    done = [loop.create_future() for _ in clients]
    began = time.perf_counter()
    for client, future in zip(clients, done, strict=True):
        client.go(out, began + options["seconds"], future)
    await asyncio.gather(*done)
    print(json.dumps(out | {"seconds": time.perf_counter() - began}), flush=True)
    sys.stdin.read()  # the connections stay until the other side has looked at the clock


asyncio.run(main())
