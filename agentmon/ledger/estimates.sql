-- Version 4 of the ledger: what admission took a request's input for, beside what the provider counted.

ALTER TABLE usage ADD COLUMN estimated_input INTEGER;  -- NULL: a correction, or a row of an earlier version
ALTER TABLE usage_folded ADD COLUMN input_estimated INTEGER NOT NULL DEFAULT 0;  -- sums of usage_counts_v's columns
ALTER TABLE usage_folded ADD COLUMN input_told INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_folded ADD COLUMN input_missed INTEGER NOT NULL DEFAULT 0;

DROP VIEW usage_counts_v;
DROP VIEW usage_folded_v;
DROP VIEW usage_v;

CREATE VIEW usage_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', u.ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', u.ts_ns % 1000000000) AS ts,
       r.bottle, r.agent, u.provider, u.model, u.request_id, u.input, u.cache_read,
       u.cache_write_5m + u.cache_write_1h AS cache_write, u.output, u.reasoning, u.weighted, u.source, u.complete,
       r.run, u.ts_ns, u.id, u.estimated_input
FROM usage u JOIN runs r ON r.id = u.run_id;

CREATE VIEW usage_folded_v AS
SELECT f.day, r.bottle, r.agent, f.provider, f.model, iif(f.source = 'reconciled', 0, f."rows") AS requests, f.input,
       f.cache_read, f.cache_write_5m + f.cache_write_1h AS cache_write, f.output, f.reasoning, f.weighted, f.source,
       f.complete, f."rows", r.run, f.ts_ns, f.id, f.input_estimated, f.input_told, f.input_missed
FROM usage_folded f JOIN runs r ON r.id = f.run_id;

-- input_…: of rows that were told completely and had an estimate; missed is how far it was off, in either direction.
CREATE VIEW usage_counts_v AS
SELECT date(ts_ns / 1000000000, 'unixepoch', 'localtime') AS day, bottle, agent, provider, model,
       source <> 'reconciled' AS requests, input, cache_read, cache_write, output, reasoning, weighted, source, complete,
       1 AS "rows", run, ts_ns,
       iif(source = 'wire' AND complete, coalesce(estimated_input, 0), 0) AS input_estimated,
       iif(source = 'wire' AND complete AND estimated_input IS NOT NULL, input + cache_read + cache_write, 0) AS input_told,
       iif(source = 'wire' AND complete, coalesce(abs(estimated_input - input - cache_read - cache_write), 0), 0)
           AS input_missed
FROM usage_v
UNION ALL
SELECT day, bottle, agent, provider, model, requests, input, cache_read, cache_write, output, reasoning, weighted,
       source, complete, "rows", run, ts_ns, input_estimated, input_told, input_missed
FROM usage_folded_v;
