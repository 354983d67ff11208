"""The one opening of loopback: held by one thread of one running pytest test, and given back at its end.

    with capability.loopback(request): yield      what the plugin's fixture `egress_test_loopback` does

Nothing else opens it: no parameter, constant, environment variable or import. `loopback` looks at the calling
thread's stack for pytest's runner at work on the very test that asked, so importing this module, the plugin or pytest
itself outside a test gives nothing. The runner must be the file that the installed pytest distribution lists; a module
of that name made by hand is not. What is open is kept in closures, ends when that run ends, and only in that thread.

What holds it: code that runs in the thread which set the fixture up, so also tasks of an event loop that runs in that
thread. What does not: other threads, executors, `asyncio.to_thread`, and processes forked meanwhile.

It keeps accidents and habits out. Code that forges frames could as well call connect through ctypes: layers 1 to 4.
"""

from __future__ import annotations

import sys
from _thread import _local, get_ident
from posix import getpid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType, ModuleType, TracebackType

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


def _installed(name: str) -> str:
    """The file of module `name` (`_pytest.runner`) in the installed pytest distribution; "" where there is none."""
    from importlib.metadata import PackageNotFoundError, distribution
    from os.path import realpath

    try:
        return realpath(str(distribution("pytest").locate_file(name.replace(".", "/") + ".py")))
    except PackageNotFoundError:
        return ""


def _genuine(name: str, code_of: Callable[[ModuleType], object]) -> CodeType | None:
    """The code that `code_of` finds in module `name`, where both come from the installed pytest; else None."""
    from os.path import realpath

    module = sys.modules.get(name)
    if module is None:
        return None
    code = getattr(code_of(module), "__code__", None)
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    file = _installed(name)
    if not file or type(code) is not type(_genuine.__code__) or not isinstance(origin, str):
        return None
    return code if realpath(origin) == realpath(code.co_filename) == file else None


def _runner_frame() -> FrameType | None:
    """The frame in which pytest runs one test in this thread; None outside a test."""
    code = _genuine("_pytest.runner", lambda module: getattr(module, "runtestprotocol", None))
    if code is None:
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _item_of(frame: FrameType | None) -> object | None:
    item: object = None if frame is None else frame.f_locals.get("item")
    if _genuine("_pytest.nodes", lambda module: getattr(getattr(module, "Node", None), "__init__", None)) is None:
        return None
    kind = getattr(sys.modules["_pytest.nodes"], "Item", None)
    return item if isinstance(kind, type) and isinstance(item, kind) else None


def running_test() -> object | None:
    """The pytest item whose protocol runs in this thread at this moment; None outside a test."""
    return _item_of(_runner_frame())


def _runs(frame: FrameType) -> bool:
    """Is it still being executed? Only such a frame refuses to be cleared; one that has ended has nothing to lose."""
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False


def _build() -> tuple[Callable[[object], Loopback], Callable[[], bool]]:
    holder, runs = _local(), _runs
    minted: dict[Loopback, tuple[int, FrameType]] = {}  # every grant in force → its process, and pytest's run
    waiting: dict[Loopback, tuple[int, FrameType]] = {}  # minted, not yet entered → its thread, and pytest's run

    def opened(grant: Loopback) -> None:
        if grant not in waiting:
            raise CapabilityRefused("a loopback grant is entered once, and comes from the test's fixture")
        thread, run = waiting[grant]
        if thread != get_ident():
            raise CapabilityRefused("a loopback grant holds in the thread of its test, and is entered there")
        del waiting[grant]
        if not runs(run):
            raise CapabilityRefused("the test that this loopback grant was for is over")
        minted[grant] = getpid(), run
        holder.grants = (*getattr(holder, "grants", ()), grant)

    def closed(grant: Loopback) -> None:
        minted.pop(grant, None)
        waiting.pop(grant, None)
        holder.grants = tuple(g for g in getattr(holder, "grants", ()) if g is not grant)

    def loopback(request: object) -> Loopback:
        """A grant for the test that `request` (pytest's FixtureRequest) belongs to, in this thread, until its end.

        :raises CapabilityRefused: where that test is not running in this thread, or did not ask for the fixture.
        """
        run = _runner_frame()
        item = _item_of(run)
        if run is None or item is None or getattr(request, "node", None) is not item:
            raise CapabilityRefused(f"no test that asked for {FIXTURE} runs in this thread")
        if getattr(request, "scope", None) != "function" or FIXTURE not in getattr(item, "fixturenames", ()):
            raise CapabilityRefused(f"the test did not ask for {FIXTURE}; name it as a parameter of the test")
        grant = Loopback(opened, closed)
        waiting[grant] = get_ident(), run
        at_end: Callable[[Callable[[], None]], None] = getattr(item, "addfinalizer")  # noqa: B009 - mypy: an object
        at_end(lambda: closed(grant))  # whoever entered it, and never left it
        return grant

    def is_open() -> bool:
        """Is loopback open for the calling thread?"""
        grants = getattr(holder, "grants", ())
        held = [minted[grant] for grant in grants if grant in minted]
        return any(process == getpid() and runs(run) for process, run in held)

    return loopback, is_open


loopback, is_open = _build()
