"""Events that services report: completed with the bottle's name and the process behind the socket, then logged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from agentmon import wire
from agentmon.control.state import Bottle
from agentmon.daemon import whose
from agentmon.events import Event

_MAX_NAMED = 1000  # things whose process is remembered, for counts of repeats that come later
_MAX_ASKED = 10_000  # processes whose last name is remembered
_KEY = ("bottle", "kind", "verdict", "reason", "layer", "host", "dst", "port")


class Reports:
    """:param bottles: the running ones. :param pids: of a slot's processes. :param log: takes the finished event."""

    def __init__(
        self,
        bottles: Callable[[], Mapping[int, Bottle]],
        pids: Callable[[int], list[int]],
        log: Callable[[Event], object],
    ) -> None:
        self._bottles = bottles
        self._pids = pids
        self._log = log
        self._named: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._asked: dict[tuple[Any, ...], object] = {}  # process → the last name it was answered

    async def take(self, message: wire.Report) -> None:
        """Log one report; returns when its process is named, or known to be gone."""
        known = {k: v for k, v in message.event.items() if k in Event.__struct_fields__}
        slot = message.slot or message.event.get("slot")
        if "bottle" not in known and isinstance(slot, int) and slot in self._bottles():
            known["bottle"] = self._bottles()[slot].name
        key = tuple(known.get(name) for name in _KEY)
        if message.port and message.slot in self._bottles():
            pids = self._pids(message.slot)
            self._remember(key, await asyncio.to_thread(whose.process, pids, message.proto, message.port))
        known |= self._named.get(key, {})
        asks = known.get("kind") == "dns" and known.get("verdict") != "refused"
        if asks and self._told((known.get("bottle"), known.get("tgid")), known.get("host")):
            return
        with contextlib.suppress(TypeError):  # a report without a kind is no event
            self._log(Event(**known))

    def _told(self, process: tuple[Any, ...], name: object) -> bool:
        """Whether that is what this process asked for the last time, too."""
        told = self._asked.pop(process, None) == name
        self._asked[process] = name
        if len(self._asked) > _MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        return told

    def _remember(self, key: tuple[Any, ...], process: dict[str, Any]) -> None:
        if process:
            self._named.pop(key, None)
            self._named[key] = process
            if len(self._named) > _MAX_NAMED:
                del self._named[next(iter(self._named))]
