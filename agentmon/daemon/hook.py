"""A command of the settings that is told something: JSON on its standard input, bounded in time and in number.

It runs as root with an empty environment but PATH, in a session of its own; what it prints is dropped. It decides
nothing by its exit status: one that fails is told as an event, once until it works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from agentmon.events import Event

TIMEOUT_S = 10.0
AT_ONCE = 4
WAITING = 100
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Hook:
    """:param key: of the settings, for messages. :param argv: the command as the settings have it now, () for none.
    :param emit: takes an event."""

    def __init__(
        self, key: str, argv: Callable[[], tuple[str, ...]], emit: Callable[[Event], object], *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._key = key
        self._argv = argv
        self._emit = emit
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = ""

    def tell(self, what: dict[str, Any]) -> None:
        """Run the command with `what` some time soon; never waits, never raises."""
        argv = self._argv()
        if not argv:
            return
        if len(self._tasks) >= WAITING:
            self._say(f"{WAITING} calls of {argv[0]} wait already: one was left out")
            return
        task = asyncio.get_running_loop().create_task(self._run(argv, msgspec.json.encode(what) + b"\n"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self, within_s: float) -> None:
        """Return when all that was told has been run, or the time is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)

    async def close(self) -> None:
        """End what still runs."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, argv: tuple[str, ...], data: bytes) -> None:
        async with self._room:
            wrong = await self._wrong(argv, data)
        if wrong:
            self._say(wrong)
        else:
            self._failed = ""

    async def _wrong(self, argv: tuple[str, ...], data: bytes) -> str:
        """Run it; what went wrong, "" for nothing."""
        null = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=null, stderr=null, env=_ENV, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            return f"{argv[0]}: {e.strerror}"
        try:
            async with asyncio.timeout(self._timeout_s):
                await process.communicate(data)
        except TimeoutError:
            return f"{argv[0]} did not end within {self._timeout_s:g} s and was killed"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return f"{argv[0]} ended with status {process.returncode}" if process.returncode else ""

    def _say(self, wrong: str) -> None:
        if wrong != self._failed:
            self._failed = wrong
            hint = f"see `{self._key}:` in the settings"
            self._emit(Event("daemon", "refused", reason=f"{self._key}: {wrong}", hint=hint, layer="daemon"))
