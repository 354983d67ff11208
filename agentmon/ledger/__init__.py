"""The ledger: one process that writes usage, holds, budgets, enforcement and audit rows, and all that reads them.

    proxy  ── client.py ──▶ ┌ server.py ────────────────────────────────┐
    daemon ── wire.py ────▶ │ asyncio: frames, peers, who may say what  │
                            │   └ queue ▶ worker thread: one batch,     │      reader.py ─▶ report.py (command line)
                            │      book.py decides (pure, budget.py)    │         │ read-only
                            │      store.py commits (apsw, WAL, FULL)   │ ──▶ ledger.db
                            │   ◀ Crossed first, then the answers       │
                            └───────────────────────────────────────────┘
    ledger: postgresql://…   postgres_store.py in place of store.py: turns, outbox.py; asking.py in place of reader.py
    daemon ── events_store.py ─▶ events.db   (its own file: a noisy bottle cannot fill the ledger's disk)

A batch is whatever was queued while the last commit was on its way to the disk: one transaction, one fsync, then the
answers. Nothing is answered before it is durable; what cannot be recorded is refused.
"""
