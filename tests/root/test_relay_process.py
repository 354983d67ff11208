"""The relay as a process, together with the resolver: TLS clients in bottles, TLS and plain servers outside."""

from __future__ import annotations

import contextlib
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

from agentmon import wire
from tests.support import names
from tests.support.names import Daemon, DnsServer, World, until

pytestmark = pytest.mark.root

A, B = 16, 17
MB = 1 << 20


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with contextlib.ExitStack() as stack:
        world = World()
        stack.callback(world.close)
        dns = DnsServer(world)
        stack.callback(dns.close)
        dns.records |= {
            ("web.example", "A"): [names.WEB],
            ("other.example", "A"): [names.WEB],
            ("api.vendor.example", "A"): [names.WEB],
            ("six.example", "AAAA"): [names.WEB6],
            ("half-dead.example", "A"): [names.WEB2],
            ("half-dead.example", "AAAA"): [names.WEB6],
        }
        directory = stack.enter_context(names.directory())
        stack.enter_context(names.service(world, "resolver", names.resolver_config(directory), directory))
        stack.enter_context(names.service(world, "relay", names.relay_config(directory, hello_s=1.0), directory))
        resolver = Daemon(directory / "resolver.sock")
        stack.callback(resolver.close)
        relay = Daemon(directory / "relay.sock")
        stack.callback(relay.close)

        def set_both(slot: int, *rules: str, **more: object) -> wire.Ack:
            assert resolver.set(slot, *rules, **more).error == ""
            return relay.set(slot, *rules, **more)

        yield SimpleNamespace(world=world, dns=dns, dir=directory, resolver=resolver, daemon=relay, set=set_both)


class Server:
    """An upstream: one thread per connection runs `talk`."""

    def __init__(self, world: World, address: str, talk: Callable[[socket.socket], None]) -> None:
        self._sock = world.listen(address, 443)
        self._talk = talk
        self._over = False
        self._threads = [threading.Thread(target=self._serve)]
        self.accepted = 0
        self._threads[0].start()

    def _serve(self) -> None:
        self._sock.settimeout(0.2)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                client, _ = self._sock.accept()
                self.accepted += 1
                client.settimeout(20)
                thread = threading.Thread(target=self._one, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._talk(client)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._sock.close()


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


def tls_server(certificate: Path) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def talk(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as tls:
            while data := tls.recv(65536):
                tls.sendall(data)

    return talk


def hello_of(name: str | None) -> bytes:
    """A real ClientHello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def connect(net: SimpleNamespace, slot: int = A) -> socket.socket:
    return net.world.connect(names.addr4(slot), names.RELAY, 443)


def rest(sock: socket.socket) -> bytes:
    """Everything until the peer closes; b"RESET" if it resets."""
    out = bytearray()
    try:
        while data := sock.recv(65536):
            out += data
    except ConnectionResetError:
        return b"RESET"
    return bytes(out)


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def established(net: SimpleNamespace, name: str, slot: int = A) -> socket.socket:
    """A flow through the relay to an echo server, the hello already echoed."""
    hello = hello_of(name)
    sock = connect(net, slot)
    sock.sendall(hello)
    got = b""
    while len(got) < len(hello):
        data = sock.recv(65536)
        assert data, got
        got += data
    assert got == hello
    return sock


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


def test_a_removed_name_loses_its_flows_and_others_live(net: SimpleNamespace) -> None:
    net.set(A, "web.example", "other.example")
    with contextlib.ExitStack() as stack:
        stack.enter_context(Server(net.world, names.WEB, echo))
        web = stack.enter_context(established(net, "web.example"))
        other = stack.enter_context(established(net, "other.example"))
        assert net.set(A, "web.example", "other.example", "third.example").closed == 0
        assert net.set(A, "other.example").closed == 1
        assert rest(web) == b"RESET"
        other.sendall(b"alive")
        assert other.recv(5) == b"alive"
        assert net.daemon.tell(wire.DropBottle, A).closed == 1
        assert rest(other) == b"RESET"


def test_a_cut_closes_everything_of_the_bottle_only(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    net.set(B, "web.example")
    with Server(net.world, names.WEB, echo):
        with (
            established(net, "web.example") as mine,
            established(net, "web.example", B) as theirs,
            connect(net) as new,
        ):
            ack = net.daemon.tell(wire.CutBottle, A)
            assert ack.closed == 2
            assert 0 < ack.at_ns <= time.monotonic_ns()
            assert rest(mine) == b"RESET"
            assert rest(new) == b"RESET"
            theirs.sendall(b"alive")
            assert theirs.recv(5) == b"alive"
        with connect(net) as sock:
            sock.sendall(hello_of("web.example"))
            assert rest(sock) == b"\x15\x03\x03\x00\x02\x02\x31"
        assert net.daemon.report(reason="cut")["hint"].startswith("agentmon resume b16")
        net.set(A, "web.example")
        established(net, "web.example").close()


def test_a_policy_that_changes_while_the_name_is_looked_up(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    asked = threading.Event()
    go = threading.Event()

    def hold(commit: wire.Commit) -> wire.Committed:
        asked.set()
        assert go.wait(5)
        return wire.Committed(commit.id, commit.addresses)

    net.resolver.decide = hold
    with Server(net.world, names.WEB, echo) as server, connect(net) as sock:
        sock.sendall(hello_of("web.example"))
        assert asked.wait(5)
        assert net.daemon.set(A, "third.example").closed == 1
        go.set()
        assert rest(sock) == b"RESET"
        assert server.accepted == 0


def test_the_limit_on_connections(net: SimpleNamespace) -> None:
    net.set(A, "web.example", limits={"connections": 2})
    with Server(net.world, names.WEB, echo):
        with established(net, "web.example"), established(net, "web.example"), connect(net) as third:
            assert rest(third) == b""
            net.daemon.report(reason="limit")
        until(lambda: _works(net))


def _works(net: SimpleNamespace) -> bool:
    with connect(net) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(hello_of("web.example"))
        return sock.recv(1) == b"\x16"
    return False


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


def test_flows_outlive_the_daemon_and_the_resolver_answers_the_next_one(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    with Server(net.world, names.WEB, echo), established(net, "web.example") as sock:
        net.daemon.close()
        sock.sendall(b"alive")
        assert sock.recv(5) == b"alive"
        again = Daemon(net.dir / "relay.sock")
        try:
            assert again.ready.service == "relay"
            assert again.set(A, "web.example").closed == 0
            sock.sendall(b"still")
            assert sock.recv(5) == b"still"
            assert again.set(A, "nothing.example").closed == 1
        finally:
            again.close()


def test_observe_lets_unlisted_names_pass_and_says_so(net: SimpleNamespace) -> None:
    net.set(A, "web.example", mode="observe")
    with Server(net.world, names.WEB, echo):
        established(net, "other.example").close()
    net.daemon.report(verdict="observed", host="other.example")


def test_bad_rules_keep_the_old_view(net: SimpleNamespace) -> None:
    net.set(A, "web.example")
    assert "b16" in net.daemon.set(A, "https://u:p@x").error
    with Server(net.world, names.WEB, echo):
        established(net, "web.example").close()
