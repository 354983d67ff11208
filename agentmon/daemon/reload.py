"""Settings and manifests that have changed, put in force without a restart: on SIGHUP, and when a file changes.

    settings.yml ──bad──▶ told; all of it stays as it was          ──good──▶ daemon, proxy's providers, credentials
    manifests    ──bad──▶ told; that bottle stays as it was        ──good──▶ PolicyChanged, each bottle as a whole

Requests under way go on. What needs a new daemon (KEPT) or a new start of the bottle is told, and stays.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentmon.control import events as e
from agentmon.control.state import Bottle, Phase
from agentmon.credentials import sources
from agentmon.daemon.watched import Watched, contents
from agentmon.errors import AgentmonError
from agentmon.events import Event
from agentmon.policy import again, change, unbuilt
from agentmon.policy import settings as settings_file
from agentmon.policy.settings import Settings
from agentmon.providers import registry

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

KEPT = (  # of Settings: read when the daemon is started
    "ledger", "upstream_proxy", "upstream_dns", "upstream_ca", "events_age_s", "events_bytes", "usage_age_s",
    "bottles_dir", "pool", "proxies",
)  # fmt: skip
_KEYS = {"events_age_s": "retention", "events_bytes": "retention", "usage_age_s": "retention", "pool": "addresses"}
_AGAIN_S = 0.5  # until bottles that were starting are looked at
_STARTING = frozenset({Phase.STARTING, Phase.STOPPING})


class Reload:
    """For one daemon. `bad`: what is wrong with newer files, by the bottle's name, "" for the settings."""

    def __init__(self, daemon: Daemon, read: Callable[[Path | None], Settings] = settings_file.load) -> None:
        self._d = daemon
        self._read = read
        self._order = asyncio.Lock()
        self._notes: dict[str, tuple[str, ...]] = {}  # what was told of a bottle's files, "" for the settings
        self.bad: dict[str, str] = {}

    def of(self, bottle: Bottle) -> str:
        """What is wrong with newer files of a running bottle; "" for nothing."""
        return self.bad.get(bottle.name) or self.bad.get("", "")

    async def now(self) -> None:
        """Read all anew; returns when it is in force, or told why not. Never raises for what stands in files."""
        async with self._order:
            if await self._settings():
                await self._d.credentials.again()
                await self._bottles()

    async def watch(self) -> None:
        """Until cancelled: now(), when the settings or a manifest in bottles_dir has changed."""
        source = self._d.settings.source
        file, bottles = Path(source) if source else settings_file.default_path(), self._d.settings.bottles_dir
        changed = asyncio.Event()
        try:
            watched = Watched((file.parent, file.resolve().parent, bottles), changed.set)
        except OSError as error:
            print(f"warning: changes of files are not noticed ({error}): send SIGHUP after one", file=sys.stderr)
            return
        try:
            seen = await asyncio.to_thread(_contents, file, bottles)
            while True:
                await changed.wait()
                changed.clear()
                if (found := await asyncio.to_thread(_contents, file, bottles)) != seen:
                    seen = found
                    await self.now()
        finally:
            watched.close()

    # ── settings ──

    async def _settings(self) -> bool:
        """Put the host's settings in force; False: they stay as they were."""
        old = self._d.settings
        try:
            new, notes = self._checked(old)
            await self._d.rules.change(self._d.workers.all(), new)
        except (AgentmonError, OSError) as error:
            self._wrong("", error)
            return False
        self._right("")
        self._note("", notes)
        if new == old:
            return True
        providers = registry.load(new.providers)
        self._d.settings = new
        self._d.log.add(Event("policy", "observed", reason="settings were read anew", layer="daemon"))
        self._d.log.set_log(new.log)
        self._d.credentials.use(sources.store(new.credentials))
        if new.providers != old.providers:
            self._d.providers = providers
            await self._d.workers.providers(new.providers)
        return True

    def _checked(self, old: Settings) -> tuple[Settings, tuple[str, ...]]:
        """:raises AgentmonError: with file, line and key."""
        path = Path(old.source) if old.source else None
        if path is not None and not path.exists():
            raise AgentmonError(f"{path}: is gone", "put it back, or start the daemon anew for the defaults")
        new = self._read(path)
        unbuilt.refuse_settings(new)
        registry.load(new.providers)
        waiting = dict.fromkeys(
            _KEYS.get(key, key.partition("_")[0] if key.startswith("upstream") else key)
            for key in KEPT
            if getattr(new, key) != getattr(old, key)
        )
        notes = [f"{key}: changed, in force when the daemon is started again" for key in waiting]
        if "full" in {new.log, old.log} and new.log != old.log:
            notes.append("log: connections that are allowed are told as before until the daemon is started again")
        return replace(new, **{key: getattr(old, key) for key in KEPT}), tuple(notes)

    # ── bottles ──

    async def _bottles(self) -> None:
        found = tuple(self._d.host.bottles.values())
        await asyncio.gather(*(self._one(bottle) for bottle in found if bottle.phase not in _STARTING))
        await self._d.workers.approvals(tuple(self._d.host.bottles.values()))
        names = {bottle.name for bottle in found} | {""}
        self.bad = {name: what for name, what in self.bad.items() if name in names}
        self._notes = {name: what for name, what in self._notes.items() if name in names}
        if any(bottle.phase is Phase.STARTING for bottle in found):  # they began with what was in force then
            asyncio.get_running_loop().call_later(_AGAIN_S, lambda: self._d.spawn(self.now(), "reload"))

    async def _one(self, bottle: Bottle) -> None:
        try:
            made = again.again(bottle.policy, self._d.settings, self._d.providers)
            unbuilt.refuse_on_kernel(made.policy, self._d.kernel.bpf.features())
        except (AgentmonError, OSError) as error:
            self._wrong(bottle.name, error)
            return
        self._note(bottle.name, made.notes)
        if made.policy != bottle.policy:
            removal = change.is_removal(bottle.policy, made.policy)
            what = "settings and manifests were read anew"
            task = self._d.runner.dispatch(e.PolicyChanged(0, bottle.slot, made.policy, removal, 0, what))
            if task is not None:
                await task
            now = self._d.host.bottles.get(bottle.slot)
            if now is not None and now.run == bottle.run and now.policy == bottle.policy:
                failed = AgentmonError("could not be put in force", "agentmon events --kind daemon; then send SIGHUP")
                self._wrong(bottle.name, failed)
                return
        self._right(bottle.name)

    # ── telling ──

    def _wrong(self, bottle: str, error: AgentmonError | OSError) -> None:
        what, hint = str(error), error.hint if isinstance(error, AgentmonError) else ""
        if self.bad.get(bottle) == what:
            return
        self.bad[bottle] = what
        whose = f"bottle {bottle}: " if bottle else ""
        print(f"error: {whose}{what}; what was in force stays", file=sys.stderr, flush=True)
        if hint:
            print(f"hint: {hint}", file=sys.stderr, flush=True)
        reason = f"{what}; what was in force stays"
        self._d.log.add(Event("policy", "refused", bottle=bottle, reason=reason, hint=hint, layer="daemon"))

    def _right(self, bottle: str) -> None:
        if self.bad.pop(bottle, ""):
            reason = "files that could not be used can be used again"
            self._d.log.add(Event("daemon", "observed", bottle=bottle, reason=reason, layer="daemon"))

    def _note(self, bottle: str, notes: tuple[str, ...]) -> None:
        told = self._notes.get(bottle, ())
        self._notes[bottle] = notes
        for note in notes:
            if note not in told:
                print(f"warning: {f'bottle {bottle}: ' if bottle else ''}{note}", file=sys.stderr, flush=True)
                self._d.log.add(Event("daemon", "observed", bottle=bottle, reason=note, layer="daemon"))


def _contents(settings: Path, bottles: Path) -> object:
    return contents((settings, *sorted(bottles.glob("*.yml"))))
