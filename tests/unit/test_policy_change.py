"""`agentmon allow` and `agentmon deny` on a policy in force."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import compile as compiler
from agentmon.errors import BadInput, Refused
from agentmon.policy import settings
from agentmon.policy.change import is_removal, placed, with_allowed, with_denied
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.merge import Options, effective
from agentmon.policy.rules import PolicySet, parse_rule


def policy(*allow, deny=()):
    text = f"deny: {list(deny)!r}".replace("'", '"')
    return effective(settings.parse(text, "s.yml"), (), Options(name="b", allow=allow), providers={})


def texts(p):
    return [rule.text for rule in p.rules]


def test_allow_adds_once():
    once = with_allowed(policy("a.example"), "B.example:443")
    assert texts(once) == ["b.example:443", "a.example"]
    assert once.origins[0] == "agentmon allow"
    assert with_allowed(once, "b.example:443") == once
    assert not is_removal(policy("a.example"), once)


def test_allow_takes_back_a_deny_of_the_same_target_however_written():
    assert texts(with_allowed(policy("!https://a.example"), "a.example:443")) == ["a.example:443"]
    assert texts(with_allowed(policy("!a.example"), "a.example")) == ["a.example"]
    assert texts(with_allowed(policy("!a.example"), "!a.example")) == ["a.example"]


def test_allow_says_when_it_would_have_no_effect():
    with pytest.raises(Refused, match=r"a.example is denied by !\*.example \(settings s.yml:1\)"):
        with_allowed(policy(deny=["*.example"]), "a.example")
    with pytest.raises(Refused, match=r"a.example is denied by !a.example"):
        with_allowed(policy(deny=["a.example"]), "a.example")
    with pytest.raises(Refused) as caught:
        with_allowed(policy("!*.example"), "a.example")
    assert "!*.example" in caught.value.hint
    with pytest.raises(Refused):
        with_allowed(policy("!10.0.0.0/8"), "10.1.0.0/16:53")


def test_allow_refuses_what_contradicts():
    with pytest.raises(BadInput, match=r"is direct, but a.example"):
        with_allowed(policy("a.example"), "tcp://a.example:22")
    with pytest.raises(BadInput, match=r"agentmon allow '10\.\*'"):
        with_allowed(policy(), "10.*")


def test_deny_takes_an_allow_away_and_adds_no_rule_where_that_is_enough():
    assert texts(with_denied(policy("a.example", "b.example"), "a.example")) == ["b.example"]
    assert texts(with_denied(policy("https://a.example"), "a.example:443")) == []
    assert is_removal(policy("a.example"), with_denied(policy("a.example"), "a.example"))


def test_deny_adds_a_rule_where_something_else_allows_it_or_nothing_did():
    assert texts(with_denied(policy("*.example"), "a.example")) == ["!a.example", "*.example"]
    assert texts(with_denied(policy("a.example", "*.example"), "a.example")) == ["!a.example", "*.example"]
    assert texts(with_denied(policy(), "a.example")) == ["!a.example"]
    once = with_denied(policy("*.example"), "a.example")
    assert with_denied(once, "!a.example") == once
    assert texts(with_denied(policy(), "127.0.0.1")) == ["!127.0.0.1"]


def test_by_flag():
    assert compiler.with_rule(policy(), "a.example", False) == with_allowed(policy(), "a.example")
    assert compiler.with_rule(policy(), "a.example", True) == with_denied(policy(), "a.example")


def test_what_counts_as_a_removal():
    base = policy("a.example")
    assert is_removal(base, with_allowed(base, "https://a.example/v1"))  # relayed until now, inspected from now on
    assert is_removal(base, replace(base, inspected=("a.example",)))
    assert not is_removal(policy("!x.example"), with_allowed(policy("!x.example"), "x.example"))


def test_origins_may_be_missing():
    p = EffectivePolicy("b", (parse_rule("a.example"),))
    assert [(x.rule.text, x.origin) for x in placed(p)] == [("a.example", "")]


rules = st.sampled_from(
    ["a.example", "*.example", "a.example:443", "https://a.example", "http://a.example", "b.a.example"]
)


@given(st.lists(rules, max_size=4, unique=True), rules)
def test_what_was_denied_is_denied_and_what_was_allowed_is_allowed(before, text):
    rule = parse_rule(text)
    host = rule.host.replace("*", "probe")
    ports = [port for port in (443, 80) if rule.depth_at("tcp", port)]
    denied = with_denied(policy(*before), text)
    assert not any(PolicySet(denied.rules).decide_name(host, port) for port in ports)
    allowed = with_allowed(policy(*before), text)
    assert all(PolicySet(allowed.rules).decide_name(host, port) for port in ports)


def test_denying_an_address_that_a_direct_name_may_resolve_to_adds_a_deny() -> None:
    before = policy("tcp://direct.example:8080", "tcp://198.51.100.11:8080")
    after = with_denied(before, "tcp://198.51.100.11:8080")
    assert [rule.text for rule in after.rules] == ["!tcp://198.51.100.11:8080", "tcp://direct.example:8080"]
