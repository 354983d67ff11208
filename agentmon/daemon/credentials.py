"""Who hands credentials to the proxy, and what else must not leave a bottle: read here as root, told by bottle.

No value is kept: a change is seen by the file's inode and times, and told. What a command prints, and the credentials
of other bottles' routes, are read when a bottle starts, when the proxy comes back, and on SIGHUP.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping

from agentmon import wire
from agentmon.control.state import Bottle, Phase
from agentmon.credentials.sources import Store
from agentmon.daemon.secrets import Secrets, name_digests
from agentmon.daemon.services import Service
from agentmon.errors import AgentmonError
from agentmon.events import Event

EVERY_S = 0.5  # a changed file is in force after this at most


def names(bottle: Bottle) -> tuple[str, ...]:
    """The credentials that its routes put in."""
    return tuple(sorted({r.auth_credential for r in bottle.policy.routes if r.auth_credential}))


class Credentials:
    """For one daemon. :param emit: an event; one for each credential that is missing, until that changes."""

    def __init__(
        self,
        store: Store,
        bottles: Callable[[], Mapping[int, Bottle]],
        workers: Callable[[Bottle], Iterable[Service]],
        emit: Callable[[Event], object],
    ) -> None:
        self._store = store
        self._bottles = bottles
        self._workers = workers
        self._emit = emit
        self._secrets = Secrets()
        self.resolver: Callable[[], Service | None] = lambda: None  # told what must not stand in names
        self._seen: dict[str, tuple[object, ...]] = {}  # name → its files' signature when it was last read
        self._told: dict[tuple[str, str], str] = {}  # (run, name) → what is wrong with it
        self._given: dict[str, tuple[str, ...]] = {}  # run → the names it was told of
        self._order = asyncio.Lock()  # a value that was read later is told later

    def use(self, store: Store) -> None:
        """Where values come from by now."""
        self._store = store

    async def push(self, bottle: Bottle) -> None:
        """As push_to(), to every worker that has to know the bottle."""
        await self.push_to(bottle, self._workers(bottle))

    async def push_to(self, bottle: Bottle, workers: Iterable[Service]) -> None:
        """Tell the proxy all that must not leave this bottle, and all that its routes put in; what of that cannot be
        read is left out, so it refuses.

        :raises AgentmonError: the proxy does not answer.
        """
        wanted = names(bottle)
        async with self._order:
            values: dict[str, str] = {}
            for name in wanted:
                self._seen[name] = self._store.signature(name)
                try:
                    values[name] = (await asyncio.to_thread(self._store.read, name)).reveal()
                    self._told.pop((bottle.run, name), None)
                except (AgentmonError, OSError) as error:
                    self._tell(bottle, name, error)
            self._given[bottle.run] = wanted
            key, known = await asyncio.to_thread(self._secrets.of, bottle, self._store, values)
            for proxy in workers:
                await proxy.call(wire.SetSecrets(proxy.next_id(), bottle.slot, bottle.run, key, known))
                if wanted:
                    await proxy.call(wire.SetCredentials(proxy.next_id(), bottle.slot, bottle.run, values))
            await self._tell_names(bottle, key, known)

    async def push_names(self, bottle: Bottle) -> None:
        """Tell the resolver, which has just come up, what must not stand in this bottle's names; what commands print is
        told when the bottle's credentials are read next.

        :raises AgentmonError: it does not answer.
        """
        async with self._order:
            key, known = await asyncio.to_thread(self._secrets.of, bottle, self._store, {})
            await self._tell_names(bottle, key, known)

    async def _tell_names(self, bottle: Bottle, key: bytes, known: Mapping[str, str]) -> None:
        resolver = self.resolver()
        if resolver is None or resolver.channel is None:
            return  # it is told when it is up
        digests = await asyncio.to_thread(name_digests, known, key)
        await resolver.call(wire.SetNames(resolver.next_id(), bottle.slot, bottle.run, key, digests))

    def lacks(self, bottle: Bottle) -> bool:
        """Whether the proxy was told of other names for this run than its routes have."""
        return names(bottle) != self._given.get(bottle.run, ())

    def _tell(self, bottle: Bottle, name: str, error: AgentmonError | OSError) -> None:
        what = str(error)
        if self._told.get((bottle.run, name)) == what:
            return
        self._told[bottle.run, name] = what
        hint = error.hint if isinstance(error, AgentmonError) else ""
        event = Event("daemon", "refused", bottle=bottle.name, reason=what, hint=hint, layer="daemon")
        self._emit(event)

    async def again(self) -> None:
        """Read and tell all anew."""
        runs = {bottle.run for bottle in self._bottles().values()}
        self._told = {key: what for key, what in self._told.items() if key[0] in runs}
        self._given = {run: told for run, told in self._given.items() if run in runs}
        for bottle in tuple(self._bottles().values()):
            if bottle.phase in {Phase.STARTING, Phase.STOPPING}:
                continue
            try:
                await self.push(bottle)
            except AgentmonError as error:  # it is told all when it is back
                print(f"warning: credentials of {bottle.name}: {error}", file=sys.stderr)

    async def watch(self) -> None:
        """Until cancelled. Looks at files only while a bottle needs them."""
        while True:
            await asyncio.sleep(EVERY_S)
            wanted = {name for bottle in tuple(self._bottles().values()) for name in names(bottle)}
            if any(name in self._seen and self._store.signature(name) != self._seen[name] for name in wanted):
                await self.again()
