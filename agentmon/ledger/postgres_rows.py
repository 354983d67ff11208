"""What a host of a shared ledger reads: the turn with what others changed since, and what its book starts from.

`UPDATE turn … RETURNING`: whoever has the row, writes (postgres_write.py). SQL, and nothing decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

from agentmon import wire
from agentmon.ledger.budget import Weights
from agentmon.ledger.shared import PoolLevels
from agentmon.ledger.sizes import Key, Steps
from agentmon.ledger.state import (
    Defined,
    Hold,
    Owner,
    Place,
    PoolKey,
    Row,
    Run,
    Snapshot,
    TotalKey,
)

Db = psycopg.Connection[Any]

_TURN = b"UPDATE turn SET turn = turn + 1 RETURNING turn, terms, next_run, next_hold"
_SEEN = b"SELECT turn, terms, next_run, next_hold FROM turn"
_HOST = b"""SELECT batch, sent, struck, (SELECT max(version) FROM migrations),
    seen < now() - make_interval(secs => %s) FROM hosts WHERE id = %s"""
_SINCE_TOTALS = b'SELECT scope, name, provider, per, "window", used FROM totals WHERE turn > %s'
_SINCE_POOLS = b"SELECT scope, name, provider, run, held, progress, exposed FROM pools WHERE turn > %s"
_HOLDS = """SELECT h.id, key, run_id, provider, model, input, output, tokens, boot, pid, start, expires_ns, "full",
    progress, told FROM holds h """
_ROW = """SELECT run_id, request_id, coalesce(hold, 0), provider, model, input, cache_read, cache_write_5m,
    cache_write_1h, output, reasoning, source, complete FROM usage WHERE """


@dataclass(frozen=True, slots=True)
class Turn:
    """What a host finds when it has its turn, or looks: itself, and what others have changed after `since`."""

    turn: int
    terms: int
    next_run: int
    next_hold: int
    batch: int
    sent: int
    struck: int
    version: int
    is_stale: bool  # nobody has heard of this host for a while
    totals: list[tuple[TotalKey, int]]
    pools: list[tuple[PoolKey, PoolLevels]]


def take_turn(db: Db, host: str, since: int, stale_s: float) -> Turn:
    """Begin a transaction and wait for the turn. One round trip. :raises psycopg.Error: roll back."""
    return _look(db, b"BEGIN", _TURN, (host, since, stale_s))


def look(db: Db, host: str, since: int, stale_s: float) -> Turn:
    """Begin a transaction that only reads, one moment of the database, without waiting for anybody."""
    return _look(db, b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", _SEEN, (host, since, stale_s))


def _look(db: Db, begin: bytes, what: bytes, whose: tuple[str, int, float]) -> Turn:
    host, since, stale_s = whose
    with db.pipeline():
        db.execute(begin)
        taken = db.execute(what)
        own = db.execute(_HOST, (stale_s, host))
        totals = db.execute(_SINCE_TOTALS, (since,))
        pools = db.execute(_SINCE_POOLS, (since,))
    taken_row = taken.fetchone()
    assert taken_row is not None
    turn, terms, next_run, next_hold = taken_row
    batch, sent, struck, version, is_stale = own.fetchone() or (0, 0, 0, 0, True)
    return Turn(
        turn, terms, next_run, next_hold, batch, sent, struck, version, is_stale,
        [((scope, name, who, per, window), used) for scope, name, who, per, window, used in totals],
        [((scope, name, who, run), (held, told, more)) for scope, name, who, run, held, told, more in pools],
    )  # fmt: skip


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """What unnest() makes the same rows of."""
    return [*map(list, zip(*rows, strict=True))]


def plain(value: Any) -> Any:
    """Truth as a number, as a file has it; NUL, which a text cannot have here, as U+FFFD."""
    if isinstance(value, bool):
        return int(value)
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def snapshot(db: Db, host: str, turn: Turn) -> Snapshot:
    """What a host's book starts from, inside a transaction."""
    rows = Rows(db)
    ids = db.execute(b"SELECT id FROM runs WHERE host = %s AND closed_ns IS NULL ORDER BY id", (host,)).fetchall()
    runs = rows.runs([id for (id,) in ids])
    live = """SELECT scope, name, run, provider, per, tokens, shadow, origin, declared FROM budgets
              WHERE run = '' OR run = ANY(%s) ORDER BY scope, name, run, provider, per"""
    budgets = db.execute(live.encode(), ([run.run for run in runs.values()],))
    found = db.execute(f"{_HOLDS} WHERE host = %s ORDER BY id".encode(), (host,)).fetchall()
    strange = rows.runs([row[2] for row in found if row[2] not in runs])  # of a run that was closed elsewhere
    sizes = db.execute(b"SELECT provider, model, steps FROM answer_sizes WHERE host = %s ORDER BY id", (host,))
    return Snapshot(
        tuple(runs.values()), _defined(budgets), tuple(_hold(row, {**runs, **strange}) for row in found),
        turn.next_run, turn.next_hold, tuple(_sizes(sizes)),
    )  # fmt: skip


def shared_budgets(db: Db) -> dict[Place, dict[str, Defined]]:
    """Those of scopes that all runs share."""
    sql = b"""SELECT scope, name, run, provider, per, tokens, shadow, origin, declared FROM budgets WHERE run = ''
              ORDER BY scope, name, provider, per"""
    return _defined(db.execute(sql))


def strange_holds(db: Db, host: str, gone_s: float) -> list[tuple[str, Hold]]:
    """Some holds of hosts that nobody has heard of for so long, with their host."""
    sql = f"{_HOLDS} JOIN hosts o ON o.id = h.host WHERE h.host <> %s AND o.seen < now() - make_interval(secs => %s)"
    found = db.execute(f"{sql} ORDER BY h.id LIMIT 500".encode(), (host, gone_s)).fetchall()
    if not found:
        return []
    runs = Rows(db).runs([row[2] for row in found])
    whose = dict(db.execute(b"SELECT id, host FROM holds WHERE id = ANY(%s)", ([row[0] for row in found],)).fetchall())
    return [(whose[row[0]], _hold(row, runs)) for row in found]


def _row(found: Sequence[Any]) -> Row:
    run_id, request_id, hold, provider, model, *rest = found
    return Row(run_id, request_id, hold, wire.Usage(provider, model, request_id, *rest))


def _defined(rows: Iterable[Sequence[Any]]) -> dict[Place, dict[str, Defined]]:
    found: dict[Place, dict[str, Defined]] = {}
    for scope, name, run, provider, per, tokens, shadow, origin, declared in rows:
        here = found.setdefault((scope, name, run), {})
        before = here[provider].budgets if provider in here else ()
        here[provider] = Defined((*before, wire.BudgetDef(provider, tokens, per, bool(shadow))), origin, declared)
    return found


def _hold(row: Sequence[Any], runs: Mapping[int, Run]) -> Hold:
    id, key, run_id, provider, model, input, output, tokens, boot, pid, start, expires, full, progress, told = row
    usage = msgspec.msgpack.decode(told, type=wire.Usage) if told is not None else None
    owner = Owner(boot, pid, start)
    return Hold(id, key, runs[run_id], provider, model, input, output, tokens, owner, expires, usage, progress, full)


def _sizes(rows: Iterable[Sequence[Any]]) -> Iterable[tuple[Key, Steps]]:
    for provider, model, steps in rows:
        yield (provider, model), {int(step): int(count) for step, count in json.loads(steps).items()}


class Rows:
    """shared.SharedLookup on an open transaction."""

    def __init__(self, db: Db) -> None:
        self._db = db
        self._expected: dict[tuple[str, str], Row | None] = {}

    def expect(self, requests: list[tuple[str, str]]) -> None:
        """Look for all of them at once; by_request() knows them then."""
        wanted = [(provider, plain(request)) for provider, request in requests]
        self._expected = dict.fromkeys(wanted)
        if wanted:
            sql = f"""{_ROW} (provider, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"""
            found = map(_row, self._db.execute(sql.encode(), columns(wanted)))
            self._expected.update(((row.usage.provider, row.request_id), row) for row in found)

    def total(self, key: TotalKey) -> int:
        return self.totals([key]).get(key, 0)

    def totals(self, keys: list[TotalKey]) -> dict[TotalKey, int]:
        sql = """SELECT scope, name, provider, per, "window", used FROM totals
                 JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS k (s, n, p, e, w)
                 ON (scope, name, provider, per, "window") = (k.s, k.n, k.p, k.e, k.w)"""
        if not keys:
            return {}
        found = self._db.execute(sql.encode(), columns(keys))
        return {(scope, name, who, per, window): used for scope, name, who, per, window, used in found}

    def pools(self, keys: list[PoolKey]) -> dict[PoolKey, PoolLevels]:
        sql = """SELECT scope, name, provider, run, held, progress, exposed FROM pools
                 JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS k (s, n, p, r)
                 ON (scope, name, provider, run) = (k.s, k.n, k.p, k.r)"""
        if not keys:
            return {}
        found = self._db.execute(sql.encode(), columns(keys))
        return {(scope, name, who, run): (held, told, more) for scope, name, who, run, held, told, more in found}

    def by_hold(self, hold: int) -> Row | None:
        return self._row("hold = %s", (hold,))

    def by_request(self, provider: str, request_id: str) -> Row | None:
        key = provider, plain(request_id)
        if key in self._expected:
            return self._expected[key]
        return self._row("provider = %s AND request_id = %s", key)

    def _row(self, where: str, values: tuple[Any, ...]) -> Row | None:
        found = self._db.execute((_ROW + where).encode(), values).fetchone()
        return _row(found) if found is not None else None

    def run(self, run_id: int) -> Run:
        found = self.runs([run_id])
        if run_id not in found:
            raise LookupError(f"run {run_id} is not in the ledger")
        return found[run_id]

    def run_named(self, run: str) -> Run | None:
        found = self._db.execute(b"SELECT id FROM runs WHERE run = %s", (run,)).fetchone()
        return self.run(found[0]) if found is not None else None

    def runs(self, ids: list[int]) -> dict[int, Run]:
        """By id, in the order of `ids`; those that are not there are left out."""
        if not ids:
            return {}
        sql = "SELECT id, run, slot, bottle, agent, weights FROM runs WHERE id = ANY(%s)"
        rows = {row[0]: row for row in self._db.execute(sql.encode(), (ids,))}
        scopes: dict[int, list[tuple[str, str]]] = {}
        charged = "SELECT run_id, scope, name FROM run_scopes WHERE run_id = ANY(%s) ORDER BY run_id, position"
        for id, scope, name in self._db.execute(charged.encode(), (ids,)):
            scopes.setdefault(id, []).append((scope, name))
        seen = """SELECT r.id, t.provider FROM runs r JOIN totals t
                  ON (t.scope, t.name, t.per, t."window") = ('bottle', r.bottle, 'run', r.run)
                  WHERE r.id = ANY(%s) AND t.provider <> '*'"""
        providers: dict[int, set[str]] = {}
        for id, provider in self._db.execute(seen.encode(), (ids,)):
            providers.setdefault(id, set()).add(provider)
        return {
            id: Run(
                id, run, slot, bottle, agent, tuple(scopes.get(id, ())), Weights.of(json.loads(weights)),
                providers.get(id, set()),
            )
            for id, run, slot, bottle, agent, weights in (rows[id] for id in ids if id in rows)
        }  # fmt: skip

    def last_approval(self) -> int:
        return int((self._db.execute(b"SELECT coalesce(max(id), 0) FROM approvals").fetchone() or (0,))[0])

    def approval_state(self, number: int) -> str | None:
        found = self._db.execute(b"SELECT state FROM approvals_v WHERE id = %s", (number,)).fetchone()
        return None if found is None else str(found[0])

    def undecided(self, run: str) -> tuple[int, ...]:
        sql = b"SELECT id FROM approvals WHERE run = %s AND id NOT IN (SELECT approval FROM decisions) ORDER BY id"
        return tuple(id for (id,) in self._db.execute(sql, (run,)))
