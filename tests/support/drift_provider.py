"""A stand-in provider on loopback whose answers can be changed: `python -m tests.support.drift_provider DIR`.

Prints its port once ready and ends with its stdin. DIR/change holds the name of the change in force ("" for none);
DIR/ca.pem is what to trust, DIR/log.json what was asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.internet.ca import Authority
from tests.internet.http1 import App, HttpServer, Request, Response
from tests.internet.model_apis import apps
from tests.internet.served import Books

HOSTS = {"api.anthropic.com": "claude", "api.openai.com": "openai"}


def usage_of(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Change every object called `usage` that is not inside what the model said."""

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "usage" and isinstance(inner, dict):
                    change(inner)
                elif key not in {"content", "output"}:
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    def one(text: bytes) -> bytes:
        value = json.loads(text)
        walk(value)
        return json.dumps(value).encode()

    return lambda body: in_data(body, one)


def in_data(body: bytes, one: Callable[[bytes], bytes]) -> bytes:
    """Of a JSON body, or of the data of each event of a stream."""
    if body.startswith(b"{"):
        return one(body)
    return re.sub(rb"^data: (\{.*\})$", lambda m: b"data: " + one(m[1]), body, flags=re.M)


def renamed(was: bytes, now: bytes) -> Callable[[bytes], bytes]:
    return lambda body: body.replace(was, now)


def without_event(name: bytes) -> Callable[[bytes], bytes]:
    return lambda body: re.sub(rb"event: " + name + rb"\ndata: .*\n\n", b"", body)


def early_ping(body: bytes) -> bytes:
    ping = re.search(rb"event: ping\ndata: .*\n\n", body)
    return body if ping is None else ping[0] + body.replace(ping[0], b"", 1)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "field added": renamed(b'"type": "message"', b'"type": "message", "region": "x"'),
    "field gone": renamed(b'"stop_sequence": null', b'"x": null'),
    "field retyped": renamed(b'"stop_sequence": null', b'"stop_sequence": 7'),
    "usage field gone": usage_of(lambda u: u.pop("output_tokens", None)),
    "usage field retyped": usage_of(lambda u: u.update({k: str(v) for k, v in u.items() if k == "input_tokens"})),
    "input counted otherwise": lambda b: (
        usage_of(lambda u: u.update(input_tokens=99))(b) if b"message_start" in b else b
    ),
    "event gone": without_event(b"ping"),
    "usage event gone": without_event(b"message_delta"),
    "event added": lambda b: b.replace(b"event: ping\n", b"event: mood\ndata: {}\n\nevent: ping\n", 1),
    "events in another order": early_ping,
}


class Changed:
    """One response, whole at its end, so that a change sees all of it."""

    def __init__(self, response: Response, change: str) -> None:
        self._response, self._change = response, change
        self._status, self._headers, self._body = 200, {}, b""

    async def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        await self.start(status, {"content-type": "application/json"} | (headers or {}))
        await self.data(json.dumps(value, ensure_ascii=False).encode())
        await self.end()

    async def start(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._headers = status, dict(headers)

    async def data(self, chunk: bytes) -> None:
        self._body += chunk

    async def end(self) -> None:
        headers = self._headers | {"anthropic-ratelimit-tokens-remaining": "9000"}
        if self._change == "header gone":
            headers.pop("anthropic-ratelimit-tokens-remaining")
        if self._change == "no JSON":
            self._body = b"<html>maintenance</html>"
        body = CHANGES.get(self._change, lambda b: b)(self._body)
        await self._response.send(self._status, body, headers)

    async def pause(self, seconds: float) -> None:
        await self._response.pause(seconds)

    def abort(self) -> None:
        self._response.abort()


def serving(directory: Path, inner: dict[str, App], log: list[dict[str, Any]]) -> App:
    async def answer(request: Request, response: Response) -> None:
        change = (directory / "change").read_text()
        body = json.loads(request.body or b"{}")
        log.append({"host": request.host, "path": request.path, "stream": body.get("stream", False)})
        (directory / "log.json").write_text(json.dumps(log))
        if change == "endpoint gone" and request.path.endswith("count_tokens"):
            await response.json(404, {"type": "error", "error": {"type": "not_found_error", "message": "gone"}})
        elif change == "hangs up":
            response.abort()
        else:
            await inner[HOSTS[request.host]](request, Changed(response, change))  # type: ignore[arg-type]

    return answer


async def main(directory: Path) -> None:
    (directory / "change").write_text("")
    books, log = Books(), []  # type: ignore[var-annotated]
    server = HttpServer({}, serving(directory, apps(books), log))
    authorities = [Authority(directory)]
    (directory / "other").mkdir()
    authorities.append(Authority(directory / "other", "another CA"))
    both = (directory / "ca.pem").read_bytes() + (directory / "other/ca.pem").read_bytes()
    (directory / "both.pem").write_bytes(both)
    contexts = {(i, host): a.context(host) for i, a in enumerate(authorities) for host in HOSTS}

    def choose(tls: ssl.SSLObject, name: str | None, _first: ssl.SSLContext) -> None:
        change = (directory / "change").read_text()
        tls.context = contexts[change == "issuer", name or "api.anthropic.com"]
        tls.context.set_alpn_protocols(["h2", "http/1.1"] if change == "protocol" else ["http/1.1"])

    first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    first.sni_callback = choose  # type: ignore[assignment]
    listening = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=first)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
