"""What a host of a shared ledger writes in its turn, in one round trip: rows, totals, pools, holds, batch, NOTIFY.

The COMMIT is the store's. SQL, and nothing decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentmon.ledger.postgres import CHANNEL
from agentmon.ledger.postgres_rows import Db, columns, plain
from agentmon.ledger.state import Changes, Hold, Pool, PoolKey

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
            row = [plain(v) for v in values]
            db.execute(SQL[name].encode(), [*row, w.host] if name in _WITH_HOST else row)
        with db.cursor() as many:
            if changes.usage:
                rows = [[plain(v) for v in row] for row in changes.usage]
                many.execute(_USAGE.encode(), columns(rows))
            if changes.gone_holds:
                many.execute(b"DELETE FROM holds WHERE id = ANY(%s)", (changes.gone_holds,))
            if changes.new_holds:
                held = [_hold_row(hold, w.host) for hold in changes.new_holds.values()]
                many.execute(_HOLD.encode(), columns(held))
            told = [_progress_row(h) for h in w.progressed if h.id not in changes.new_holds]
            if told:
                many.executemany(_PROGRESS.encode(), told)
        _write_sums(db, w)
        for key, steps in changes.sizes.items():
            db.execute(
                b"DELETE FROM answer_sizes WHERE (host, provider, model) = (%s, %s, %s)", (w.host, *map(plain, key))
            )
            if steps is not None:
                text = json.dumps(steps)
                db.execute(
                    b"INSERT INTO answer_sizes VALUES (DEFAULT, %s, %s, %s, %s)", (w.host, *map(plain, key), text)
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


def _is_of_all(name: str, values: Sequence[Any]) -> bool:
    """Whether a statement is about a budget that other hosts know: not one of a run."""
    return name in ("budget_put", "budget_clear") and not values[2]


def _write_sums(db: Db, w: Written) -> None:
    totals = [(*total.key, total.used) for total in w.changes.totals()]
    if totals:
        db.execute(_TOTALS.encode(), (w.turn, *columns(totals)))
    rows = [(*key, pool.held, pool.progress, pool.exposed) for key, pool in w.pools.items()]
    empty = [row[:4] for row in rows if row[3] and not any(row[4:])]  # of one run: nobody else reads it
    full = [row for row in rows if not row[3] or any(row[4:])]
    if full:
        db.execute(_POOLS.encode(), (w.turn, *columns(full)))
    if empty:
        db.execute(_EMPTY_POOLS.encode(), columns(empty))


def _hold_row(h: Hold, host: str) -> tuple[Any, ...]:
    who = h.owner
    return (
        h.id, plain(h.key), h.run.id, h.provider, plain(h.model), h.input, h.output, h.tokens,
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
