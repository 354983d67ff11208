"""Merging: what adds up, what the nearest decides, scopes of budgets, who may raise and who may only lower."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.errors import BadInput, Refused
from agentmon.policy import manifest, settings
from agentmon.policy.effective import LIMITS
from agentmon.policy.merge import Options, effective
from agentmon.policy.options import budget_option, environment
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

PROVIDERS = {
    "claude": Provider("claude", hosts=("api.anthropic.com",), endpoints=(), also=("claude.ai",)),
    "codex": Provider("codex", hosts=("api.openai.com",), endpoints=()),
}
USER = {"uid": 1000, "user_home": "/home/u"}


def host(text=""):
    return settings.parse(text, "s.yml")


def m(text, name="web", *, trusted=True):
    return manifest.parse(text, f"/m/{name}.yml", trusted=trusted)


def merge(chain=(), host_text="", **options):
    return effective(host(host_text), chain, Options(**{"name": "b", **options}), providers=PROVIDERS)


def texts(policy):
    return [rule.text for rule in policy.rules]


def budgets(policy):
    return {(s.scope, s.name): {b.provider: (b.tokens, b.per) for b in s.budgets} for s in policy.scopes if s.budgets}


def test_no_manifest_and_no_options():
    policy = merge()
    assert policy.rules == ()
    assert [(s.scope, s.name) for s in policy.scopes] == [("bottle", "b"), ("host", "host"), ("ceiling", "host")]
    assert (policy.shutdown, policy.guard, policy.home, policy.io_uring) == ("cutoff", "observe", "private", False)
    assert policy.inspected == ("api.anthropic.com", "api.openai.com")  # metered whoever allows them, however


def test_rules_add_up_child_first_and_settings_deny_stands_above():
    child = m("allow: [c.example, shared.example]", "child")
    parent = m("allow: [shared.example, '!x.example']", "parent")
    policy = merge((child, parent), "deny: [evil.example, x.example]", allow=("o.example",))
    assert texts(policy) == ["o.example", "c.example", "shared.example", "!evil.example", "!x.example"]
    assert policy.origins == ("--allow", "/m/child.yml:1", "/m/child.yml:1", "settings s.yml:1", "settings s.yml:1")
    assert policy.sources == ("/m/child.yml", "/m/parent.yml", "s.yml")


def test_the_nearest_decides():
    child = m("guard: strict\nlimits: {pids: 5}\nprovider: codex", "child")
    parent = m(
        "guard: off\nshutdown: kill\nhome: host\nio_uring: true\nlimits: {pids: 9, connections: 7}\nprovider: claude",
        "p",
    )
    policy = merge((child, parent), "shutdown: freeze")
    assert (policy.guard, policy.shutdown, policy.home, policy.io_uring, policy.provider) == (
        "strict", "kill", "host", True, "codex",
    )  # fmt: skip
    assert policy.limits == LIMITS | {"pids": 5, "connections": 7}
    assert merge((child,), "shutdown: freeze").shutdown == "freeze"
    assert merge((parent,), shutdown="freeze", home="private", provider="codex").shutdown == "freeze"
    assert merge((parent,), home="private").home == "private"


def test_a_manifest_from_elsewhere_only_makes_guard_and_listen_stricter():
    host_strict, host_says_nothing = m("guard: strict\nlisten: [8000-8100, udp:5353]", "host"), m("", "host")
    repo = m("guard: observe\nlisten: [8050-9000, 22]", "repo", trusted=False)
    policy = merge((repo, host_strict))
    assert (policy.guard, policy.listen) == ("strict", ("tcp:8050-8100",))
    policy = merge((repo, host_says_nothing))
    assert (policy.guard, policy.listen) == ("observe", ("tcp:22", "tcp:8050-9000"))
    assert merge((m("guard: strict", "repo", trusted=False), m("guard: off", "host"))).guard == "strict"
    assert merge((m("listen: []", "child"), host_strict)).listen == ()
    assert merge((host_says_nothing, host_strict)).listen == ("tcp:8000-8100", "udp:5353")
    assert merge((host_says_nothing,)).listen is None


def test_routes_and_their_hosts():
    child = m("routes: [{host: a.example, methods: [POST]}]", "child")
    parent = m("routes: [{host: a.example}, {host: '*.b.example'}]", "parent")
    policy = merge((child, parent))
    assert policy.routes == (wire.Route("a.example", methods=("POST",)), wire.Route("*.b.example"))
    assert policy.inspected[-2:] == ("a.example", "*.b.example")


def test_paths():
    policy = merge((m("ro: [/srv/x/, ~/.gitconfig]\nrw: [/w]\nunix: [/s]"),), ro=("/opt",), user_home="/home/u")
    assert (policy.ro, policy.rw, policy.unix) == (("/opt", "/srv/x", "/home/u/.gitconfig"), ("/w",), ("/s",))
    for options, message in (
        ({"ro": ("x",)}, "is not absolute"),
        ({"rw": ("~/x",)}, "nobody's home"),
        ({"ro": ("/a/..",)}, "'..'"),
    ):
        with pytest.raises(BadInput) as caught:
            merge(**options)
        assert message in caught.value.message + caught.value.hint


def test_a_provider_without_a_manifest_brings_its_hosts():
    policy = merge(provider="claude", budgets=("200_000",))
    assert texts(policy) == ["api.anthropic.com:443", "claude.ai:443"]
    assert policy.origins == ("provider claude",) * 2
    assert budgets(policy) == {("bottle", "b"): {"claude": (200000, "run")}}
    assert texts(merge((m("allow: [x.example]"),), provider="claude")) == ["x.example"]


def test_scopes_in_order():
    child = m(
        "agents: {rev: {budget: 5}, other: {budget: {codex: 6}}}\nprovider: claude\nbudget: {claude: 10, codex: 3}",
        "child",
    )
    parent = m("budget: {claude: {tokens: 100, per: day}}\nagents: {rev: {budget: {claude: 99}}}", "parent")
    policy = merge((child, parent), "budget: {claude: 1000}\nceiling: {'*': 5000}", agent="rev", budgets=("20",))
    assert [(s.scope, s.name) for s in policy.scopes] == [
        ("agent", "rev"), ("bottle", "b"), ("parent", "parent"), ("host", "host"), ("ceiling", "host"),
    ]  # fmt: skip
    assert budgets(policy) == {
        ("agent", "rev"): {"claude": (5, "run")},
        ("bottle", "b"): {"claude": (20, "run"), "codex": (3, "run")},
        ("parent", "parent"): {"claude": (100, "day")},
        ("host", "host"): {"claude": (1000, "month")},
        ("ceiling", "host"): {"*": (5000, "month")},
    }
    assert policy.agent == "rev"


def test_a_budget_from_elsewhere_lowers_beside_the_host():
    own = m("budget: {claude: 10, codex: 5}\nagents: {rev: {budget: {claude: 3, codex: 2}}}", "repo", trusted=False)
    policy = merge((own,), "budget: {claude: 1000}", agent="rev")
    assert budgets(policy) == {
        ("agent", "rev"): {"codex": (2, "run")},  # nobody with more right says anything about codex
        ("bottle", "b"): {"codex": (5, "run")},
        ("host", "host"): {"claude": (1000, "month")},
        ("ceiling", "agent:rev"): {"claude": (3, "run")},
        ("ceiling", "bottle:b"): {"claude": (10, "run")},
    }


def test_a_parent_from_elsewhere_does_not_take_the_name_of_one_of_the_hosts():
    chain = (m("budget: {codex: 1}", "child", trusted=False), m("budget: {codex: 2}", "base", trusted=False))
    assert ("parent", "/m/base.yml") in budgets(merge(chain))


def test_users_may_lower_and_not_raise():
    given = "budget: {claude: 1000}"
    policy = merge((), given, provider="claude", budgets=("500",), **USER)
    assert budgets(policy) == {
        ("host", "host"): {"claude": (1000, "month")},
        ("ceiling", "bottle:b"): {"claude": (500, "run")},
    }
    with pytest.raises(Refused, match="--budget claude=2000 is more than host host gives") as caught:
        merge((), given, provider="claude", budgets=("2000",), **USER)
    assert caught.value.exit_code == 3
    with pytest.raises(Refused, match="more than bottle b gives"):
        merge((m("budget: {claude: 10}"),), given, budgets=("claude=20",), **USER)
    with pytest.raises(Refused):
        merge((m("budget: {claude: 10}", trusted=False),), given, budgets=("claude=2000",), **USER)
    with pytest.raises(Refused):
        merge((), "budget: {claude: 10}", budgets=("*=11",), **USER)
    both = budgets(merge((m("budget: {claude: 10}"),), given, budgets=("claude=5",), **USER))
    assert (both["bottle", "b"], both["ceiling", "bottle:b"]) == ({"claude": (10, "run")}, {"claude": (5, "run")})
    free = "grants: {raise_budget: true}\n" + given
    assert budgets(merge((), free, budgets=("claude=2000",), **USER))["bottle", "b"] == {"claude": (2000, "run")}
    assert budgets(merge((), given, budgets=("claude=2000",)))["bottle", "b"] == {"claude": (2000, "run")}


def test_without_a_host_budget_a_users_budget_stays_where_resume_finds_it():
    assert budgets(merge((), "", budgets=("claude=5",), **USER)) == {("bottle", "b"): {"claude": (5, "run")}}
    shadow = merge((), "budget: {claude: {tokens: 9, shadow: true}}", budgets=("claude=50",), **USER)
    assert budgets(shadow)["bottle", "b"] == {"claude": (50, "run")}


def test_unreadable_is_the_strictest_that_anybody_says():
    cut, settle = "unreadable: cut", "unreadable: settle"
    for trusted in (True, False):
        for said, of_parent, of_host, expected in (
            ("", "", "", "settle"), ("", "", cut, "cut"), (cut, "", "", "cut"), ("", cut, settle, "cut"),
            (settle, cut, "", "cut"), (settle, "", cut, "cut"),
        ):  # fmt: skip
            chain = (m(said, "child", trusted=trusted), m(of_parent, "parent"))
            assert merge(chain, of_host).unreadable == expected
    with pytest.raises(BadInput, match=r"web.yml:1: unreadable: 'pass'; expected settle \| cut"):
        m("unreadable: pass")


def test_observe_and_milder_shutdown_need_right():
    with pytest.raises(Refused, match="--observe relaxes"):
        merge(observe=True, **USER)
    assert merge((), "grants: {observe: true}", observe=True, **USER).observe
    assert merge(observe=True).observe
    with pytest.raises(Refused, match="is milder than the host's kill"):
        merge((), "shutdown: kill", shutdown="cutoff", **USER)
    assert merge((), "shutdown: kill", shutdown="cutoff").shutdown == "cutoff"


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"name": ""}, "the bottle has no name", "--name"),
        ({"name": "Web/1"}, "bottle 'Web/1' is not a usable name", "lower-case"),
        ({"allow": ("10.*",)}, "--allow '10.*': ", "10.0.0.0/8"),
        ({"allow": ("",)}, "--allow: the rule is empty", "host[:port]"),
        ({"provider": "claud"}, "--provider 'claud'", "did you mean 'claude'?"),
        ({"budgets": ("5",)}, "tokens of which provider?", "--budget claude=5"),
        ({"budgets": ("many",)}, "expected TOKENS or PROVIDER=TOKENS", "claude=200000"),
        ({"budgets": ("=5",)}, "expected TOKENS or PROVIDER=TOKENS", "claude=200000"),
        ({"budgets": ("claud=5",)}, "unknown provider 'claud'", "'claude'"),
        ({"budgets": ("claude=5", "claude=6")}, "has a budget already", "one --budget"),
        ({"agent": "A B"}, "agent 'A B' is not a usable name", "lower-case"),
        ({"shutdown": "stop"}, "--shutdown 'stop'; expected cutoff | freeze | kill", ""),
        ({"home": "privat"}, "--home 'privat'; expected private | host", "did you mean 'private'?"),
        ({"env": ("X",)}, "--env 'X'; expected NAME=VALUE", ""),
        (
            {"allow": ("h.example:443", "tcp://h.example:22")},
            "--allow: tcp://h.example:22 is direct, but",
            "198.51.100.0/24:22",
        ),
        ({"allow": ("tcp://api.anthropic.com:443",)}, "api.anthropic.com is inspected", "write api.anthropic.com:443"),
        ({"allow": ("tcp://*.anthropic.com:443",)}, "api.anthropic.com is inspected", "take the rule out"),
    ],
)
def test_bad_options(options, message, hint):
    with pytest.raises(BadInput) as caught:
        merge(**options)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "host_text", "options", "message"),
    [
        ("provider: claud", "", {}, "/m/web.yml:1: provider: unknown provider 'claud'"),
        ("budget: {claud: 5}", "", {}, "/m/web.yml:1: budget.claud: unknown provider 'claud'"),
        ("agents: {a: {budget: 5}}", "", {"agent": "a"}, "agents.a.budget: tokens of which provider?"),
        ("agents: {reviewer: {}}", "", {"agent": "revewer"}, "--agent 'revewer' is none of the manifest's agents"),
        ("", "budget: {claud: 5}", {}, "s.yml:1: budget.claud: unknown provider"),
        ("", "ceiling: {claud: 5}", {}, "s.yml:1: ceiling.claud: unknown provider"),
        (
            "allow: [h.example, 'tcp://h.example:22']",
            "",
            {},
            "/m/web.yml:1: tcp://h.example:22 is direct, but h.example",
        ),
        ("allow: ['tcp://h.example:22']\nroutes: [{host: h.example}]", "", {}, "h.example is inspected"),
    ],
)
def test_bad_files(text, host_text, options, message):
    with pytest.raises(BadInput) as caught:
        merge((m(text),), host_text, **options)
    assert message in caught.value.message


def test_an_agent_nobody_speaks_of_has_a_scope_and_no_budget():
    policy = merge((m("allow: [a.example]"),), agent="rev")
    assert policy.scopes[0] == wire.ScopeDef("agent", "rev")


def test_a_manifest_from_elsewhere_is_checked():
    with pytest.raises(BadInput, match="gives the job your home directory"):
        merge((m("home: host", trusted=False),))


def test_options_read():
    assert budget_option("codex=1_000") == ("codex", 1000)
    assert environment(Options(env=("A=1", "B=x=y", "A=2"))) == {"A": "2", "B": "x=y"}
    assert effective(Settings(), (m("", "My Repo"),), Options(), providers=PROVIDERS).bottle == "my-repo"


def test_the_secret_of_an_env_option_is_not_repeated():
    with pytest.raises(BadInput) as caught:
        environment(Options(env=("=secret",)))
    assert "secret" not in caught.value.message


@given(st.permutations(["a.example", "!b.example", "*.example:443", "10.0.0.0/8"]))
def test_merging_is_deterministic(allow):
    assert merge(allow=tuple(allow)) == merge(allow=tuple(allow))
    assert sorted(texts(merge(allow=tuple(allow)))) == sorted(allow)
