"""What the daemon can be told to do. Each action is one value with a sentence; the applier has one method for each.

Actions of one plan run in order. `after_failure` ones are idempotent and run even when an earlier one failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentmon.control.state import Bottle


@dataclass(frozen=True, slots=True)
class Action:
    slot: int

    def describe(self) -> str:
        """One line for `--dry-run` and the debug log."""
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(self).__name__).strip()
        return f"{words} (bottle in slot {self.slot})"


@dataclass(frozen=True, slots=True)
class Together(Action):
    """Branches that do not depend on each other, run at the same time; each branch in its order."""

    branches: tuple[tuple[Action, ...], ...]


# ── start ──
class MakeCgroup(Action):
    """Bottle directory, job leaf frozen, probe leaf."""


class MakeNet(Action):
    """Namespace, veth, deny-all on both sides."""


@dataclass(frozen=True, slots=True)
class ApplyClosed(Action):
    """BPF knows the bottle and refuses everything."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class OpenRun(Action):
    bottle: Bottle


@dataclass(frozen=True, slots=True)
class PushViews(Action):
    """Resolver, relay and proxy know the bottle; waits for all three."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class MakeFiles(Action):
    """Private HOME, trust bundle, resolv.conf."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class Launch(Action):
    """The job's processes exist, stopped in the frozen leaf."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class ApplyRules(Action):
    """The compiled policy in force: BPF and nft, same epoch: additions; new epoch: removals too."""

    bottle: Bottle


class Probe(Action):
    """From the sibling leaf: an allowed path works, a forbidden one is refused by each layer."""


class Thaw(Action):
    pass


class Freeze(Action):
    pass


@dataclass(frozen=True, slots=True)
class Mark(Action):
    """Does nothing; `before` is what is put back if a later action of this plan fails."""

    before: Bottle


# ── cut and resume ──
@dataclass(frozen=True, slots=True)
class CutKernel(Action):
    """nft and BPF: only resolver and proxy remain."""


@dataclass(frozen=True, slots=True)
class CloseStreams(Action):
    """Proxy and relay end what is in flight; what is open after the grace the kernel destroys. Then the record."""

    bottle: Bottle
    policy: str  # cutoff | freeze | kill
    trigger: str  # budget | operator
    by: str
    spent: dict[str, Any]
    crossed_ns: int


@dataclass(frozen=True, slots=True)
class SetBudget(Action):
    bottle: Bottle
    provider: str  # "" : the one that was spent, else the policy's default
    tokens: int
    uid: int


@dataclass(frozen=True, slots=True)
class Limit(Action):
    """The cgroup's limits as the policy has them now."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class Enforced(Action):
    """A row of enforcement_v for what is not a cut (resume, kill by an operator)."""

    bottle: Bottle
    policy: str
    trigger: str
    by: str
    result: str


# ── what outlives a reboot ──
@dataclass(frozen=True, slots=True)
class SaveState(Action):
    """A frozen bottle's files, command, environment and policy, to disk, once. A failure is told; the plan goes on."""

    bottle: Bottle
    trigger: str
    by: str


@dataclass(frozen=True, slots=True)
class SettleState(Action):
    """Waits for a SaveState that is under way: what comes next takes away what it reads."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class DropState(Action):
    """What was saved is not needed any more; a SaveState under way ends."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class RestoreState(Action):
    """The saved private files, into the bottle that starts again."""

    bottle: Bottle


class CheckBudget(Action):
    """Fails while a budget that decides for the bottle is spent."""


# ── attach and detach ──
class AttachPrograms(Action):
    """BPF on the cgroup that the processes are in already."""


class MoveIn(Action):
    """Processes of the namespace that share a cgroup with others go to the bottle's own, which is frozen."""


class EndOlder(Action):
    """Connections that are older than the rules end: they have addresses that nothing lets pass any more."""


class LetGo(Action):
    """Moved processes go back to where they were, running; idempotent."""


# ── stop ──
class KillAll(Action):
    """cgroup.kill on the bottle's whole subtree; waits until it is empty."""


class CloseRun(Action):
    pass


class DropViews(Action):
    pass


class ForgetBpf(Action):
    pass


class DeleteNet(Action):
    pass


class RemoveCgroup(Action):
    pass


class RemoveFiles(Action):
    pass


# ── telling people ──
@dataclass(frozen=True, slots=True)
class Save(Action):
    """State file for a restarted daemon."""

    bottle: Bottle


@dataclass(frozen=True, slots=True)
class Emit(Action):
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Started(Action):
    """Tell the client that the job runs."""


@dataclass(frozen=True, slots=True)
class Ended(Action):
    """Tell the client how it ended; the bottle is gone when this runs."""

    bottle: Bottle
    status: int  # wait status of the job, or -1
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer(Action):
    """Answer a request (its number) with a value, after the actions before it."""

    request: int
    value: Any


@dataclass(frozen=True, slots=True)
class Holds(Answer):
    """The attached bottle is open: says what holds it, and goes back to the controller as AttachFinished."""


@dataclass(frozen=True, slots=True)
class Fail(Action):
    request: int
    error: str
    message: str
    hint: str = ""
