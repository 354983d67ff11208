"""An HTTP/2 client in the bottle of a proxy rig; HTTP/1.1 where the interpreter's mitmproxy is given no HTTP/2."""

from __future__ import annotations

import ssl
import sys

from tests.support.proxy_rig import Response, Rig
from tests.support.proxy_talk import CLAUDE

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

HTTP2 = sys.version_info >= (3, 12)  # older interpreters have an older mitmproxy
VERSION = "HTTP/2" if HTTP2 else "HTTP/1.1"
SNI = {"sni_hostname": CLAUDE}


def h2_client(rig: Rig) -> httpx2.Client:
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.HTTPTransport(verify=context, http2=True, local_address=rig.source)
    return httpx2.Client(transport=transport, timeout=10, base_url=f"https://{rig.address}", headers={"Host": CLAUDE})


def h2_streams(rig: Rig) -> httpx2.AsyncClient:
    """For several streams on one connection: one TLS connection is not made for two threads (its reads fail with
    EAGAIN now and then)."""
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.AsyncHTTPTransport(verify=context, http2=True, local_address=rig.source)
    host = {"Host": CLAUDE}
    return httpx2.AsyncClient(transport=transport, timeout=10, base_url=f"https://{rig.address}", headers=host)


def h2_request(rig: Rig, path: str, body: bytes) -> Response:
    """One POST to CLAUDE on a connection of its own, and its whole answer, not decoded."""
    with h2_client(rig) as client, client.stream("POST", path, content=body, extensions=SNI) as answer:
        assert answer.http_version == VERSION
        raw = b"".join(answer.iter_raw())
        return Response(answer.status_code, dict(answer.headers), raw)
