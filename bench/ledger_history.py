"""Whether history makes requests slower: reserve and settle on a ledger of 10,000 rows and on one of 10 million.

The large file is made once, in bulk, and kept under .cache. Both are served by real processes that take turns at every
request: what else the disk does meets both.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import apsw

from agentmon import wire
from agentmon.ledger import migrations
from agentmon.ledger.reader import Reader
from agentmon.ledger.store import Store
from bench.figure import Figure, median, spread
from bench.process import Failed, cpu_ms
from tests.support.ledger_rig import LedgerProcess, Peer, budget, ledger, scope

CACHE = Path(__file__).resolve().parents[1] / ".cache/bench"
SMALL, LARGE, QUICK = 10_000, 10_000_000, 100_000
PER_RUN = 1000
_BULK = f"""
CREATE TEMP TABLE shape AS SELECT name, sql FROM main.sqlite_schema
    WHERE (type = 'index' AND tbl_name = 'usage' OR name = 'usage_replace') AND sql IS NOT NULL;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 / {PER_RUN})
    INSERT INTO runs SELECT i, 'history' || i, 1, 'old' || i % 500, '', '{{}}', ?2, ?2 FROM n;
INSERT INTO run_scopes SELECT id, 0, 'bottle', bottle FROM runs UNION ALL SELECT id, 1, 'host', 'host' FROM runs;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
    INSERT INTO usage SELECT i, ?2 + i * 1000000, 1 + (i - 1) / {PER_RUN}, -i, 'claude', 'claude-bench',
    printf('msg_%016x', random()), 100, 0, 0, 0, 150, 0, 250, 'wire', 1, x'', 100 FROM n;
INSERT INTO totals SELECT s.scope, s.name, who.column1, 'run', r.run, {PER_RUN * 250}
    FROM runs r JOIN run_scopes s ON s.run_id = r.id, (VALUES ('claude'), ('*')) who;
INSERT INTO totals SELECT scope, name, provider, per.column1, 'history', sum(used)
    FROM totals, (VALUES ('hour'), ('day'), ('week'), ('month')) per GROUP BY 1, 2, 3, 4;
"""


def measure(tmp: Path, quick: bool) -> list[Figure]:
    tmp.mkdir()
    rows, rounds, requests = (QUICK, 2, 100) if quick else (LARGE, 7, 300)
    _made(tmp / "small", SMALL)
    large = tmp / "large" if quick else CACHE / f"ledger-{LARGE}-v{migrations.MIGRATIONS[-1].version}"
    if not large.exists():
        _made(large, rows)
    took: list[list[float]] = []
    cpu: list[list[float]] = []
    with ledger(tmp / "small") as few, ledger(large) as many:
        for number in range(rounds + 1):
            walls, busy = _round((few, many), requests)
            if number:  # the first one warms the kernel's cache
                took.append(walls)
                cpu.append(busy)
        stalls = [_stall_ms(many) for _ in range(rounds)]
    with Reader(few.path) as reader:
        if wrong := reader.check():
            raise Failed(f"the ledger is not in order: {wrong[0]}")
    ratios = [many / few for few, many in took]
    cpu_ratios = [many / few for few, many in cpu]
    return [
        Figure(
            "ledger.check_10m.ratio", median(ratios), "×", "<= 1.2",
            {f"{SMALL} rows, ms": median([few for few, _ in took])}, {}, spread(ratios),
            note=f"reserve and settle, two commits: {median([many for _, many in took]):.2f} ms with {rows} rows of "
            f"history; CPU of the ledger ×{median(cpu_ratios):.2f} ({median([few for few, _ in cpu]):.2f} ms with few)",
        ),
        Figure(
            "ledger.restart.stall_ms", median(stalls), "ms", "<= 1000", spread=spread(stalls),
            note=f"SIGKILL, start, until a hold is granted again, {rows} rows of history",
        ),
    ]  # fmt: skip


def _made(directory: Path, rows: int) -> None:
    """A ledger with `rows` settled rows; its directory appears when it is whole."""
    place = directory.with_name(directory.name + ".part")
    shutil.rmtree(place, ignore_errors=True)
    (place / "db").mkdir(parents=True)
    store = Store(str(place / "db/ledger.db"))
    store.open()
    store.close()
    db = apsw.Connection(store.path)
    db.execute("PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA cache_size = -400000")
    began_ns = time.time_ns() - 400 * 86400 * 10**9
    statements = [s for s in _BULK.split(";\n") if s.strip()]
    for statement in statements:
        db.execute(statement, (rows, began_ns)[: 2 if "?2" in statement else 1 if "?1" in statement else 0])
        if statement.lstrip().startswith("CREATE TEMP"):
            for (name,) in db.execute("SELECT name FROM shape").fetchall():
                db.execute(f"DROP {'TRIGGER' if name == 'usage_replace' else 'INDEX'} {name}")
    for (sql,) in db.execute("SELECT sql FROM shape").fetchall():
        db.execute(str(sql))
    db.close()
    place.rename(directory)


def _round(processes: Sequence[LedgerProcess], requests: int) -> tuple[list[float], list[float]]:
    """Of each process: milliseconds of a reserve and settle (median), and its CPU for one."""
    name = f"bench{time.time_ns()}"
    limits = (scope("bottle", name, budget("claude", 10**15)), scope("host", "host", budget("*", 10**15, "month")))
    took: list[list[float]] = [[] for _ in processes]
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(contextlib.closing(Peer(process.socket))) for process in processes]
        for peer in peers:
            peer.ask(wire.OpenRun, 1, name, name, "", limits, {})
        before = [_cpu_ms(process) for process in processes]
        for n in range(requests):
            for peer, walls in zip(peers, took, strict=True):
                began = time.perf_counter()
                hold = peer.ask(wire.Reserve, 1, "claude", "m", 100, 200, f"{name}.{n}")
                usage = wire.Usage("claude", "m", f"{name}.{n}", 100, output=150)
                if peer.ask(wire.Settle, hold.hold, usage).duplicate:
                    raise Failed("a settlement was taken for a replay")
                walls.append((time.perf_counter() - began) * 1000)
        cpu = [(_cpu_ms(process) - was) / requests for process, was in zip(processes, before, strict=True)]
        for peer in peers:
            peer.ask(wire.CloseRun, 1, name)
    return [median(walls) for walls in took], cpu


def _cpu_ms(process: LedgerProcess) -> float:
    assert process.process is not None
    return cpu_ms(process.process.pid)


def _stall_ms(process: LedgerProcess) -> float:
    name = f"bench{time.time_ns()}"
    with contextlib.closing(Peer(process.socket)) as peer:
        peer.ask(wire.OpenRun, 1, name, name, "", (), {})
    began = time.perf_counter()
    process.kill()
    process.start()
    with contextlib.closing(Peer(process.socket)) as peer:
        if not isinstance(answer := peer.ask(wire.Reserve, 1, "claude", "m", 1, 1, name), wire.Granted):
            raise Failed(f"no hold after a restart: {answer}")
        took = time.perf_counter() - began
        peer.ask(wire.CloseRun, 1, name)
    return took * 1000
