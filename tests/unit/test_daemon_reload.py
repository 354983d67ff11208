"""What is told of settings and manifests that are read anew, and what of them waits for a new daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon.control import events as e
from agentmon.control.state import Bottle, Host, Job, Phase
from agentmon.daemon.reload import KEPT, Reload
from agentmon.daemon.secrets import rule_text
from agentmon.events import Event
from agentmon.policy import manifest, merge
from agentmon.policy import settings as settings_file
from agentmon.policy.options import Options
from agentmon.policy.origin import Origin
from agentmon.providers import registry

JOB = Job(("job",), (), "/", 1000, 1000, (), tty=False)


@dataclass
class Daemon:
    """As much of one as a reload asks of; what it is told is kept."""

    settings: settings_file.Settings
    events: list[Event] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    host: Host = field(default_factory=lambda: Host(16, 20))
    changed: list[e.PolicyChanged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.providers = registry.load(self.settings.providers)
        self.log = SimpleNamespace(add=self.events.append, set_log=lambda log: self.done.append(f"log {log}"))
        self.credentials = SimpleNamespace(use=lambda store: self.done.append("store"), again=self._again)
        self.services, self.rules = {"proxy": None}, SimpleNamespace(change=self._rules)
        self.runner = SimpleNamespace(dispatch=self._dispatch)
        self.workers = SimpleNamespace(providers=self._providers, approvals=self._approvals, all=list)
        self.kernel = SimpleNamespace(bpf=SimpleNamespace(features=lambda: frozenset({"vouch", "unix"})))

    async def _rules(self, proxy: object, settings: settings_file.Settings) -> None:
        rule_text(settings)

    async def _again(self) -> None:
        self.done.append("credentials")

    async def _providers(self, declared: Any) -> None:
        self.done.append("providers")

    async def _approvals(self, bottles: Any) -> None:
        pass

    def _dispatch(self, event: e.PolicyChanged) -> None:
        self.changed.append(event)
        self.host = self.host.put(replace(self.host.bottles[event.slot], policy=event.policy))

    def spawn(self, work: Any, name: str) -> None:
        work.close()
        self.done.append("later")

    def run(self, file: Path, phase: Phase = Phase.RUNNING) -> None:
        chain = manifest.load_chain(file, self.settings.bottles_dir)
        options = Options(name=file.stem)
        policy = merge.effective(self.settings, chain, options, self.providers)
        slot = 16 + len(self.host.bottles)
        policy = replace(policy, origin=Origin(str(file), {}, options))
        self.host = self.host.put(Bottle(slot, file.stem, f"run{slot}", phase, policy, JOB, 1))

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "bottles").mkdir()
    (tmp_path / "settings.yml").write_text(f"bottles_dir: {tmp_path}/bottles\n")
    yield Daemon(settings_file.load(tmp_path / "settings.yml"))


def reload(one: Reload) -> None:
    async def body() -> None:
        await one.now()
        await asyncio.sleep(0.6 if any(b.phase is Phase.STARTING for b in one._d.host.bottles.values()) else 0)

    asyncio.run(body())


def say(daemon: Daemon, text: str) -> None:
    Path(daemon.settings.source).write_text(f"bottles_dir: {daemon.settings.bottles_dir}\n{text}")


def test_settings_that_are_bad_or_gone_change_nothing_and_are_told_once(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    one, before = Reload(daemon), daemon.settings  # type: ignore[arg-type]
    say(daemon, "lgo: off\n")
    reload(one)
    reload(one)
    assert daemon.settings is before and daemon.done == []
    assert len(daemon.events) == 1 and "settings.yml:2: unknown key 'lgo'" in daemon.reasons()[0]
    assert daemon.events[0].verdict == "refused" and "did you mean 'log'" in daemon.events[0].hint
    assert capsys.readouterr().err.count("error: ") == 1
    Path(before.source).unlink()
    reload(one)
    assert "is gone; what was in force stays" in daemon.reasons()[-1] and daemon.settings is before
    say(daemon, "")
    reload(one)
    assert daemon.reasons()[-1] == "files that could not be used can be used again" and one.bad == {}


def test_providers_and_the_store_of_credentials_follow(daemon: Daemon) -> None:
    one = Reload(daemon)  # type: ignore[arg-type]
    say(daemon, "providers: {claude: {hosts: [claude.house.example]}}\nlog: off\n")
    reload(one)
    assert daemon.done == ["log off", "store", "providers", "credentials"]
    assert "claude.house.example" in daemon.providers["claude"].hosts
    assert daemon.reasons() == ["settings were read anew"]
    say(daemon, "providers: {claude: {hosts: 3}}\n")
    reload(one)
    assert "providers.claude" in daemon.reasons()[-1] and daemon.settings.log == "off"


def test_what_needs_a_new_daemon_is_told_and_stays(daemon: Daemon, tmp_path: Path) -> None:
    one, before = Reload(daemon), daemon.settings  # type: ignore[arg-type]
    text = f"bottles_dir: {tmp_path}\nupstream: {{dns: [198.51.100.1], ca: /x.pem}}\naddresses: {{v4: 10.9.0.0/16}}\n"
    Path(before.source).write_text(text + "retention: {events: 1d, events_bytes: 1M}\nlog: full\n")
    reload(one)
    assert all(getattr(daemon.settings, key) == getattr(before, key) for key in KEPT)
    assert daemon.settings.log == "full"
    told = {reason.partition(":")[0] for reason in daemon.reasons()}
    assert told == {"upstream", "retention", "bottles_dir", "addresses", "log", "settings were read anew"}
    reload(one)
    assert len(daemon.events) == 6


def test_each_bottle_changes_by_itself(daemon: Daemon) -> None:
    bottles = daemon.settings.bottles_dir
    for name in ("good", "bad", "strict"):
        (bottles / f"{name}.yml").write_text("allow: [a.example]\n")
        daemon.run(bottles / f"{name}.yml")
    (bottles / "late.yml").write_text("allow: [a.example]\n")
    daemon.run(bottles / "late.yml", Phase.STARTING)
    one = Reload(daemon)  # type: ignore[arg-type]
    reload(one)
    assert daemon.changed == [] and daemon.done[-1] == "later"  # the one that starts is looked at afterwards
    for name in ("good", "late"):
        (bottles / f"{name}.yml").write_text("allow: [b.example]\n")
    (bottles / "bad.yml").write_text("allow: [\n")
    (bottles / "strict.yml").write_text("allow: [a.example]\nguard: strict\n")
    reload(one)
    assert [(change.slot, change.removal) for change in daemon.changed] == [(16, True)]
    assert one.of(daemon.host.bottles[17]).startswith(f"{bottles}/bad.yml:") and one.of(daemon.host.bottles[16]) == ""
    assert "guard: changed in the files, in force when the bottle is started again" in daemon.reasons()
    daemon.host = daemon.host.drop(17)
    reload(one)
    assert one.bad == {}


def test_a_change_that_cannot_be_put_in_force_is_told(daemon: Daemon) -> None:
    file = daemon.settings.bottles_dir / "m.yml"
    file.write_text("allow: [a.example]\n")
    daemon.run(file)
    daemon.runner.dispatch = lambda event: None  # as when the plan failed, and all was put back
    file.write_text("allow: [b.example]\n")
    one = Reload(daemon)  # type: ignore[arg-type]
    reload(one)
    assert one.of(daemon.host.bottles[16]) == "could not be put in force"
