"""Ways out by names, with the resolver alone: no nft, no BPF, no relay, no proxy in this namespace.

A bottle's side asks the real resolver process; a real server stands upstream and writes down what arrives. A row passes
when nothing arrived there that the policy does not permit, and what is bounded stays within its bound.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from agentmon import wire
from agentmon.blocking import BlockingChannel
from tests.support import names
from tests.support.hostile_dns import HostileDns
from tests.support.names import WEB, addresses, ask
from tests.support.resolver_rig import A, resolving

pytestmark = pytest.mark.adversarial
SECRET = os.urandom(4096)
PER_MIN = 600
LIMITS = {"queries_per_s": 10**6, "name_bytes_per_min": PER_MIN}
RULES = ("direct.allowed.example:22", "web.allowed.example:443", "*.wild.example:22", "*.relayed.example:443")
PLENTY = {"queries_per_s": 10**6, "name_bytes_per_min": 10**6}
# TXT, NULL, MX, CNAME, PTR, ANY, NS, SOA, SRV, NAPTR, KEY, SIG, DS, SVCB, HTTPS, AXFR, CAA, URI, OPT, a private one
OTHERS = (16, 10, 15, 5, 12, 255, 2, 6, 33, 35, 25, 24, 43, 64, 65, 252, 257, 256, 41, 65400)


@pytest.fixture(scope="module")
def net() -> Iterator[SimpleNamespace]:
    with resolving(upstream={"servers": [[names.CORP_DNS, 53]]}) as made:
        made.server = HostileDns(made.world, names.CORP_DNS)
        try:
            yield made
        finally:
            made.server.close()


@pytest.fixture(autouse=True)
def bottle(net: SimpleNamespace) -> Iterator[None]:
    """A fresh bottle with full purses for each row."""
    net.daemon.set(A, *RULES, limits=PLENTY)
    net.server.asked.clear()
    net.server.raw.clear()
    yield
    net.daemon.tell(wire.DropBottle, A)


def asked(net: SimpleNamespace) -> list[str]:
    """What came upstream, but for the name that the resolver looks up by itself beside a direct rule."""
    return [name for name in net.server.asked if name != "web.allowed.example"]


def query(name: bytes, kind: int = 1, number: int = 7, tail: bytes = b"") -> bytes:
    """`name` in wire form without its end."""
    counts = struct.pack(">6H", number, 0x0100, 1, 0, 0, 1 if tail else 0)
    return counts + name + b"\0" + struct.pack(">2H", kind, 1) + tail


def labels(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode("latin-1") for label in name.split("."))


def send(net: SimpleNamespace, data: bytes, way: str = "udp") -> dns.message.Message:
    if way == "tcp":
        with net.world.connect(names.addr4(A), names.RESOLVER, 53) as sock:
            sock.sendall(len(data).to_bytes(2, "big") + data)
            size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            return dns.message.from_wire(sock.recv(size, socket.MSG_WAITALL))
    address, server = (names.addr6(A), names.RESOLVER6) if way == "udp6" else (names.addr4(A), names.RESOLVER)
    with net.world.udp(address) as sock:
        sock.settimeout(5)
        sock.sendto(data, (server, 53))
        return dns.message.from_wire(sock.recv(4096))


def test_the_server_is_reached_at_all(net: SimpleNamespace) -> None:
    assert addresses(ask(net.world, A, "direct.allowed.example")) == [WEB]
    assert addresses(ask(net.world, A, "a.wild.example")) == [WEB]
    assert asked(net) == ["direct.allowed.example", "a.wild.example"]


@pytest.mark.parametrize("way", ["udp", "udp6", "tcp"])
def test_a_message_in_the_labels_of_a_denied_name_whatever_is_asked(net: SimpleNamespace, way: str) -> None:
    for kind in (1, 28, *OTHERS):
        reply = send(net, query(labels(f"{SECRET[:20].hex()}.k{kind}.attacker.example"), kind), way)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NXDOMAIN, [])
    assert asked(net) == []
    assert net.daemon.report(host=f"{SECRET[:20].hex()}.k16.attacker.example")["verdict"] == "refused"


@pytest.mark.parametrize("host", ["direct.allowed.example", "web.allowed.example", "a.wild.example"])
def test_an_allowed_name_asked_for_more_than_addresses(net: SimpleNamespace, host: str) -> None:
    for kind in OTHERS:
        reply = send(net, query(labels(host), kind))
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, []), kind
    assert asked(net) == []


SPELLINGS = {
    "a dot in a label": b"\x16direct.allowed.example",
    "a NUL behind": labels("direct.allowed") + b"\x08example\0",
    "a NUL between": b"\x07dir\0ect" + labels("allowed.example"),
    "a NUL for the end": labels("direct.allowed.example\0.attacker.example"),
    "a control byte": b"\x07direct\n" + labels("allowed.example"),
    "a blank": b"\x07direct " + labels("allowed.example"),
    "bytes above 127": b"\x07dir\xe9ct." + labels("allowed.example"),
    "a star": labels("*.wild.example"),
    "an at sign": b"\x08x@direct" + labels("allowed.example"),
    "a hyphen first": labels("-secret.wild.example"),
    "a hyphen last": labels("secret-.wild.example"),
    "the root": b"",
    "one above": labels("allowed.example"),
    "the wildcard's own": labels("wild.example"),
    "a name behind": labels("direct.allowed.example.attacker.example"),
    "a name before": labels("secret.direct.allowed.example"),
    "without a boundary": labels("xwild.example"),
    "an address": labels("203.0.113.10"),
    "another root": labels("direct.allowed.example.local"),
    "the host": labels("localhost"),
    "our own": labels("secret.agentmon.internal"),
}


@pytest.mark.parametrize("name", SPELLINGS.values(), ids=list(SPELLINGS))
def test_a_spelling_that_is_not_the_allowed_name(net: SimpleNamespace, name: bytes) -> None:
    reply = send(net, query(name))
    assert reply.rcode() in {dns.rcode.NXDOMAIN, dns.rcode.FORMERR}
    assert not reply.answer
    assert asked(net) == []


def test_case_and_options_carry_nothing(net: SimpleNamespace) -> None:
    """One bit a letter, and whatever stands in EDNS: upstream sees neither."""
    for number in range(64):
        host = "".join(c.upper() if number >> (at % 6) & 1 else c for at, c in enumerate("direct.allowed.example"))
        message = dns.message.make_query(host, "A", use_edns=0, want_dnssec=True, id=number)
        message.use_edns(0, dns.flags.DO, 4096, options=[dns.edns.GenericOption(65001, SECRET[:64])])
        message.flags |= dns.flags.CD | dns.flags.AD
        assert addresses(names.exchange(net.world, A, message)) == [WEB]
    assert len(asked(net)) <= 1  # the others were known
    assert not [raw for raw in net.server.raw if SECRET[:8] in raw]


def test_tails_and_second_questions_are_not_passed_on(net: SimpleNamespace) -> None:
    allowed = labels("b.wild.example")
    opt = b"\0" + struct.pack(">HHIH", 41, 4096, 0, 0)
    for data in (
        query(allowed) + SECRET[:100],
        query(allowed, tail=opt) + SECRET[:100],
        struct.pack(">6H", 1, 0x0100, 2, 0, 0, 0) + (allowed + b"\0\0\1\0\1") * 2,
        struct.pack(">6H", 1, 0x0100, 1, 1, 0, 0) + allowed + b"\0\0\1\0\1" + b"\xc0\x0c" + bytes(10),
        struct.pack(">6H", 1, 0x2900, 1, 0, 0, 0) + allowed + b"\0\0\1\0\1",
    ):  # fmt: skip
        assert send(net, data).rcode() in {dns.rcode.FORMERR, dns.rcode.NOTIMP}
    assert asked(net) == []


# ── tunnels under an allowed wildcard ──


def carried(net: SimpleNamespace, suffix: str) -> int:
    """Bytes of free parts that reached the server."""
    return sum(len(name) - len(suffix) - 1 for name in net.server.asked if name.endswith("." + suffix))


def test_a_tunnel_that_exists_is_known_by_its_shape(net: SimpleNamespace) -> None:
    """Labels and names filled with base32, as tunnels do by default: not one packet."""
    for at in range(0, 2000, 110):
        text = base64.b32encode(SECRET[at : at + 110]).decode().lower().rstrip("=")
        host = ".".join(text[n : n + 60] for n in range(0, len(text), 60))
        reply = send(net, query(labels(f"{host}.wild.example")))
        assert reply.rcode() == dns.rcode.NXDOMAIN
    assert asked(net) == []
    assert net.daemon.report(reason="label")["verdict"] == "refused"


@pytest.mark.parametrize("width", [1, 8, 30])
def test_a_tunnel_made_for_this_carries_no_more_than_the_purse(net: SimpleNamespace, width: int) -> None:
    net.daemon.tell(wire.DropBottle, A)
    net.daemon.set(A, *RULES, limits=LIMITS)
    suffix = f"w{width}.wild.example"
    refused = 0
    for at in range(0, 2400, width):
        host = SECRET[at : at + width].hex()
        refused += send(net, query(labels(f"n{at}.{host}.{suffix}"), (1, 28)[at & 1])).rcode() == dns.rcode.SERVFAIL
    assert refused > 10
    assert 0 < carried(net, "wild.example") <= PER_MIN + PER_MIN  # the purse, and what a minute refills
    assert net.daemon.report(reason="label-rate")["layer"] == "resolver"


def test_a_tunnel_in_server_names_pays_from_the_same_purse(net: SimpleNamespace) -> None:
    net.daemon.tell(wire.DropBottle, A)
    net.daemon.set(A, *RULES, limits=LIMITS)
    channel = BlockingChannel.connect(str(net.dir / "lookup.sock"), 20)
    errors = []
    for at in range(0, 2000, 8):
        lookup = wire.Lookup(channel.next_id(), A, f"{SECRET[at : at + 8].hex()}.s{at}.relayed.example", 443)
        errors.append(channel.call(lookup).error)
    channel.close()
    assert errors[0] == "" and errors[-1] == "limit"
    assert carried(net, "relayed.example") <= PER_MIN + PER_MIN
    few = [send(net, query(labels(f"{SECRET[:8].hex()}{n}.wild.example"))).rcode() for n in range(5)]
    assert dns.rcode.SERVFAIL in few  # what was too little for a server name may be enough for one of these


def test_names_given_exactly_and_names_that_are_known_go_on_when_the_purse_is_empty(net: SimpleNamespace) -> None:
    net.daemon.tell(wire.DropBottle, A)
    net.daemon.set(A, *RULES, limits=LIMITS | {"name_bytes_per_min": 20})
    assert addresses(ask(net.world, A, "known.wild.example")) == [WEB]
    assert ask(net.world, A, "another-one-of-these.wild.example").rcode() == dns.rcode.SERVFAIL
    assert addresses(ask(net.world, A, "known.wild.example")) == [WEB]
    assert addresses(ask(net.world, A, "direct.allowed.example")) == [WEB]
    assert addresses(ask(net.world, A, "web.allowed.example")) == [names.RELAY]


def test_flooding_with_tunnels_hurts_no_other_bottle(net: SimpleNamespace) -> None:
    net.daemon.set(A + 1, "direct.allowed.example:22")
    net.daemon.set(A, *RULES, limits={"queries_per_s": 20, "name_bytes_per_min": PER_MIN})
    with net.world.udp(names.addr4(A)) as sock:
        for number in range(2000):
            sock.sendto(query(labels(f"{SECRET[number : number + 16].hex()}.wild.example")), (names.RESOLVER, 53))
        assert addresses(ask(net.world, A + 1, "direct.allowed.example")) == [WEB]
    assert carried(net, "wild.example") <= PER_MIN + PER_MIN
    net.daemon.tell(wire.DropBottle, A + 1)
