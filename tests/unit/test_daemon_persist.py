"""State files: what a restarted daemon reads is what the last one knew; what cannot be read is not adopted."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon import paths, wire
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon import persist
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    monkeypatch.setattr(paths, "EPOCH", tmp_path / "epoch")
    return tmp_path


def bottle() -> Bottle:
    policy = EffectivePolicy(
        bottle="one",
        rules=tuple(map(parse_rule, ("a.example:443", "!tcp://10.0.0.0/8:22", "[2001:db8::]/32"))),
        inspected=("a.example",),
        routes=(wire.Route("a.example", methods=("POST",)),),
        scopes=(wire.ScopeDef("bottle", "one", (wire.BudgetDef("claude", 100),)),),
        observe=True,
    )
    job = Job(("sh", "-c", "true"), (("A", "1"),), "/tmp", 1000, 1000, (27,), tty=True, rows=50, cols=132, owner=1000)
    spent = {"scope": "bottle", "used": 3}
    return Bottle(17, "one", "r-1", Phase.FROZEN, policy, job, 9, worker=0, pid=12, started_ns=5, spent=spent)


def test_round_trip(state: Path) -> None:
    persist.save(bottle())
    loaded = persist.load_all()
    assert loaded == {17: bottle()}
    assert (state / "17.json").stat().st_mode & 0o777 == 0o600
    persist.forget(17)
    assert persist.load_all() == {}


DAMAGED = [b"", b"{", b"[]", b'{"slot": 17}', b'{"policy": {"rules": ["*"]}, "job": {}, "phase": "x"}']


@pytest.mark.parametrize("data", DAMAGED)
def test_unreadable_state_is_known_but_not_adopted(state: Path, data: bytes) -> None:
    (state / "17.json").write_bytes(data)
    assert persist.load_all() == {17: None}


def test_epoch_survives_and_damage_reads_as_new(state: Path) -> None:
    assert persist.load_epoch() == 0
    persist.save_epoch(41)
    assert persist.load_epoch() == 41
    (state / "epoch").write_text("garbage")
    assert persist.load_epoch() == 0


def test_a_failed_write_leaves_the_old_file(state: Path) -> None:
    persist.write_atomic(state / "x", b"old")
    (state / "dir").mkdir()
    with pytest.raises(OSError, match="dir"):
        persist.write_atomic(state / "dir", b"new")
    assert (state / "x").read_bytes() == b"old" and sorted(p.name for p in state.iterdir()) == ["dir", "x"]
