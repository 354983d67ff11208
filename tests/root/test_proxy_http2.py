"""Several streams on one connection of a proxy worker: each is metered, and each is cut."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.proxy_h2 import SNI, VERSION, h2_client
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import DELTA, SPENT, ask, closing, opening
from tests.support.proxy_upstream import chunked

pytestmark = pytest.mark.root


def test_http2_streams_are_metered_each(rig: Rig, to_provider: str) -> None:
    before = len(rig.rows(0))
    with h2_client(rig) as client:

        def one(n: int) -> None:
            with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
                assert response.http_version == VERSION
                assert b"".join(response.iter_bytes()).endswith(closing(7))

        rig.upstream.script = streamed
        threads = [threading.Thread(target=one, args=(n,)) for n in range(10)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
    rows = rig.rows(before + 10)
    assert len(rows) == before + 10 and {row[5] for row in rows[before:]} == {7}


async def streamed(seen: Any, writer: Any) -> None:
    await chunked([opening(), 0.01, DELTA, closing(7)])(seen, writer)


def test_http2_cut_ends_every_stream_with_the_typed_error(rig: Rig, to_provider: str) -> None:
    never = threading.Event()
    rig.upstream.script = lambda seen, writer: chunked([opening(), never])(seen, writer)
    ends: list[bytes] = []
    started = threading.Barrier(3)

    with h2_client(rig) as client:

        def one() -> None:
            with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
                pieces = response.iter_bytes()
                assert b"message_start" in next(pieces)
                started.wait(10)
                ends.append(b"".join(pieces))

        threads = [threading.Thread(target=one) for _ in range(2)]
        for t in threads:
            t.start()
        started.wait(10)
        assert rig.cut(SPENT).closed == 2
        for t in threads:
            t.join(10)
    never.set()
    assert len(ends) == 2 and all(b"event: error" in end and b"budget_exhausted" in end for end in ends)
    assert rig.nothing_held()
