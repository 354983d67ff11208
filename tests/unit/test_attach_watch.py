"""Watching what is attached: when it is gone, and what is told of what was taken away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentmon.control.state import Attached, Bottle, Host, Job, Phase
from agentmon.daemon import attach, attach_plan
from agentmon.daemon.attach_watch import AttachWatch, gone
from agentmon.daemon.cgroups import Tree
from agentmon.errors import AgentmonError
from agentmon.policy.effective import EffectivePolicy
from netfilter.spec import Holding

JOB = Job(("[x]",), (), "/", 0, 0, (), tty=False)


def cgroup(path: Path, populated: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    return path


@pytest.mark.parametrize("named", [False, True])
def test_it_is_there_while_it_has_a_process_or_a_name(tmp_path: Path, named: bool) -> None:
    tree, own = Tree(tmp_path / "agentmon"), cgroup(tmp_path / "web", 1)
    space = tmp_path / "space"
    space.touch()
    attached = Attached("namespace x", str(space), space.stat().st_ino, cgroup=str(own), named=named)
    tree.take(16, own)
    assert gone(16, attached, tree) == ""
    cgroup(own, 0)
    assert (gone(16, attached, tree) == "") is named
    space.unlink()
    assert "nothing is held any more" in gone(16, attached, tree)


def test_a_cgroup_of_others_is_never_removed(tmp_path: Path) -> None:
    tree, own = Tree(tmp_path / "agentmon"), cgroup(tmp_path / "web", 0)
    assert tree.take(16, own) == own.stat().st_ino
    tree.open_probe(16)
    assert (own / "agentmon-probe").is_dir() and tree.job(16) == own
    tree.close_probe(16)
    tree.remove(16)
    assert own.is_dir() and not (own / "agentmon-probe").exists()
    assert tree.job(16) == tmp_path / "agentmon/b16/job"
    with pytest.raises(FileNotFoundError):
        tree.take(17, tmp_path / "nowhere")


def test_what_cannot_be_put_back_is_told_once() -> None:
    bottle = Bottle(16, "web", "r", Phase.RUNNING, EffectivePolicy("web", ()), JOB, 1)
    answers: list[Any] = [OSError(1, "no"), AgentmonError("no"), (), ("rules", "routes")]
    told: list[Any] = []

    async def hold_again(slot: int) -> tuple[str, ...]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return tuple(answer)

    async def work() -> None:
        watch = AttachWatch(lambda: {16: bottle}, Tree(Path("/nowhere")), hold_again, told.append, told.append)
        while answers:
            await watch.hold(bottle)

    asyncio.run(work())
    assert [(event.verdict, event.layer) for event in told] == [("refused", "host-nft"), ("observed", "bottle-nft")]
    assert told[1].reason == "put back: rules, routes"


def test_processes_that_are_made_faster_than_moved_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the plan ends there: nothing was opened."""

    class Endless:
        def processes(self, slot: int) -> list[int]:
            return []

        def move_in(self, slot: int, pids: list[int]) -> int:
            return len(pids)

    attached = Attached("process 7", "/proc/7/ns/net", 9, 7)
    bottle = Bottle(16, "web", "r", Phase.STARTING, EffectivePolicy("web", ()), JOB, 1, attached=attached)

    class Daemon:
        host = Host(16, 20, bottles={16: bottle})

        class kernel:
            tree = Endless()

    monkeypatch.setattr(attach, "processes", lambda inode: [7])
    attaching = attach_plan.Attaching(Daemon())  # type: ignore[arg-type]
    with pytest.raises(AgentmonError, match="faster than they can be moved"):
        asyncio.run(attaching.move_in(attach_plan.a.MoveIn(16)))
    Daemon.host = Host(16, 20)
    with pytest.raises(AgentmonError, match="is gone"):
        asyncio.run(attaching.move_in(attach_plan.a.MoveIn(16)))


def test_notes_say_what_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "processes", lambda inode: [7, 8, 9])
    attached = Attached("process 7", "/proc/7/ns/net", 9, 7)
    found = attach_plan._notes(attached, Holding(open=("tap0",)), [7])
    assert [note.split(":")[0].split(" leads")[0] for note in found] == [
        "1 processes were moved to a cgroup of their own", "2 processes of other cgroups share its network", "tap0",
    ]  # fmt: skip
    assert "no process is in it yet" in attach_plan._notes(attached, Holding(), [])[0]
