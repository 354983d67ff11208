"""What is in force, as one immutable value. It is replaced by one assignment, never changed.

`in_force` shows it to whoever reads; what decides is kept by the hook. Assigning to `in_force` opens nothing: the
hook sees at its next check that they are no longer the same, and refuses from then on.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NamedTuple

    from agentmon.guard.children import Child
    from agentmon.guard.errors import EgressViolation
    from agentmon.guard.judge import Judge

    class State(NamedTuple):
        mode: str
        judge: Judge
        within: tuple[Judge, ...]
        bind: str
        on_blocked: Callable[[EgressViolation], object] | None
        on_child: Callable[[Child], object] | None

    class Status(NamedTuple):
        installed: bool
        mode: str
        rules: tuple[str, ...]
        locked: bool
        bind: str
        vouching: str
        vouches_refused: int
        sockets_before: tuple[str, ...]
        children: tuple[Child, ...]
        tampered: str
else:
    State = namedtuple("State", "mode judge within bind on_blocked on_child")
    Status = namedtuple(
        "Status",
        "installed mode rules locked bind vouching vouches_refused sockets_before children tampered",
    )

ENFORCE, OBSERVE = "enforce", "observe"
MODES = (ENFORCE, OBSERVE)
BIND_ANY, BIND_EPHEMERAL = "any", "ephemeral"
BINDS = (BIND_ANY, BIND_EPHEMERAL)

in_force: State | None = None
