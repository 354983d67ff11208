-- Version 1 of the ledger. Times are CLOCK_REALTIME nanoseconds (…_ns); tokens are integers. The views are the public
-- interface (read-only SQL); the tables may change with a migration.

CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('next_hold', 1);  -- ids up to here may have been given out

-- One start of a bottle. closed_ns NULL: it runs.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL UNIQUE,
    slot INTEGER NOT NULL,
    bottle TEXT NOT NULL,
    agent TEXT NOT NULL,
    weights TEXT NOT NULL,               -- JSON, per mille
    opened_ns INTEGER NOT NULL,
    closed_ns INTEGER
);
CREATE INDEX runs_open ON runs (slot) WHERE closed_ns IS NULL;

-- Whom a run's usage is charged to; position 0 is the most specific.
CREATE TABLE run_scopes (
    run_id INTEGER NOT NULL REFERENCES runs,
    position INTEGER NOT NULL,
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
) WITHOUT ROWID;

-- run '' for scopes that all runs share. declared: the policy's own definition as JSON ('' for none), so that an
-- operator's amount stays until the policy itself changes.
CREATE TABLE budgets (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    run TEXT NOT NULL,
    provider TEXT NOT NULL,
    per TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    shadow INTEGER NOT NULL,
    origin TEXT NOT NULL,                -- policy | operator
    declared TEXT NOT NULL,
    PRIMARY KEY (scope, name, run, provider, per)
) WITHOUT ROWID;

-- Append-only. hold: the hold this row settled, NULL for a correction of an earlier estimate (counts may be negative there).
CREATE TABLE usage (
    id INTEGER PRIMARY KEY,
    ts_ns INTEGER NOT NULL,
    run_id INTEGER NOT NULL REFERENCES runs,
    hold INTEGER,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    request_id TEXT NOT NULL,
    input INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    weighted INTEGER NOT NULL,
    source TEXT NOT NULL,
    complete INTEGER NOT NULL,
    raw BLOB NOT NULL
);
CREATE UNIQUE INDEX usage_request ON usage (provider, request_id);
CREATE UNIQUE INDEX usage_hold ON usage (hold) WHERE hold IS NOT NULL;
CREATE INDEX usage_run ON usage (run_id);

-- Maintained sums of usage.weighted: a budget check reads these, never usage. provider '*': all of them.
-- "window": the run, or the key of the hour, day, week or month (budget.windows).
CREATE TABLE totals (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    per TEXT NOT NULL,
    "window" TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (scope, name, provider, per, "window")
) WITHOUT ROWID;

-- Requests in flight. boot, pid, start: the worker that forwards it; expires_ns is CLOCK_BOOTTIME of that boot.
CREATE TABLE holds (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    run_id INTEGER NOT NULL REFERENCES runs,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    start INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL
);

CREATE TABLE enforcement (
    id INTEGER PRIMARY KEY,
    ts_ns INTEGER NOT NULL,
    bottle TEXT NOT NULL,
    run TEXT NOT NULL,
    policy TEXT NOT NULL,                -- cutoff | freeze | kill | resume | shadow
    "trigger" TEXT NOT NULL,
    "by" TEXT NOT NULL,
    latency_ns INTEGER NOT NULL,
    result TEXT NOT NULL
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    ts_ns INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL                 -- JSON
);

CREATE TABLE approvals (
    id INTEGER PRIMARY KEY,
    ts_ns INTEGER NOT NULL,
    bottle TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    state TEXT NOT NULL,                 -- waiting | approved | rejected | expired
    uid INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    decided_ns INTEGER
);

-- Since version 2 also …_replace BEFORE INSERT of a key that is there (migrations.py): INSERT OR REPLACE is refused.
CREATE TRIGGER usage_update BEFORE UPDATE ON usage BEGIN SELECT RAISE(ABORT, 'usage is append-only'); END;
CREATE TRIGGER usage_delete BEFORE DELETE ON usage BEGIN SELECT RAISE(ABORT, 'usage is append-only'); END;
CREATE TRIGGER enforcement_update BEFORE UPDATE ON enforcement BEGIN SELECT RAISE(ABORT, 'enforcement is append-only'); END;
CREATE TRIGGER enforcement_delete BEFORE DELETE ON enforcement BEGIN SELECT RAISE(ABORT, 'enforcement is append-only'); END;
CREATE TRIGGER audit_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

CREATE VIEW usage_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', u.ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', u.ts_ns % 1000000000) AS ts,
       r.bottle, r.agent, u.provider, u.model, u.request_id, u.input, u.cache_read,
       u.cache_write_5m + u.cache_write_1h AS cache_write, u.output, u.reasoning, u.weighted, u.source, u.complete,
       r.run, u.ts_ns, u.id
FROM usage u JOIN runs r ON r.id = u.run_id;

-- Budgets of running bottles and of shared scopes in their current window. A shared budget per run has a line per run.
CREATE VIEW budget_v AS
WITH current AS (
    SELECT b.*, r.run AS "window"
    FROM budgets b JOIN run_scopes s ON s.scope = b.scope AND s.name = b.name
    JOIN runs r ON r.id = s.run_id AND r.closed_ns IS NULL AND b.run IN ('', r.run)
    WHERE b.per = 'run'
    UNION ALL
    SELECT b.*, CASE b.per
        WHEN 'hour' THEN strftime('%Y-%m-%dT%H:%MZ', 'now', '-' || strftime('%M', 'now', 'localtime') || ' minutes')
        WHEN 'day' THEN date('now', 'localtime')
        WHEN 'week' THEN date('now', 'localtime', 'weekday 0', '-6 days')
        ELSE strftime('%Y-%m', 'now', 'localtime') END AS "window"
    FROM budgets b
    WHERE b.per <> 'run' AND (b.run = '' OR EXISTS (SELECT 1 FROM runs r WHERE r.run = b.run AND r.closed_ns IS NULL))
), counted AS (
    SELECT c.*,
        coalesce((SELECT t.used FROM totals t WHERE t.scope = c.scope AND t.name = c.name AND t.provider = c.provider
                  AND t.per = c.per AND t."window" = c."window"), 0) AS used,
        coalesce((SELECT sum(h.tokens) FROM holds h JOIN runs r ON r.id = h.run_id
                  WHERE (c.provider = '*' OR h.provider = c.provider) AND (c.per <> 'run' OR r.run = c."window")
                  AND EXISTS (SELECT 1 FROM run_scopes s WHERE s.run_id = h.run_id AND s.scope = c.scope AND s.name = c.name)
                 ), 0) AS held
    FROM current c
)
SELECT scope, name, provider, per, tokens, used, held, max(0, tokens - used - held) AS remaining, shadow, origin, run,
       "window"
FROM counted;

CREATE VIEW enforcement_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', ts_ns % 1000000000) AS ts,
       bottle, policy, "trigger", "by", latency_ns, result, run, ts_ns, id
FROM enforcement;

CREATE VIEW approvals_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', ts_ns % 1000000000) AS ts,
       id, bottle, kind, subject, state, uid, reason,
       strftime('%Y-%m-%dT%H:%M:%S', decided_ns / 1000000000, 'unixepoch') || printf('.%09dZ', decided_ns % 1000000000) AS decided
FROM approvals;

CREATE VIEW audit_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', ts_ns % 1000000000) AS ts,
       uid, action, target, detail, ts_ns, id
FROM audit;
