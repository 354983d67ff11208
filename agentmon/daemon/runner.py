"""Runs plans: one at a time for each bottle, cuts at once, stops before everything that was queued.

A failed action ends its plan, answers the request that waited for it, and goes back to the controller as PlanFailed.
Stops and cuts go on past failures: their actions are idempotent, and the bottle must be gone, or shut, at their end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.machine import step
from agentmon.control.state import Bottle, Host
from agentmon.daemon.clients import Clients
from agentmon.errors import AgentmonError

_DEBUG = bool(os.environ.get("AGENTMON_DEBUG"))


class Runner:
    """Owns the Host state.

    :param apply: the applier.
    :param after: called after each finished plan (the daemon looks whether it is idle).
    """

    def __init__(
        self, host: Host, apply: Callable[[a.Action], Awaitable[None]], clients: Clients, after: Callable[[], None]
    ) -> None:
        self.host = host
        self._apply = apply
        self._clients = clients
        self._after = after
        self._locks: dict[int, asyncio.Lock] = {}
        self._generation: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def dispatch(self, event: e.Event) -> asyncio.Task[None] | None:
        """Decide now, act in the background; the task ends when all actions have been applied."""
        self.host, actions = step(self.host, event)
        if not actions:
            return None
        task = asyncio.create_task(self._run(actions), name=type(event).__name__)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drained(self) -> None:
        """Return when no plan is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run(self, actions: tuple[a.Action, ...]) -> None:
        by_slot: dict[int, list[a.Action]] = {}
        for action in actions:
            by_slot.setdefault(action.slot, []).append(action)
        last = by_slot.pop(0, [])
        failures = await asyncio.gather(*(self._plan(slot, plan) for slot, plan in by_slot.items()))
        failure = next((f for f in failures if f is not None), None)
        if failure is None:
            await self._each(0, last, generation=None)
        else:
            self._refuse(last, failure)
        self._after()

    async def _plan(self, slot: int, plan: list[a.Action]) -> e.PlanFailed | None:
        """Apply one bottle's actions; returns the failure that ended them."""
        kinds = {type(action) for action in plan}
        if a.CutKernel in kinds:
            return await self._cut(slot, plan)
        stopping = a.Ended in kinds
        if stopping:
            self._generation[slot] = self._generation.get(slot, 0) + 1
        generation = self._generation.get(slot, 0)
        failure = None
        async with self._locks.setdefault(slot, asyncio.Lock()):
            if stopping:
                await self._all(plan)
            else:
                failure = await self._each(slot, plan, generation)
        if stopping:
            self.host = self.host.drop(slot)
            self._locks.pop(slot, None)
        elif failure is None and a.Started in kinds:
            self.dispatch(e.StartFinished(slot, self._clients.pid(slot)))
        return failure

    async def _each(self, slot: int, plan: Iterable[a.Action], generation: int | None) -> e.PlanFailed | None:
        left = list(plan)
        before = next((action.before for action in left if isinstance(action, a.Mark)), None)
        while left:
            if generation is not None and self._generation.get(slot, 0) != generation:
                return None  # a stop came in between
            action = left.pop(0)
            try:
                await self._timed(action)
            except (AgentmonError, OSError) as error:
                failure = _failure(slot, action, error, before)
                self._refuse(left, failure)
                self.dispatch(failure)
                return failure
        return None

    async def _cut(self, slot: int, plan: Iterable[a.Action]) -> e.PlanFailed | None:
        """Each step closes something, or keeps it closed: one that fails keeps no other from being done."""
        failure = None
        for action in plan:
            try:
                await self._timed(action)
            except (AgentmonError, OSError) as error:
                failure = failure or _failure(slot, action, error, None)
        if failure is not None:
            self.dispatch(failure)
        return failure

    async def _all(self, plan: Iterable[a.Action]) -> None:
        for action in plan:
            try:
                await self._timed(action)
            except (AgentmonError, OSError) as error:
                print(f"warning: {action.describe()}: {error}; going on", file=sys.stderr)

    async def _timed(self, action: a.Action) -> None:
        """Apply; with AGENTMON_DEBUG=1 each action and its time stand in the log."""
        if not _DEBUG:
            await self._apply(action)
            return
        began_ns = time.monotonic_ns()
        try:
            await self._apply(action)
        finally:
            print(f"{(time.monotonic_ns() - began_ns) / 1e6:8.2f} ms  {action.describe()}", file=sys.stderr, flush=True)

    def _refuse(self, left: Iterable[a.Action], failure: e.PlanFailed) -> None:
        """Whoever waits for the rest of a failed plan is told."""
        for action in left:
            if isinstance(action, a.Answer):
                self._clients.fail(action.request, failure.error, failure.message, failure.hint)
            elif isinstance(action, a.Fail):
                self._clients.fail(action.request, action.error, action.message, action.hint)


def _failure(slot: int, action: a.Action, error: Exception, before: Bottle | None) -> e.PlanFailed:
    if isinstance(error, AgentmonError):
        return e.PlanFailed(slot, error.kind, error.message, error.hint, before)
    return e.PlanFailed(slot, "HostLacks", f"{action.describe()}: {error}", "agentmon events --kind daemon", before)
