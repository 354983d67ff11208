-- Version 3 of the ledger: `retention: {usage: …}`. Rows of usage become sums, and only then may they go: what deletes
-- must first raise meta.folded, and that is refused unless the sums of exactly these rows are in usage_folded.

-- Append-only. One row per day, run, provider, model, source and completeness of the rows that one transaction folded.
CREATE TABLE usage_folded (
    id INTEGER PRIMARY KEY,
    upto INTEGER NOT NULL,               -- last usage.id of that transaction
    day TEXT NOT NULL,                   -- 2026-01-31, of the host's time zone when it was folded
    ts_ns INTEGER NOT NULL,              -- newest of its rows
    run_id INTEGER NOT NULL REFERENCES runs,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    source TEXT NOT NULL,
    complete INTEGER NOT NULL,
    "rows" INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    weighted INTEGER NOT NULL
);
CREATE INDEX usage_folded_run ON usage_folded (run_id);
CREATE INDEX usage_folded_upto ON usage_folded (upto);
CREATE INDEX budgets_run ON budgets (run);  -- a start reads those of open runs, not of all there ever were

INSERT INTO meta VALUES ('folded', 0);

CREATE TRIGGER meta_folded BEFORE UPDATE ON meta
WHEN 'folded' IN (OLD.name, NEW.name) AND (
    OLD.name <> NEW.name OR NEW.value < OLD.value
    OR (SELECT count(*), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h), sum(output),
               sum(reasoning), sum(weighted) FROM usage WHERE id <= NEW.value)
    IS NOT (SELECT sum("rows"), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h), sum(output),
                   sum(reasoning), sum(weighted) FROM usage_folded WHERE upto = NEW.value))
BEGIN SELECT RAISE(ABORT, 'usage is append-only: its sums are not in usage_folded'); END;
CREATE TRIGGER meta_replace BEFORE INSERT ON meta WHEN NEW.name = 'folded'
BEGIN SELECT RAISE(ABORT, 'usage is append-only: meta.folded only rises'); END;
CREATE TRIGGER meta_delete BEFORE DELETE ON meta WHEN OLD.name = 'folded'
BEGIN SELECT RAISE(ABORT, 'usage is append-only: meta.folded only rises'); END;

DROP TRIGGER usage_delete;
CREATE TRIGGER usage_delete BEFORE DELETE ON usage WHEN OLD.id > (SELECT value FROM meta WHERE name = 'folded')
BEGIN SELECT RAISE(ABORT, 'usage is append-only'); END;

CREATE TRIGGER usage_folded_update BEFORE UPDATE ON usage_folded
BEGIN SELECT RAISE(ABORT, 'usage_folded is append-only'); END;
CREATE TRIGGER usage_folded_delete BEFORE DELETE ON usage_folded
BEGIN SELECT RAISE(ABORT, 'usage_folded is append-only'); END;
CREATE TRIGGER usage_folded_replace BEFORE INSERT ON usage_folded
WHEN EXISTS (SELECT 1 FROM usage_folded WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'usage_folded is append-only'); END;

CREATE VIEW usage_folded_v AS
SELECT f.day, r.bottle, r.agent, f.provider, f.model, iif(f.source = 'reconciled', 0, f."rows") AS requests, f.input,
       f.cache_read, f.cache_write_5m + f.cache_write_1h AS cache_write, f.output, f.reasoning, f.weighted, f.source,
       f.complete, f."rows", r.run, f.ts_ns, f.id
FROM usage_folded f JOIN runs r ON r.id = f.run_id;

-- All usage, whether its rows are still there or only their sums.
CREATE VIEW usage_counts_v AS
SELECT date(ts_ns / 1000000000, 'unixepoch', 'localtime') AS day, bottle, agent, provider, model,
       source <> 'reconciled' AS requests, input, cache_read, cache_write, output, reasoning, weighted, source, complete,
       1 AS "rows", run, ts_ns
FROM usage_v
UNION ALL
SELECT day, bottle, agent, provider, model, requests, input, cache_read, cache_write, output, reasoning, weighted,
       source, complete, "rows", run, ts_ns
FROM usage_folded_v;
