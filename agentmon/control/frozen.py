"""Bottles that were stopped: the budget that resume raises first, and those that are only on disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control import plans
from agentmon.control.state import Bottle, Host, Phase

Step = tuple[Host, tuple[a.Action, ...]]


def kept(host: Host, event: e.Kept) -> Step:
    """It can be resumed or discarded from now on."""
    return host.keep(event.bottle), ()


def operator(host: Host, bottle: Bottle, event: e.Operator) -> Step:
    """What a person wants of a bottle that is on disk only: it can be discarded. Resume comes as RestartRequested."""
    if event.verb != "kill":
        message = f"bottle {bottle.name!r} is frozen and saved, it has no process: {event.verb} cannot be done"
        hint = f"agentmon resume {bottle.name}, or agentmon kill {bottle.name}"
        return host, (a.Fail(0, event.request, "BadInput", message, hint),)
    by = f"uid:{event.uid}"
    told = {"kind": "kill", "verdict": "refused", "layer": "daemon", "bottle": bottle.name, "reason": "operator"}
    return host.unkeep(bottle.name), (
        a.DropState(0, bottle),
        a.Enforced(0, bottle, "kill", "operator", by, "what was saved is discarded"),
        a.Emit(0, {**told, "detail": {"by": by}}),
        a.Answer(0, event.request, {"bottles": [bottle.name], "refused": []}),
    )


def restart(host: Host, event: e.RestartRequested) -> Step:
    """The saved bottle in a new slot; it is on disk until it runs."""
    saved, name = host.saved.get(event.bottle.name), event.bottle.name
    if saved is None or saved.run != event.bottle.run:
        return host, (a.Fail(0, event.request, "BadInput", f"no bottle named {name!r} is saved", "agentmon ps"),)
    if saved.held_by == 0 and event.uid != 0:
        hint = f"sudo agentmon resume {name}"
        return host, (a.Fail(0, event.request, "Refused", "root stopped it: only root resumes it", hint),)
    raised_to, refusal = raised(saved, event, None if event.tokens else ())  # without tokens the ledger says it
    slot = host.free_slot()
    if refusal is None and slot is None:
        hint = "end a bottle (agentmon ps), or widen addresses: in settings.yml"
        refusal = a.Fail(0, event.request, "HostLacks", "the address pool is used up", hint)
    if refusal is not None or slot is None:
        return host, (refusal,) if refusal is not None else ()
    host = replace(host.unkeep(name), epoch=host.epoch + 1, last=slot)
    bottle = replace(
        event.bottle, slot=slot, epoch=host.epoch, phase=Phase.STARTING, spent=None, held_by=-1, lacks="", pid=0,
        started_ns=event.now_ns, restored=True, worker=slot % host.workers,
    )  # fmt: skip
    if raised_to is not None:
        raised_to = replace(raised_to, slot=slot, bottle=replace(raised_to.bottle, slot=slot))
    by = f"uid:{event.uid}"
    told = {"kind": "resume", "verdict": "allowed", "layer": "daemon", "bottle": name, "reason": "operator"}
    detail = {"by": by, "tokens": event.tokens, "way": "restarted"}
    return host.put(bottle), (
        a.Answer(slot, event.request, slot),
        a.Save(slot, bottle),
        *plans.restart(bottle, raised_to, by),
        a.Emit(slot, {**told, "epoch": bottle.epoch, "detail": detail}),
    )


def raised(
    bottle: Bottle, event: e.Operator | e.RestartRequested, standing: Sequence[Mapping[str, Any]] | None
) -> tuple[a.SetBudget | None, a.Fail | None]:
    """The budget that is to be set before the bottle goes on, or why it cannot go on.

    :param standing: what is spent now; None: as far as is known, the budget that cut it.
    """
    known = ([bottle.spent] if bottle.spent else []) if standing is None else standing
    spent = sorted(known, key=lambda s: not _is_cause(s, bottle))
    target: Mapping[str, Any] | None = None
    if event.tokens:
        target = next((s for s in spent if event.provider in {"", s["provider"]}), None)
        if target is not None and target["used"] >= event.tokens:
            used = target["used"]
            message = f"{event.tokens} tokens are already spent: {used} were used"
            hint = f"give more than that: agentmon resume {bottle.name} --budget {used * 2}"
            return None, a.Fail(bottle.slot, event.request, "BadInput", message, hint)
    left = next((s for s in spent if s is not target), None)
    if left is not None:
        message = f"{left['scope']} {left['name']} spent its {left['provider']} budget"
        message += f": {left['used']} of {left['tokens']} tokens"
        hint = f"agentmon resume {bottle.name} --budget {left['provider']}={left['used'] * 2}"
        if target is not None:
            hint = f"agentmon budget set {left['scope']}:{left['name']} {left['provider']} {left['used'] * 2}"
        return None, a.Fail(bottle.slot, event.request, "Refused", message, hint)
    if not event.tokens:
        return None, None
    provider = event.provider or (target or {}).get("provider", "")
    return a.SetBudget(bottle.slot, replace(bottle, spent=target), provider, event.tokens, event.uid), None


def _is_cause(spent: Mapping[str, Any], bottle: Bottle) -> bool:
    return all(spent[key] == (bottle.spent or {}).get(key) for key in ("scope", "name", "provider"))
