"""The relay as a process, together with the resolver: TLS clients in bottles, TLS and plain servers outside."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import names
from tests.support.names import until
from tests.support.relay_rig import A, B, Server, between, connect, echo, established, hello_of, rest, tls_server

pytestmark = pytest.mark.root

MB = 1 << 20


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with between() as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of web.example and six.example, self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.example")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("web.example"), x509.DNSName("six.example")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + cert.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_tls_end_to_end_over_both_families(net: SimpleNamespace, certificate: Path) -> None:
    net.set(A, "web.example:443", "six.example:443")
    context = ssl.create_default_context(cafile=str(certificate))
    talk = tls_server(certificate)
    with Server(net.world, names.WEB, talk) as four, Server(net.world, names.WEB6, talk) as six:
        for source, relay, name in (
            (names.addr4(A), names.RELAY, "web.example"),
            (names.addr6(A), names.RELAY6, "web.example"),
            (names.addr4(A), names.RELAY, "six.example"),
        ):
            with context.wrap_socket(net.world.connect(source, relay, 443), server_hostname=name) as tls:
                tls.sendall(b"hello")
                assert tls.recv(100) == b"hello"
        assert (four.accepted, six.accepted) == (2, 1)
    commit = net.resolver.commits[0]
    assert (commit.purpose, commit.name, commit.ports) == ("service", "web.example", (443,))
    assert net.daemon.reports == []


def test_refusals_before_anything_is_dialled(net: SimpleNamespace) -> None:
    net.set(A, "web.example:443", "api.vendor.example:443", "!bad.example", inspected=("api.vendor.example",))
    cases = [
        (b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n", b"", {"reason": "not-tls"}),
        (b"SSH-2.0-x\r\n", b"", {"reason": "not-tls"}),
        (hello_of(None), b"\x15\x03\x03\x00\x02\x02\x6d", {"reason": "no-sni"}),
        (hello_of("nope.example"), b"\x15\x03\x03\x00\x02\x02\x70", {"reason": "default", "host": "nope.example"}),
        (hello_of("bad.example"), b"\x15\x03\x03\x00\x02\x02\x70", {"reason": "deny", "rule": "!bad.example"}),
        (
            hello_of("api.vendor.example"),
            b"\x15\x03\x03\x00\x02\x02\x31",
            {"reason": "inspected", "host": "api.vendor.example"},
        ),
        (hello_of("agentmon.internal"), b"\x15\x03\x03\x00\x02\x02\x70", {"reason": "protected"}),
    ]
    with Server(net.world, names.WEB, echo) as server:
        for data, answer, fields in cases:
            with connect(net) as sock:
                sock.sendall(data)
                assert rest(sock) == answer
            event = net.daemon.report(
                kind="connect", verdict="refused", layer="relay", port=443, bottle="b16", **fields
            )
            hint = "agentmon allow b16 nope.example:443" if fields.get("host") == "nope.example" else ""
            assert event.get("hint", "") == hint
        assert server.accepted == 0
    assert net.dns.asked == []
    assert net.resolver.commits == []


def test_a_slow_or_broken_off_hello_is_closed(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    hello = hello_of("web.example")
    with connect(net) as sock:
        begun = time.monotonic()
        sock.sendall(hello[:100])
        assert rest(sock) == b""
        assert 0.8 < time.monotonic() - begun < 5
    net.daemon.report(reason="slow")
    with connect(net) as sock:
        sock.sendall(hello[:100])
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b""
    net.daemon.report(reason="not-tls")
    with connect(net) as sock:
        sock.sendall(b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc" + bytes(16384))
        assert rest(sock) in {b"\x15\x03\x03\x00\x02\x02\x32", b"RESET"}


def test_a_hello_in_single_bytes_passes_on_unchanged(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    hello = hello_of("WEB.example") + b"early"
    with Server(net.world, names.WEB, echo), connect(net) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(hello)):
            sock.sendall(hello[i : i + 1])
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == hello


def test_strangers_and_unknown_bottles_are_closed(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    for source in (names.STRANGER, names.addr4(B)):
        with net.world.connect(source, names.RELAY, 443) as sock:
            assert rest(sock) == b""


def test_half_close_and_64_mb_each_way(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    block = os.urandom(MB)
    got = hashlib.sha256()

    def talk(client: socket.socket) -> None:
        total = 0
        while data := client.recv(MB):
            got.update(data)
            total += len(data)
        client.sendall(total.to_bytes(8, "big"))
        for _ in range(64):
            client.sendall(block)

    hello = hello_of("web.example")
    sent = hashlib.sha256(hello)
    with Server(net.world, names.WEB, talk), connect(net) as sock:
        sock.sendall(hello)
        for _ in range(64):
            sock.sendall(block)
            sent.update(block)
        sock.shutdown(socket.SHUT_WR)
        assert int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big") == len(hello) + 64 * MB
        assert got.digest() == sent.digest()
        back = hashlib.sha256()
        size = 0
        while data := sock.recv(MB):
            back.update(data)
            size += len(data)
    assert size == 64 * MB
    assert back.digest() == hashlib.sha256(block * 64).digest()


def test_a_slow_reader_holds_back_the_sender_and_loses_nothing(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    block = os.urandom(MB)
    sent = []

    def talk(client: socket.socket) -> None:
        client.recv(65536)
        for _ in range(32):
            client.sendall(block)
            sent.append(1)

    hello = hello_of("web.example")
    with Server(net.world, names.WEB, talk), connect(net) as sock:
        sock.sendall(hello)
        until(lambda: len(sent) > 0)
        until(lambda: _steady(lambda: len(sent)))
        assert len(sent) < 32
        assert rest(sock) == block * 32


def _steady(value: Callable[[], int]) -> bool:
    before = value()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        if value() != before:
            return False
        threading.Event().wait(0.05)
    return True


def test_an_unreachable_upstream_is_said_and_the_next_address_is_tried(net: SimpleNamespace) -> None:
    net.set(A, "web.example", "half-dead.example", "missing.example")
    for name, reason in (("web.example", "unreachable"), ("missing.example", "nxdomain")):
        with connect(net) as sock:
            sock.sendall(hello_of(name))
            assert rest(sock) == b"\x15\x03\x03\x00\x02\x02\x50"
        event = net.daemon.report(verdict="allowed", reason=reason, host=name)
        assert "hint" not in event
    with Server(net.world, names.WEB6, echo):
        established(net, "half-dead.example").close()


def test_an_upstream_that_resets_is_passed_on(net: SimpleNamespace) -> None:
    net.set(A, "web.example")

    def talk(client: socket.socket) -> None:
        client.recv(65536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Server(net.world, names.WEB, talk), connect(net) as sock:
        sock.sendall(hello_of("web.example"))
        assert rest(sock) == b"RESET"
