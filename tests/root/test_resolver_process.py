"""The resolver as a process: real sockets, a real DNS server, the daemon's side of the control socket by its wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
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
from tests.support.names import Daemon, DnsServer, World, addresses, ask, exchange, until

pytestmark = pytest.mark.root

A, B = 16, 17  # bottles


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    world = World()
    server = DnsServer(world)
    server.records |= {
        ("direct.example", "A"): [names.WEB, names.WEB2],
        ("direct.example", "AAAA"): [names.WEB6],
        ("web.example", "A"): [names.WEB],
        ("web.example", "AAAA"): [names.WEB6],
        ("alias.example", "CNAME"): ["direct.example."],
        ("private.example", "A"): ["10.1.2.3"],
        ("a.private.example", "A"): ["10.1.2.3"],
        ("evil.example", "A"): ["127.0.0.1", "169.254.169.254", "10.213.0.17", "192.0.2.2", names.WEB],
        ("gone.example", "A"): ["127.0.0.1"],
        ("four.example", "A"): [names.WEB],
        ("big.example", "A"): [f"203.0.113.{i}" for i in range(1, 61)],
    }
    try:
        with (
            names.directory() as directory,
            names.service(world, "resolver", names.resolver_config(directory), directory) as process,
        ):
            daemon = Daemon(directory / "resolver.sock")
            try:
                yield SimpleNamespace(world=world, dns=server, daemon=daemon, dir=directory, process=process)
            finally:
                daemon.close()
    finally:
        server.close()
        world.close()


RULES = ("direct.example:8080", "alias.example:8080", "evil.example:8080", "gone.example:8080")
BOTH = ("web.example", *RULES)  # a held name beside direct ones is looked up ahead: there the servers are asked


def test_ready_names_the_service(net: SimpleNamespace) -> None:
    assert (net.daemon.ready.service, net.daemon.ready.version) == ("resolver", wire.VERSION)
    status = Path(f"/proc/{net.daemon.ready.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "CapPrm:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t65534\t65534\t65534\t65534" in status


def test_a_denied_name_is_nxdomain_at_once_and_no_packet_goes_upstream(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    for kind in ("A", "AAAA", "TXT", "HTTPS", "ANY", "PTR", "NULL"):
        reply = ask(net.world, A, "exfil.stranger.example", kind)
        assert reply.rcode() == dns.rcode.NXDOMAIN
        assert not reply.answer
    assert net.dns.asked == []
    event = net.daemon.report(kind="dns", host="exfil.stranger.example")
    assert event["verdict"] == "refused"
    assert event["layer"] == "resolver"
    assert event["reason"] == "default"
    assert event["bottle"] == "b16"
    assert event["hint"] == "agentmon allow b16 exfil.stranger.example"
    assert event["count"] == 1
    assert event["ts_ns"] > 0
    assert net.daemon.commits == []


def test_a_direct_name_is_committed_before_its_answer_leaves(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    released = threading.Event()

    def hold(commit: wire.Commit) -> wire.Committed:
        assert released.wait(5)
        return wire.Committed(commit.id, commit.addresses)

    net.daemon.decide = hold
    with net.world.udp(names.addr4(A)) as sock:
        query = dns.message.make_query("direct.example", "A")
        sock.sendto(query.to_wire(), (names.RESOLVER, 53))
        until(lambda: net.daemon.commits)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(4096)
        released.set()
        sock.settimeout(5)
        reply = dns.message.from_wire(sock.recv(4096))
    assert addresses(reply) == [names.WEB, names.WEB2]
    commit = net.daemon.commits[0]
    assert (commit.slot, commit.name, commit.purpose, commit.ports) == (A, "direct.example", "bottle", ())
    assert sorted(commit.addresses) == [names.WEB, names.WEB2]
    assert reply.answer[0].ttl <= 60 < commit.ttl_s


def test_what_the_daemon_does_not_open_is_not_answered(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    net.daemon.decide = lambda c: wire.Committed(c.id, c.addresses[:1])
    assert addresses(ask(net.world, A, "direct.example")) == [net.daemon.commits[0].addresses[0]]
    net.daemon.decide = lambda c: wire.Committed(c.id, (), "denied")
    assert ask(net.world, A, "alias.example").rcode() == dns.rcode.SERVFAIL


def test_service_names_are_answered_locally(net: SimpleNamespace) -> None:
    net.daemon.set(A, "web.example", "api.vendor.example:443", inspected=("api.vendor.example",))
    assert addresses(ask(net.world, A, "web.example")) == [names.RELAY]
    assert addresses(ask(net.world, A, "web.example", "AAAA", v6=True)) == [names.RELAY6]
    assert addresses(ask(net.world, A, "api.vendor.example")) == [names.PROXY]
    assert addresses(ask(net.world, A, "agentmon.internal", "AAAA")) == [names.PROXY6]
    for kind in ("TXT", "HTTPS", "SVCB", "MX", "ANY"):
        reply = ask(net.world, A, "web.example", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert net.dns.asked == []
    assert net.daemon.commits == []


def test_other_types_of_a_direct_name_are_empty_and_not_asked(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    reply = ask(net.world, A, "direct.example", "TXT")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert net.dns.asked == []


def test_an_unknown_source_gets_silence(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    with net.world.udp(names.STRANGER) as sock, pytest.raises(dns.exception.Timeout):
        sock.setblocking(False)
        dns.query.udp(dns.message.make_query("web.example", "A"), names.RESOLVER, 0.5, sock=sock)
    with pytest.raises(dns.exception.Timeout):
        ask(net.world, B, "web.example", timeout=0.5)  # an address of the pool, but no bottle


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


def test_cached_answers_renew_the_element(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    ask(net.world, A, "direct.example")

    def renewed() -> bool:
        assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]
        return len(net.daemon.commits) >= 2

    until(renewed, 5)
    assert net.dns.names() == ["direct.example"]


def test_without_a_daemon_nothing_new_is_answered_and_a_new_daemon_takes_over(net: SimpleNamespace) -> None:
    net.daemon.set(A, *BOTH)
    assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]
    net.daemon.close()
    until(lambda: ask(net.world, A, "alias.example").rcode() == dns.rcode.SERVFAIL)
    assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]  # the kernel still holds it open
    assert addresses(ask(net.world, A, "web.example")) == [names.RELAY]
    assert ask(net.world, A, "other.example").rcode() == dns.rcode.NXDOMAIN
    again = Daemon(net.dir / "resolver.sock")
    try:
        assert again.set(A, *BOTH).error == ""
        assert addresses(ask(net.world, A, "direct.example")) == [names.WEB, names.WEB2]
        assert [c.name for c in again.commits if c.purpose == "bottle"] == ["direct.example"]
    finally:
        again.close()


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


def test_the_rate_limit_drops_and_counts(net: SimpleNamespace) -> None:
    net.daemon.set(A, *BOTH, limits={"queries_per_s": 5})
    net.daemon.set(B, *BOTH)
    answered = 0
    with net.world.udp(names.addr4(A)) as sock:
        query = dns.message.make_query("web.example", "A").to_wire()
        for _ in range(40):
            sock.sendto(query, (names.RESOLVER, 53))
        assert addresses(ask(net.world, B, "web.example")) == [names.RELAY]
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while sock.recv(4096):
                answered += 1
    assert 5 <= answered <= 8
    assert net.daemon.report(reason="rate")["layer"] == "resolver"
    assert net.daemon.report(reason="rate", count=until(lambda: _count(net))) is not None


def _count(net: SimpleNamespace) -> int:
    return next((r["count"] for r in net.daemon.reports if r["reason"] == "rate" and r["count"] > 1), 0)


def test_repeated_refusals_are_one_event_and_a_count(net: SimpleNamespace) -> None:
    net.daemon.set(A, *RULES)
    for _ in range(20):
        ask(net.world, A, "no.example")
    net.daemon.tell(wire.DropBottle, A)
    until(lambda: len(net.daemon.reports) >= 2)
    assert [r["count"] for r in net.daemon.reports] == [1, 19]


def test_cut_leaves_only_what_the_proxy_serves(net: SimpleNamespace) -> None:
    net.daemon.set(A, *BOTH, "api.vendor.example", inspected=("api.vendor.example",))
    net.daemon.tell(wire.CutBottle, A)
    assert addresses(ask(net.world, A, "api.vendor.example")) == [names.PROXY]
    assert addresses(ask(net.world, A, "agentmon.internal")) == [names.PROXY]
    assert ask(net.world, A, "web.example").rcode() == dns.rcode.NXDOMAIN
    assert net.daemon.report(host="web.example", reason="cut")["hint"].startswith("agentmon resume b16")
    net.daemon.set(A, *BOTH)
    assert addresses(ask(net.world, A, "web.example")) == [names.RELAY]


def test_observe_answers_unlisted_names_and_says_so(net: SimpleNamespace) -> None:
    net.dns.records["unlisted.example", "A"] = [names.WEB, "127.0.0.1"]
    net.daemon.decide = lambda c: wire.Committed(c.id, (), "default")
    net.daemon.set(A, *RULES, "!never.example", mode="observe")
    assert addresses(ask(net.world, A, "unlisted.example")) == [names.WEB]
    net.daemon.report(host="unlisted.example", verdict="observed")
    assert ask(net.world, A, "never.example").rcode() == dns.rcode.NXDOMAIN
    assert net.daemon.report(host="never.example", reason="deny")["rule"] == "!never.example"


def test_a_policy_change_is_in_force_with_its_ack_and_a_bad_one_changes_nothing(net: SimpleNamespace) -> None:
    net.daemon.set(A, "web.example")
    assert addresses(ask(net.world, A, "web.example")) == [names.RELAY]
    assert "bottle b16" in net.daemon.set(A, "https://user:pw@x").error
    assert addresses(ask(net.world, A, "web.example")) == [names.RELAY]
    net.daemon.set(A, "direct.example:8080")
    assert ask(net.world, A, "web.example").rcode() == dns.rcode.NXDOMAIN
    net.daemon.tell(wire.DropBottle, A)
    with pytest.raises(dns.exception.Timeout):
        ask(net.world, A, "web.example", timeout=0.3)


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


def test_the_control_socket_is_for_root(net: SimpleNamespace) -> None:
    assert (net.dir / "resolver.sock").stat().st_mode & 0o777 == 0o600
