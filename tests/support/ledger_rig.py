"""A real ledger process on a real socket, and the values that its tests share."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentmon import wire
from agentmon.channel import BlockingChannel
from agentmon.ledger.asking import AskingReader
from agentmon.ledger.keeper import Keeper
from agentmon.ledger.reader import Reader
from agentmon.ledger.reading import Reading
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import Store

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0
A, B = Owner("boot", 100, 1), Owner("boot", 200, 2)
HOUR_NS = 3600 * 10**9
START = Now(1_780_000_000 * 10**9, 10**12)


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`; fails the test after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.005)
    return value


class LedgerProcess:
    """`python -m agentmon.ledger` in a directory of its own; may be killed and started again."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = directory
        self.socket = str(directory / "l.sock")
        self.path = str(directory / "db" / "ledger.db")
        self.stderr = directory / "stderr"
        (directory / "db").mkdir(mode=0o700, exist_ok=True)
        self.url = str(config.get("database", {}).get("url", ""))
        self.config = directory / "ledger.json"
        self.config.write_text(json.dumps({"socket": self.socket, "path": self.path, "user": "", "group": ""} | config))
        self.command = [sys.executable, "-m", "agentmon.ledger"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> LedgerProcess:
        with self.stderr.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, str(self.config)], cwd=ROOT, stderr=log, stdin=subprocess.DEVNULL
            )
        if ready:
            until(self._listening, f"a ledger on {self.socket}: {self.said()}")
        return self

    def _listening(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            Peer(self.socket).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM and its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """End it however it takes; SIGTERM first, so that it can say what it covered."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.kill()

    def reader(self) -> Reading:
        """What the command line reads: the file, or what a running process says of its database."""
        if self.url and self.process is not None and self.process.poll() is None:
            return AskingReader(self.socket)
        return self.stored()

    def stored(self) -> Reading:
        """The ledger as it is on the disk."""
        if not self.url:
            return Reader(self.path)
        from agentmon.ledger.postgres import Database
        from agentmon.ledger.postgres_reader import SharedReader

        return SharedReader(Database(self.url))

    def store(self) -> Keeper:
        """The same ledger without its process."""
        if not self.url:
            return Store(self.path)
        from tests.support.postgres_rig import shared_store

        return shared_store(self.url, Path(self.path).with_name("outbox.db"))

    def said(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""


class Peer:
    """A plain connection that keeps what it was told unasked."""

    def __init__(self, socket: str) -> None:
        self.channel = BlockingChannel.connect(socket, DEADLINE_S)
        self.unasked: list[Any] = []
        assert isinstance(self.channel.recv(), wire.Ready)

    def ask(self, kind: type[Any], *fields: Any, **named: Any) -> Any:
        """The answer to kind(id, *fields)."""
        message = kind(self.channel.next_id(), *fields, **named)
        self.channel.send(message)
        while True:
            answer = self.channel.recv()
            if getattr(answer, "id", None) == message.id:
                return answer
            self.unasked.append(answer)

    def hear(self, count: int) -> list[Any]:
        """At least `count` unasked messages, from the first one on."""
        while len(self.unasked) < count:
            self.unasked.append(self.channel.recv())
        return self.unasked

    def close(self) -> None:
        self.channel.close()


def database(url: str) -> dict[str, Any]:
    """LedgerProcess's keyword for a store: of a file where the URL is ""."""
    return {"database": {"url": url}} if url else {}


@contextlib.contextmanager
def ledger(directory: Path, **config: Any) -> Iterator[LedgerProcess]:
    process = LedgerProcess(directory, **config)
    try:
        yield process.start()
    finally:
        process.close()


def budget(provider: str, tokens: int, per: str = "run", *, shadow: bool = False) -> wire.BudgetDef:
    return wire.BudgetDef(provider, tokens, per, shadow)


def scope(scope: str, name: str, *budgets: wire.BudgetDef) -> wire.ScopeDef:
    return wire.ScopeDef(scope, name, budgets)


def usage(input: int = 0, output: int = 0, request_id: str = "", **named: Any) -> wire.Usage:
    return wire.Usage(named.pop("provider", "claude"), "model", request_id, input, output=output, **named)


def uid_for_drop() -> str:
    """A user to become in a test: "" without root, so that the process stays what it is."""
    return "nobody" if os.geteuid() == 0 else ""
