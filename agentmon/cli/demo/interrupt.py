"""Ctrl-C at any moment: it unwinds the demo's contexts, and never between a process and the context that ends it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    """Of the main thread, where Python runs signal handlers."""

    deferring = 0
    arrived = 0  # the signal that waits for `deferred` to be left


@contextlib.contextmanager
def stopped_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the contexts below as Ctrl-C does; a second signal does not disturb them."""

    def leave(number: int, _frame: object) -> None:
        for other in _NUMBERS:
            signal.signal(other, _nothing)  # not SIG_IGN: a process that is just being started would inherit it
        if _State.deferring:
            _State.arrived = number
        else:
            _unwind(number)

    saved = {number: signal.signal(number, leave) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A signal unwinds only when this is left: around what must be done whole, and takes a moment."""
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
        number, _State.arrived = _State.arrived, 0
        if number:
            _unwind(number)


def _nothing(_number: int, _frame: object) -> None:
    pass


def _unwind(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
