"""A resolver between a bottle and an upstream server that lies: nothing false is answered, and others are not hurt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from agentmon import wire
from agentmon.resolver.chain import MAX_CNAMES
from agentmon.resolver.resolve import MAX_TTL_S
from agentmon.resolver.upstream import ROUNDS
from tests.support import names
from tests.support.hostile_dns import HostileDns
from tests.support.names import WEB, addresses, ask
from tests.support.resolver_rig import A, resolving

pytestmark = pytest.mark.root
LIMITS = {"queries_per_s": 1000, "name_bytes_per_min": 10**6}


@pytest.fixture(scope="module")
def net() -> Iterator[SimpleNamespace]:
    with resolving(upstream={"servers": [[names.CORP_DNS, 53]]}) as made:
        made.hostile = HostileDns(made.world, names.CORP_DNS)
        try:
            made.daemon.set(A, "*.hostile.example:22", limits=LIMITS)
            made.rss_kb = _rss_kb(made)
            yield made
        finally:
            made.hostile.close()


@pytest.fixture(autouse=True)
def others_are_not_hurt(net: SimpleNamespace, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    fine = request.node.name.translate(str.maketrans("[]_", "---")).strip("-")[-50:]
    assert addresses(ask(net.world, A, f"fine-{fine}.hostile.example", timeout=2)) == [WEB]


def test_what_another_sends_is_not_heard(net: SimpleNamespace) -> None:
    assert addresses(ask(net.world, A, "elsewhere.hostile.example")) == [WEB]


def test_an_answer_in_other_letters_is_asked_for_again_over_tcp(net: SimpleNamespace) -> None:
    assert addresses(ask(net.world, A, "guess.hostile.example")) == [WEB]
    assert net.hostile.turns["guess.hostile.example"] == 2


def test_a_thousand_wrong_ones_cost_their_reading(net: SimpleNamespace) -> None:
    assert addresses(ask(net.world, A, "flood.hostile.example")) == [WEB]


@pytest.mark.parametrize("manner", ["circle", "pointers", "many", "short", "drip"])
def test_a_lie_is_servfail(net: SimpleNamespace, manner: str) -> None:
    assert ask(net.world, A, f"{manner}.hostile.example").rcode() == dns.rcode.SERVFAIL
    assert not [c for c in net.daemon.commits if c.name.startswith(manner)]


def test_aliases_that_go_on_for_ever_end(net: SimpleNamespace) -> None:
    before = len(net.hostile.asked)
    assert ask(net.world, A, "chain-0.hostile.example").rcode() == dns.rcode.SERVFAIL
    assert len(net.hostile.asked) - before <= MAX_CNAMES * ROUNDS


@pytest.mark.parametrize("manner", ["extra", "stray"])
def test_what_nobody_asked_for_poisons_nothing(net: SimpleNamespace, manner: str) -> None:
    assert addresses(ask(net.world, A, f"{manner}.hostile.example")) == [WEB]
    before = len(net.hostile.asked)
    assert addresses(ask(net.world, A, "victim.hostile.example")) == [WEB]
    assert net.hostile.asked[before:] in (["victim.hostile.example"], [])  # asked for by itself, then known by itself


def test_five_hundred_addresses_are_sixty_four(net: SimpleNamespace) -> None:
    with net.world.connect(names.addr4(A), names.RESOLVER, 53) as sock:
        query = dns.message.make_query("hundreds.hostile.example", "A")
        assert len(addresses(dns.query.tcp(query, names.RESOLVER, 5, sock=sock))) == 64
    (commit,) = [c for c in net.daemon.commits if c.name == "hundreds.hostile.example"]
    assert len(commit.addresses) == 64


def test_addresses_that_change_at_every_answer_and_may_not_be_kept(net: SimpleNamespace) -> None:
    for turn in range(1, 6):
        reply = ask(net.world, A, "moving.hostile.example")
        assert (addresses(reply), reply.answer[0].ttl) == ([f"203.0.113.{turn}"], 0)
    commits = [c for c in net.daemon.commits if c.name == "moving.hostile.example"]
    assert [c.ttl_s for c in commits] == [40] * 5  # the floor and the grace
    net.daemon.decide = lambda c: wire.Committed(c.id, (), "addresses")
    try:
        for _ in range(3):
            assert ask(net.world, A, "moving.hostile.example").rcode() == dns.rcode.SERVFAIL
    finally:
        net.daemon.decide = lambda c: wire.Committed(c.id, c.addresses)
    assert net.daemon.report(reason="addresses")["detail"] == {"name": "moving.hostile.example"}
    assert len([r for r in net.daemon.reports if r["reason"] == "addresses" and r["count"] == 1]) == 1  # said once


@pytest.mark.parametrize(("manner", "ttl"), [("forever", MAX_TTL_S), ("negative", 0)])
def test_times_out_of_bounds(net: SimpleNamespace, manner: str, ttl: int) -> None:
    reply = ask(net.world, A, f"{manner}.hostile.example")
    assert addresses(reply) == [WEB]
    assert ttl - 1 <= reply.answer[0].ttl <= ttl
    (commit,) = [c for c in net.daemon.commits if c.name.startswith(manner)]
    assert max(ttl - 1, 30) + 10 <= commit.ttl_s <= max(ttl, 30) + 10


def test_upstream_sees_nothing_of_the_query_but_its_name_and_type(net: SimpleNamespace) -> None:
    query = dns.message.make_query("pLaIn.hostile.example", "A", use_edns=0, want_dnssec=True, id=0x1234)
    query.use_edns(0, dns.flags.DO, 4096, options=[dns.edns.GenericOption(65001, b"secret-payload")])
    query.flags |= dns.flags.CD | dns.flags.AD
    before = len(net.hostile.raw)
    assert addresses(names.exchange(net.world, A, query)) == [WEB]
    (raw,) = net.hostile.raw[before:]
    sent = dns.message.from_wire(raw)
    assert (sent.flags, sent.ednsflags, sent.options, sent.payload) == (dns.flags.RD, 0, (), 1232)
    assert sent.id != 0x1234 or b"pLaIn" not in raw
    assert b"secret" not in raw


def test_the_resolver_did_not_grow(net: SimpleNamespace) -> None:
    """After all of the above."""
    assert _rss_kb(net) - net.rss_kb < 20_000


def _rss_kb(net: SimpleNamespace) -> int:
    return int(Path(f"/proc/{net.daemon.ready.pid}/status").read_text().split("VmRSS:")[1].split()[0])
