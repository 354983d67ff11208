"""`retention: {usage: 90d}`: rows that are older become exact sums by day, run, provider and model, a few at a time.

    oldest rows of usage ─▶ sums into usage_folded ─▶ meta.folded rises (checked by a trigger) ─▶ the rows go

Rows go in the order they were written: one whose time lies ahead, from a clock that was wrong, holds back those after
it. The newest row always stays, so that no id is given twice. A row's request id is what keeps a result that is fetched
again from being counted again: rows stay at least LEAST_S.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw

LEAST_S = 30 * 86400  # batches' results can be fetched for 29 days (Anthropic, "Batch processing")
ROWS = 200  # of one transaction: a settlement that comes meanwhile waits a few milliseconds

_FOLD = """INSERT INTO usage_folded
    SELECT NULL, ?1, date(ts_ns / 1000000000, 'unixepoch', 'localtime') AS day, max(ts_ns), run_id, provider, model,
        source, complete, count(*), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h), sum(output),
        sum(reasoning), sum(weighted),
        sum(iif(source = 'wire' AND complete, coalesce(estimated_input, 0), 0)),
        sum(iif(source = 'wire' AND complete AND estimated_input IS NOT NULL,
                input + cache_read + cache_write_5m + cache_write_1h, 0)),
        sum(iif(source = 'wire' AND complete,
                coalesce(abs(estimated_input - input - cache_read - cache_write_5m - cache_write_1h), 0), 0))
    FROM usage WHERE id <= ?1 GROUP BY day, run_id, provider, model, source, complete"""


def before(now_ns: int, age_s: int) -> int:
    """The start of the local day that was `age_s` ago, in CLOCK_REALTIME nanoseconds: days are folded whole."""
    then = datetime.fromtimestamp(now_ns // 1_000_000_000 - age_s)
    return int(then.replace(hour=0, minute=0, second=0).timestamp()) * 1_000_000_000


def fold(db: apsw.Connection, before_ns: int, rows: int = ROWS) -> int:
    """Fold at most `rows` of the oldest rows, older than `before_ns`; returns how many. Inside a transaction.

    :raises apsw.Error: roll back.
    """
    oldest: Any = db.execute(
        "SELECT id, ts_ns FROM usage WHERE id < (SELECT max(id) FROM usage) ORDER BY id LIMIT ?", (rows,)
    )
    upto = count = 0
    for id, ts_ns in oldest:
        if ts_ns >= before_ns:
            break
        upto, count = id, count + 1
    if count:
        db.execute(_FOLD, (upto,))
        db.execute("UPDATE meta SET value = ? WHERE name = 'folded'", (upto,))
        db.execute("DELETE FROM usage WHERE id <= ?", (upto,))
    return count
