"""Several streams on one connection of a proxy worker: each is metered, and each is cut."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.support.proxy_h2 import SNI, VERSION, h2_streams
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import DELTA, SPENT, ask, closing, opening
from tests.support.proxy_upstream import chunked

pytestmark = pytest.mark.root


def test_http2_streams_are_metered_each(rig: Rig, to_provider: str) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = streamed

    async def one(client: Any) -> None:
        async with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
            assert response.http_version == VERSION
            assert b"".join([piece async for piece in response.aiter_bytes()]).endswith(closing(7))

    async def ten() -> None:
        async with h2_streams(rig) as client:
            await asyncio.gather(*(one(client) for _ in range(10)))

    asyncio.run(ten())
    rows = rig.rows(before + 10)
    assert len(rows) == before + 10 and {row[5] for row in rows[before:]} == {7}


async def streamed(seen: Any, writer: Any) -> None:
    await chunked([opening(), 0.01, DELTA, closing(7)])(seen, writer)


def test_http2_cut_ends_every_stream_with_the_typed_error(rig: Rig, to_provider: str) -> None:
    never = threading.Event()
    rig.upstream.script = lambda seen, writer: chunked([opening(), never])(seen, writer)

    async def one(client: Any, started: asyncio.Barrier) -> bytes:
        async with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
            pieces = response.aiter_bytes()
            assert b"message_start" in await anext(pieces)
            await started.wait()
            return b"".join([piece async for piece in pieces])

    async def cut(started: asyncio.Barrier) -> int:
        await started.wait()
        closed: int = (await asyncio.to_thread(rig.cut, SPENT)).closed
        return closed

    async def both() -> tuple[bytes, bytes, int]:
        started = asyncio.Barrier(3)
        async with h2_streams(rig) as client:
            return await asyncio.gather(one(client, started), one(client, started), cut(started))

    *ends, closed = asyncio.run(asyncio.wait_for(both(), 30))
    never.set()
    assert closed == 2 and all(b"event: error" in end and b"budget_exhausted" in end for end in ends)
    assert rig.nothing_held()
