"""A thread with a connection of its own: hears what other hosts do, and whether the database is away or back.

It also watches the writer: a server that does not answer for HANGS_S is hung up on, since libpq alone would wait for
ever for one that is only stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from agentmon.ledger.postgres import CHANNEL, HANGS_S, Database, trouble

_LOOK_S = 0.5
_PAUSE_S = 0.01  # between two pokes: what comes meanwhile is read with one look
_AGAIN_MIN_S, _AGAIN_MAX_S = 0.1, 2.0


class Line(threading.Thread):
    """Daemonic. :param poke: called in this thread; told again only after heard()."""

    def __init__(self, database: Database, host: Callable[[], str], poke: Callable[[], None]) -> None:
        super().__init__(name="ledger-line", daemon=True)
        self.up = threading.Event()
        self.up.set()  # nobody knows better before the first attempt
        self.hint = ""
        self._database = database
        self._host = host
        self._poke = poke
        self._poked = False
        self._end = threading.Event()
        self._busy: tuple[psycopg.Connection[Any], float] | None = None

    def stop(self) -> None:
        self._end.set()

    def heard(self) -> None:
        """The writer looks now: what comes from here on is news again."""
        self._poked = False

    def busy(self, db: psycopg.Connection[Any] | None) -> None:
        """The writer waits for the server on `db` from now on; None: no longer."""
        self._busy = (db, time.monotonic()) if db is not None else None

    def run(self) -> None:
        wait_s = _AGAIN_MIN_S
        while not self._end.is_set():
            try:
                self._listen()
                wait_s = _AGAIN_MIN_S
            except psycopg.Error as e:
                self.hint = trouble(self._database, e).hint
                self.up.clear()
            self._hang_up(0.0)
            self._end.wait(wait_s)
            wait_s = min(2 * wait_s, _AGAIN_MAX_S)

    def _listen(self) -> None:
        """Until the connection breaks, or stop(). :raises psycopg.Error: it cannot be made, or broke."""
        with contextlib.closing(self._database.connect()) as db:
            db.execute(f"LISTEN {CHANNEL}".encode())
            self.up.set()
            self._tell()  # what was missed
            while not self._end.is_set():
                for note in db.notifies(timeout=_LOOK_S, stop_after=1):
                    if note.payload != self._host():
                        self._tell()
                        self._end.wait(_PAUSE_S)
                if self._hang_up(HANGS_S):
                    return

    def _tell(self) -> None:
        if not self._poked:
            self._poked = True
            self._poke()

    def _hang_up(self, after_s: float) -> bool:
        """End the writer's connection if it has waited for so long; whether it was."""
        busy = self._busy
        if busy is None or time.monotonic() - busy[1] < after_s:
            return False
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(busy[0].fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)
        return True
