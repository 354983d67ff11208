"""resolver, relay, proxy, ledger: started in the service namespace, adopted from an earlier daemon, replaced.

A service is known by its control socket and its configuration file. One that runs with another configuration or
wire version is replaced; one that dies is started again and told everything anew (`on_up`). While it is away its
part of a bottle's traffic is refused by being unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentmon import paths, wire
from agentmon.addresses import SERVICE_NETNS
from agentmon.channel import Channel
from agentmon.daemon.persist import write_atomic
from agentmon.errors import BY_NAME, AgentmonError, HostLacks

_START_S = 20.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run: `name` also names socket, log and configuration file."""

    name: str
    module: str
    config: dict[str, Any]

    @property
    def socket(self) -> Path:
        return Path(self.config["socket"])


class Service:
    """One supervised process.

    :param on_message: awaited with each unasked message of the service.
    :param on_up: awaited after every (re)connection: push the state it needs.
    :param on_down: called when it went away unasked.
    """

    def __init__(
        self,
        spec: Spec,
        on_message: Callable[[Service, Any], Awaitable[None]],
        on_up: Callable[[Service], Awaitable[None]],
        on_down: Callable[[Service], None],
    ) -> None:
        self.spec = spec
        self.channel: Channel | None = None
        self.pid = 0
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._stopping = False
        self._ready: asyncio.Future[wire.Ready] | None = None
        self._task: asyncio.Task[None] | None = None
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def name(self) -> str:
        return self.spec.name

    def configure(self, **changes: Any) -> None:
        """Another configuration for whatever process serves next, and for the next daemon; the one that runs is told by
        a message."""
        self.spec = replace(self.spec, config=self.spec.config | changes)
        write_atomic(paths.SVC / f"{self.name}.json", self._config(), 0o644)

    def _config(self) -> bytes:
        return json.dumps(self.spec.config, sort_keys=True).encode()

    async def start(self) -> None:
        """Adopt the running one if it fits, else start it; returns when it has said Ready.

        :raises AgentmonError: it ended at once, or said nothing in time; its last log lines are in the message.
        """
        config = self._config()
        path = paths.SVC / f"{self.name}.json"
        same = path.exists() and path.read_bytes() == config
        if same and await self._connect():
            return
        await self._end_stranger()
        write_atomic(path, config, 0o644)
        await self._spawn(path)

    async def _connect(self) -> bool:
        try:
            channel = await Channel.connect(str(self.spec.socket))
        except OSError:
            return False
        ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()
        self.channel, self._ready = channel, ready
        self._task = asyncio.create_task(self._read(channel), name=f"service {self.name}")
        try:
            message = await asyncio.wait_for(asyncio.shield(ready), 2.0)
        except (TimeoutError, ConnectionError):
            channel.close()
            return False
        if message.version != wire.VERSION:
            self._stopping, self.pid = True, message.pid
            channel.close()
            await self._end_stranger()
            self._stopping = False
            return False
        self.pid = message.pid
        write_atomic(paths.SVC / f"{self.name}.pid", b"%d\n" % self.pid, 0o644)
        await self._on_up(self)
        return True

    async def _spawn(self, config: Path) -> None:
        log = paths.SVC / f"{self.name}.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                "nsenter", f"--net={paths.NETNS / SERVICE_NETNS}", "--",
                sys.executable, "-m", self.spec.module, str(config),
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True,
            )  # fmt: skip
        self._processes = [p for p in self._processes if p.returncode is None] + [process]
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if process.returncode is not None:
                raise HostLacks(
                    f"the {self.name} ended with status {process.returncode} before it was ready: {_last_line(log)}",
                    f"its log: {log}",
                )
            if self.spec.socket.exists() and await self._connect():
                return
            await asyncio.sleep(_POLL_S)
        process.kill()
        raise AgentmonError(
            f"the {self.name} was not ready within {_START_S:.0f} s: {_last_line(log)}", f"its log: {log}"
        )

    async def _read(self, channel: Channel) -> None:
        try:
            async for message in channel.messages():
                if isinstance(message, wire.Ready):
                    if self._ready is not None and not self._ready.done():
                        self._ready.set_result(message)
                else:
                    await self._on_message(self, message)
        except wire.WireError as e:
            print(f"warning: {self.name} sent {e}; starting it again", file=sys.stderr)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionResetError(self.name))
            return
        if self.channel is channel and not self._stopping:
            self.channel = None
            self._on_down(self)
            await self._again()

    async def _again(self) -> None:
        """Start it again until that works; slower after each failure."""
        wait_s = 0.05
        while not self._stopping:
            try:
                await self.start()
                return
            except (AgentmonError, OSError) as e:
                print(f"warning: {e}; trying again in {wait_s:.1f} s", file=sys.stderr)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)

    async def call(self, message: Any, timeout_s: float = 5.0) -> Any:
        """Ask the service.

        :raises AgentmonError: it is away, did not answer in time, or answered Failed.
        """
        if self.channel is None:
            raise AgentmonError(f"the {self.name} is not running", "it is being started again; try once more")
        try:
            answer = await self.channel.call(message, timeout_s)
        except (ConnectionError, TimeoutError) as e:
            raise AgentmonError(
                f"the {self.name} did not answer: {type(e).__name__}", "see agentmon events --kind daemon"
            ) from e
        if isinstance(answer, wire.Failed):
            raise BY_NAME.get(answer.error, AgentmonError)(f"{self.name}: {answer.message}", answer.hint)
        if isinstance(answer, wire.Ack) and answer.error:
            raise AgentmonError(f"{self.name}: {answer.error}")
        return answer

    def next_id(self) -> int:
        return self.channel.next_id() if self.channel else 0

    def detach(self) -> None:
        """Let go of it; it runs on for the next daemon."""
        self._stopping = True
        if self.channel is not None:
            self.channel.close()

    async def stop(self) -> None:
        """End it (SIGTERM, then SIGKILL) and remove its files; idempotent."""
        self._stopping = True
        if self.channel is not None:
            self.channel.close()
        await self._end_stranger()
        for process in self._processes:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 2.0)
        for suffix in ("json", "pid", "sock"):
            (paths.SVC / f"{self.name}.{suffix}").unlink(missing_ok=True)

    async def _end_stranger(self) -> None:
        """End the process of our pid file, if it still is that service."""
        pid = self.pid or _read_pid(paths.SVC / f"{self.name}.pid")
        self.pid = 0
        if not pid or self.spec.module.encode() not in _cmdline(pid):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                if self.spec.module.encode() not in _cmdline(pid):
                    return
                await asyncio.sleep(_POLL_S)


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _cmdline(pid: int) -> list[bytes]:
    """Empty for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1] if lines else "it said nothing"
