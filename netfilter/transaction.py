"""A change as a list of operations: described before, applied in order, undone in reverse when one fails. Pure.

Each nft operation is one kernel transaction; what lies between (links, namespaces, two tables) is held together here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """One step. `undo` is None where a failure later leaves nothing to take back."""

    what: str
    apply: Callable[[], object]
    undo: Callable[[], object] | None = None

    def describe(self) -> str:
        return self.what


class Transaction:
    """Operations that are applied together or not at all."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self.operations = list(operations)

    def add(self, what: str, apply: Callable[[], object], undo: Callable[[], object] | None = None) -> None:
        self.operations.append(Operation(what, apply, undo))

    def describe(self) -> list[str]:
        """What `run` would do, a line for each step."""
        return [operation.describe() for operation in self.operations]

    def run(self) -> None:
        """:raises OSError: of the step that failed, after undoing the steps before it; what could not be undone is
        in its notes."""
        done: list[Operation] = []
        for operation in self.operations:
            try:
                operation.apply()
            except BaseException as e:
                for earlier in reversed(done):
                    _undo(earlier, e)
                raise
            done.append(operation)


def _undo(operation: Operation, cause: BaseException) -> None:
    if operation.undo is None:
        return
    try:
        operation.undo()
    except OSError as e:
        cause.add_note(f"{operation.what} could not be undone: {e}")
