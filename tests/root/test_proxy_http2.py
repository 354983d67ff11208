"""Several streams on one connection of a proxy worker: each is metered, and each is cut."""

from __future__ import annotations

import ssl
import sys
import threading
from typing import Any

import pytest

from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, DELTA, SPENT, ask, closing, opening
from tests.support.proxy_upstream import chunked

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

pytestmark = pytest.mark.root

HTTP2 = sys.version_info >= (3, 12)  # older interpreters have an older mitmproxy, which is not given HTTP/2


def h2_client(rig: Rig) -> httpx2.Client:
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.HTTPTransport(verify=context, http2=True, local_address=rig.source)
    return httpx2.Client(transport=transport, timeout=10, base_url=f"https://{rig.address}", headers={"Host": CLAUDE})


def test_http2_streams_are_metered_each(rig: Rig) -> None:
    before = len(rig.rows(0))
    with h2_client(rig) as client:

        def one(n: int) -> None:
            with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
                assert response.http_version == ("HTTP/2" if HTTP2 else "HTTP/1.1")
                assert b"".join(response.iter_bytes()).endswith(closing(7))

        rig.upstream.script = streamed
        threads = [threading.Thread(target=one, args=(n,)) for n in range(10)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
    rows = rig.rows(before + 10)
    assert len(rows) == before + 10 and {row[5] for row in rows[before:]} == {7}


SNI = {"sni_hostname": CLAUDE}


async def streamed(seen: Any, writer: Any) -> None:
    await chunked([opening(), 0.01, DELTA, closing(7)])(seen, writer)


def test_http2_cut_ends_every_stream_with_the_typed_error(rig: Rig) -> None:
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
