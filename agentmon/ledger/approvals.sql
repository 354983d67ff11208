-- Approvals: what was asked of an operator, and how it ended, in two append-only tables. Values are in neither.
-- It takes the place of version 1's table, which no version wrote to.
DROP VIEW approvals_v;
ALTER TABLE approvals RENAME TO approvals_1;

CREATE TABLE approvals (
    id INTEGER PRIMARY KEY,
    ts_ns INTEGER NOT NULL,
    bottle TEXT NOT NULL,
    run TEXT NOT NULL,
    kind TEXT NOT NULL,                  -- secret
    host TEXT NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    detector TEXT NOT NULL,              -- the rule that found it, or exact:NAME
    place TEXT NOT NULL,                 -- body, header NAME, query NAME, path …
    context TEXT NOT NULL                -- what stands around it, redacted
);
CREATE INDEX approvals_run ON approvals (run);

CREATE TABLE decisions (
    approval INTEGER PRIMARY KEY REFERENCES approvals,
    ts_ns INTEGER NOT NULL,
    state TEXT NOT NULL,                 -- approved | rejected | expired | withdrawn
    uid INTEGER,                         -- NULL: nobody decided
    reason TEXT NOT NULL
);

INSERT INTO approvals SELECT id, ts_ns, bottle, '', kind, subject, '', '', '', '', '' FROM approvals_1;
INSERT INTO decisions SELECT id, coalesce(decided_ns, ts_ns), state, uid, reason FROM approvals_1
WHERE state <> 'waiting';
DROP TABLE approvals_1;

CREATE TRIGGER approvals_update BEFORE UPDATE ON approvals BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER approvals_delete BEFORE DELETE ON approvals BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER approvals_replace BEFORE INSERT ON approvals WHEN EXISTS (SELECT 1 FROM approvals WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER decisions_update BEFORE UPDATE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions is append-only'); END;
CREATE TRIGGER decisions_delete BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions is append-only'); END;
CREATE TRIGGER decisions_replace BEFORE INSERT ON decisions
WHEN EXISTS (SELECT 1 FROM decisions WHERE approval = NEW.approval)
BEGIN SELECT RAISE(ABORT, 'decisions is append-only'); END;

CREATE VIEW approvals_v AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', a.ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', a.ts_ns % 1000000000) AS ts,
       a.id, a.bottle, a.kind, trim(a.method || ' ' || a.host) AS subject, coalesce(d.state, 'waiting') AS state, d.uid,
       coalesce(d.reason, '') AS reason,
       strftime('%Y-%m-%dT%H:%M:%S', d.ts_ns / 1000000000, 'unixepoch') || printf('.%09dZ', d.ts_ns % 1000000000)
           AS decided,
       a.host, a.method, a.path, a.detector, a.place, a.context, a.run, a.ts_ns
FROM approvals a LEFT JOIN decisions d ON d.approval = a.id;
