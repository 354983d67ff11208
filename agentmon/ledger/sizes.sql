-- Version 5 of the ledger: how long answers were, by the model that requests named: what holds near exhaustion go by.

CREATE TABLE answer_sizes (
    id INTEGER PRIMARY KEY,              -- ascending in the order of their last use
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    steps TEXT NOT NULL,                 -- JSON: step of sizes (sizes.py) to number of answers; at most 256 rows
    UNIQUE (provider, model)
);
