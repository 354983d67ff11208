"""What can happen to the daemon. Requests carry the number of the request to answer and the peer's uid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmon import wire
from agentmon.control.state import Attached, Bottle, Job
from agentmon.policy.effective import EffectivePolicy


@dataclass(frozen=True, slots=True)
class RunRequested:
    request: int
    policy: EffectivePolicy
    job: Job
    run: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class PlanFailed:
    """An action of a bottle's plan failed; `error` is a class name of agentmon.errors."""

    slot: int
    error: str
    message: str
    hint: str
    before: Bottle | None = None  # the plan's Mark: what was in force


@dataclass(frozen=True, slots=True)
class StartFinished:
    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The job's first process ended with wait status `status`."""

    slot: int
    status: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The command line that started the bottle went away without asking to detach."""

    slot: int


@dataclass(frozen=True, slots=True)
class Broken:
    """Somebody took away what holds a bottle, and it cannot be put back under a running job."""

    slot: int
    what: str
    hint: str = "agentmon events --kind tamper shows what was done"


@dataclass(frozen=True, slots=True)
class BudgetCrossed:
    message: wire.Crossed


@dataclass(frozen=True, slots=True)
class Operator:
    """cut, freeze, resume or kill by a person; `bottle` "" means all. `standing`: for each slot that is to be resumed,
    the budgets that decide for it and are spent now; without one, what is known is the budget that cut it."""

    request: int
    verb: str
    bottle: str
    uid: int
    tokens: int = 0
    provider: str = ""
    standing: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """A frozen bottle is on disk, and nothing else of it is left."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """resume of a bottle that is on disk only; `bottle` as it is to start again: its policy and terminal of today."""

    request: int
    bottle: Bottle
    uid: int
    now_ns: int
    tokens: int = 0
    provider: str = ""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """allow, deny or a reloaded manifest. `removal`: something that was allowed may no longer be."""

    request: int
    slot: int
    policy: EffectivePolicy
    removal: bool
    uid: int
    what: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """A bottle of an earlier daemon, found alive. `lacks`: what its policy relies on and this host has no more, "" for
    nothing; `hint`: what helps."""

    bottle: Bottle
    lacks: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class AttachRequested:
    request: int
    policy: EffectivePolicy
    job: Job  # who asked; argv says what is attached
    attached: Attached
    run: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class AttachFinished:
    """Everything holds; `attached` says by what. `ended`: connections that were older."""

    slot: int
    request: int
    attached: Attached
    ended: int


@dataclass(frozen=True, slots=True)
class TargetGone:
    """Nothing is left of what a bottle was attached to."""

    slot: int
    reason: str


Event = (
    RunRequested
    | PlanFailed
    | StartFinished
    | Exited
    | ClientGone
    | Broken
    | BudgetCrossed
    | Operator
    | PolicyChanged
    | Adopted
    | AttachRequested
    | AttachFinished
    | TargetGone
    | Kept
    | RestartRequested
)
