"""Every key that can be written is effective; and its errors say what to do."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from agentmon.errors import BadInput
from agentmon.policy import manifest, routes, settings
from agentmon.policy.effective import LIMITS, EffectivePolicy
from agentmon.policy.explain import check, explain
from agentmon.policy.explain_text import check_text
from agentmon.policy.merge import Options, effective
from agentmon.providers import registry

ROOT = Path(__file__).parents[2]
SETTINGS = {  # key: a value that is not its default
    "budget": "{claude: 5}", "ceiling": "{claude: 5}", "weights": "{input: 1}", "shutdown": "kill",
    "unreadable": "cut",
    "deny": "[x.example]",
    "log": "full", "ledger": "postgresql://h/x", "approvals_timeout": "7", "alert": "/bin/true",
    "approvals": "{hook: [/bin/true], operator: false}", "dlp": "{rules: /x.toml}",
    "upstream": "{proxy: 'http://p.example:3128', dns: [198.51.100.53], ca: /x.pem}", "grants": "{observe: true}",
    "credentials": "{k: {command: [/bin/true]}}",
    "retention": "{events: 1d, events_bytes: 1M, usage: 1d}", "providers": "{claude: {hosts: [c.example]}}",
    "bottles_dir": "/x", "addresses": "{v4: 10.1.0.0/16}", "proxies": "3",
}  # fmt: skip
MANIFEST = {
    "extends": "parent", "provider": "claude", "agents": "{a: {budget: {claude: 5}}}", "allow": "[x.example]",
    "routes": "[{host: x.example, methods: [GET]}]", "budget": "{claude: 5}", "shutdown": "kill", "guard": "off",
    "home": "host", "ro": "[/x]", "rw": "[/x]", "unix": "[/run/x.sock]", "listen": "[8080]", "io_uring": "true",
    "limits": "{pids: 9}", "unreadable": "cut",
}  # fmt: skip
ROUTE = {
    "host": "y.example", "auth": "{header: x-api-key, credential: k}",
    "methods": "[GET]", "paths": "[/x]", "headers": "{x-a: b, x-c: null}", "query": "{v: '2'}",
    "outbound": "block", "inbound": "block",
    "scan_headers": "{except: [cookie]}", "git_fetch": "true",
}  # fmt: skip
READ_IN_POLICY = {"extends", "agents", "provider", "bottles_dir", "deny", "budget", "ceiling", "providers", "grants"}


def attributes_read() -> set[str]:
    """Names of attributes that the product reads outside of what parses, merges and shows policies."""
    found: set[str] = set()
    for file in ROOT.glob("agentmon/**/*.py"):
        if file.relative_to(ROOT).parts[1] not in {"policy", "render"}:
            found |= {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    return found


def merged(tmp_path: Path, text: str, host: settings.Settings, **options: str) -> EffectivePolicy:
    (tmp_path / "parent.yml").write_text("allow: [p.example]\n")
    (tmp_path / "m.yml").write_text(text)
    chain = manifest.load_chain(tmp_path / "m.yml", tmp_path)
    return effective(host, chain, Options(**{"name": "b", **options}), registry.load())


def changed(before: object, after: object) -> set[str]:
    names = {f.name for f in fields(before)} - {"source", "sources", "origins", "places"}  # type: ignore[arg-type]
    return {name for name in names if getattr(before, name) != getattr(after, name)}


def test_the_tables_have_every_key() -> None:
    assert set(SETTINGS) == set(settings._READERS)
    assert set(MANIFEST) == set(manifest._READERS)
    assert set(ROUTE) == set(routes._KEYS)


@pytest.mark.parametrize("key", SETTINGS)
def test_a_key_of_the_settings_does_something(key: str) -> None:
    found = settings.parse(f"{key}: {SETTINGS[key]}\n", "s.yml")
    names = changed(settings.Settings(), found)
    assert names
    assert key in READ_IN_POLICY or names - {"usage_age_s"} <= attributes_read()


@pytest.mark.parametrize("key", MANIFEST)
def test_a_key_of_a_manifest_changes_the_policy_that_is_applied(tmp_path: Path, key: str) -> None:
    host = settings.Settings(bottles_dir=tmp_path)
    options = {"agent": "a"} if key == "agents" else {}
    before = merged(tmp_path, "", host, **options)
    names = changed(before, merged(tmp_path, f"{key}: {MANIFEST[key]}\n", host, **options))
    assert names
    assert key in READ_IN_POLICY or names <= attributes_read()


@pytest.mark.parametrize("key", ROUTE)
def test_a_key_of_a_route_is_decided_by(tmp_path: Path, key: str) -> None:
    entry = f"{{host: x.example, {key}: {ROUTE[key]}}}" if key != "host" else f"{{host: {ROUTE[key]}}}"
    text, host = f"allow: [x.example]\nroutes: [{entry}]\n", settings.Settings(bottles_dir=tmp_path)
    (route,) = merged(tmp_path, text, host).routes
    plain = type(route)(host="x.example")
    names = {name for name in route.__struct_fields__ if getattr(route, name) != getattr(plain, name)}
    assert names and names <= attributes_read()


def test_every_limit_is_held_somewhere() -> None:
    held = "".join(f.read_text() for f in ROOT.glob("agentmon/*/*.py") if f.parent.name not in {"policy", "render"})
    assert all(f'"{limit}"' in held for limit in LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        "budget: 5", "shutdown: never", "shutdown: [a]", "shutdown:\n  a: 1", "io_uring: yes", 'io_uring: "true"',
        "budget: {claude: many}", 'budget: {claude: "5"}', "limits: {pids: 0}", "limits: [1]", "allow: x.example",
        "extends: []", "guard: ''", "routes: [x]", "routes: [{host: x.example, methods: [get]}]",
        "routes: [{host: x.example, headers: {'a b': x}}]",
        "routes: [{host: x.example, query: {'a=b': x}}]", "routes: [{host: x.example, query: [x]}]", "rw: [x]",
        "routes: [{host: x.example, auth: {header: 'x:', credential: k}}]", "agents: 3", "home: elsewhere",
    ],
)  # fmt: skip
def test_every_wrong_value_in_a_manifest_has_place_and_hint(text: str) -> None:
    with pytest.raises(BadInput, match=r"m\.yml:[12]: ") as caught:
        manifest.parse(text, "/m.yml", trusted=True)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "upstream: 3", "upstream: {proxy: x}", "upstream: {ca: x}", "weights: {input: -1}", "alert: true", "grants: 1",
        "addresses: {v4: x}", "log: loud", "deny: x", "retention: {events: soon}", "bottles_dir: x",
        "credentials: 3", "credentials: {K: {}}", "credentials: {k: {}}", "credentials: {k: {command: [x]}}",
        "providers: 3", "providers: {x: 3}", "providers: {claude: {like: codex}}", "providers: {claude: {hosts: x}}",
        "providers: {claude: {endpoints: {GET /x: dear}}}", "providers: {house: {hosts: [h.example]}}",
        "providers: {claude: {hosts: [api.openai.com]}}",
    ],
)  # fmt: skip
def test_every_wrong_value_in_the_settings_has_place_and_hint(text: str) -> None:
    with pytest.raises(BadInput, match=r"s\.yml:1: ") as caught:
        settings.parse(text, "s.yml")
    assert caught.value.hint


def test_a_provider_error_stands_where_its_key_stands() -> None:
    with pytest.raises(BadInput, match=r"^s\.yml:3: providers\.claude\.hosts: expected a list of text"):
        settings.parse("providers:\n  claude:\n    hosts: 3\n", "s.yml")


def test_deny_in_a_manifest_is_told_what_to_write() -> None:
    with pytest.raises(BadInput, match=r"m\.yml:2: unknown key 'deny'") as caught:
        manifest.parse("allow: [a.example]\ndeny: [b.example]\n", "m.yml", trusted=True)
    assert 'write "!host" under allow:' in caught.value.hint


def test_a_budget_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--budget 'claude=0' gives no token") as caught:
        effective(settings.Settings(), (), Options(name="b", budgets=("claude=0",)), registry.load())
    assert caught.value.hint


@pytest.mark.parametrize("dest", ["x y", "!x.example"])
def test_a_destination_is_shown_as_it_was_written(dest: str) -> None:
    with pytest.raises(BadInput) as caught:
        explain(EffectivePolicy("b", ()), dest)
    assert repr(dest) in caught.value.message and f"!{dest}" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize(("text", "said"), [("allow: [a.example]", "1 rule from 1 file"), ("", "0 rules from 1 file")])
def test_a_check_counts_as_people_do(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.yml").write_text(text)
    assert check_text(check(tmp_path / "m.yml", settings.Settings(), registry.load())).endswith(f"ok, {said}")
