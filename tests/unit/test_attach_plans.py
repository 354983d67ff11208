"""Attach and detach as transcripts: closed before anything opens, nothing killed that others started."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.machine import step
from agentmon.control.state import Attached, Bottle, Host, Job, Phase
from agentmon.policy.effective import EffectivePolicy

JOB = Job(("[process 4711]",), (), "/", 0, 0, (), tty=False)
MOVED = Attached("process 4711", "/proc/4711/ns/net", 99, 4711, came_from="/sys/fs/cgroup/session")
OWN = replace(MOVED, cgroup="/sys/fs/cgroup/engine/web", came_from="")
CLEAN = ["DropViews", "CloseRun", "ForgetBpf", "DeleteNet", "RemoveCgroup", "RemoveFiles"]


def policy(name: str = "web") -> EffectivePolicy:
    return EffectivePolicy(name, ())


def names(actions: tuple[a.Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


def starting(attached: Attached = MOVED) -> Host:
    return step(Host(16, 20), e.AttachRequested(7, policy(), JOB, attached, "r", 1))[0]


def running(attached: Attached = MOVED) -> Host:
    return step(starting(attached), e.AttachFinished(16, 7, attached, 0))[0]


@pytest.mark.parametrize(("attached", "where"), [(MOVED, "MoveIn"), (OWN, "AttachPrograms")])
def test_it_is_closed_on_every_layer_before_it_is_opened(attached: Attached, where: str) -> None:
    host, actions = step(Host(16, 20), e.AttachRequested(7, policy(), JOB, attached, "r", 1))
    closed = ["Save", "MakeCgroup", "MakeNet", "ApplyClosed", where, "EndOlder"]
    assert names(actions) == [*closed, "OpenRun", "PushViews", "ApplyRules", "Probe", "Thaw", "Holds"]
    assert (host.bottles[16].phase, host.bottles[16].attached) == (Phase.STARTING, attached)
    known = replace(attached, layers=("bpf",), notes=("n",))
    host, actions = step(host, e.AttachFinished(16, 7, known, 3))
    assert names(actions) == ["Save", "Answer"] and host.bottles[16].phase is Phase.RUNNING
    value = actions[1].value  # type: ignore[attr-defined]
    assert value == {
        "bottle": "web", "slot": 16, "attached": "process 4711", "ended": 3, "layers": ["bpf"], "notes": ["n"],
    }  # fmt: skip


def test_a_failure_lets_go_and_kills_nothing() -> None:
    host, actions = step(starting(), e.PlanFailed(16, "HostLacks", "no", "hint"))
    assert names(actions) == ["Emit", "LetGo", *CLEAN, "Ended"] and host.bottles[16].phase is Phase.STOPPING


def test_one_namespace_is_held_once() -> None:
    _, actions = step(running(), e.AttachRequested(8, policy("other"), JOB, MOVED, "r2", 1))
    assert names(actions) == ["Fail"] and "bottle 'web'" in actions[0].message  # type: ignore[attr-defined]
    _, actions = step(running(), e.AttachRequested(8, policy(), JOB, replace(MOVED, inode=1), "r2", 1))
    assert "already running" in actions[0].message  # type: ignore[attr-defined]


def test_detach_lets_go_and_kill_kills() -> None:
    _, actions = step(running(), e.Operator(8, "detach", "web", 0))
    assert names(actions) == ["Enforced", "Emit", "LetGo", *CLEAN, "Ended", "Answer"]
    _, actions = step(running(OWN), e.Operator(8, "kill", "web", 0))
    assert names(actions)[0] == "KillAll" and names(actions)[-2:] == ["Ended", "Answer"]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.STOPPING])
def test_what_starts_or_ends_is_not_detached(phase: Phase) -> None:
    host = running()
    host = host.put(replace(host.bottles[16], phase=phase))
    assert names(step(host, e.Operator(8, "detach", "web", 0))[1]) == ["Fail"]


def test_a_bottle_of_our_own_is_not_detached() -> None:
    host = Host(16, 20).put(Bottle(16, "own", "r", Phase.RUNNING, policy("own"), JOB, 1))
    (fail,) = step(host, e.Operator(8, "detach", "own", 0))[1]
    assert isinstance(fail, a.Fail) and fail.hint == "agentmon kill own"


def test_the_bottle_goes_with_its_target_once() -> None:
    host, actions = step(running(), e.TargetGone(16, "it has ended"))
    assert names(actions) == ["Emit", "LetGo", *CLEAN, "Ended"]
    assert step(host, e.TargetGone(16, "it has ended"))[1] == ()


def test_an_end_while_it_is_attached_is_answered() -> None:
    host = starting()
    gone = host.put(replace(host.bottles[16], phase=Phase.STOPPING))
    (fail,) = step(gone, e.AttachFinished(16, 7, MOVED, 0))[1]
    assert isinstance(fail, a.Fail) and fail.request == 7
