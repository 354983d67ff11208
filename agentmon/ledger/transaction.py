"""A write transaction on an apsw connection that also survives SQLite's own rollback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import apsw


@contextlib.contextmanager
def transaction(db: apsw.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE, the body, COMMIT; when anything raises, ROLLBACK and the error.

    SQLite rolls back by itself when the disk is full or fails; a second ROLLBACK would replace that error by another
    one (as apsw's own `with connection` does).
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with contextlib.suppress(apsw.Error):
                db.execute("ROLLBACK")
        raise
