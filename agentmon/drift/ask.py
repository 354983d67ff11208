"""The one place of drift that speaks to a provider: TLS as an ordinary client, one request at a time, bounded.

The certificate is verified with the system's roots, or with a file that is named; the chain is noted, never pinned.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from agentmon.credentials.secret import Secret
from agentmon.drift.calls import Call, Target
from agentmon.errors import AgentmonError, HostLacks

TIMEOUT_S = 60.0
_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Handshake:
    tls: str
    alpn: str
    issuers: list[str]


@dataclass(frozen=True, slots=True)
class Reply:
    """`headers`: lower case; `body`: whole, decoded from its transfer encoding."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Way:
    """How the host is reached. `connect`: (address, port) instead of what its name resolves to; `ca`: roots, None: the
    system's."""

    connect: tuple[str, int] | None = None
    ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """:raises HostLacks: the file of roots cannot be used."""
        try:
            return ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except (OSError, ssl.SSLError) as e:
            raise HostLacks(f"{self.ca} holds no certificates: {e}", "name a PEM file with --ca") from e

    def open(self, host: str, alpn: list[str]) -> ssl.SSLSocket:
        """:raises AgentmonError: the host is not reached, or is not who it should be."""
        context = self.context()
        context.set_alpn_protocols(alpn)
        try:
            plain = socket.create_connection(self.connect or (host, 443), TIMEOUT_S)
            try:
                return context.wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
        except OSError as e:
            raise AgentmonError(f"{host} is not reached: {e}", "is this host online? --connect names an address") from e


def handshake(host: str, way: Way) -> Handshake:
    """What a client that takes either version of HTTP is given."""
    with way.open(host, ["h2", "http/1.1"]) as sock:
        chain = _chain(sock)
        return Handshake(sock.version() or "", sock.selected_alpn_protocol() or "none", chain)


def _chain(sock: ssl.SSLSocket) -> list[str]:
    """Issuers from the leaf on, RFC 4514; of the leaf alone before Python 3.13."""
    if hasattr(sock, "get_unverified_chain"):
        ders = list(sock.get_unverified_chain())
    else:
        ders = [sock.getpeercert(binary_form=True) or b""]
    return [x509.load_der_x509_certificate(der).issuer.rfc4514_string() for der in ders]


def ask(target: Target, call: Call, key: Secret, way: Way) -> Reply:
    """One request on a connection of its own.

    :raises AgentmonError: no whole answer came.
    """
    sock = way.open(target.host, ["http/1.1"])
    connection = http.client.HTTPSConnection(target.host, timeout=TIMEOUT_S)
    connection.sock = sock
    headers = {target.auth: target.prefix + key.reveal(), **target.headers, "accept-encoding": "identity"}
    body = None if call.body is None else json.dumps(call.body).encode()
    if body is not None:
        headers["content-type"] = "application/json"
    try:
        connection.request("GET" if body is None else "POST", call.path, body, headers)
        response = connection.getresponse()
        found = response.read(_BODY_BYTES + 1)
    except (OSError, http.client.HTTPException) as e:
        raise AgentmonError(f"{target.host}{call.path}: no whole answer ({type(e).__name__})", "try again later") from e
    finally:
        connection.close()
    if len(found) > _BODY_BYTES:
        raise AgentmonError(f"{target.host}{call.path}: more than {_BODY_BYTES} bytes", "look at the endpoint by hand")
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, found)
