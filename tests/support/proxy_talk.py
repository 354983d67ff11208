"""What the bottles of the proxy's tests say, what a provider answers, and how either is read from a socket."""

from __future__ import annotations

import json
import ssl
import time
from typing import Any

from tests.support.proxy_rig import Rig
from tests.support.proxy_upstream import reply

SPENT = {"scope": "bottle", "name": "crate", "provider": "claude", "tokens": 5, "used": 6, "per": "run"}
CLAUDE = "api.anthropic.com"
OPENAI = "api.openai.com"


def fresh(rig: Rig) -> Rig:
    """The rig with a fresh bottle; the upstream and the books remember nothing that matters here."""
    rig.events.clear()
    rig.upstream.seen.clear()
    rig.upstream.aborted.clear()
    rig.lookups.error = ""
    rig.lookups.go()
    rig.lookups.address = rig.upstream.address
    rig.upstream.script = reply(200, b"{}")
    rig.bottle()
    return rig


def message(tokens_in: int = 10, tokens_out: int = 5, id: str = "") -> bytes:
    usage = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    return json.dumps({"id": id or f"msg_{time.monotonic_ns()}", "model": "claude-x", "usage": usage}).encode()


def ask(**fields: Any) -> bytes:
    return json.dumps({"model": "claude-x", "max_tokens": 100, "messages": []} | fields).encode()


def sse(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def opening(id: str = "") -> bytes:
    usage = {"input_tokens": 20, "output_tokens": 1}
    return sse("message_start", message={"id": id or f"msg_{time.monotonic_ns()}", "model": "claude-x", "usage": usage})


def closing(tokens: int) -> bytes:
    return sse("message_delta", delta={}, usage={"output_tokens": tokens}) + sse("message_stop")


DELTA = sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "héllo 🙂"})


def chat_stream(usage: bool) -> list[bytes]:
    def chunk(**data: Any) -> bytes:
        return b"data: " + json.dumps({"id": "chatcmpl-1", "model": "gpt-x"} | data).encode() + b"\n\n"

    parts = [chunk(choices=[{"index": 0, "delta": {"content": "hi"}}], **({"usage": None} if usage else {}))]
    if usage:
        parts.append(chunk(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 4}))
    return [*parts, b"data: [DONE]\n\n"]


def begin(rig: Rig, body: bytes, path: str = "/v1/messages", host: str = CLAUDE) -> Any:
    """A socket with the request sent."""
    sock = rig.connect(host)
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def read_until(sock: Any, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        piece = sock.recv(65536)
        assert piece, got
        got += piece
    return got


def read_all(sock: Any) -> bytes:
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except (ssl.SSLEOFError, ConnectionResetError):
        pass
    return got


def last_row(rig: Rig, before: int) -> tuple[Any, ...]:
    rows = rig.rows(before + 1)
    assert len(rows) == before + 1
    return rows[-1]
