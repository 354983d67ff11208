"""`policy learn`: from events to rules and a manifest; the circle with real layers is tests/e2e/test_learn.py."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentmon.policy import manifest, settings
from agentmon.policy.learn import WIDER_FROM, Known, learn
from agentmon.policy.merge import Options, effective
from agentmon.policy.rules import parse_rule
from agentmon.providers import registry
from agentmon.render.learn import learned_manifest

PROVIDERS = registry.load()
INSPECTED = tuple(sorted(host for p in PROVIDERS.values() for host in p.hosts))
_seconds = iter(range(10**6))


def event(kind: str, verdict: str = "observed", **fields: Any) -> dict[str, Any]:
    """Each one a second after the other."""
    minutes, seconds = divmod(next(_seconds) % 3600, 60)
    names = fields.pop("names", None)
    detail = {"names": names} if names else fields.pop("detail", {})
    at = f"2026-01-02T03:{minutes:02}:{seconds:02}.000000000Z"
    base = {"ts": at, "kind": kind, "verdict": verdict, "bottle": "b", "reason": "default", "layer": "bpf"}
    return base | {"comm": "curl", "tgid": 10} | ({"detail": detail} if detail else {}) | fields


def looked_up(host: str, **fields: Any) -> dict[str, Any]:
    return event("dns", host=host, **{"layer": "resolver", **fields})


def connected(dst: str, port: int, *names: str, **fields: Any) -> dict[str, Any]:
    return event("connect", **{"proto": "tcp", "dst": dst, "port": port, "names": list(names), **fields})


def learned(*events: dict[str, Any], rules: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    known = Known(tuple(map(parse_rule, rules)), INSPECTED)
    found = learn("b", events, known, **options)
    shuffled = list(events)
    random.Random(1).shuffle(shuffled)
    assert learn("b", shuffled, known, **options) == found  # the order in which they are read plays no part
    check(learned_manifest(found, kept=rules), set(rules) | set(texts(found)))
    return found


def check(text: str, rules: set[str]) -> None:
    """It is YAML that `policy check` accepts, beside a provider's hosts, and has these rules."""
    chain = (manifest.parse(text, "/m/learned.yml", trusted=True),)
    policy = effective(settings.parse("", "s.yml"), chain, Options(name="b"), providers=PROVIDERS)
    assert {rule.text for rule in policy.rules} == rules


def texts(found: dict[str, Any]) -> list[str]:
    return [rule["rule"] for rule in found["rules"]]


def left(found: dict[str, Any]) -> dict[str, str]:
    return {unmet["what"]: unmet["because"] for unmet in found["not_proposed"]}


def test_a_name_explains_the_address_that_its_process_had_asked_for() -> None:
    found = learned(
        looked_up("www.x.example"),
        connected("198.51.100.1", 443, "www.x.example", "other.x.example"),
        connected("198.51.100.1", 443, "www.x.example", "other.x.example", count=3),
    )
    assert texts(found) == ["www.x.example:443"] and left(found) == {}
    (rule,) = found["rules"]
    assert (rule["count"], rule["processes"], rule["layers"]) == (4, ["curl"], ["bpf"])
    assert (rule["depth"], rule["assumed_port"], rule["or"]) == ("name", False, [])


def test_the_parents_lookup_counts_and_a_strangers_does_not() -> None:
    asked = looked_up("db.x.example", tgid=20)
    child = connected("198.51.100.1", 5432, "db.x.example", tgid=21, ppid=20)
    stranger = connected("198.51.100.1", 5433, "db.x.example", tgid=99, ppid=1)
    before = connected("198.51.100.1", 5434, "db.x.example", tgid=20)
    before["ts"] = "2026-01-01T00:00:00.000000000Z"  # it had not asked yet
    assert texts(learned(asked, child, stranger, before)) == [
        "db.x.example:5432", "198.51.100.1:5433", "198.51.100.1:5434",
    ]  # fmt: skip


def test_ports_and_protocols_are_exact() -> None:
    found = learned(
        connected("198.51.100.1", 22),
        connected("2001:db8::1", 8080),
        event("send", proto="udp", dst="198.51.100.9", port=514),
        event("send", proto="udp", dst="2001:db8::1", port=53),
    )
    assert texts(found) == [
        "198.51.100.1:22", "udp://198.51.100.9:514", "udp://[2001:db8::1]:53", "[2001:db8::1]:8080",
    ]  # fmt: skip


def test_a_host_that_is_used_on_other_ports_too_is_direct_on_all() -> None:
    found = learned(
        looked_up("git.x.example"),
        connected("198.51.100.1", 443, "git.x.example"),
        connected("198.51.100.1", 22, "git.x.example"),
    )
    assert texts(found) == ["git.x.example:22", "tcp://git.x.example:443"]
    known = learned(connected("198.51.100.1", 443, "git.x.example", verdict="refused"), rules=("git.x.example:22",))
    assert texts(known) == ["tcp://git.x.example:443"]


def test_a_refused_name_assumes_its_port_unless_one_was_seen() -> None:
    refused = looked_up("a.x.example", verdict="refused")
    found = learned(refused, looked_up("api.anthropic.com", verdict="refused"))
    assert texts(found) == ["api.anthropic.com:443", "a.x.example:443"]
    assert all(rule["assumed_port"] for rule in found["rules"])
    assert "port 443 is assumed" in learned_manifest(found)
    seen = event("connect", "refused", host="a.x.example", port=443, proto="tcp", layer="relay")
    assert learned(refused, seen)["rules"][0]["assumed_port"] is False


def test_libcs_datagram_sockets_are_no_needs_and_a_real_one_is() -> None:
    found = learned(
        looked_up("a.x.example"),
        connected("198.51.100.1", 443, "a.x.example", proto="udp"),
        connected("2001:db8::1", 443, "a.x.example", proto="udp"),
        connected("198.51.100.1", 443, "a.x.example"),
        connected("198.51.100.1", 9000, "a.x.example", proto="udp", tgid=11, ppid=10),
        connected("198.51.100.7", 0, proto="udp"),
        connected("10.213.0.3", 443, proto="udp"),
    )
    assert texts(found) == ["tcp://a.x.example:443", "udp://a.x.example:9000"]
    assert left(found) == {
        "a.x.example:443/udp": "sorting",
        "198.51.100.7/udp": "sorting",
        "10.213.0.3:443/udp": "sorting",
    }


@pytest.mark.parametrize(
    ("seen", "because"),
    [
        (connected("169.254.169.254", 80, verdict="refused", reason="protected"), "protected"),
        (connected("127.0.0.1", 80), "protected"),
        (connected("fd61:6d6f:6e::3", 22), "own"),
        (connected("198.51.100.1", 0, proto="icmp"), "no-port"),
        (connected("", 80), "no-place"),
        (connected("198.51.100.1", 80, verdict="refused", reason="deny", rule="!198.51.100.0/24"), "deny"),
        (connected("198.51.100.1", 80, verdict="refused", reason="expired"), "expired"),
        (event("dns", "refused", host="x_!.example", reason="bad-name"), "bad-name"),
        (event("connect", "refused", host="-.example", port=443, layer="relay"), "bad-name"),
        (event("dns", "refused", detail={"others": True}), "others"),
        (event("bypass", "observed", reason="unvouched", dst="198.51.100.1", port=80), "unvouched"),
        (event("socket", "refused", reason="family"), "family"),
        (event("request", "refused", host="api.anthropic.com", port=443, reason="endpoint"), "endpoint"),
        (event("connect", "refused", reason="unix", path="/run/x.sock"), "unix"),
        (event("connect", "refused", host="localhost", port=443, layer="relay"), "protected"),
        (looked_up("nothing.x.example"), "lookup"),
        (looked_up("_https._tcp.apt.example", verdict="refused"), "lookup"),
    ],
)
def test_what_no_rule_should_open_is_told_and_not_proposed(seen: dict[str, Any], because: str) -> None:
    found = learned(seen)
    assert found["rules"] == []
    assert [unmet["because"] for unmet in found["not_proposed"]] == [because]
    text = learned_manifest(found)
    assert "allow: []" in text and "# Not proposed:" in text
    assert " " in text.rpartition("; ")[2].strip()  # in words


def test_what_the_policy_denies_or_allows_by_now_is_not_proposed() -> None:
    events = (
        looked_up("a.x.example", verdict="refused"), looked_up("b.x.example", verdict="refused"),
        connected("198.51.100.1", 80), connected("198.51.100.2", 80),
    )  # fmt: skip
    found = learned(*events, rules=("a.x.example:443", "!b.x.example", "198.51.100.1:80"))
    assert texts(found) == ["198.51.100.2:80"]
    assert left(found) == {"b.x.example:443 (!b.x.example)": "deny"}


def test_an_address_of_a_host_that_is_held_by_name_opens_nothing_and_is_not_proposed() -> None:
    found = learned(
        looked_up("www.x.example"),
        connected("198.51.100.1", 443, "www.x.example"),
        connected("198.51.100.1", 9000, "www.x.example", tgid=99),
        looked_up("api.anthropic.com", tgid=5, verdict="allowed"),
        connected("198.51.100.2", 22, "api.anthropic.com", tgid=5),
        connected("198.51.100.3", 22, "held.x.example", verdict="refused"),
        rules=("held.x.example:443",),
    )
    assert texts(found) == ["www.x.example:443"]
    assert left(found) == {
        "198.51.100.1:9000 (www.x.example)": "held", "api.anthropic.com:22": "served", "held.x.example:22": "served",
    }  # fmt: skip


def test_of_two_names_at_one_address_the_last_one_asked_for_is_meant_if_the_other_is_explained() -> None:
    """As libc's datagrams are: they go by the name that is being looked up."""
    found = learned(
        looked_up("a.x.example"),
        connected("198.51.100.1", 9000, "a.x.example", proto="udp"),
        looked_up("b.x.example"),
        connected("198.51.100.1", 9000, "b.x.example", "a.x.example", proto="udp"),
        connected("198.51.100.1", 9000, "b.x.example", "a.x.example"),
    )
    assert texts(found) == ["udp://a.x.example:9000", "b.x.example:9000"]
    assert left(found) == {"b.x.example:9000/udp": "sorting"} and found["rules"][1]["or"] == ["a.x.example"]


def test_two_names_of_one_process_at_one_address_are_both_proposed_and_said() -> None:
    found = learned(
        looked_up("a.x.example"), looked_up("b.x.example"), connected("198.51.100.1", 443, "b.x.example", "a.x.example")
    )
    assert texts(found) == ["a.x.example:443", "b.x.example:443"]
    assert found["rules"][0]["or"] == ["b.x.example"]
    assert "or b.x.example was meant" in learned_manifest(found)


def test_a_request_beside_the_paths_of_a_rule_gets_its_own_path() -> None:
    def asked(path: str, port: int = 443) -> dict[str, Any]:
        detail = {"path": path, "method": "GET"}
        return event("request", "refused", host="h.x.example", port=port, layer="proxy", detail=detail)

    rules = ("https://h.x.example/v1/*",)
    assert texts(learned(asked("/v2/x"), rules=rules)) == ["https://h.x.example/v2/x"]
    assert texts(learned(asked("/", 80), rules=rules)) == ["h.x.example:80"]
    for path in ("/a*b", "/" + "x" * 199):  # more, or less, than what was asked for
        found = learned(asked(path), rules=rules)
        assert texts(found) == [] and set(left(found).values()) == {"no-rule"}


def test_a_wildcard_is_mentioned_with_its_reason_and_never_proposed() -> None:
    def used(count: int) -> dict[str, Any]:
        return learned(*(looked_up(f"h{n}.cdn.example", verdict="refused") for n in range(count)))

    assert used(WIDER_FROM - 1)["wider"] == []
    found = used(WIDER_FROM)
    names = [f"h{n}.cdn.example" for n in range(WIDER_FROM)]
    assert found["wider"] == [{"rule": "*.cdn.example:443", "names": names}]
    assert not any("*" in text for text in texts(found))
    assert '#  - "*.cdn.example:443"' in learned_manifest(found).splitlines()


def test_only_the_verdicts_that_are_asked_for() -> None:
    events = (connected("198.51.100.1", 1), connected("198.51.100.2", 2, verdict="refused"))
    assert texts(learned(*events, verdicts=frozenset({"refused"}))) == ["198.51.100.2:2"]
    assert texts(learned(*events, verdicts=frozenset({"observed"}))) == ["198.51.100.1:1"]


def test_the_manifest_tells_the_evidence_and_what_a_job_wrote_breaks_out_of_no_comment() -> None:
    evil = "x\nallow: ['*.evil.example']\u2028#"
    found = learned(
        connected("198.51.100.1", 22, comm=evil, count=2),
        event("dns", "refused", host=evil, reason="bad-name", comm="nc"),
    )
    text = learned_manifest(found, extends="/etc/agentmon/bottles/ci.yml", lost=3)
    assert "evil" in text and all(
        line.startswith(("#", "  #", "  -", "allow:", "extends:")) for line in text.split("\n") if line
    )
    assert "\u2028" not in text
    assert 'extends: "/etc/agentmon/bottles/ci.yml"' in text and "3 events of this time could not be recorded" in text
    (line,) = [line for line in text.splitlines() if line.startswith("  # 2 times")]
    assert "observed by bpf; checked by address and port only" in line and "Z, x\\x0aallow" in line
    assert learned_manifest(found) == learned_manifest(found)
    assert "add its rules, or give --policy FILE" in learned_manifest(found)


def test_of_nothing_nothing_is_learned() -> None:
    text = learned_manifest(learned())
    assert text.startswith("# Learned from bottle b: 0 rules from 0 events.\n") and text.endswith("allow: []\n")
