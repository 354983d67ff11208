"""The plain web host: a page, bulk data, an echo, files of mirrors; answers for any name, like a shared front."""

from __future__ import annotations

import hashlib

from tests.internet import echo, mirror
from tests.internet.http1 import Request, Response

_CHUNK = bytes(256 << 10)


async def site(request: Request, response: Response) -> None:
    match request.path:
        case "/":
            text = f"this is {request.host}\n".encode()
            await response.send(200, b"" if request.method == "HEAD" else text, {"content-type": "text/plain"})
        case "/bulk":
            await _bulk(int(request.query.get("n", "1048576")), response)
        case "/echo":
            await response.send(200, request.body, {"content-type": "application/octet-stream"})
        case "/headers":
            await response.json(200, request.headers)
        case "/digests":  # what came, told so that no proxy on the way recognises it
            await response.json(200, {k: hashlib.sha256(v.encode()).hexdigest() for k, v in request.headers.items()})
        case "/socket":
            await echo.messages(request, response)
        case "/slow":
            await _slow(float(request.query.get("s", "1")), response)
        case "/redirect":
            await response.send(307, b"", {"location": request.query.get("to", "/")})
        case _:
            await mirror.files(request, response)


async def _bulk(size: int, response: Response) -> None:
    await response.start(200, {"content-type": "application/octet-stream", "content-length": str(size)})
    while size > 0:
        await response.data(_CHUNK[: min(size, len(_CHUNK))])
        size -= len(_CHUNK)
    await response.end()


async def _slow(seconds: float, response: Response) -> None:
    """A line every tenth of a second."""
    await response.start(200, {"content-type": "text/plain"})
    for _ in range(int(seconds * 10)):
        await response.data(b".\n")
        await response.pause(0.1)
    await response.end()
