"""(state, event) ─▶ (state, actions): the daemon's judgement. Pure; unknown slots and late events change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control import frozen, plans
from agentmon.control.state import Bottle, Host, Job, Phase
from agentmon.policy.effective import EffectivePolicy

Step = tuple[Host, tuple[a.Action, ...]]
MAX_EPOCH = 0x00FF_FFFF


def step(host: Host, event: e.Event) -> Step:
    """The next state and what to do about it."""
    return _HANDLERS[type(event)](host, event)


def _run(host: Host, event: e.RunRequested) -> Step:
    host, made = _new(host, event.request, event.policy, event.job, event.run, event.now_ns)
    if isinstance(made, a.Fail):
        return host, (made,)
    slot = made.slot
    return host.put(made), (a.Answer(slot, event.request, slot), a.Save(slot, made), *plans.start(made))


def _attach(host: Host, event: e.AttachRequested) -> Step:
    taken = next((b for b in host.bottles.values() if b.attached and b.attached.inode == event.attached.inode), None)
    if taken is not None:
        message = f"{event.attached.what} is held already, by bottle {taken.name!r}"
        return host, (a.Fail(0, event.request, "BadInput", message, f"agentmon detach {taken.name}"),)
    host, made = _new(host, event.request, event.policy, event.job, event.run, event.now_ns)
    if isinstance(made, a.Fail):
        return host, (made,)
    bottle = replace(made, attached=event.attached, pid=event.attached.pid)
    return host.put(bottle), (a.Save(bottle.slot, bottle), *plans.attach(bottle, event.request))


def _new(
    host: Host, request: int, policy: EffectivePolicy, job: Job, run: str, now_ns: int
) -> tuple[Host, Bottle | a.Fail]:
    """A bottle that starts, or why there can be none."""
    name = policy.bottle
    if name in host.saved:
        return host, a.Fail(
            0, request, "BadInput", f"a bottle named {name!r} is frozen and saved",
            f"agentmon resume {name} goes on with it, agentmon kill {name} discards it",
        )  # fmt: skip
    if (taken := host.find(name)) is not None:
        return host, a.Fail(
            0, request, "BadInput", f"a bottle named {name!r} is already running (slot {taken.slot})",
            "choose another with --name, or see agentmon ps",
        )  # fmt: skip
    slot = host.free_slot()
    if slot is None or host.epoch >= MAX_EPOCH:
        what = "address pool is used up" if slot is None else "policy epochs are used up"
        hint = "end a bottle (agentmon ps), or widen addresses: in settings.yml" if slot is None else "reboot the host"
        return host, a.Fail(0, request, "HostLacks", f"the {what}: {len(host.bottles)} bottles are running", hint)
    host = replace(host, epoch=host.epoch + 1, last=slot)
    worker = slot % host.workers
    return host, Bottle(slot, name, run, Phase.STARTING, policy, job, host.epoch, worker, started_ns=now_ns)


def _attach_finished(host: Host, event: e.AttachFinished) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.phase is Phase.STOPPING:
        gone = "it ended while it was attached"
        return host, (a.Fail(event.slot, event.request, "AgentmonError", gone, "agentmon events --kind daemon"),)
    phase = Phase.RUNNING if bottle.phase is Phase.STARTING else bottle.phase
    bottle = bottle.with_phase(phase, attached=event.attached, unbegun=False)
    found = {"bottle": bottle.name, "slot": bottle.slot, "attached": event.attached.what, "ended": event.ended}
    found |= {"layers": list(event.attached.layers), "notes": list(event.attached.notes)}
    return host.put(bottle), (a.Save(bottle.slot, bottle), a.Answer(bottle.slot, event.request, found))


def _target_gone(host: Host, event: e.TargetGone) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.attached is None or bottle.phase is Phase.STOPPING:
        return host, ()
    told = _told(bottle, "daemon", "observed", event.reason, {"attached": bottle.attached.what})
    bottle = bottle.with_phase(Phase.STOPPING)
    return host.put(bottle), (told, *plans.let_go(bottle))


def _started(host: Host, event: e.StartFinished) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.phase is Phase.STOPPING:
        return host, ()
    phase = Phase.RUNNING if bottle.phase is Phase.STARTING else bottle.phase
    bottle = bottle.with_phase(phase, pid=event.pid, unbegun=False)
    return host.put(bottle), (a.Save(bottle.slot, bottle),)


def _failed(host: Host, event: e.PlanFailed) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.phase is Phase.STOPPING:
        return host, ()
    error = {"class": event.error, "message": event.message, "hint": event.hint}
    told = _told(bottle, "daemon", "refused", event.message, {})
    if event.before is not None:
        return host.put(event.before), (told, *plans.put_back(bottle, event.before))
    if bottle.phase is not Phase.STARTING and not bottle.unbegun:
        return host, (told,)  # a running bottle keeps what is in force
    bottle = bottle.with_phase(Phase.STOPPING)
    return host.put(bottle), (told, *plans.end(bottle, -1, error))


def _exited(host: Host, event: e.Exited) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.phase is Phase.STOPPING:
        return host, ()
    bottle = bottle.with_phase(Phase.STOPPING)
    return host.put(bottle), plans.end(bottle, event.status)


def _client_gone(host: Host, event: e.ClientGone) -> Step:
    return _exited(host, e.Exited(event.slot, -1))


def _broken(host: Host, event: e.Broken) -> Step:
    bottle = host.bottles.get(event.slot)
    if bottle is None or bottle.phase is Phase.STOPPING or bottle.attached is not None:
        return host, ()  # what others started is held again, and by the host's side meanwhile
    bottle = bottle.with_phase(Phase.STOPPING)
    message = f"the bottle was ended: {event.what}"
    error = {"class": "HostLacks", "message": message, "hint": event.hint}
    told = _told(bottle, "kill", "refused", event.what, {})
    return host.put(bottle), (told, *plans.stop(bottle, -1, error))


def _crossed(host: Host, event: e.BudgetCrossed) -> Step:
    m = event.message
    spent = {"scope": m.scope, "name": m.name, "provider": m.provider, "tokens": m.tokens, "used": m.used, "per": m.per}
    actions: tuple[a.Action, ...] = ()
    for slot in m.shadow:
        if (bottle := host.bottles.get(slot)) is not None:
            where = f"{m.threshold}% of {m.scope} {m.name}, a shadow budget"
            where += ": it would have been cut" if m.threshold >= 100 else ""
            actions += (_told(bottle, "threshold", "observed", where, {**spent, "shadow": True}),)
    for slot in m.slots:
        bottle = host.bottles.get(slot)
        if bottle is None:
            continue
        if m.threshold < 100:
            where = f"{m.threshold}% of {m.scope} {m.name}"
            actions += (_told(bottle, "threshold", "observed", where, spent),)
            continue
        if bottle.phase not in {Phase.STARTING, Phase.RUNNING}:
            continue
        if bottle.phase is Phase.STARTING and bottle.restored:
            continue  # its plan asks by itself, after the budget was raised
        host, more = _cut(host, bottle, bottle.policy.shutdown, "budget", f"{m.scope}:{m.name}", spent, m.at_ns)
        actions += more
    return host, actions


def _cut(host: Host, bottle: Bottle, policy: str, trigger: str, by: str, spent: dict[str, Any], at_ns: int) -> Step:
    phase = Phase.FROZEN if policy == "freeze" else Phase.CUT
    began = bottle.phase is not Phase.STARTING
    bottle = bottle.with_phase(phase, spent=spent, unbegun=bottle.unbegun or not began)
    told = _told(bottle, policy, "refused", trigger, {"by": by, **spent})
    plan = plans.cut(bottle, policy=policy, trigger=trigger, by=by, spent=spent, crossed_ns=at_ns)
    if policy == "freeze" and began and bottle.attached is None:
        return host.put(bottle), (*plan, told, a.SaveState(bottle.slot, bottle, trigger, by))
    return host.put(bottle), (*plan, told)


def _operator(host: Host, event: e.Operator) -> Step:
    if event.bottle:
        if event.bottle in host.saved:  # a name goes before the number of somebody else's slot
            return frozen.operator(host, host.saved[event.bottle], event)
        found = host.find(event.bottle)
        if found is None:
            names = ", ".join(sorted(b.name for b in host.bottles.values())) or "none"
            return host, (
                a.Fail(0, event.request, "BadInput", f"no bottle is named {event.bottle!r}", f"running: {names}"),
            )
        targets: tuple[Bottle, ...] = (found,)
    else:
        targets = tuple(host.bottles.values())
    actions: tuple[a.Action, ...] = ()
    done: list[str] = []
    refused: list[dict[str, str]] = []
    for bottle in targets:
        host, more = _OPERATOR[event.verb](host, bottle, event)
        failed = next((m for m in more if isinstance(m, a.Fail)), None)
        if failed is None:
            actions += more
            done.append(bottle.name)
        elif event.bottle:
            return host, more
        else:
            refused.append({"bottle": bottle.name, "message": failed.message, "hint": failed.hint})
    answer: dict[str, Any] = {"bottles": done, "refused": refused}
    if event.verb == "resume":
        answer["result"] = "thawed"
    return host, (*actions, a.Answer(0, event.request, answer))


def _operator_cut(host: Host, bottle: Bottle, event: e.Operator) -> Step:
    policy = "freeze" if event.verb == "freeze" else "cutoff"
    allowed = {Phase.RUNNING, Phase.CUT} if policy == "freeze" else {Phase.STARTING, Phase.RUNNING}
    if bottle.phase not in allowed:
        return host, (_cannot(event, bottle),)
    bottle = replace(bottle, held_by=event.uid)
    return _cut(host, bottle, policy, "operator", f"uid:{event.uid}", dict(bottle.spent or {}), 0)


def _operator_resume(host: Host, bottle: Bottle, event: e.Operator) -> Step:
    if bottle.phase not in {Phase.CUT, Phase.FROZEN}:
        return host, (_cannot(event, bottle),)
    if bottle.lacks:
        hint = "end it (agentmon kill), and run it again with another policy or on another kernel"
        return host, (a.Fail(bottle.slot, event.request, "HostLacks", bottle.lacks, hint),)
    if bottle.held_by == 0 and event.uid != 0:
        hint = f"sudo agentmon resume {bottle.name}"
        return host, (a.Fail(bottle.slot, event.request, "Refused", "root stopped it: only root resumes it", hint),)
    raised, refusal = frozen.raised(bottle, event, event.standing.get(bottle.slot))
    if refusal is not None:
        return host, (refusal,)
    host = replace(host, epoch=host.epoch + 1)
    before, bottle = bottle, bottle.with_phase(Phase.RUNNING, spent=None, held_by=-1, epoch=host.epoch)
    told = _told(bottle, "resume", "allowed", "operator", {"by": f"uid:{event.uid}", "tokens": event.tokens})
    plan = plans.resume(before, bottle, raised, f"uid:{event.uid}")
    return host.put(bottle), (*plan, told)


def _operator_kill(host: Host, bottle: Bottle, event: e.Operator) -> Step:
    if bottle.phase is Phase.STOPPING:
        return host, (_cannot(event, bottle),)
    by = f"uid:{event.uid}"
    bottle = bottle.with_phase(Phase.STOPPING)
    told = _told(bottle, "kill", "refused", "operator", {"by": by})
    row = a.Enforced(bottle.slot, bottle, "kill", "operator", by, "no process left")
    first, *rest = plans.stop(bottle, 9)
    return host.put(bottle), (first, a.DropState(bottle.slot, bottle), row, told, *rest)


def _operator_detach(host: Host, bottle: Bottle, event: e.Operator) -> Step:
    if bottle.phase in {Phase.STOPPING, Phase.STARTING}:
        return host, (_cannot(event, bottle),)
    if bottle.attached is None:
        message = f"bottle {bottle.name!r} is agentmon's own: it ends with its command, and never runs without"
        return host, (a.Fail(bottle.slot, event.request, "BadInput", message, f"agentmon kill {bottle.name}"),)
    by = f"uid:{event.uid}"
    bottle = bottle.with_phase(Phase.STOPPING)
    told = _told(bottle, "daemon", "observed", "detached: nothing holds it any more", {"by": by})
    row = a.Enforced(bottle.slot, bottle, "detach", "operator", by, "let go")
    first, *rest = plans.let_go(bottle)
    return host.put(bottle), (row, told, first, *rest)


def _told(bottle: Bottle, kind: str, verdict: str, reason: str, detail: dict[str, Any]) -> a.Emit:
    event = {"kind": kind, "verdict": verdict, "layer": "daemon", "bottle": bottle.name, "reason": reason}
    return a.Emit(bottle.slot, {**event, "epoch": bottle.epoch, "detail": detail})


def _cannot(event: e.Operator, bottle: Bottle) -> a.Fail:
    return a.Fail(
        bottle.slot, event.request, "BadInput",
        f"bottle {bottle.name!r} is {bottle.phase.value}: {event.verb} cannot be done now",
        "agentmon ps shows what runs",
    )  # fmt: skip


def _policy(host: Host, event: e.PolicyChanged) -> Step:
    old = host.bottles.get(event.slot)
    if old is not None and old.phase is Phase.STARTING and not event.request:  # the daemon's own: behind the start
        host = replace(host, epoch=host.epoch + 1)
        return host.put(replace(old, epoch=host.epoch)), (a.ApplyRules(old.slot, old),)
    if old is None or old.phase in {Phase.STOPPING, Phase.STARTING}:
        return host, (a.Fail(0, event.request, "BadInput", "the bottle is starting or has ended", "agentmon ps"),)
    epoch = old.epoch
    if event.removal:
        host = replace(host, epoch=host.epoch + 1)
        epoch = host.epoch
    new = replace(old, policy=event.policy, epoch=epoch)
    told = _told(new, "policy", "observed", event.what, {"by": f"uid:{event.uid}"})
    plan = plans.change(old, new, removal=event.removal)
    return host.put(new), (*plan, told, a.Answer(new.slot, event.request, {"bottle": new.name, "epoch": epoch}))


def _adopted(host: Host, event: e.Adopted) -> Step:
    """What runs on is what was in force, unless this host cannot hold it any more: then it is cut before all else."""
    cut = bool(event.lacks) and event.bottle.phase is Phase.RUNNING
    bottle = replace(event.bottle, lacks=event.lacks, phase=Phase.CUT if cut else event.bottle.phase)
    host = replace(host.put(bottle), epoch=max(host.epoch, bottle.epoch))
    steps: tuple[a.Action, ...] = (a.PushViews(bottle.slot, bottle), a.ApplyRules(bottle.slot, bottle))
    if cut:
        first, *rest = plans.cut(bottle, policy="cutoff", trigger="host", by="daemon", spent={}, crossed_ns=0)
        steps = (first, *steps, *rest)
    if bottle.phase is Phase.FROZEN:  # the last daemon may not have lived to finish a resume, or a save
        steps += (a.Freeze(bottle.slot),)
        if bottle.attached is None:
            steps += (a.SaveState(bottle.slot, bottle, "host", "daemon"),)
    if event.lacks:
        detail = {"by": "daemon", "hint": event.hint}
        steps += (_told(bottle, "cutoff" if cut else "daemon", "refused", event.lacks, detail),)
    return host, steps


_OPERATOR: dict[str, Callable[[Host, Bottle, e.Operator], Step]] = {
    "cut": _operator_cut, "freeze": _operator_cut, "resume": _operator_resume, "kill": _operator_kill,
    "detach": _operator_detach,
}  # fmt: skip
_HANDLERS: dict[type, Callable[..., Step]] = {
    e.RunRequested: _run, e.StartFinished: _started, e.PlanFailed: _failed, e.Exited: _exited,
    e.ClientGone: _client_gone, e.Broken: _broken, e.BudgetCrossed: _crossed, e.Operator: _operator,
    e.PolicyChanged: _policy, e.Adopted: _adopted, e.AttachRequested: _attach, e.AttachFinished: _attach_finished,
    e.TargetGone: _target_gone, e.Kept: frozen.kept, e.RestartRequested: frozen.restart,
}  # fmt: skip
