"""The stand-in providers of tests/internet behind the upstream of a proxy rig: same apps, same books, other wires."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.internet.http1 import App, ClientGone, Request
from tests.support.proxy_upstream import Script, Seen


class Played:
    """The response side of tests.internet.http1, written in chunks to an upstream's socket."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        await self.start(status, {"content-type": "application/json"} | (headers or {}))
        await self.data(json.dumps(value, ensure_ascii=False).encode())
        await self.end()

    async def start(self, status: int, headers: dict[str, str]) -> None:
        lines = "".join(f"{k}: {v}\r\n" for k, v in (headers | {"transfer-encoding": "chunked"}).items())
        self._writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())

    async def data(self, chunk: bytes) -> None:
        self._writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def abort(self) -> None:
        self._writer.transport.abort()
        raise ClientGone("aborted by script")


def played(apps: dict[str, App]) -> Script:
    """A script that answers by the app of the request's host."""

    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        host = seen.headers["host"]
        request = Request(seen.method, seen.target, seen.headers, seen.body, local="", peer="", sni=host)
        await apps[host](request, Played(writer))  # type: ignore[arg-type]

    return script
