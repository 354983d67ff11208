"""Asks the daemon to open what was resolved, and waits: no address leaves before every layer knows it.

An element outlives every answer that carries its address: its timeout is the answer's TTL, at least FLOOR_S, plus
GRACE_S. Every answer renews it; only within FRESH_NS of a commit of the very same addresses is nothing sent (a burst
of questions for one name costs the kernel one change).

While the daemon is away the kernel's elements stay: what it opened is used as long as they outlive the answer, and
nothing new is opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmon import wire
from agentmon.channel import Channel
from agentmon.events import Event
from agentmon.reporting import Reporter
from agentmon.resolver.cache import Cache
from agentmon.service import Control
from agentmon.views import View

FLOOR_S = 30
GRACE_S = 10
FRESH_NS = 1_000_000_000
CALL_S = 3.0
ADDRESSES = "addresses"  # the daemon's reason when a bottle's names lead to too many

Key = tuple[int, str, str, tuple[str, ...], tuple[int, ...]]


class Uncommitted(Exception):
    """The addresses are not open: no daemon, no answer in time, or the daemon refused (its reason)."""


class Commits:
    def __init__(self, control: Control, now_ns: Callable[[], int], reporter: Reporter) -> None:
        self._control = control
        self._reporter = reporter
        self._now_ns = now_ns
        self._fresh: Cache[Key, tuple[Channel, frozenset[str]]] = Cache(10_000)
        self._open: Cache[Key, tuple[int, frozenset[str]]] = Cache(10_000)  # (end of the elements, addresses)
        self._asking: dict[Key, asyncio.Task[frozenset[str]]] = {}

    async def bottle(self, view: View, name: str, addresses: tuple[str, ...], ttl_s: int) -> frozenset[str]:
        """Open `addresses` for the bottle's own flows, by its direct rules.

        :returns: what was opened. :raises Uncommitted: nothing was.
        """
        return await self._commit(view, "bottle", name, addresses, (), ttl_s)

    async def service(self, view: View, name: str, addresses: tuple[str, ...], port: int, ttl_s: int) -> frozenset[str]:
        """Open `addresses` for relay and proxy. :raises Uncommitted: as above."""
        return await self._commit(view, "service", name, addresses, (port,), ttl_s)

    async def _commit(
        self, view: View, purpose: str, name: str, addresses: tuple[str, ...], ports: tuple[int, ...], ttl_s: int
    ) -> frozenset[str]:
        daemon = self._control.daemon()
        key = (view.generation, purpose, name, addresses, ports)
        if daemon is None:
            return self._still_open(key, ttl_s)
        fresh = self._fresh.get(key, self._now_ns())
        if fresh is not None and fresh[0] is daemon:
            return fresh[1]
        task = self._asking.get(key)
        if task is None:
            message = wire.Commit(
                daemon.next_id(), view.slot, name, addresses, max(ttl_s, FLOOR_S) + GRACE_S, purpose, ports
            )
            task = asyncio.ensure_future(self._ask(daemon, key, message, view))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    def _still_open(self, key: Key, ttl_s: int) -> frozenset[str]:
        """What an earlier commit opened, if that outlives an answer of `ttl_s`."""
        now_ns = self._now_ns()
        end_ns, opened = self._open.get(key, now_ns) or (0, frozenset())
        if now_ns + ttl_s * 1_000_000_000 > end_ns:
            raise Uncommitted("the daemon is away")
        return opened

    def _asked(self, key: Key, task: asyncio.Task[frozenset[str]]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()

    async def _ask(self, daemon: Channel, key: Key, message: wire.Commit, view: View) -> frozenset[str]:
        now_ns = self._now_ns()
        try:
            answer = await daemon.call(message, CALL_S)
        except (OSError, TimeoutError) as e:
            raise Uncommitted("the daemon does not answer") from e
        if getattr(answer, "reason", "") == ADDRESSES:
            about = {"name": message.name}
            event = Event(
                "dns", "refused", view.wire.bottle, ADDRESSES, "resolver", epoch=view.wire.epoch, detail=about
            )
            self._reporter.note(view.slot, event)
        if not isinstance(answer, wire.Committed) or not answer.addresses:
            raise Uncommitted(getattr(answer, "reason", "") or "refused")
        opened = frozenset(answer.addresses)
        self._fresh.put(key, (daemon, opened), now_ns + FRESH_NS)
        end_ns = now_ns + message.ttl_s * 1_000_000_000
        self._open.put(key, (end_ns, opened), end_ns - GRACE_S * 1_000_000_000)
        return opened
