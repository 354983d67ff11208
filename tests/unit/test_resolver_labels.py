"""What leaves by names under a wildcard is bounded by bytes; addresses a bottle holds are bounded by number."""

from __future__ import annotations

import asyncio
import base64
from ipaddress import ip_address

import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon.commits import Commits
from agentmon.daemon.learned import MOST_OF_A_NAME, Book
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule
from agentmon.resolver.chain import Chain
from agentmon.resolver.labels import MAX_FREE, Labels, Verdict, entropy, free_part
from agentmon.views import View, Views
from tests.unit.test_resolver_desk import Bench, S, run

WILD = "*.wild.example:8080"


def view(*rules: str, per_min: int = 1000) -> View:
    limits = {"name_bytes_per_min": per_min}
    return Views().set(wire.BottleView(16, "b", "r", "10.213.0.16", rules=rules, limits=limits))


def test_the_free_part_is_what_the_most_specific_rule_leaves_open() -> None:
    suffixes = frozenset({"wild.example", "deep.wild.example"})
    for name, free in (
        ("a.wild.example", "a"), ("a.b.wild.example", "a.b"), ("a.deep.wild.example", "a"), ("wild.example", ""),
        ("other.example", ""), ("xwild.example", ""),
    ):  # fmt: skip
        assert free_part(name, suffixes) == free, name


def test_exact_names_cost_nothing_and_wild_ones_their_free_part() -> None:
    labels, one = Labels(), view(WILD, "fixed.wild.example:8080", per_min=12)
    for _ in range(100):
        assert labels.spend(one, "fixed.wild.example", 0) is Verdict.FINE
    assert labels.spend(one, "abcde.wild.example", 0) is Verdict.FINE
    assert labels.spend(one, "a.cde.wild.example", 0) is Verdict.FINE
    assert labels.spend(one, "a.wild.example", 0) is Verdict.SPENT
    assert labels.spend(one, "a.wild.example", 10 * S) is Verdict.FINE  # two of twelve bytes came back
    assert labels.spend(one, "a.wild.example", 10 * S) is Verdict.SPENT
    wider = view(WILD, per_min=14)
    assert labels.spend(wider, "a.wild.example", 10 * S) is Verdict.FINE  # a new policy: the rest of the new limit
    assert labels.spend(wider, "a.wild.example", 10 * S) is Verdict.SPENT
    labels.forget(16)
    assert labels.spend(wider, "a.wild.example", 10 * S) is Verdict.FINE


def test_shapes() -> None:
    labels, one = Labels(), view(WILD, per_min=10**6)
    data = base64.b32encode(bytes(range(7, 250, 6))).decode().lower().rstrip("=")[:63]
    assert entropy(data) > 4.5
    assert labels.spend(one, f"{data}.wild.example", 0) is Verdict.SHAPE
    assert labels.spend(one, ".".join(["ab"] * (MAX_FREE // 3 + 1)) + ".wild.example", 0) is Verdict.SHAPE
    for ordinary in (
        "d111111abcdef8", "9f86d081-884c-7d65-9a2f-eaa0c55ad015", "a-branch-with-a-long-name-git-feature-some-team",
        "internal-a1b2c3d4e5f60718293a4b5c6d7e8f90-1234567890.eu-central-1",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c",
    ):  # fmt: skip
        assert labels.spend(one, f"{ordinary}.wild.example", 0) is Verdict.FINE, ordinary


@given(st.lists(st.tuples(st.text("abcdef.-", min_size=1, max_size=80), st.integers(0, 20)), max_size=60))
def test_no_minute_carries_more_than_two_purses(asked: list[tuple[str, int]]) -> None:
    labels, one, size = Labels(), view(WILD, per_min=200), 200
    now, sent = 0, []
    for free, wait_s in asked:
        now += wait_s * S
        if labels.spend(one, f"{free}.wild.example", now) is Verdict.FINE:
            sent.append((now, len(free)))
    for start, _ in sent:
        assert sum(n for at, n in sent if start <= at < start + 60 * S) <= 2 * size


def test_the_desk_and_the_lookup_desk_share_a_purse_and_what_is_known_is_free() -> None:
    async def body(bench: Bench) -> None:
        bench.set(WILD, "*.relayed.example", limits={"name_bytes_per_min": 30, "queries_per_s": 1000})
        for _ in range(20):
            assert (await bench.reply("known.wild.example")).rcode() == dns.rcode.NOERROR  # 6 bytes, once
        assert (await bench.lookups.looked(wire.Lookup(1, 16, "abcdefghijk.relayed.example", 443))).error == ""  # 24
        assert (await bench.reply("a.wild.example")).rcode() == dns.rcode.SERVFAIL
        assert (await bench.lookups.looked(wire.Lookup(2, 16, "b.relayed.example", 443))).error == "limit"
        assert (await bench.reply("known.wild.example")).rcode() == dns.rcode.NOERROR
        (event,) = [e for e in bench.events if e["reason"] == "label-rate"]  # one for all names
        assert (event["verdict"], event["detail"]) == ("refused", {"name": "a.wild.example"})
        assert "name_bytes_per_min" in event["hint"]
        asked = list(bench.asked)
        assert (await bench.reply(f"{'ab.' * 40}wild.example")).rcode() == dns.rcode.NXDOMAIN
        assert bench.asked == asked and bench.events[-1]["reason"] == "label"

    run(body)


# ── addresses ──


def four(first: int, count: int) -> list:
    return [ip_address(0xCB007100 + n) for n in range(first, first + count)]


class Recorder:
    """Takes what would be opened."""

    def __init__(self) -> None:
        self.learned: list = []

    def learn(self, slot, entries) -> None:
        self.learned += entries

    def permit_service(self, entries) -> None:
        self.learned += entries


def test_what_is_open_is_never_displaced_and_what_is_over_goes_first() -> None:
    book = Book()
    assert len(book.open("a", four(0, 3), 0.0, 10.0, 4)) == 3
    assert book.open("b", four(10, 3), 0.0, 20.0, 4) == tuple(four(10, 1))
    assert book.open("b", four(10, 3), 5.0, 25.0, 4) == tuple(four(10, 1))  # renewed, and no room before a's end
    assert book.open("c", four(20, 9), 10.0, 30.0, 4) == tuple(four(20, 3))
    assert {name: len(known) for name, known in book.items()} == {"b": 1, "c": 3}
    assert {a for a in book.addresses() if a in book.open_at(26.0)} == set(four(20, 3))
    assert "an address" not in book.open_at(26.0)
    book.drop(four(20, 1))
    assert len(book.open("d", four(30, 9), 26.0, 40.0, 4)) == 2
    assert book.addresses() == {*four(21, 2), *four(30, 2)}


def test_a_name_whose_answers_change_every_time_has_its_own_limit() -> None:
    book = Book()
    for turn in range(2 * MOST_OF_A_NAME):
        taken = book.open("a", four(turn, 1), turn, turn + 10_000, 10**6)
        assert bool(taken) == (turn < MOST_OF_A_NAME)
    assert book.open("a", four(9000, 1), 10_000, 20_000, 10**6)  # the oldest is over
    assert len(book.addresses()) == MOST_OF_A_NAME
    assert book.open("b", four(9001, 1), 10_000, 20_000, 10**6)


@pytest.mark.parametrize(
    ("rule", "purpose", "ports"), [("a.example:22", "bottle", ()), ("a.example", "service", (443,))]
)
def test_a_bottle_with_too_many_addresses_is_told_and_nothing_more_is_opened(rule, purpose, ports) -> None:
    policy = EffectivePolicy("b", (parse_rule(rule),), limits={"addresses": 2})
    bottle = Bottle(16, "b", "r", Phase.RUNNING, policy, Job(("true",), (), "/", 1000, 1000, (), False), 1)
    kernel = Recorder()
    commits = Commits(kernel, lambda *_: None, lambda _: None)
    addresses = tuple(map(str, four(0, 3)))
    answer = commits.commit(bottle, wire.Commit(1, 16, "a.example", addresses, 60, purpose, ports))
    assert (answer.addresses, answer.reason) == (addresses[:2], "addresses")
    answer = commits.commit(bottle, wire.Commit(1, 16, "a.example", addresses[2:], 60, purpose, ports))
    assert (answer.addresses, answer.reason) == ((), "addresses")
    assert {str(entry.address) for entry in kernel.learned} == set(addresses[:2])


def test_the_limit_of_addresses_is_said_once() -> None:
    async def body(bench: Bench) -> None:
        async def full(commit: wire.Commit) -> wire.Committed:
            return wire.Committed(commit.id, commit.addresses[:1], "addresses")

        assert bench.daemon_now is not None
        bench.daemon_now.say = full
        bench.set("*.example:22")
        for number in range(5):
            bench.chains[f"n{number}.example"] = Chain(("203.0.113.1", f"203.0.113.{number + 2}"), 60)
            assert len((await bench.reply(f"n{number}.example")).answer[0]) == 1
        assert [e["reason"] for e in bench.events] == ["addresses"]
        await asyncio.sleep(0)

    run(body)
