"""Events on disk: their own SQLite file with a size cap and an age limit, trimmed oldest first.

    daemon ─ EventStore.append(batch), in a writer thread ─▶ events.db ─▶ read(path, …): command line

Losing the last second of events in a power cut is acceptable (synchronous=NORMAL); filling the disk is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from agentmon import errors
from agentmon.events import Event
from agentmon.ledger.transaction import transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, ts_ns INTEGER NOT NULL, kind TEXT NOT NULL, bottle TEXT NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_ts ON events (ts_ns);
CREATE INDEX IF NOT EXISTS events_bottle ON events (bottle);
"""
_CHUNK = 1000  # rows per read transaction, so that a slow reader does not hold up the writer's log
_WAL_BYTES = 4 << 20
_MIN_BYTES = 1 << 20
_TRIM = 0.1  # part of the rows that goes when the cap is reached


class EventsTrouble(errors.AgentmonError):
    """The events' file cannot be read or written now."""


class EventStore:
    """The writer. All calls from one thread.

    :param max_bytes: of the database file; its log adds at most a few MiB.
    :ivar trimmed: events that were dropped to make room, or for their age, since this store was opened.
    :ivar replaced: where a damaged file was put aside, "" for none.
    """

    def __init__(self, path: str, *, max_bytes: int = 256 << 20, max_age_s: int = 7 * 86400) -> None:
        self.path = path
        self.trimmed = 0
        self.replaced = ""
        self._max_bytes = max(max_bytes, _MIN_BYTES)
        self._max_age_ns = max_age_s * 1_000_000_000
        try:
            try:
                self._db = self._open()
            except (apsw.NotADBError, apsw.CorruptError):
                self.replaced = f"{path}.damaged"
                for end in ("-wal", "-shm"):
                    Path(path + end).unlink(missing_ok=True)
                os.replace(path, self.replaced)
                self._db = self._open()
        except apsw.Error as e:
            raise _trouble(path, e) from e

    def _open(self) -> apsw.Connection:
        old = os.umask(0o077)
        try:
            db = apsw.Connection(self.path)
            try:
                db.set_busy_timeout(1000)
                db.pragma("journal_mode", "wal")
                db.pragma("synchronous", "normal")
                db.pragma("journal_size_limit", _WAL_BYTES)
                db.execute(_SCHEMA)
            except apsw.Error:
                db.close()
                raise
            return db
        finally:
            os.umask(old)

    def append(self, events: Sequence[Event]) -> None:
        """Store a batch in one transaction, then trim.

        :raises EventsTrouble: nothing of the batch was stored.
        """
        rows = [(e.ts_ns, e.kind, e.bottle, msgspec.json.encode(e)) for e in events]
        try:
            with transaction(self._db):
                self._db.executemany("INSERT INTO events (ts_ns, kind, bottle, body) VALUES (?, ?, ?, ?)", rows)
                self._trim(max((e.ts_ns for e in events), default=0))
        except apsw.Error as e:
            raise _trouble(self.path, e) from e

    def _trim(self, now_ns: int) -> None:
        self._db.execute("DELETE FROM events WHERE ts_ns < ?", (now_ns - self._max_age_ns,))
        self.trimmed += self._db.changes()
        while self._used_bytes() > self._max_bytes:
            first, last = self._ends()
            cut = first + max(1, int((last - first) * _TRIM))
            self._db.execute("DELETE FROM events WHERE id < ?", (cut,))
            if not self._db.changes():
                break
            self.trimmed += self._db.changes()

    def last_id(self) -> int:
        """The id of the newest event, 0 for none.

        :raises EventsTrouble: it cannot be read.
        """
        try:
            return self._ends()[1]
        except apsw.Error as e:
            raise _trouble(self.path, e) from e

    def _ends(self) -> tuple[int, int]:
        found: Any = self._db.execute("SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM events").fetchone()
        return int(found[0]), int(found[1])

    def _used_bytes(self) -> int:
        """Pages in use; freed ones are used again before the file grows."""
        pages: int = self._db.pragma("page_count") - self._db.pragma("freelist_count")
        return pages * int(self._db.pragma("page_size"))

    def close(self) -> None:
        with contextlib.suppress(apsw.Error):
            self._db.close()


def read(
    path: str, *, bottle: str = "", kind: str = "", since_ns: int = 0, after: int = 0, limit: int = 0
) -> Iterator[tuple[int, Event]]:
    """(id, event), oldest first. `after` an id continues where an earlier reading ended.

    :param limit: at most so many; 0 for all.
    :raises EventsTrouble: no such file, or no permission; while iterating too.
    """
    try:
        db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as e:
        raise _trouble(path, e) from e
    sql = """SELECT id, body FROM events
             WHERE id > ? AND ts_ns >= ? AND (? = '' OR bottle = ?) AND (? = '' OR kind = ?) ORDER BY id LIMIT ?"""
    decode = msgspec.json.Decoder(Event).decode
    given = 0
    try:
        db.set_busy_timeout(1000)
        while True:
            size = min(_CHUNK, limit - given) if limit else _CHUNK
            chunk: Any = db.execute(sql, (after, since_ns, bottle, bottle, kind, kind, size)).fetchall()
            for after, body in chunk:  # the next chunk starts after the last one given
                yield after, decode(body)
            given += len(chunk)
            if len(chunk) < size or (limit and given >= limit):
                return
    except apsw.Error as e:
        raise _trouble(path, e) from e
    finally:
        db.close()


def _trouble(path: str, e: apsw.Error) -> EventsTrouble:
    if isinstance(e, apsw.CantOpenError):
        return EventsTrouble(f"{path}: no events to read ({e})", "they are written by agentmon daemon, read by root")
    if isinstance(e, apsw.FullError):
        return EventsTrouble(f"{path}: the disk is full ({e})", "free some space; events are lost until then")
    return EventsTrouble(f"{path}: {e}", "remove the file to start anew: nothing but events is in it")
