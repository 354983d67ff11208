"""The one opening of loopback: held by one thread of one running pytest test, and given back at its end.

    with capability.loopback(request): yield      what the plugin's fixture `egress_test_loopback` does

Nothing else opens it: no parameter, constant, environment variable or import. `loopback` looks at the calling
thread's stack for pytest's runner at work on the very test that asked, so importing this module, the plugin or pytest
itself outside a test gives nothing. What is open is kept in closures, not in a module variable.

What holds it: code that runs in the thread which set the fixture up, so also tasks of an event loop that runs in that
thread. What does not: other threads, executors, `asyncio.to_thread`, and processes forked meanwhile.

It keeps accidents and habits out. Code that forges frames could as well call connect through ctypes: layers 1 to 4.
"""

from __future__ import annotations

import sys
from _thread import _local
from posix import getpid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType, TracebackType

FIXTURE = "egress_test_loopback"


class CapabilityRefused(RuntimeError):
    """Loopback was asked for by something that is not the running test's fixture."""


class Loopback:
    """One grant, to be entered once: `with`. Of no use by itself: what counts is kept elsewhere."""

    __slots__ = ("_close", "_open")

    def __init__(self, opened: Callable[[Loopback], None], closed: Callable[[Loopback], None]) -> None:
        self._open = opened
        self._close = closed

    def __enter__(self) -> Loopback:
        self._open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(self)


def _runner_code() -> CodeType | None:
    """The code of the function in which pytest runs one test; None where pytest is not even imported."""
    run = getattr(sys.modules.get("_pytest.runner"), "runtestprotocol", None)
    return getattr(run, "__code__", None)


def running_test() -> object | None:
    """The pytest item whose protocol runs in this thread at this moment; None outside a test."""
    code = _runner_code()
    if code is None:
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            item: object = frame.f_locals.get("item")
            return item
        frame = frame.f_back
    return None


def _build() -> tuple[Callable[[object], Loopback], Callable[[], bool]]:
    holder = _local()
    minted: dict[Loopback, int] = {}  # every grant not yet closed → its process
    waiting: set[Loopback] = set()  # minted, not yet entered

    def opened(grant: Loopback) -> None:
        if grant not in waiting:
            raise CapabilityRefused("a loopback grant is entered once, and comes from the test's fixture")
        waiting.discard(grant)
        minted[grant] = getpid()
        holder.grants = (*getattr(holder, "grants", ()), grant)

    def closed(grant: Loopback) -> None:
        minted.pop(grant, None)
        waiting.discard(grant)
        holder.grants = tuple(g for g in getattr(holder, "grants", ()) if g is not grant)

    def loopback(request: object) -> Loopback:
        """A grant for the test that `request` (pytest's FixtureRequest) belongs to, in this thread, until its end.

        :raises CapabilityRefused: where that test is not running in this thread, or did not ask for the fixture.
        """
        item = running_test()
        if item is None or getattr(request, "node", None) is not item:
            raise CapabilityRefused(f"no test that asked for {FIXTURE} runs in this thread")
        if getattr(request, "scope", None) != "function" or FIXTURE not in getattr(item, "fixturenames", ()):
            raise CapabilityRefused(f"the test did not ask for {FIXTURE}; name it as a parameter of the test")
        grant = Loopback(opened, closed)
        waiting.add(grant)
        at_end: Callable[[Callable[[], None]], None] = getattr(item, "addfinalizer")  # noqa: B009 - mypy: an object
        at_end(lambda: closed(grant))  # whoever entered it, and never left it
        return grant

    def is_open() -> bool:
        """Is loopback open for the calling thread?"""
        grants = getattr(holder, "grants", ())
        return bool(grants) and any(minted.get(grant) == getpid() for grant in grants)

    return loopback, is_open


loopback, is_open = _build()
