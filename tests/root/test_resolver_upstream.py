"""What passes between a resolver and the servers it asks, however it was asked: datagram, TCP, lookup socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from agentmon import wire
from agentmon.channel import BlockingChannel
from agentmon.lookup import LookupRefused, Lookups
from tests.support import names
from tests.support.names import DnsServer, addresses, ask, exchange
from tests.support.resolver_rig import BOTH, RULES, A, B, resolving

pytestmark = pytest.mark.root


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with resolving() as made:
        yield made


def test_letter_case_comes_back_and_edns_is_rebuilt(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    query = dns.message.make_query("dIrEcT.eXaMpLe", "A", use_edns=0, payload=4096, want_dnssec=True)
    query.use_edns(0, dns.flags.DO, 4096, options=[dns.edns.GenericOption(65001, b"secret")])
    reply = exchange(net.world, A, query)
    assert reply.question[0].name.to_text() == "dIrEcT.eXaMpLe."
    assert (reply.edns, reply.options, reply.ednsflags & dns.flags.DO) == (0, (), 0)
    assert addresses(reply) == [names.WEB, names.WEB2]
    assert net.dns.names() == ["direct.example"]


def test_aliases_are_followed_and_addresses_stripped(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES, "private.example:22", "*.private.example:22")
    assert addresses(ask(net.world, A, "alias.example")) == [names.WEB, names.WEB2]
    assert addresses(ask(net.world, A, "evil.example")) == [names.WEB]
    assert net.daemon.commits[-1].addresses == (names.WEB,)
    protected = net.daemon.report(host="evil.example", dst="169.254.169.254")
    assert (protected["reason"], protected["detail"], protected.get("hint", "")) == (
        "protected",
        {"address": "link-local"},
        "",
    )
    net.daemon.report(host="evil.example", dst="10.213.0.17", detail={"address": "own"})
    reply = ask(net.world, A, "gone.example")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert addresses(ask(net.world, A, "private.example")) == ["10.1.2.3"]
    assert addresses(ask(net.world, A, "a.private.example")) == []


def test_a_silent_upstream_is_servfail_and_hurts_nobody_else(net: SimpleNamespace) -> None:
    net.dns.broken["slow.example"] = "drop"
    net.dns.broken |= {"sick.example": "servfail", "lie.example": "lie", "junk.example": "junk"}
    net.daemon.set(A, *RULES, "slow.example:8080", "sick.example:8080", "lie.example:8080", "junk.example:8080")
    with net.world.udp(names.addr4(A)) as sock:
        sock.sendto(dns.message.make_query("slow.example", "A").to_wire(), (names.RESOLVER, 53))
        assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]
        sock.settimeout(8)
        assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.SERVFAIL
    for name in ("sick.example", "lie.example", "junk.example"):
        assert ask(net.world, A, name).rcode() == dns.rcode.SERVFAIL


def test_forged_answers_are_ignored_and_truncated_ones_asked_over_tcp(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES, "big.example:8080")
    net.dns.broken |= {"direct.example": "forge", "big.example": "truncate"}
    assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]
    with net.world.connect(names.addr4(A), names.RESOLVER, 53) as sock:
        reply = dns.query.tcp(dns.message.make_query("big.example", "A"), names.RESOLVER, 5, sock=sock)
    assert len(addresses(reply)) == 60
    assert [how for name, _, how in net.dns.asked if name == "big.example"] == ["udp", "tcp"]
    short = exchange(net.world, A, dns.message.make_query("big.example", "A", use_edns=-1))
    assert short.flags & dns.flags.TC
    assert not short.answer


def test_split_dns_and_nxdomain(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES, "*.corp.example:22", "nothere.example:22", "four.example:22")
    corp = DnsServer(net.world, names.CORP_DNS)
    try:
        corp.records["git.corp.example", "A"] = ["203.0.113.77"]
        assert addresses(ask(net.world, A, "git.corp.example")) == ["203.0.113.77"]
        assert corp.names() == ["git.corp.example"]
        assert net.dns.asked == []
    finally:
        corp.close()
    assert ask(net.world, A, "nothere.example").rcode() == dns.rcode.NXDOMAIN
    empty = ask(net.world, A, "four.example", "AAAA")
    assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])


def test_a_dead_server_is_passed_over_and_a_silent_one_is_not_asked_first_again() -> None:
    with resolving(upstream={"servers": [[names.OUTSIDE_DNS2, 53], [names.OUTSIDE_DNS, 53]]}) as net:
        net.daemon.set(A, "*.example:22", limits={"name_bytes_per_min": 10**6})
        net.dns.records |= {(f"{name}.example", "A"): [names.WEB] for name in ("refused", "silent", "next", "last")}
        assert addresses(ask(net.world, A, "refused.example")) == [names.WEB]  # nobody listens: ICMP says so
        with net.world.udp(names.OUTSIDE_DNS2, 53) as silent:
            silent.settimeout(0.1)
            for name in ("silent", "next", "last"):
                assert addresses(ask(net.world, A, f"{name}.example")) == [names.WEB]
            heard = 0
            with contextlib.suppress(TimeoutError):
                while silent.recv(4096):
                    heard += 1
        assert heard <= 1


def test_malformed_queries(net: SimpleNamespace) -> None:
    net.daemon.set(A, *BOTH)
    good = dns.message.make_query("web.example", "A", id=0x1234).to_wire()
    with net.world.udp(names.addr4(A)) as sock:
        sock.settimeout(5)

        def send(data: bytes) -> dns.message.Message:
            sock.sendto(data, (names.RESOLVER, 53))
            return dns.message.from_wire(sock.recv(4096))

        for bad in (good[:-1], good + b"x", good[:5] + b"\x02" + good[6:], good[:12] + b"\xc0\x0c" + good[14:]):
            reply = send(bad)
            assert (reply.id, reply.rcode()) == (0x1234, dns.rcode.FORMERR)
        assert send(good[:2] + b"\x28\x00" + good[4:]).rcode() == dns.rcode.NOTIMP  # opcode UPDATE
        for silent in (b"", b"\x12", good[:11], good[:2] + b"\x80" + good[3:]):
            sock.sendto(silent, (names.RESOLVER, 53))
        assert addresses(send(good)) == [names.RELAY]


def test_tcp_conversations(net: SimpleNamespace) -> None:
    net.daemon.set(A, *BOTH)
    with net.world.connect(names.addr6(A), names.RESOLVER6, 53) as sock:
        for name, expected in (("web.example", [names.RELAY]), ("direct.example", [names.WEB, names.WEB2])):
            reply = dns.query.tcp(dns.message.make_query(name, "A"), names.RESOLVER6, 5, sock=sock)
            assert addresses(reply) == expected
    with net.world.connect(names.addr4(A), names.RESOLVER, 53) as sock:
        sock.sendall(b"\xff\xff")
        assert sock.recv(10) == b""
    with net.world.connect(names.STRANGER, names.RESOLVER, 53) as sock:
        assert sock.recv(10) == b""


def test_lookups(net: SimpleNamespace) -> None:
    net.dns.broken["slow.example"] = "drop"
    net.dns.records["denied-address.example", "A"] = [names.WEB2]
    net.dns.records["lan.example", "A"] = ["10.9.9.9"]
    net.daemon.set(
        A,
        *BOTH,
        "slow.example",
        "missing.example",
        "*.example.net",
        "denied-address.example",
        f"!{names.WEB2}",
        "*.lan",
    )
    net.dns.records["x.lan", "A"] = ["10.9.9.9"]

    async def look() -> None:
        lookups = Lookups(str(net.dir / "lookup.sock"))
        assert await lookups.lookup(A, "web.example", 443) == [names.WEB, names.WEB6]
        assert await lookups.lookup(A, "WEB.example.", 443) == [names.WEB, names.WEB6]
        for slot, name, port, reason in (
            (A, "other.example", 443, "denied"),
            (A, "web.example", 8443, "denied"),
            (B, "web.example", 443, "denied"),
            (A, "missing.example", 443, "nxdomain"),
            (A, "slow.example", 443, "timeout"),
            (A, "denied-address.example", 443, "stripped"),
            (A, "x.lan", 443, "stripped"),
        ):
            with pytest.raises(LookupRefused) as refused:
                await lookups.lookup(slot, name, port)
            assert refused.value.reason == reason, name
        net.daemon.decide = lambda c: wire.Committed(c.id, (), "no")
        with pytest.raises(LookupRefused) as refused:
            await lookups.lookup(A, "web.example", 80)
        assert refused.value.reason == "uncommitted"
        await lookups.close()

    asyncio.run(look())
    commit = net.daemon.commits[0]
    assert (commit.purpose, commit.ports, commit.name) == ("service", (443,), "web.example")
    assert commit.addresses == (names.WEB, names.WEB6)


def test_strangers_may_not_ask_the_lookup_socket(net: SimpleNamespace) -> None:
    assert (net.dir / "lookup.sock").stat().st_mode & 0o777 == 0o660
    channel = BlockingChannel.connect(str(net.dir / "lookup.sock"), 5)
    channel.send(wire.Ack(1))  # not a Lookup
    assert channel.sock.recv(1) == b""
    channel.close()
    done = net.world.command(
        ["setpriv", "--reuid=12345", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", _PEER.format(net.dir)]
    )
    assert done.stdout.strip() == "closed"


_PEER = """
import os, socket
os.chdir("/")
s = socket.socket(socket.AF_UNIX)
try:
    s.connect("{}/lookup.sock")
    print("open" if s.recv(1) else "closed")
except PermissionError:
    print("closed")
"""
