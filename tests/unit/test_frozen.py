"""Frozen bottles that are only on disk: what can be done with them, and what has to be there for them to go on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths, wire
from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.machine import step
from agentmon.control.state import Bottle, Host, Job, Phase
from agentmon.daemon import requests, saved_state
from agentmon.daemon.saved_state import Saved
from agentmon.errors import BadInput, Refused
from agentmon.policy import change, settings
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule

JOB = Job(("agent",), (("KEY", "secret"),), "/work", os.getuid(), os.getgid(), (), tty=True, owner=1000)
POLICY = EffectivePolicy("one", (parse_rule("a.example:443"),), origins=("--allow",))
SPENT = {"scope": "bottle", "name": "one", "provider": "claude", "tokens": 100, "used": 120, "per": "run"}
FROZEN = Bottle(3, "one", "r1", Phase.FROZEN, POLICY, JOB, 7, pid=55, spent=SPENT)


def on_disk(bottle: Bottle = FROZEN) -> Host:
    return step(Host(16, 20, epoch=9), e.Kept(bottle))[0]


def names(actions: tuple[a.Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


def restart(host: Host, uid: int = 0, tokens: int = 0, **changes: Any) -> tuple[Host, tuple[a.Action, ...]]:
    return step(host, e.RestartRequested(4, replace(FROZEN, **changes), uid, 123, tokens))


def test_it_starts_in_a_new_slot_with_its_files_before_its_command_and_is_dropped_last() -> None:
    after, actions = restart(on_disk(), tokens=500)
    closed = ["MakeCgroup", "MakeFiles", "MakeNet", "ApplyClosed", "OpenRun", "SetBudget", "CheckBudget"]
    opened = ["RestoreState", "Launch", "PushViews", "ApplyRules", "Probe", "CheckBudget", "Enforced", "Thaw"]
    assert names(actions) == ["Answer", "Save", *closed, *opened, "DropState", "Started", "Emit"]
    bottle = after.bottles[16]
    assert (bottle.phase, bottle.epoch, bottle.run, bottle.spent) == (Phase.STARTING, 10, "r1", None)
    assert bottle.restored and bottle.pid == 0 and not after.saved and after.epoch == 10
    raised = next(action for action in actions if isinstance(action, a.SetBudget))
    assert (raised.slot, raised.tokens, raised.bottle.spent, raised.bottle.slot) == (16, 500, SPENT, 16)
    enforced = next(action for action in actions if isinstance(action, a.Enforced))
    assert (enforced.policy, enforced.by, enforced.result) == ("resume", "uid:0", "restarted")


def test_a_budget_that_is_spent_while_it_starts_is_its_plans_own_business() -> None:
    """The run is opened before its budget is raised: the ledger says "spent" in between."""
    after, _ = restart(on_disk(), tokens=500)
    crossed = wire.Crossed((16,), "bottle", "one", "claude", "run", 100, 120)
    assert step(after, e.BudgetCrossed(crossed)) == (after, ())


def test_a_failed_restart_ends_what_it_began_and_can_be_tried_again() -> None:
    after, _ = restart(on_disk())
    after, actions = step(after, e.PlanFailed(16, "Refused", "bottle one spent its claude budget", ""))
    assert "DropState" not in names(actions) and names(actions)[-1] == "Ended"
    after, _ = step(after.drop(16), e.Kept(FROZEN))
    assert restart(after)[0].bottles[17].phase is Phase.STARTING


def test_what_is_refused_leaves_it_on_disk() -> None:
    before = on_disk()
    for host, uid, tokens, words in (
        (before, 0, 110, "110 tokens are already spent: 120 were used"),
        (on_disk(replace(FROZEN, held_by=0)), 1000, 0, "root stopped it"),
        (replace(before, unknown=frozenset(range(16, 21))), 0, 0, "address pool is used up"),
        (before.unkeep("one"), 0, 0, "no bottle named 'one' is saved"),
    ):
        after, (fail,) = restart(host, uid, tokens)
        assert after == host and isinstance(fail, a.Fail) and words in fail.message
    for verb in ("cut", "freeze", "detach"):
        after, (fail,) = step(before, e.Operator(5, verb, "one", 0))
        assert after == before and isinstance(fail, a.Fail) and "agentmon resume one" in fail.hint


def test_its_name_is_taken_and_kill_frees_it() -> None:
    before = on_disk()
    _, (fail,) = step(before, e.RunRequested(7, POLICY, JOB, "r2", 1))
    assert isinstance(fail, a.Fail) and "frozen and saved" in fail.message and "agentmon kill one" in fail.hint
    after, actions = step(before, e.Operator(5, "kill", "one", 0))
    assert names(actions) == ["DropState", "Enforced", "Emit", "Answer"] and not after.saved
    assert step(after, e.RunRequested(7, POLICY, JOB, "r2", 1))[0].bottles
    _, actions = step(before, e.Operator(5, "kill", "", 0))  # --all: what runs
    assert names(actions) == ["Answer"]


def test_a_freeze_is_saved_only_where_there_is_something_to_start_again() -> None:
    running = Bottle(16, "one", "r1", Phase.RUNNING, replace(POLICY, shutdown="freeze"), JOB, 1)
    crossed = wire.Crossed((16,), "bottle", "one", "claude", "run", 100, 120)
    for phase, saved in ((Phase.RUNNING, True), (Phase.STARTING, False)):
        _, actions = step(Host(16, 20).put(replace(running, phase=phase)), e.BudgetCrossed(crossed))
        assert ("SaveState" in names(actions)) is saved


def test_an_adopted_one_is_stopped_and_saved_whatever_the_last_daemon_did_not_finish() -> None:
    _, actions = step(Host(16, 20), e.Adopted(replace(FROZEN, slot=17)))
    assert names(actions) == ["PushViews", "ApplyRules", "Freeze", "SaveState"]
    _, actions = step(Host(16, 20), e.Adopted(replace(FROZEN, slot=17, phase=Phase.CUT)))
    assert names(actions) == ["PushViews", "ApplyRules"]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    monkeypatch.setattr(paths, "SAVED", tmp_path / "saved")
    for name in ("work", "data"):
        (tmp_path / name).mkdir()
    manifest = tmp_path / "one.yml"
    manifest.write_text("allow: [a.example]\n")
    policy = replace(POLICY, sources=(str(manifest), "/etc/agentmon/settings.yml"), rw=(str(tmp_path / "data"),))
    bottle = replace(FROZEN, policy=policy, job=replace(JOB, cwd=str(tmp_path / "work")))
    monkeypatch.setattr(saved_state, "bindable", lambda path: True)  # tests work in /tmp
    files = paths.SAVED / "r1"
    files.mkdir(parents=True)
    (files / "home.tar").write_bytes(b"12345")
    return saved_state.make(bottle, {"home": 5}, 3, "/etc/agentmon/settings.yml")


def test_round_trip(saved: Saved) -> None:
    assert saved_state.decode(saved_state.encode(saved)) == saved
    assert len(saved.manifests) == 1
    for data in (b"", b"{}", b'{"version": 9}', b'{"version": 1}', b"[]", saved_state.encode(saved)[:-9]):
        with pytest.raises(BadInput):
            saved_state.decode(data)


def again(saved: Saved, uid: int = 0, text: str = "", **args: Any) -> Bottle:
    return requests.restarted(saved, args, uid, settings.parse(text, "s.yml"), frozenset({"vouch", "unix"}))


def test_what_is_missing_is_named_and_everything_stays(saved: Saved, tmp_path: Path) -> None:
    assert again(saved, tty=True, rows=50, cols=99).job.rows == 50
    kept = "what was saved of one stays"
    other = replace(saved, user="somebody-else")
    with pytest.raises(BadInput, match=f"uid {os.getuid()} was user somebody-else when one was frozen") as caught:
        again(other)
    assert kept in caught.value.hint
    for gone in ("data", "work"):
        (tmp_path / gone).rename(tmp_path / "away")
        with pytest.raises(BadInput, match=f"{gone} is not there any more") as caught:
            again(saved)
        assert kept in caught.value.hint
        (tmp_path / "away").rename(tmp_path / gone)
    (paths.SAVED / "r1/home.tar").write_bytes(b"1")
    with pytest.raises(BadInput, match=r"home\.tar is missing or not complete"):
        again(saved)


def test_a_changed_manifest_stops_all_but_root_who_says_so(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "one.yml").write_text("allow: []\n")
    for uid in (0, 1000):
        with pytest.raises(BadInput, match=r"one\.yml has changed since one was frozen") as caught:
            again(saved, uid)
        assert "--saved-policy" in caught.value.hint
    with pytest.raises(Refused, match="for root only"):
        again(saved, 1000, saved_policy=True)
    assert again(saved, 0, saved_policy=True).name == "one"
    (tmp_path / "one.yml").unlink()
    with pytest.raises(BadInput, match="has changed"):
        again(saved)
    os.mkfifo(tmp_path / "one.yml")  # no reader waits for it
    with pytest.raises(BadInput, match="has changed"):
        again(saved)


def test_the_hosts_denies_are_those_of_today(saved: Saved) -> None:
    old = settings.parse("deny: [b.example, c.example]", "s.yml").deny
    before = replace(saved, bottle=replace(saved.bottle, policy=change.with_host_denied(saved.bottle.policy, old)))
    rules = [rule.text for rule in again(before, text="deny: [c.example, d.example]").policy.rules]
    assert rules == ["a.example:443", "!c.example", "!d.example"]
