"""settings.yml: every key and its default, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agentmon import paths
from agentmon.addresses import Pool
from agentmon.errors import BadInput
from agentmon.policy import settings

FULL = """\
budget: {claude: 5000000, codex: {tokens: 2000000, per: day}}
ceiling: {"*": {tokens: 9_000_000, per: week, shadow: true}}
weights: {output: 5000}
shutdown: freeze
deny: ["*.evil.example", "!10.9.0.0/16"]
log: off
ledger: sqlite:////tmp/ledger.db
approvals_timeout: 60
upstream:
  proxy: http://proxy.example:3128
  dns:
    .: [198.51.100.53, "198.51.100.54:5353"]
    corp.example: "[2001:db8::53]:53"
  ca: [system, /etc/ssl/extra.pem]
retention: {events: 2d, events_bytes: 1G, usage: 52w}
alert: /usr/local/bin/page --quiet
grants: {observe: true, raise_budget: false}
providers: {claude: {hosts: [llm.example.org]}}
bottles_dir: /srv/bottles
addresses: {v4: 10.99.0.0/20, v6: null}
"""


def test_every_key():
    s = settings.parse(FULL, "s.yml")
    assert [(b.provider, b.tokens, b.per) for b in s.budget] == [
        ("claude", 5_000_000, None),
        ("codex", 2_000_000, "day"),
    ]
    assert (s.ceiling[0].provider, s.ceiling[0].per, s.ceiling[0].shadow) == ("*", "week", True)
    assert s.weights == {"input": 1000, "cache_write": 1000, "cache_read": 100, "output": 5000}
    assert (s.shutdown, s.log, s.approvals_timeout_s) == ("freeze", "off", 60)
    assert [p.rule.text for p in s.deny] == ["!*.evil.example", "!10.9.0.0/16"]
    assert s.deny[0].origin == "s.yml:5"
    assert s.upstream_dns == {
        ".": (("198.51.100.53", 53), ("198.51.100.54", 5353)),
        "corp.example": (("2001:db8::53", 53),),
    }
    assert (s.upstream_proxy, s.upstream_ca) == ("http://proxy.example:3128", ("/etc/ssl/extra.pem",))
    assert (s.events_age_s, s.events_bytes, s.usage_age_s) == (2 * 86400, 1 << 30, 52 * 604800)
    assert s.alert == ("/usr/local/bin/page", "--quiet")
    assert (s.grants.observe, s.grants.raise_budget) == (True, False)
    assert s.providers == {"claude": {"hosts": ["llm.example.org"]}}
    assert s.bottles_dir == Path("/srv/bottles")
    assert s.pool == Pool(IPv4Network("10.99.0.0/20"), None)
    assert s.source == "s.yml"


def test_defaults():
    s = settings.parse("", "s.yml")
    assert s == settings.Settings(source="s.yml")
    assert s.pool == Pool()
    assert s.upstream_dns == {} and s.upstream_ca == () and s.usage_age_s is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("upstream: {dns: system}", {}),
        ("upstream: {dns: 198.51.100.53}", {".": (("198.51.100.53", 53),)}),
        ("upstream: {dns: [198.51.100.53]}", {".": (("198.51.100.53", 53),)}),
        ("upstream: {dns: 'tls://198.51.100.53'}", {".": (("198.51.100.53", 853, "198.51.100.53"),)}),
        (
            "upstream: {dns: ['tls://DNS.example@198.51.100.53:8853', 'tls://dns.example@[2001:db8::53]']}",
            {".": (("198.51.100.53", 8853, "dns.example"), ("2001:db8::53", 853, "dns.example"))},
        ),
        ('upstream: {dns: {".": system, corp.example: [198.51.100.53]}}', {"corp.example": (("198.51.100.53", 53),)}),
    ],
)
def test_dns_forms(text, value):
    assert settings.parse(text, "s.yml").upstream_dns == value


def test_other_forms():
    assert settings.parse("upstream: {ca: system}", "s").upstream_ca == ()
    assert settings.parse("upstream: {ca: /a.pem}", "s").upstream_ca == ("/a.pem",)
    assert settings.parse("retention: {usage: forever}", "s").usage_age_s is None
    assert settings.parse("alert: [/bin/page, 'two words']", "s").alert == ("/bin/page", "two words")
    assert settings.parse("alert: null\nupstream: {proxy: null}", "s") == settings.Settings(source="s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgets: {}", "s.yml:1: unknown key 'budgets'"),
        ("budget: 5", "s.yml:1: budget: '5'; expected tokens by provider"),
        ("budget: {claude: many}", "s.yml:1: budget.claude: 'many'; expected a number of tokens"),
        ("budget:\n  claude: {tokens: 5, per: year}", "s.yml:2: budget.claude.per: 'year'; expected run | hour"),
        ("budget: {claude: {per: day}}", "budget.claude: tokens: is missing"),
        ("budget: {claude: {tokens: 5, shadows: true}}", "unknown key 'shadows'"),
        ("weights: {in: 5}", "unknown key 'in'"),
        ("weights: {input: -5}", "weights.input: '-5'; expected per mille"),
        ("shutdown: stop", "shutdown: 'stop'; expected cutoff | freeze | kill"),
        ("deny: [localhost:0]", "deny[0]: port '0' is not a port"),
        ("deny: x", "deny: 'x'; expected a list of rules"),
        ("log: true", "log: 'true'; expected off | blocks | full"),
        ("ledger: sqlite:///relative.db", "expected sqlite:////absolute/path"),
        ("ledger: mysql://x", "expected sqlite:////absolute/path"),
        ("approvals_timeout: 0", "'0'; expected seconds, 1 to 86400"),
        ("upstream: {http: x}", "unknown key 'http'"),
        ("upstream: {proxy: socks5://x:1}", "expected http://host:port"),
        ("upstream: {proxy: 'http://x:99999'}", "expected http://host:port"),
        ("upstream: {proxy: 'http://u:p@x:1'}", "the URL has credentials in it"),
        ("upstream: {dns: dns.example}", "'dns.example'; expected an address"),
        ("upstream: {dns: ['198.51.100.53:0']}", "expected an address"),
        ("upstream: {dns: ['[2001:db8::1]x']}", "expected an address"),
        ("upstream: {dns: []}", "no server"),
        ("upstream: {dns: 'tls://dns.example'}", "expected an address"),
        ("upstream: {dns: 'dns.example@198.51.100.53'}", "expected an address"),
        ("upstream: {dns: 'tls://b_d..@198.51.100.53'}", "198.51.100.53'"),
        ("upstream: {dns: 'tls://@198.51.100.53'}", "198.51.100.53'"),
        ("upstream: {dns: [127.0.0.53]}", "not reachable from the resolver"),
        ("upstream: {dns: {corp.example: system}}", "'system' stands for the default only"),
        ("upstream: {dns: {'*.corp': [198.51.100.53]}}", "suffix '*.corp'"),
        ("upstream: {ca: extra.pem}", "'extra.pem'; expected an absolute path"),
        ("retention: {events: long}", "retention.events: 'long'; expected a duration"),
        ("retention: {events_bytes: 5X}", "expected a size"),
        ("dlp: {rules: rules.toml}", "dlp.rules: 'rules.toml'; expected an absolute path"),
        ("dlp: {engine: x}", "unknown key 'engine'"),
        ("alert: page", "expected a command with its absolute path"),
        ("alert: '/bin/page \"x'", "No closing quotation"),
        ("grants: {root: true}", "unknown key 'root'"),
        ("grants: {observe: yes}", "grants.observe: 'yes'; expected true or false"),
        ("providers: {claude: x}", "providers.claude: 'x'; expected a declaration"),
        ("bottles_dir: bottles", "bottles_dir: 'bottles'; expected an absolute path"),
        ("addresses: {v4: 10.0.0.1/8}", "has host bits set"),
        ("addresses: {v4: 198.51.99.0/24}", "is not a private network"),
        ("addresses: {v4: 10.0.0.0/30}", "too small"),
        ("addresses: {v5: x}", "unknown key 'v5'"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(BadInput) as caught:
        settings.parse(text, "s.yml")
    assert message in caught.value.message


def test_which_file(tmp_path, monkeypatch):
    monkeypatch.delenv("AGENTMON_SETTINGS", raising=False)
    assert settings.default_path() == paths.SETTINGS
    monkeypatch.setattr(paths, "SETTINGS", tmp_path / "none.yml")
    assert settings.load() == settings.Settings()  # the ordinary file may be missing
    named = tmp_path / "named.yml"
    monkeypatch.setenv("AGENTMON_SETTINGS", str(named))
    with pytest.raises(BadInput, match="there is no such file"):  # a file that was named may not: its deny rules count
        settings.load()
    named.write_text("log: full\n")
    assert settings.load().log == "full"
    assert settings.load(named).source == str(named)
