"""What a shared ledger reads and writes in its turn: SQL, and nothing decided.

BEGIN; UPDATE turn … RETURNING     whoever has the row, writes; what others changed comes with it (one round trip)
rows, totals, pools, holds         by unnest() and executemany(), hosts.batch, NOTIFY; then COMMIT
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
from agentmon.ledger.postgres import CHANNEL
from agentmon.ledger.shared import PoolLevels
from agentmon.ledger.sizes import Key, Steps
from agentmon.ledger.state import (
    Changes,
    Defined,
    Hold,
    Owner,
    Place,
    Pool,
    PoolKey,
    Row,
    Run,
    Snapshot,
    TotalKey,
)

Db = psycopg.Connection[Any]

SQL = {  # the names of store.py's statements
    "run_open": "INSERT INTO runs VALUES (%s, %s, %s, %s, %s, %s, %s, NULL, %s)",
    "run_reopen": "UPDATE runs SET closed_ns = NULL, slot = %s WHERE id = %s",
    "run_close": "UPDATE runs SET closed_ns = %s WHERE id = %s",
    "run_scope": "INSERT INTO run_scopes VALUES (%s, %s, %s, %s)",
    "budget_clear": "DELETE FROM budgets WHERE (scope, name, run, provider) = (%s, %s, %s, %s)",
    "budget_put": "INSERT INTO budgets VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
    "enforcement": "INSERT INTO enforcement VALUES (DEFAULT, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
    "audit": "INSERT INTO audit VALUES (DEFAULT, %s, %s, %s, %s, %s, %s)",
    "approval": "INSERT INTO approvals VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
    "decision": "INSERT INTO decisions VALUES (%s, %s, %s, %s, %s)",
}
_WITH_HOST = frozenset({"run_open", "enforcement", "audit"})
_USAGE_TYPES = ("bigint",) * 3 + ("text",) * 3 + ("bigint",) * 7 + ("text", "bigint", "bytea", "bigint")
_USAGE = f"""INSERT INTO usage (ts_ns, run_id, hold, provider, model, request_id, input, cache_read, cache_write_5m,
        cache_write_1h, output, reasoning, weighted, source, complete, raw, estimated_input)
    SELECT * FROM unnest({", ".join(f"%s::{kind}[]" for kind in _USAGE_TYPES)})"""
_HOLD_TYPES = (
    ("bigint", "text", "bigint", "text", "text", "bigint", "bigint", "bigint", "text")
    + ("bigint",) * 5
    + ("bytea", "text")
)
_HOLD = f"INSERT INTO holds SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in _HOLD_TYPES)})"
_TOTALS = """INSERT INTO totals
    SELECT *, %s::bigint FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])
    ON CONFLICT (scope, name, provider, per, "window") DO UPDATE SET used = excluded.used, turn = excluded.turn"""
_POOLS = """INSERT INTO pools
    SELECT *, %s::bigint
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
    ON CONFLICT (scope, name, provider, run) DO UPDATE
    SET held = excluded.held, progress = excluded.progress, exposed = excluded.exposed, turn = excluded.turn"""
_EMPTY_POOLS = """DELETE FROM pools USING unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS e (s, n, p, r)
    WHERE (scope, name, provider, run) = (e.s, e.n, e.p, e.r)"""
_PROGRESS = 'UPDATE holds SET expires_ns = %s, "full" = %s, progress = %s, told = %s WHERE id = %s'
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


@dataclass(frozen=True, slots=True)
class Written:
    """What one turn leaves behind."""

    turn: int
    host: str
    batch: int
    sent: int
    changes: Changes
    pools: Mapping[PoolKey, Pool]
    progressed: Sequence[Hold]
    struck: Sequence[str]  # hosts whose holds were charged
    next_run: int
    next_hold: int


def write(db: Db, w: Written) -> None:
    """Everything but the COMMIT."""
    changes = w.changes
    with db.pipeline():
        if changes.empty():  # only progress of streams: nothing of record, nothing to wait for the disk for
            db.execute(b"SET LOCAL synchronous_commit TO off")
        for name, values in changes.statements:
            row = [_plain(v) for v in values]
            db.execute(SQL[name].encode(), [*row, w.host] if name in _WITH_HOST else row)
        with db.cursor() as many:
            if changes.usage:
                rows = [[_plain(v) for v in row] for row in changes.usage]
                many.execute(_USAGE.encode(), _columns(rows))
            if changes.gone_holds:
                many.execute(b"DELETE FROM holds WHERE id = ANY(%s)", (changes.gone_holds,))
            if changes.new_holds:
                held = [_hold_row(hold, w.host) for hold in changes.new_holds.values()]
                many.execute(_HOLD.encode(), _columns(held))
            told = [_progress_row(h) for h in w.progressed if h.id not in changes.new_holds]
            if told:
                many.executemany(_PROGRESS.encode(), told)
        _write_sums(db, w)
        for key, steps in changes.sizes.items():
            db.execute(
                b"DELETE FROM answer_sizes WHERE (host, provider, model) = (%s, %s, %s)", (w.host, *map(_plain, key))
            )
            if steps is not None:
                text = json.dumps(steps)
                db.execute(
                    b"INSERT INTO answer_sizes VALUES (DEFAULT, %s, %s, %s, %s)", (w.host, *map(_plain, key), text)
                )
        if w.struck:
            db.execute(b"UPDATE hosts SET struck = %s WHERE id = ANY(%s)", (w.turn, list(w.struck)))
        terms = any(_is_of_all(name, values) for name, values in changes.statements)
        db.execute(
            b"UPDATE turn SET terms = CASE WHEN %s THEN turn ELSE terms END, next_run = %s, next_hold = %s",
            (terms, w.next_run, w.next_hold),
        )
        db.execute(b"UPDATE hosts SET seen = now(), batch = %s, sent = %s WHERE id = %s", (w.batch, w.sent, w.host))
        if terms or changes.usage or w.progressed or w.struck:
            db.execute(f"NOTIFY {CHANNEL}, '{w.host}'".encode())


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """What unnest() makes the same rows of."""
    return [*map(list, zip(*rows, strict=True))]


def _plain(value: Any) -> Any:
    """Truth as a number, as a file has it; NUL, which a text cannot have here, as U+FFFD."""
    if isinstance(value, bool):
        return int(value)
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _is_of_all(name: str, values: Sequence[Any]) -> bool:
    """Whether a statement is about a budget that other hosts know: not one of a run."""
    return name in ("budget_put", "budget_clear") and not values[2]


def _write_sums(db: Db, w: Written) -> None:
    totals = [(*total.key, total.used) for total in w.changes.totals()]
    if totals:
        db.execute(_TOTALS.encode(), (w.turn, *_columns(totals)))
    rows = [(*key, pool.held, pool.progress, pool.exposed) for key, pool in w.pools.items()]
    empty = [row[:4] for row in rows if row[3] and not any(row[4:])]  # of one run: nobody else reads it
    full = [row for row in rows if not row[3] or any(row[4:])]
    if full:
        db.execute(_POOLS.encode(), (w.turn, *_columns(full)))
    if empty:
        db.execute(_EMPTY_POOLS.encode(), _columns(empty))


def _hold_row(h: Hold, host: str) -> tuple[Any, ...]:
    who = h.owner
    return (
        h.id, _plain(h.key), h.run.id, h.provider, _plain(h.model), h.input, h.output, h.tokens,
        who.boot, who.pid, who.start, h.expires_ns, h.full, h.progress, _told(h), host,
    )  # fmt: skip


def _progress_row(h: Hold) -> tuple[Any, ...]:
    return h.expires_ns, h.full, h.progress, _told(h), h.id


def _told(h: Hold) -> bytes | None:
    return msgspec.msgpack.encode(h.usage) if h.usage is not None else None


def register(db: Db, host: str, name: str, zone: str) -> None:
    """Make this host known; what it had stays."""
    db.execute(
        b"""INSERT INTO hosts VALUES (%s, %s, %s, now(), 0, 0, 0)
            ON CONFLICT (id) DO UPDATE SET name = excluded.name, zone = excluded.zone, seen = now()""",
        (host, name, zone),
    )


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
        plain = [(provider, _plain(request)) for provider, request in requests]
        self._expected = dict.fromkeys(plain)
        if plain:
            sql = f"""{_ROW} (provider, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"""
            found = map(_row, self._db.execute(sql.encode(), _columns(plain)))
            self._expected.update(((row.usage.provider, row.request_id), row) for row in found)

    def total(self, key: TotalKey) -> int:
        return self.totals([key]).get(key, 0)

    def totals(self, keys: list[TotalKey]) -> dict[TotalKey, int]:
        sql = """SELECT scope, name, provider, per, "window", used FROM totals
                 JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS k (s, n, p, e, w)
                 ON (scope, name, provider, per, "window") = (k.s, k.n, k.p, k.e, k.w)"""
        if not keys:
            return {}
        found = self._db.execute(sql.encode(), _columns(keys))
        return {(scope, name, who, per, window): used for scope, name, who, per, window, used in found}

    def pools(self, keys: list[PoolKey]) -> dict[PoolKey, PoolLevels]:
        sql = """SELECT scope, name, provider, run, held, progress, exposed FROM pools
                 JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS k (s, n, p, r)
                 ON (scope, name, provider, run) = (k.s, k.n, k.p, k.r)"""
        if not keys:
            return {}
        found = self._db.execute(sql.encode(), _columns(keys))
        return {(scope, name, who, run): (held, told, more) for scope, name, who, run, held, told, more in found}

    def by_hold(self, hold: int) -> Row | None:
        return self._row("hold = %s", (hold,))

    def by_request(self, provider: str, request_id: str) -> Row | None:
        key = provider, _plain(request_id)
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


def fold(db: Db, before_ns: int, rows: int) -> int:
    """retention.fold() with this database's functions; in a turn."""
    sql = b"SELECT id, ts_ns FROM usage WHERE id < (SELECT max(id) FROM usage) ORDER BY id LIMIT %s"
    upto = count = 0
    for id, ts_ns in db.execute(sql, (rows,)).fetchall():
        if ts_ns >= before_ns:
            break
        upto, count = id, count + 1
    if count:
        db.execute(_FOLD.encode(), (upto, upto))
        db.execute(b"UPDATE turn SET folded = %s", (upto,))
        db.execute(b"DELETE FROM usage WHERE id <= %s", (upto,))
    return count


_FOLD = """INSERT INTO usage_folded (upto, day, ts_ns, run_id, provider, model, source, complete, "rows", input,
        cache_read, cache_write_5m, cache_write_1h, output, reasoning, weighted, input_estimated, input_told,
        input_missed)
    SELECT %s::bigint, to_char(to_timestamp(ts_ns / 1000000000), 'YYYY-MM-DD') AS day, max(ts_ns), run_id, provider,
        model, source, complete, count(*), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
        sum(output), sum(reasoning), sum(weighted),
        sum(CASE WHEN source = 'wire' AND complete = 1 THEN coalesce(estimated_input, 0) ELSE 0 END),
        sum(CASE WHEN source = 'wire' AND complete = 1 AND estimated_input IS NOT NULL
                 THEN input + cache_read + cache_write_5m + cache_write_1h ELSE 0 END),
        sum(CASE WHEN source = 'wire' AND complete = 1
                 THEN coalesce(abs(estimated_input - input - cache_read - cache_write_5m - cache_write_1h), 0)
                 ELSE 0 END)
    FROM usage WHERE id <= %s GROUP BY day, run_id, provider, model, source, complete
    ORDER BY day, run_id, provider, model, source, complete"""
