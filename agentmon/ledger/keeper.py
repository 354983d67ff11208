"""What the ledger's worker needs of a store: a file (store.py), or a database that hosts share (postgres_store.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentmon.ledger.book import Asked
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import Outcome


class Keeper(Protocol):
    """All methods from one thread."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def owners(self) -> set[Owner]: ...
    def quiet(self) -> bool: ...
    def run(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """:raises LedgerTrouble: nothing of it was recorded."""
        ...

    def fold(self, before_ns: int) -> int:
        """:raises LedgerTrouble: nothing was folded."""
        ...
