"""`policy check`, `policy explain`: the data and its text."""

from __future__ import annotations

import json

import pytest

from agentmon.errors import BadInput
from agentmon.policy import manifest, settings
from agentmon.policy.explain import check, explain, warnings
from agentmon.policy.explain_text import check_text, explain_text
from agentmon.policy.merge import Options, effective
from agentmon.providers import registry
from agentmon.providers.declaration import Provider

PROVIDERS = {"claude": Provider("claude", hosts=("api.anthropic.com",), endpoints=())}


def policy(text, host_text="", **options):
    chain = (manifest.parse(text, "/m/web.yml", trusted=True),)
    return effective(
        settings.parse(host_text, "s.yml"), chain, Options(**{"name": "web", **options}), providers=PROVIDERS
    )


RULES = (
    "allow: [api.anthropic.com, '*.example', '*.anthropic.com', 'db.other:5432', 10.0.0.0/8, 'https://h.other/v1/*',"
    " '!x.example']\nbudget: {claude: 5}"
)


def test_every_rule_says_its_depth_and_what_it_does_not_check():
    data = explain(policy(RULES))
    by_rule = {rule["rule"]: rule for rule in data["rules"]}
    assert by_rule["api.anthropic.com"]["depth"] == "inspected"  # a provider's host, although the rule is a name rule
    assert [o["depth"] for o in by_rule["*.example"]["opens"]] == ["name", "inspected"]
    assert "fronting" in by_rule["*.example"]["unchecked"][0]
    assert by_rule["*.anthropic.com"]["note"] == "below it, inspected: api.anthropic.com"
    assert by_rule["db.other:5432"]["depth"] == "direct"
    assert "shared network" in by_rule["10.0.0.0/8"]["unchecked"][0]
    assert by_rule["10.0.0.0/8"]["opens"] == [
        {"proto": "tcp", "ports": "all", "depth": "direct"},
        {"proto": "udp", "ports": "all", "depth": "direct"},
    ]
    assert by_rule["https://h.other/v1/*"]["depth"] == "inspected"
    assert by_rule["!x.example"]["denies"][0]["ports"] == "all"
    assert all(rule["origin"] == "/m/web.yml:1" for rule in data["rules"])
    json.dumps(data)
    text = explain_text(data)
    assert "opens TCP 443: name" in text
    assert "does not check what is inside TLS" in text
    assert "budget: bottle web: claude 5 per run" in text
    assert "denies UDP all" in text
    assert "below it, inspected: api.anthropic.com" in text


def test_an_empty_policy_and_observe():
    text = explain_text(explain(policy("", observe=True)))
    assert "OBSERVE: the allowlist is relaxed" in text
    assert "budget: none" in text


@pytest.mark.parametrize(
    ("dest", "verdict", "reason", "layer", "extra"),
    [
        ("a.example", "allowed", "allow", "relay", {"depth": "name", "rule": "*.example", "port": 443}),
        ("http://a.example", "allowed", "allow", "proxy", {"depth": "inspected", "port": 80}),
        ("api.anthropic.com", "allowed", "allow", "proxy", {"depth": "inspected"}),
        ("https://h.other/v1/x", "allowed", "allow", "proxy", {"depth": "inspected"}),
        ("https://h.other/v2/x", "refused", "default", "proxy", {}),
        ("db.other:5432", "allowed", "allow", "bpf, host-nft", {"depth": "direct", "origin": "/m/web.yml:1"}),
        ("db.other:22", "refused", "default", "bpf, host-nft", {"hint": "agentmon allow web db.other:22"}),
        ("x.example", "refused", "deny", "resolver", {"rule": "!x.example"}),
        ("nobody.other", "refused", "default", "resolver", {"hint": "agentmon allow web nobody.other:443"}),
        (
            "udp://nobody.other:53",
            "refused",
            "default",
            "resolver",
            {"hint": "agentmon allow web udp://nobody.other:53"},
        ),
        ("10.1.2.3:25", "allowed", "allow", "bpf, host-nft", {"address": "10.1.2.3"}),
        ("198.51.100.7", "refused", "default", "bpf, host-nft", {"hint": "agentmon allow web 198.51.100.7:443"}),
        ("[2001:db8::1]:22", "refused", "default", "bpf, host-nft", {"hint": "agentmon allow web [2001:db8::1]:22"}),
        ("127.0.0.1:8080", "allowed", "own", "bpf, bottle-nft", {"address": "127.0.0.1"}),
        ("[::1]:8080", "allowed", "own", "bpf, bottle-nft", {}),
        ("[::ffff:127.0.0.1]:80", "refused", "protected", "bpf, host-nft", {}),
        ("169.254.169.254:80", "refused", "protected", "bpf, host-nft", {"why": "link-local"}),
        ("localhost:80", "allowed", "own", "bpf, bottle-nft", {"host": "localhost"}),
        ("localhost6:80", "refused", "protected", "resolver", {}),
        ("http://h.other/", "refused", "default", "proxy", {"port": 80}),
        ("https://h.other/", "refused", "default", "proxy", {}),
        ("https://a.example/", "allowed", "allow", "relay", {"depth": "name"}),
        ("agentmon.internal:80", "allowed", "own", "proxy", {}),
        ("agentmon.internal", "refused", "own", "proxy", {}),
        ("udp://agentmon.internal:80", "refused", "own", "bpf, host-nft", {}),
        ("10.213.0.2:53", "allowed", "own", "resolver", {}),
        ("10.213.0.3", "allowed", "own", "relay", {}),
        ("10.213.0.3:80", "allowed", "own", "proxy", {}),
        ("10.213.7.7:22", "refused", "own", "bpf, host-nft", {}),
    ],
)
def test_one_destination(dest, verdict, reason, layer, extra):
    data = explain(policy(RULES), dest)
    found = data["dest"]
    assert (found["verdict"], found["reason"], found["layer"]) == (verdict, reason, layer)
    assert {key: found[key] for key in extra} == extra
    text = explain_text(data)
    assert verdict in text and f"decided by {layer}" in text
    assert found.get("hint", "") in text


ROUTED = (
    "allow: [api.anthropic.com, 'https://h.other', 'http://h.other', wide.other]\n"
    "routes: [{host: h.other, methods: [POST], paths: ['/v1/*']}]"
)


@pytest.mark.parametrize(
    ("dest", "reason", "word"),
    [
        ("https://h.other/v2/x", "path", "Path /v2/x is not allowed"),
        ("https://api.anthropic.com/v1/unknown", "endpoint", "cannot be metered"),
        ("https://api.anthropic.com/v1/complete", "endpoint", "cannot be metered"),
        ("http://h.other/v1/x", None, ""),
        ("https://h.other/v1/x", None, ""),
        ("https://api.anthropic.com/v1/messages", None, ""),
    ],
)
def test_a_request_is_what_the_proxy_says_of_it(dest, reason, word):
    data = explain(policy(ROUTED), dest, registry.load())
    found, text = data["dest"], explain_text(data)
    if reason is None:
        assert found["verdict"] == "allowed" and found["methods"] == ["POST"] and "POST" in text
        return
    assert (found["verdict"], found["reason"], found["layer"]) == ("refused", reason, "proxy")
    assert word in text and "refused in web" in text and "\n  hint: " in text
    json.dumps(data)


def test_a_host_says_which_of_its_requests_pass():
    text = explain_text(explain(policy(ROUTED), "h.other", registry.load()))
    assert "requests, methods: POST" in text and "requests, paths: /v1/*" in text
    text = explain_text(explain(policy(ROUTED), "api.anthropic.com", registry.load()))
    assert "requests, POST /v1/messages: metered" in text and "all others of claude: refused" in text
    assert "requests" not in explain(policy(ROUTED), "wide.other", registry.load())["dest"]


def test_a_provider_is_not_reached_in_the_clear():
    found = explain(policy("allow: ['http://api.anthropic.com']"), "http://api.anthropic.com", registry.load())["dest"]
    assert (found["verdict"], found["reason"]) == ("refused", "plain")


def test_observe_relaxes_only_what_no_rule_speaks_of():
    observed = policy(RULES, observe=True)
    assert explain(observed, "nobody.other")["dest"]["verdict"] == "observed"
    assert explain(observed, "x.example")["dest"]["verdict"] == "refused"
    assert explain(observed, "169.254.1.1")["dest"]["verdict"] == "refused"


@pytest.mark.parametrize("dest", ["*.example", "10.0.0.0/8", "h.example:1-5", "https://h.example/*", "h.example:x", ""])
def test_a_destination_is_one(dest):
    with pytest.raises(BadInput, match="destination"):
        explain(policy(RULES), dest)


def test_warnings_name_what_has_no_effect():
    found = warnings(
        policy(
            "allow: ['*.example', a.example, 'b.example:443', '!*.gone', x.gone, 10.0.0.0/8, '10.1.0.0/16:53']\n"
            "routes: [{host: nobody.other}, {host: a.example}, {host: '*.sub.example'}, {host: x.gone}]"
        )
    )
    assert found == [
        "/m/web.yml:1: a.example adds nothing: *.example allows it already",
        "/m/web.yml:1: b.example:443 adds nothing: *.example allows it already",
        "/m/web.yml:1: x.gone has no effect: !*.gone denies it",
        "/m/web.yml:1: 10.1.0.0/16:53 adds nothing: 10.0.0.0/8 allows it already",
        "route nobody.other has no effect: no rule allows the host (add nobody.other to allow:)",
        "route x.gone has no effect: no rule allows the host (add x.gone to allow:)",
    ]


def test_warnings_of_many_rules_are_found_in_one_pass():
    rules = ", ".join(f"h{i}.example:443" for i in range(5000))
    assert warnings(policy(f"allow: [{rules}]")) == []


def test_check(tmp_path):
    file = tmp_path / "web.yml"
    file.write_text("extends: base\nallow: [a.example, 'a.example:443']\n")
    (tmp_path / "base.yml").write_text("budget: {claude: 5}\n")
    host = settings.parse(f"bottles_dir: {tmp_path}\n", "s.yml")
    data = check(file, host, PROVIDERS)
    assert data["ok"] and data["rules"] == 2
    assert data["sources"] == [str(file), str(tmp_path / "base.yml"), "s.yml"]
    assert "warning: " in check_text(data)
    assert "ok, 2 rules from 3 files" in check_text(data)
    file.write_text("allow: [a.example]\nbudget: {claud: 5}\n")
    with pytest.raises(BadInput, match=r"web.yml:2: budget.claud: unknown provider"):
        check(file, host, PROVIDERS)


def test_guard_listening_and_sockets_are_said():
    data = explain(policy("guard: strict\nlisten: [8080]\nunix: [/run/nscd/]"))
    assert (data["guard"]["mode"], data["listen"], data["unix"]) == ("strict", ["tcp:8080"], ["/run/nscd/"])
    text = explain_text(data)
    for part in ("guard strict: ", "check processes without the guard", "only on: tcp:8080", "the host: /run/nscd/"):
        assert part in text
    plain = explain_text(explain(policy("")))
    assert "guard observe: " in plain and "listens" not in plain and "sockets" not in plain
