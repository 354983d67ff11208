"""How the SDKs are called, behind one form: synchronous and asynchronous clients, over HTTP/1.1 and HTTP/2.

A call is written once, as a coroutine; `done`, `each` and `entered` do what the client's kind needs.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import openai

Call = Callable[["Way", str], Awaitable[Any]]
HTTP2_POOL = {"http2": True}


class Way:
    """One client of each SDK, kept for all calls; nothing is tried again unless a call asks for it."""

    def __init__(self, kind: str, version: str) -> None:
        self.name = f"{kind} {version}"
        self.asynchronous = kind == "async"
        more = HTTP2_POOL if version == "HTTP/2" else {}
        own, other = ("Async", "DefaultAsyncHttpxClient") if self.asynchronous else ("", "DefaultHttpxClient")
        self.claude: Any = getattr(anthropic, f"{own}Anthropic")(
            max_retries=0, http_client=getattr(anthropic, other)(**more)
        )
        self.gpt: Any = getattr(openai, f"{own}OpenAI")(max_retries=0, http_client=getattr(openai, other)(**more))


async def done(value: Any) -> Any:
    """What a method of the client returns, in the end."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def until(stream: Any, enough: Callable[[Any], bool]) -> Any:
    """Read to the first item that is enough, and close in the middle of the stream."""
    if hasattr(stream, "__aiter__"):
        iterator = aiter(stream)
        while not enough(item := await anext(iterator)):
            pass
    else:
        item = next(item for item in stream if enough(item))
    await done(stream.close())
    return item
