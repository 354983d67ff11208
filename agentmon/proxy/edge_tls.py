"""mitmproxy's options and TLS: leaves signed by the installation's authority, upstreams verified by real roots."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mitmproxy.ctx
from mitmproxy import certs, connection, options, tls, version
from mitmproxy.addons import proxyserver, tlsconfig

from agentmon import trust

_HTTP2_SAFE = (12, 1, 2)  # earlier ones take an HTTP/2 request apart wrongly (request smuggling)


def make_options(roots: Path) -> options.Options:
    """Options of a worker that never connects early, never upgrades, keeps no body; mitmproxy's own code sees them too.

    :param roots: PEM file that upstream certificates are verified with.
    """
    opts = options.Options()
    declaring: list[Any] = [proxyserver.Proxyserver, tlsconfig.TlsConfig]
    for addon in declaring:
        addon().load(opts)  # only add_option is used of a loader
    update: Any = opts.update
    update(
        connection_strategy="lazy",
        http2=_version() >= _HTTP2_SAFE,
        http3=False,
        rawtcp=False,
        websocket=True,
        upstream_cert=False,
        validate_inbound_headers=True,
        ssl_verify_upstream_trusted_ca=str(roots),
    )
    untyped: Any = opts
    values = {name: getattr(opts, name) for name in untyped.keys()}  # noqa: SIM118  not a mapping
    vars(opts).update(values)  # they never change; mitmproxy's look at one copies it, a dozen times a request
    mitmproxy.ctx.options = opts
    return opts


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in version.VERSION.split(".")[:3] if part.isdigit())


class Tls:
    """Both sides' handshakes. Made before root is dropped: it reads the authority's key, once."""

    def __init__(self, ca_dir: Path) -> None:
        trust.expiry(ca_dir)  # says what is wrong with it, in words
        self._config = tlsconfig.TlsConfig()
        with tempfile.TemporaryDirectory() as scratch:  # mitmproxy wants to keep its fixed DH parameters in a file
            self._config.certstore = certs.CertStore.from_files(
                ca_dir / trust.KEY_FILE, Path(scratch) / "dhparam.pem", None
            )

    def start_client(self, data: tls.TlsData) -> None:
        """Present a leaf for the SNI, which the caller has checked against the policy."""
        self._config.tls_start_client(data)

    def start_server(self, data: tls.TlsData, host: str) -> None:
        """Offer and demand `host`, whatever address was dialled."""
        data.conn.sni = host
        if data.context.client.alpn != b"h2" and isinstance(data.conn, connection.Server):
            data.conn.alpn_offers = [b"http/1.1"]  # what an HTTP/1.1 client may ask for, a WebSocket, HTTP/2 has not
        self._config.tls_start_server(data)
