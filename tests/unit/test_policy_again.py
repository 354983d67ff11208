"""A running bottle's policy made again: what changes at once, what waits, what was allowed and denied since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentmon import wire
from agentmon.errors import AgentmonError
from agentmon.policy import again as remake
from agentmon.policy import change, manifest
from agentmon.policy.again import NEXT_START, again
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.merge import Options, effective
from agentmon.policy.origin import Origin
from agentmon.policy.plain import from_plain, to_plain
from agentmon.policy.settings import Settings, parse
from agentmon.providers import registry

PROVIDERS = registry.load()
ONE = "allow: [a.example, b.example]\nroutes: [{host: a.example, methods: [GET]}]\n"


class Host:
    def __init__(self, tmp: Path) -> None:
        self.bottles = tmp / "bottles"
        self.bottles.mkdir()
        self.say("")

    def say(self, text: str) -> None:
        self.settings = replace(parse(text, "s.yml"), bottles_dir=self.bottles)

    def start(self, file: Path | None, **options: object) -> EffectivePolicy:
        given = Options(**{"name": "b", **options})  # type: ignore[arg-type]
        texts = manifest.gather(file, self.bottles) if file else {}
        chain = manifest.load_chain(file, self.bottles) if file else None
        made = effective(self.settings, chain, given, PROVIDERS)
        return replace(made, origin=Origin(str(file or ""), texts, given))

    def again(self, policy: EffectivePolicy) -> EffectivePolicy:
        return again(policy, self.settings, PROVIDERS).policy


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def rules(policy: EffectivePolicy) -> set[str]:
    return {rule.text for rule in policy.rules}


def test_rules_routes_limits_and_shutdown_change(host: Host) -> None:
    (host.bottles / "base.yml").write_text(ONE)
    file = host.bottles / "m.yml"
    file.write_text("extends: base\nlimits: {pids: 9}\n")
    before = host.start(file)
    assert host.again(before) == before
    (host.bottles / "base.yml").write_text("allow: [c.example]\nroutes: [{host: b.example, auth: none}]\n")
    file.write_text("extends: base\nshutdown: kill\n")
    host.say("deny: [d.example]\nlog: full\n")
    after = host.again(before)
    assert rules(after) == {"c.example", "!d.example"}
    assert [route.host for route in after.routes] == ["b.example"]
    assert "b.example" in after.inspected and "a.example" not in after.inspected
    assert (after.shutdown, after.limits["pids"], after.log) == ("kill", 512, "full")
    assert change.is_removal(before, after)


def test_what_the_job_was_started_with_stays_and_is_told(host: Host) -> None:
    file = host.bottles / "m.yml"
    file.write_text("allow: [a.example]\n")
    before = host.start(file)
    file.write_text(
        "guard: strict\nhome: host\nro: [/x]\nrw: [/y]\nunix: [/run/x.sock]\nlisten: [80]\nio_uring: true\n"
    )
    host.say("weights: {input: 1}\n")
    made = again(before, host.settings, PROVIDERS)
    assert all(getattr(made.policy, key) == getattr(before, key) for key in NEXT_START)
    assert {note.partition(":")[0] for note in made.notes} == set(NEXT_START)
    assert rules(made.policy) == set()


def test_allow_and_deny_since_are_put_on_top_again(host: Host) -> None:
    file = host.bottles / "m.yml"
    file.write_text("allow: [a.example, b.example]\n")
    before = host.start(file)
    for text, deny in (("c.example", False), ("a.example", True), ("d.example", False), ("d.example", True)):
        origin = before.origin
        assert origin is not None
        before = change.with_rule(before, text, deny)
        before = replace(before, origin=origin.denying(text) if deny else origin.allowing(text))
    assert host.again(before) == before
    file.write_text("allow: [a.example, e.example]\n")
    assert rules(host.again(before)) >= {"c.example", "e.example"}
    assert not {"a.example", "b.example", "d.example"} & rules(host.again(before))
    host.say("deny: ['*.example']\n")
    made = again(before, host.settings, PROVIDERS)
    assert "c.example" not in rules(made.policy)
    assert any("agentmon allow c.example: without effect now" in note for note in made.notes)


def test_a_repositorys_file_is_not_read_again_but_its_parent_is(host: Host, tmp_path: Path) -> None:
    (host.bottles / "base.yml").write_text(ONE)
    file = tmp_path / "repo.yml"
    file.write_text("extends: base\nallow: [r.example]\n")
    before = host.start(file)
    file.write_text("allow: [evil.example]\n")
    (host.bottles / "base.yml").write_text("allow: [c.example]\n")
    assert rules(host.again(before)) == {"r.example", "c.example"}
    file.unlink()
    assert rules(host.again(before)) == {"r.example", "c.example"}


def held(policy: EffectivePolicy) -> dict[str, int]:
    return {f"{d.scope} {d.name}": b.tokens for d in policy.scopes for b in d.budgets}


def test_budgets_change_in_the_scopes_that_the_run_is_charged_to(host: Host, tmp_path: Path) -> None:
    (host.bottles / "base.yml").write_text("budget: {claude: 500}\n")
    file = host.bottles / "m.yml"
    file.write_text("extends: base\nbudget: {claude: 100}\n")
    host.say("budget: {claude: 1000}\n")
    before = host.start(file)
    file.write_text("extends: base\n")
    (host.bottles / "base.yml").write_text("budget: {claude: 50}\n")
    host.say("budget: {claude: 2000}\nceiling: {claude: 3000}\n")
    assert held(host.again(before)) == {"parent base": 50, "host host": 2000, "ceiling host": 3000}
    (host.bottles / "other.yml").write_text("budget: {claude: 5}\n")
    file.write_text("extends: other\nbudget: {claude: 7}\n")
    made = again(before, host.settings, PROVIDERS)  # other is no scope of this run: its own budgets stay
    assert held(made.policy) == {"bottle b": 100, "parent base": 500, "host host": 2000, "ceiling host": 3000}
    assert any(note.startswith("budget of parent other: in force when") for note in made.notes)


def test_a_repositorys_budget_only_lowers_also_beside_one_that_the_host_gives_later(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "repo.yml"
    file.write_text("budget: {claude: 100}\n")
    before = host.start(file)
    assert held(before) == {"bottle b": 100}
    host.say("budget: {claude: 40}\n")  # less than the file asks for: both hold
    assert held(host.again(before)) == {"host host": 40, "ceiling bottle:b": 100}
    host.say("")
    assert held(host.again(before)) == {"bottle b": 100}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("allow: [", "m.yml:"), ("routes: [{host: a.example, inbound: maybe}]", "m.yml:1: "), (None, "m.yml"),
        ("extends: ../../elsewhere.yml", "elsewhere.yml"), ("allow: [x y]", "m.yml:1: "),
        ("allow: [d.example, tcp://d.example:22]", "d.example"),  # held by name and direct at once
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_where(host: Host, text: str | None, said: str) -> None:
    file = host.bottles / "m.yml"
    file.write_text("allow: [a.example]\n")
    before = host.start(file)
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises((AgentmonError, OSError)) as caught:
        host.again(before)
    assert said in str(caught.value)


def test_an_origin_survives_a_state_file_and_without_one_nothing_changes(host: Host) -> None:
    before = host.start(None, allow=("a.example",))
    before = replace(before, origin=before.origin.allowing("b.example"))  # type: ignore[union-attr]
    assert from_plain(to_plain(before)) == before
    alone = EffectivePolicy("b", (), scopes=(wire.ScopeDef("host", "host"),))
    assert again(alone, Settings(), PROVIDERS).policy is alone
    assert remake.Again(alone).notes == ()
