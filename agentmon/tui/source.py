"""Asking: bottles and approvals from the daemon, budgets and requests under way from the ledger, events as they come.

Each call may wait; the dashboard makes them in threads. Nothing is written, and nothing is raised: see Raw.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentmon.errors import AgentmonError
from agentmon.ledger.opening import opened
from agentmon.tui.model import Raw

Ask = Callable[..., Any]  # of the daemon: an operation and its arguments → its value; raises AgentmonError
Stream = Callable[..., Iterable[Any]]  # the same, value by value

_AGAIN_S = 1.0  # between attempts to follow events of a daemon that is away


def look(ask: Ask) -> Raw:
    """One round."""
    at_ns, problem, blind = time.time_ns(), "", ""
    bottles: Any = ()
    approvals: Any = ()
    budgets: Any = ()
    live: Any = ()
    try:
        bottles = ask("ps")
        approvals = ask("approvals")
    except AgentmonError as error:
        problem = f"{error.message} ({error.hint})" if error.hint else error.message
    try:
        with opened() as ledger:
            budgets, live = ledger.budgets(), ledger.live()
    except AgentmonError as error:
        blind = f"the ledger cannot be read: {error.message}"
    return Raw(at_ns, tuple(bottles), tuple(approvals), tuple(budgets), tuple(live), problem, blind)


def act(ask: Ask, op: str, **args: Any) -> str:
    """An operator's request; "" where it was done, else what a person has to know."""
    try:
        ask(op, **args)
    except AgentmonError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return ""


class Following:
    """Events from a while ago on, each handed to `told` in a thread of this object's own, until `stop`."""

    def __init__(self, stream: Stream, told: Callable[[Mapping[str, Any]], None], since_ns: int) -> None:
        self._stream = stream
        self._told = told
        self._since_ns = since_ns
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The thread ends with the next event, or with the process."""
        self._end.set()

    def _follow(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(AgentmonError):
                for event in self._stream("events", since_ns=self._since_ns, follow=True):
                    if self._end.is_set():
                        return
                    if isinstance(event, dict) and "kind" in event:
                        self._told(event)
                        self._since_ns = time.time_ns()
            self._end.wait(_AGAIN_S)
