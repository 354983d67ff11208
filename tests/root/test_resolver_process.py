"""The resolver as a process: real sockets, a real DNS server, the daemon's side of the control socket by its wire."""

from __future__ import annotations

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
from agentmon.dlp import forms
from agentmon.dlp.names import digests as digests_of
from tests.support import names
from tests.support.names import Daemon, addresses, ask, until
from tests.support.resolver_rig import BOTH, RULES, A, B, resolving

pytestmark = pytest.mark.root


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with resolving() as made:
        yield made


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


def test_an_allowed_name_with_a_search_suffix_is_nxdomain_at_once(net: SimpleNamespace) -> None:
    """What a stub tries first (resolv.conf(5), ndots): the name itself comes next."""
    net.daemon.set(A, "service.example:443", "*.wild.example:443", "direct.example:5432")
    for name in ("service.example", "direct.example", "a.wild.example"):
        assert ask(net.world, A, f"{name}.corp.internal").rcode() == dns.rcode.NXDOMAIN
    assert not [asked for asked in net.dns.asked if "corp" in asked[0]]


def test_a_name_that_carries_a_known_value_goes_nowhere_and_is_not_shown(net: SimpleNamespace) -> None:
    value = b"planted-house-value-0815"
    digests = digests_of(forms.name_forms(value), b"key")
    run = net.daemon.view(A).run
    assert not net.daemon.tell(wire.SetNames, A, run, b"key", digests).error
    net.daemon.set(A, "*.direct.example:8080")
    text = value.hex()
    for name in (f"{text[:40]}.direct.example", f"{text[6:20]}.more.direct.example", f"{text[:40]}.stranger.example"):
        assert ask(net.world, A, name).rcode() == dns.rcode.NXDOMAIN
    assert net.dns.asked == []
    assert net.daemon.report(kind="dns", reason="secret")["detail"] == {"name": "(hidden).direct.example"}
    assert net.daemon.report(kind="dns", reason="default")["host"] == "(hidden).stranger.example"
    assert text[6:18] not in str(net.daemon.reports)
    ask(net.world, A, "www.direct.example")
    assert net.dns.asked


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


def test_the_control_socket_is_for_root(net: SimpleNamespace) -> None:
    assert (net.dir / "resolver.sock").stat().st_mode & 0o777 == 0o600
