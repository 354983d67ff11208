"""The resolver's pure parts: what is decided, followed, kept, counted and stripped."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest
from msgspec import ValidationError

from agentmon import wire
from agentmon.resolver import records
from agentmon.resolver.answer import Kind, Plan, decide
from agentmon.resolver.cache import Cache
from agentmon.resolver.chain import Chain, Unusable, follow
from agentmon.resolver.config import convert
from agentmon.resolver.rate import Bucket
from agentmon.resolver.resolve import MAX_ADDRESSES, Resolve
from agentmon.resolver.strip import Strip
from agentmon.resolver.upstream import Server, Upstream
from agentmon.views import View, Views

S = 1_000_000_000
RELAY = ("10.213.0.3", "fd61:6d6f:6e::3")
PROXY = ("10.213.0.4", "fd61:6d6f:6e::4")
INTERNAL = {"agentmon.internal": "proxy"}


def view(*rules: str, **more: Any) -> View:
    return Views().set(
        wire.BottleView(
            slot=16, bottle="b", run="r", addr4="10.213.0.16", rules=rules, relay=RELAY, proxy=PROXY, **more
        )
    )


# ── answer ──


@pytest.mark.parametrize(
    ("name", "kind", "addresses"),
    [
        ("web.example", Kind.SERVICE, RELAY),
        ("api.vendor.example", Kind.SERVICE, PROXY),
        ("agentmon.internal", Kind.SERVICE, PROXY),
        ("paths.example", Kind.SERVICE, PROXY),
        ("ssh.example", Kind.UPSTREAM, ()),
        ("deep.wild.example", Kind.UPSTREAM, ()),
        ("wild.example", Kind.DENIED, ()),
        ("other.example", Kind.DENIED, ()),
        ("never.web.example", Kind.DENIED, ()),
        ("localhost", Kind.DENIED, ()),
        ("x.agentmon.internal", Kind.DENIED, ()),
        ("", Kind.DENIED, ()),
    ],
)
def test_the_rule_says_who_answers(name: str, kind: Kind, addresses: tuple[str, ...]) -> None:
    rules = ("web.example:443", "api.vendor.example:443", "https://paths.example/v1/*", "ssh.example:22")
    v = view(*rules, "*.wild.example:22", "!never.web.example", inspected=("api.vendor.example",))
    plan = decide(name, v, INTERNAL)
    assert (plan.kind, plan.addresses) == (kind, addresses)


def test_only_an_exact_rule_accepts_private_addresses() -> None:
    v = view("ssh.example:22", "*.wild.example:22")
    assert decide("ssh.example", v, INTERNAL).exact
    assert not decide("a.wild.example", v, INTERNAL).exact


def test_reasons() -> None:
    v = view("web.example", "!bad.example")
    assert decide("x.example", v, INTERNAL) == Plan(Kind.DENIED, reason="default")
    assert decide("bad.example", v, INTERNAL) == Plan(Kind.DENIED, reason="deny", rule="!bad.example")
    assert decide("localhost", v, INTERNAL).reason == "protected"
    assert decide("", v, INTERNAL).reason == "bad-name"


def test_modes() -> None:
    rules = ("web.example", "api.vendor.example", "!bad.example")
    closed = view(*rules, mode="closed")
    assert decide("web.example", closed, INTERNAL).reason == "closed"
    assert decide("agentmon.internal", closed, INTERNAL).kind is Kind.DENIED
    cut = view(*rules, mode="cut", inspected=("api.vendor.example",))
    assert decide("agentmon.internal", cut, INTERNAL).addresses == PROXY
    assert decide("api.vendor.example", cut, INTERNAL).addresses == PROXY
    assert decide("web.example", cut, INTERNAL) == Plan(Kind.DENIED, reason="cut")
    assert decide("x.example", cut, INTERNAL) == Plan(Kind.DENIED, reason="cut")
    assert decide("x.example", replace(cut, spent=True), INTERNAL) == Plan(Kind.DENIED, reason="budget")
    observe = view(*rules, mode="observe")
    assert decide("x.example", observe, INTERNAL) == Plan(Kind.UPSTREAM, observed=True)
    for name in ("bad.example", "localhost", ""):
        assert decide(name, observe, INTERNAL).kind is Kind.DENIED, name


# ── chain ──


ASKED = records.question("a.example", 1)


def followed(*lines: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, soa: bool = False) -> Chain:
    """What a server's response with these records says of a.example."""
    message = dns.message.make_response(dns.message.from_wire(ASKED.wire))
    message.set_rcode(rcode)
    for line in lines:
        owner, ttl, kind, text = line.split(" ", 3)
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, *text.split(",")))
    if soa:
        message.authority.append(dns.rrset.from_text("example.", 90, "IN", "SOA", "ns. root. 1 60 60 60 40"))
    chain = follow(records.read(message.to_wire(), ASKED), ASKED)
    return replace(chain, addresses=tuple(sorted(chain.addresses)))  # dnspython writes them in any order


def test_addresses_of_the_question() -> None:
    assert followed("A.Example. 60 A 203.0.113.1,203.0.113.2") == Chain(("203.0.113.1", "203.0.113.2"), 60)


def test_aliases_from_the_question_on_and_the_least_ttl() -> None:
    chain = followed("b.example. 7 CNAME c.example.", "c.example. 60 A 203.0.113.3", "a.example. 50 CNAME b.example.")
    assert chain == Chain(("203.0.113.3",), 7)


def test_records_the_chain_does_not_reach_are_ignored() -> None:
    assert followed("evil.example. 60 A 203.0.113.66", "a.example. 60 AAAA 2001:db8::1") == Chain((), 0)


def test_an_alias_without_addresses_is_to_be_asked() -> None:
    assert followed("a.example. 50 CNAME B.example.") == Chain((), 50, target="b.example")
    assert followed("a.example. 50 CNAME b.example.", soa=True) == Chain((), 40)
    with pytest.raises(Unusable, match="no host name"):
        followed(r"a.example. 50 CNAME b\.c\000.example.")


def test_negative_answers() -> None:
    assert followed(rcode=dns.rcode.NXDOMAIN, soa=True) == Chain((), 40, exists=False)
    assert followed(rcode=dns.rcode.NXDOMAIN) == Chain((), 0, exists=False)


def test_unusable() -> None:
    with pytest.raises(Unusable, match="SERVFAIL"):
        followed(rcode=dns.rcode.SERVFAIL)
    with pytest.raises(Unusable, match="loop"):
        followed("a.example. 5 CNAME b.example.", "b.example. 5 CNAME a.example.")


def test_times_beyond_31_bits_are_none() -> None:
    wire = dns.message.make_response(dns.message.from_wire(ASKED.wire))
    wire.answer.append(dns.rrset.from_text("a.example.", 0x01020304, "IN", "A", "203.0.113.1"))
    for ttl, read in ((0x7FFFFFFF, 0x7FFFFFFF), (0x80000000, 0), (0xFFFFFFFF, 0), (0, 0)):
        data = wire.to_wire().replace(bytes((1, 2, 3, 4)), ttl.to_bytes(4, "big"))
        assert follow(records.read(data, ASKED), ASKED).ttl_s == read


# ── resolve ──


class Asked:
    """Chains by name; keeps what was asked. A gate holds answers back."""

    def __init__(self, chains: dict[str, Chain | Exception]) -> None:
        self.chains = chains
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, name: str, rdtype: int) -> Chain:
        self.asked.append(name)
        await self.gate.wait()
        chain = self.chains[name]
        if isinstance(chain, Exception):
            raise chain
        return chain


def test_found_is_cached_until_it_expires() -> None:
    async def body() -> None:
        now = 1000 * S
        asked = Asked({"a": Chain((), 50, target="b"), "b": Chain(("203.0.113.1",), 10)})
        resolve = Resolve(asked, lambda: now)
        for _ in range(3):
            found = await resolve.find("a", 1, 16)
            assert (found.addresses, found.ttl_s(now), found.exists) == (("203.0.113.1",), 10, True)
        assert asked.asked == ["a", "b"]
        now += 9 * S + 1
        assert (await resolve.find("a", 1, 16)).ttl_s(now) == 0
        now += S
        await resolve.find("a", 1, 16)
        assert asked.asked == ["a", "b"] * 2

    asyncio.run(body())


def test_one_question_at_a_time_and_one_who_leaves_hurts_nobody() -> None:
    async def body() -> None:
        asked = Asked({"a": Chain(("203.0.113.1",), 0)})
        asked.gate.clear()
        resolve = Resolve(asked, lambda: 0)
        tasks = [asyncio.ensure_future(resolve.find("a", 1, 16)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        asked.gate.set()
        assert (await tasks[1]).addresses == (await tasks[2]).addresses == ("203.0.113.1",)
        assert asked.asked == ["a"]
        await resolve.find("a", 1, 16)  # TTL 0 is not kept
        assert asked.asked == ["a", "a"]

    asyncio.run(body())


def test_failures_are_not_kept_and_loops_end() -> None:
    async def body() -> None:
        asked = Asked({"a": TimeoutError(), "l": Chain((), 5, target="l"), "n": Chain((), 999_999, exists=False)})
        resolve = Resolve(asked, lambda: 0)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await resolve.find("a", 1, 16)
        assert asked.asked == ["a", "a"]
        with pytest.raises(Unusable):
            await resolve.find("l", 1, 16)
        found = await resolve.find("n", 1, 16)
        assert (found.exists, found.ttl_s(0)) == (False, 60)
        asked.chains["m"] = Chain(tuple(f"203.0.113.{i}" for i in range(1, 101)), 5)
        assert len((await resolve.find("m", 1, 16)).addresses) == MAX_ADDRESSES

    asyncio.run(body())


# ── cache, rate, strip, configuration, split DNS ──


def test_cache() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.put("a", 1, 10)
    assert (cache.get("a", 9), cache.get("a", 10), len(cache)) == (1, None, 0)
    for key in "abc":
        cache.put(key, 1, 10)
        cache.get("a", 0)
    assert [cache.get(key, 0) for key in "abc"] == [1, None, 1]
    cache.clear()
    assert len(cache) == 0


def test_bucket() -> None:
    bucket = Bucket(10, 0)
    assert [bucket.take(0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.take(S // 10)
    assert not bucket.take(S // 10)
    assert [bucket.take(100 * S) for _ in range(11)] == [True] * 10 + [False]


def test_strip() -> None:
    strip = Strip(["192.0.2.2", "10.213.0.0/16", "fd61:6d6f:6e::/64"])
    given = [
        "203.0.113.1",
        "127.0.0.1",
        "10.213.0.17",
        "10.1.1.1",
        "192.0.2.2",
        "::ffff:203.0.113.1",
        "fd00::1",
        "2001:db8::1",
    ]
    usable, refused = strip.split(given, exact=False)
    assert usable == ["203.0.113.1", "2001:db8::1"]
    assert refused == [
        ("127.0.0.1", "loopback"),
        ("10.213.0.17", "own"),
        ("10.1.1.1", "private"),
        ("192.0.2.2", "own"),
        (str(ip_address("::ffff:203.0.113.1")), "IPv4-mapped"),
        ("fd00::1", "private"),
    ]
    assert strip.split(["10.1.1.1", "10.213.0.17"], exact=True)[0] == ["10.1.1.1"]


BASE = {"socket": "s", "lookup_socket": "l", "user": "nobody", "listen": ["10.213.0.2"], "pool4": "10.213.0.0/16"}


def test_configuration() -> None:
    config = convert(
        {**BASE, "pool6": "fd61::/64", "strip": ["192.0.2.2"], "upstream": {"servers": [["198.51.100.53", 53]]}}
    )
    assert config.own == ("192.0.2.2", "10.213.0.0/16", "fd61::/64")
    assert (config.upstream.servers, config.upstream.over_tls) == ((Server("198.51.100.53", 53),), False)
    assert convert(BASE | {"upstream": {"servers": [["198.51.100.53", 853, "dns.example"]]}}).upstream.over_tls
    assert config.internal == INTERNAL
    assert 0 in config.lookup_uids
    assert convert(BASE).pool.v6 is None
    with pytest.raises(ValidationError, match="uptsream"):
        convert({**BASE, "uptsream": {}})


def test_split_dns_takes_the_longest_suffix() -> None:
    upstream = Upstream([Server("1", 53)], {"corp.example": [Server("2", 53)], ".Lab.corp.example.": [Server("3", 53)]})
    for name, server in (
        ("example", "1"),
        ("xcorp.example", "1"),
        ("corp.example", "2"),
        ("a.corp.example", "2"),
        ("a.lab.corp.example", "3"),
    ):
        assert upstream.servers_for(name) == [Server(server, 53)], name


def test_no_server_at_all() -> None:
    async def body() -> None:
        with pytest.raises(Unusable, match="no upstream"):
            await Upstream([], {}).ask("a.example", 1)

    asyncio.run(body())
