"""`policy diff`: rules are compared by what they allow, whatever way they are written."""

from __future__ import annotations

import itertools
import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.policy import manifest, settings
from agentmon.policy.diff import diff
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.merge import Options, effective
from agentmon.policy.plain import from_plain, to_plain
from agentmon.policy.rules import PolicySet, RuleError, conflicts, parse_rule
from agentmon.providers import registry
from agentmon.render.diff import diff_text

PROVIDERS = registry.load()


def policy(text: str, host: str = "", **options: Any) -> EffectivePolicy:
    chain = (manifest.parse(text, "/m/web.yml", trusted=True),)
    return effective(settings.parse(host, "s.yml"), chain, Options(name="web", **options), providers=PROVIDERS)


def allowing(*rules: str) -> EffectivePolicy:
    return policy(f"allow: {json.dumps(rules)}")


def lines(a: EffectivePolicy, b: EffectivePolicy) -> list[str]:
    data = diff(a, b)
    json.dumps(data)
    assert data["same"] == (diff_text(data).startswith("no difference"))
    return diff_text(data).splitlines()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["https://h.example"], ["h.example:443"]),
        (["h.example"], ["h.example:443", "http://h.example"]),
        (["10.0.0.0/8"], ["10.0.0.0/9", "10.128.0.0/9"]),
        (["10.0.0.0/8:80-90"], ["10.0.0.0/8:85-90,80", "10.0.0.0/8:81-84"]),
        (["*.x.example:443"], ["*.x.example:443", "*.a.x.example:443"]),
        (["h.example:443", "!h.example"], ["!h.example"]),
        (["10.0.0.0/8:5432"], ["10.0.0.0/8:5432", "10.1.2.3:5432", "!169.254.0.0/16"]),
        (["tcp://h.example:22"], ["h.example:22"]),
        (["https://h.example/v1/*"], ["https://h.example/v1/*", "https://h.example/v1/x"]),
        (["[2001:db8::]/32"], ["[2001:db8::]/33", "[2001:db8:8000::]/33"]),
    ],
)
def test_the_same_in_other_words_is_the_same(a: list[str], b: list[str]) -> None:
    for before, after in ((a, b), (b, a)):
        assert lines(allowing(*before), allowing(*after)) == ["no difference but in how rules are written"]
    assert lines(allowing(*a), allowing(*a)) == ["no difference"]


@pytest.mark.parametrize(
    ("a", "b", "there", "back"),
    [
        (
            [],
            ["h.example:443"],
            "+ h.example TCP 443: newly reachable, by TLS name",
            "- h.example TCP 443: no longer reachable",
        ),
        (
            ["10.1.0.0/16:53"],
            ["10.0.0.0/8:50-60"],
            "+ 10.0.0.0/8 TCP 50-60: newly reachable, direct: address and port",
            "- 10.0.0.0/8 TCP 50-60: no longer reachable",
        ),
        (
            ["*.x.example:443"],
            ["*.x.example:443", "!a.x.example"],
            "- a.x.example TCP 443: no longer reachable",
            "+ a.x.example TCP 443: newly reachable, by TLS name",
        ),
        (
            ["h.example:443"],
            ["tcp://h.example:443"],
            "+ h.example TCP 443: checked less deeply, by TLS name → direct: address and port",
            "- h.example TCP 443: checked more deeply, direct: address and port → by TLS name",
        ),
        (
            ["https://h.example/v1/*"],
            ["https://h.example"],
            "+ h.example TCP 443: checked less deeply, inspected → by TLS name",
            "- h.example TCP 443: checked more deeply, by TLS name → inspected",
        ),
        (
            ["https://h.example/v1/*"],
            ["https://h.example/*/x"],
            "+ h.example:443/*/x: newly allowed path",
            "- h.example:443/*/x: no longer allowed path",
        ),
        (
            ["http://h.example/v1/*"],
            ["http://h.example"],
            "+ h.example:80 all other paths: newly allowed path",
            "- h.example:80 all other paths: no longer allowed path",
        ),
        (
            ["https://h.example/*", "!https://h.example/admin/*"],
            ["https://h.example/*"],
            "+ h.example:443/admin/*: newly allowed path",
            "- h.example:443/admin/*: no longer allowed path",
        ),
        (
            ["*.x.example:5432"],
            ["*.x.example:5432", "db.x.example:5432"],
            "+ db.x.example: may lead to private addresses",
            "- db.x.example: may no longer lead to private addresses",
        ),
        (
            ["8.0.0.0/8", "!0.0.0.0/0:25"],
            ["8.0.0.0/8"],
            "+ 8.0.0.0/8 TCP 25: newly reachable, direct: address and port",
            "- 8.0.0.0/8 TCP 25: no longer reachable",
        ),
        (
            ["udp://h.example:53"],
            ["h.example:53"],
            "- h.example UDP 53: no longer reachable",
            "+ h.example UDP 53: newly reachable, direct: address and port",
        ),
    ],
)
def test_what_differs_is_told_in_both_directions(a: list[str], b: list[str], there: str, back: str) -> None:
    assert there in lines(allowing(*a), allowing(*b))
    assert back in lines(allowing(*b), allowing(*a))


def test_a_wider_places_change_says_a_narrower_ones() -> None:
    found = lines(
        allowing("10.1.0.0/16:53", "!a.x.example"), allowing("10.0.0.0/8:53", "*.x.example:443", "!a.x.example")
    )
    assert found[:-1] == [
        "+ *.x.example TCP 443: newly reachable, by TLS name",
        "+ 10.0.0.0/8 TCP 53: newly reachable, direct: address and port",
    ]


def test_budgets_limits_routes_and_the_rest() -> None:
    a = policy(
        "allow: [a.example, b.example]\nbudget: {claude: 5}\nlimits: {pids: 4}\nrw: [/a]\nroutes: [{host: a.example}]"
    )
    b = policy(
        "allow: [b.example, c.example]\nbudget: {claude: 7}\nshutdown: kill\nlimits: {pids: 5}\nlisten: []\n"
        "routes: [{host: b.example, methods: [GET]}]"
    )
    data = diff(a, b)
    assert (data["added"], data["removed"], data["removal"]) == (["c.example"], ["a.example"], True)
    assert (data["inspected_added"], data["inspected_removed"]) == (["b.example"], ["a.example"])
    assert set(lines(a, b)) >= {
        "- a.example TCP 80,443: no longer reachable", "+ c.example TCP 443: newly reachable, by TLS name",
        "- b.example TCP 443: checked more deeply, by TLS name → inspected",
        "- budget bottle web: claude 5 per run", "+ budget bottle web: claude 7 per run",
        "~ shutdown: cutoff → kill", "~ rw: /a → none", "~ listen: not limited → none",
        "~ route b.example: new, methods GET", "~ route a.example: gone, it was inspected, without limits",
        "live flows that are no longer allowed end",
    }  # fmt: skip
    (limits,) = [line for line in lines(a, b) if line.startswith("~ limits: ")]
    assert "pids 4" in limits.partition("→")[0] and "pids 5" in limits.partition("→")[2]
    c = policy("allow: [b.example, c.example]\nroutes: [{host: b.example, methods: [GET, PUT]}]")
    d = policy("allow: [b.example, c.example, z.example]\nroutes: [{host: b.example, methods: [GET]}]")
    found = lines(c, d)
    assert "~ route b.example: methods GET, PUT → methods GET" in found and found[-1] == "live flows go on"


def test_a_policy_survives_being_written_down() -> None:
    whole = policy(
        "allow: [api.anthropic.com, 10.0.0.0/8, '!x.example']\nbudget: {claude: 5}\nlisten: [8080]\n"
        "routes: [{host: api.anthropic.com, methods: [POST], paths: ['/v1/*']}]",
        "deny: [y.example]",
    )
    assert from_plain(json.loads(json.dumps(to_plain(whole)))) == whole


NAMES = ["a.x.example", "x.example", "*.x.example", "*.example", "b.y.example"]
NETWORKS = ["10.0.0.0/8", "10.0.0.0/9", "10.1.0.0/16", "10.1.2.3", "198.51.100.0/24"]
PORTS = ["", ":443", ":80", ":22", ":20-30,443"]
RULES = []
for deny, place, port in itertools.product(["", "!"], [*NAMES, *NETWORKS], PORTS):
    for scheme in ["", "tcp://", "udp://"]:
        try:
            RULES.append(parse_rule(f"{deny}{scheme}{place}{port}"))
        except RuleError:
            continue
ASKED = [*(n for n in NAMES if "*" not in n), "c.x.example", "d.example", "e.other"]
ADDRESSES = [f"{a}" for a in ("10.1.2.3", "10.1.2.4", "10.2.0.1", "10.200.0.1", "198.51.100.9", "192.0.2.1")]


@given(st.lists(st.sampled_from(RULES), max_size=5), st.lists(st.sampled_from(RULES), max_size=5))
def test_no_difference_means_that_every_question_is_answered_alike(before: list[Any], after: list[Any]) -> None:
    """And a difference that is told is one: asked of names, addresses and ports that the rules do not spell out."""
    if conflicts(before) or conflicts(after):
        return
    a, b = EffectivePolicy("web", tuple(before)), EffectivePolicy("web", tuple(after))
    data = diff(a, b)
    was, will = PolicySet(before), PolicySet(after)
    differs = any(
        was.decide_name(n, p, proto).depth != will.decide_name(n, p, proto).depth
        for n in ASKED for p in (1, 22, 25, 80, 443, 65535) for proto in ("tcp", "udp")
    ) or any(
        was.decide_address(ip_address(t), p, proto).allowed != will.decide_address(ip_address(t), p, proto).allowed
        for t in ADDRESSES for p in (1, 22, 25, 80, 443, 65535) for proto in ("tcp", "udp")
    )  # fmt: skip
    told = any(data[key] for key in ("opened", "closed", "shallower", "deeper"))
    assert told == differs
