"""Bottles that are there while others are measured: each with one metered stream that goes on slowly."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from agentmon import wire
from agentmon.blocking import BlockingChannel
from bench.process import Failed
from tests.support.live import World, until

_AT_ONCE = 3
_HEADERS = ("x-api-key: sk-bench", "anthropic-version: 2023-06-01", "content-type: application/json")


class Crowd:
    """`count` bottles of a world's daemon, started by its socket: no command line of their own takes part.

    :param model: of the stand-in provider; its stream has to be longer than the measurement.
    """

    def __init__(self, world: World, count: int, model: str) -> None:
        self._world = world
        self._count = count
        body = {"model": model, "max_tokens": 100_000, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        headers = [word for header in _HEADERS for word in ("-H", header)]
        url = "https://api.anthropic.com/v1/messages"
        self._argv = ["curl", "-sSN", *headers, "-d", json.dumps(body), "-o", "/dev/null", url]
        self._channels: list[BlockingChannel] = []

    def __enter__(self) -> Crowd:
        try:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._start, range(self._count)))
            until(lambda: self.streaming() == self._count, 30, "not every bottle of the crowd streams")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def streaming(self) -> int:
        """Bottles of the crowd that hold tokens for their stream."""
        rows = [row for row in self._world.rows("ps") if row["bottle"].startswith("crowd")]
        return sum(row["phase"] == "running" and any(b["held"] for b in row["budgets"]) for row in rows)

    def _start(self, number: int) -> None:
        channel = BlockingChannel.connect(str(self._world.run_dir / "control.sock"), 60)
        self._channels.append(channel)
        args = {"argv": self._argv, "env": {}, "cwd": "/", "name": f"crowd{number}", "provider": "claude",
                "budgets": ["1000000000"]}  # fmt: skip
        first = next(channel.stream(wire.Request(channel.next_id(), "run", args)))
        if not isinstance(first, dict) or "slot" not in first:
            raise Failed(f"crowd{number}: {first}")

    def _end(self) -> None:
        """Each bottle goes with its connection."""
        for channel in self._channels:
            for fd in channel.fds:
                os.close(fd)
            channel.close()
        until(lambda: not any(row["bottle"].startswith("crowd") for row in self._world.rows("ps")), 60)
