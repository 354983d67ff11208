"""The order of things (DESIGN 2, 5, 11): one function per plan, each a tuple of actions and nothing else."""

from __future__ import annotations

from typing import Any

from agentmon.control import actions as a
from agentmon.control.state import Bottle, Phase


def start(bottle: Bottle) -> tuple[a.Action, ...]:
    """Deny-all on both sides before anything exists; the job waits, frozen, while its policy opens; thaw is last."""
    s = bottle.slot
    return (
        a.MakeCgroup(s),
        a.MakeFiles(s, bottle),
        a.MakeNet(s),
        a.ApplyClosed(s, bottle),
        a.Together(
            s,
            (
                (a.Launch(s, bottle),),
                (a.OpenRun(s, bottle), a.PushViews(s, bottle), a.ApplyRules(s, bottle)),
            ),
        ),
        a.Probe(s),
        a.Thaw(s),
        a.Started(s),
    )


def stop(bottle: Bottle, status: int, error: dict[str, Any] | None = None) -> tuple[a.Action, ...]:
    """Processes first, so that nothing of the job is left when its rules go; every step is idempotent."""
    s = bottle.slot
    return (a.KillAll(s), *clean(s), a.Ended(s, bottle, status, error))


def attach(bottle: Bottle, request: int) -> tuple[a.Action, ...]:
    """As start, of what runs already: closed on every layer first, connections that are older ended, then opened."""
    s = bottle.slot
    moved = bottle.attached is not None and not bottle.attached.cgroup
    return (
        a.MakeCgroup(s),
        a.MakeNet(s),
        a.ApplyClosed(s, bottle),
        a.MoveIn(s) if moved else a.AttachPrograms(s),
        a.EndOlder(s),
        a.OpenRun(s, bottle),
        a.PushViews(s, bottle),
        a.ApplyRules(s, bottle),
        a.Probe(s),
        a.Thaw(s),
        a.Holds(s, request, None),
    )


def let_go(bottle: Bottle, status: int = 0, error: dict[str, Any] | None = None) -> tuple[a.Action, ...]:
    """Everything of ours is removed and the processes go on."""
    s = bottle.slot
    return (a.LetGo(s), *clean(s), a.Ended(s, bottle, status, error))


def end(bottle: Bottle, status: int, error: dict[str, Any] | None = None) -> tuple[a.Action, ...]:
    """Of a bottle that ends by itself: a job's rest is killed, what others started is let go. What was saved of a
    frozen one stays on disk."""
    if bottle.attached is not None:
        return let_go(bottle, status, error)
    return (a.SettleState(bottle.slot, bottle), *stop(bottle, status, error))


def clean(slot: int) -> tuple[a.Action, ...]:
    """Remove every object of a slot; needs nothing but the slot."""
    return (
        a.DropViews(slot),
        a.CloseRun(slot),
        a.ForgetBpf(slot),
        a.DeleteNet(slot),
        a.RemoveCgroup(slot),
        a.RemoveFiles(slot),
    )


def cut(
    bottle: Bottle, *, policy: str, trigger: str, by: str, spent: dict[str, Any], crossed_ns: int
) -> tuple[a.Action, ...]:
    """The kernel element first, then streams; `freeze` and `kill` add what stops the processes."""
    s = bottle.slot
    steps: tuple[a.Action, ...] = (
        a.CutKernel(s),
        a.CloseStreams(s, bottle, policy, trigger, by, spent, crossed_ns),
    )
    if policy == "freeze":
        steps += (a.Freeze(s),)
    elif policy == "kill":
        steps += (a.KillAll(s),)
    return (*steps, a.Save(s, bottle))


def resume(before: Bottle, bottle: Bottle, raised: a.SetBudget | None, by: str) -> tuple[a.Action, ...]:
    """Budget first, so that the first call after it is admitted; then services, kernel, processes."""
    s = bottle.slot
    return (
        a.Mark(s, before),
        *((raised,) if raised is not None else ()),
        a.PushViews(s, bottle),
        a.ApplyRules(s, bottle),
        a.Enforced(s, bottle, "resume", "operator", by, "thawed"),
        a.Thaw(s),
        a.DropState(s, bottle),
        a.Save(s, bottle),
    )


def restart(bottle: Bottle, raised: a.SetBudget | None, by: str) -> tuple[a.Action, ...]:
    """As start, with the saved files in place before the command is there; nothing runs while a budget is spent. What
    was saved goes last: until then a failure leaves it as it was."""
    s = bottle.slot
    return (
        a.MakeCgroup(s),
        a.MakeFiles(s, bottle),
        a.MakeNet(s),
        a.ApplyClosed(s, bottle),
        a.OpenRun(s, bottle),
        *((raised,) if raised is not None else ()),
        a.CheckBudget(s),
        a.RestoreState(s, bottle),
        a.Launch(s, bottle),
        a.PushViews(s, bottle),
        a.ApplyRules(s, bottle),
        a.Probe(s),
        a.CheckBudget(s),
        a.Enforced(s, bottle, "resume", "operator", by, "restarted"),
        a.Thaw(s),
        a.DropState(s, bottle),
        a.Started(s),
    )


def change(old: Bottle, new: Bottle, *, removal: bool) -> tuple[a.Action, ...]:
    """Additions open from the kernel outwards; removals close from the names inwards."""
    s = new.slot
    beside = _beside(old, new)
    if old.phase in {Phase.CUT, Phase.FROZEN}:
        return (*beside, a.PushViews(s, new), a.Save(s, new))  # the rules come into force with resume
    steps: tuple[a.Action, ...] = (a.PushViews(s, new), a.ApplyRules(s, new))
    return (a.Mark(s, old), *beside, *(steps if removal else steps[::-1]), a.Save(s, new))


def _beside(old: Bottle, new: Bottle) -> tuple[a.Action, ...]:
    """What a policy says that is neither a rule nor in the views."""
    steps: tuple[a.Action, ...] = ()
    if old.policy.scopes != new.policy.scopes:
        steps += (a.OpenRun(new.slot, new),)
    if old.policy.limits != new.policy.limits:
        steps += (a.Limit(new.slot, new),)
    return steps


def put_back(failed: Bottle, before: Bottle) -> tuple[a.Action, ...]:
    """After a failed resume or policy change: everything as it was, services first."""
    s = before.slot
    stopped = (a.Freeze(s),) if before.phase is Phase.FROZEN else ()
    return (a.PushViews(s, before), a.ApplyRules(s, before), *stopped, a.Save(s, before), *_beside(failed, before))
