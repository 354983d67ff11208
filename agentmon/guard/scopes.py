"""Narrowing the policy for a block, a function, a coroutine or a generator; never widening it.

A scope lives in a context variable: a task has its own, tasks that interleave do not see each other's, and
`asyncio.to_thread` carries it along. A thread started otherwise begins without scopes; the policy itself holds there.
A generator is in its scope only while its own body runs, not between two of its values.

Each enter makes an entry of its own, and its exit takes away that entry or nothing: a generator that was begun in one
context and is closed in another leaves the scopes of both as narrow as they are. Which entry belongs to an exit is told
by the frame of the `with` block; without one (set-up and tear-down methods), an exit is clear where one entry is open.
"""

from __future__ import annotations

import contextlib
import sys
from collections import namedtuple
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from agentmon.guard import judge as judging
from agentmon.guard import state
from agentmon.policy.rules import RuleError, canonical_host, overlaps, parse_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable
    from types import CodeType, FrameType, TracebackType
    from typing import Any, NamedTuple

    from agentmon.guard.judge import Judge
    from agentmon.policy.rules import Rule

    class Entry(NamedTuple):
        """One enter of a scope; told from others by identity, never by ==."""

        judge: Judge
        approved: dict[object, object]
        place: tuple[int, CodeType]

    class _Parts(NamedTuple):
        judge: Judge
        text: str
        approved: dict[object, object]
        opened: dict[int, Entry]
        checked: list[tuple[Judge, ...]]
else:
    Entry = namedtuple("Entry", "judge approved place")
    _Parts = namedtuple("_Parts", "judge text approved opened checked")

_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200  # inspect, without importing it
_scopes: ContextVar[tuple[Entry, ...]] = ContextVar("agentmon_guard_scopes", default=())
current = _scopes.get
_THROUGH = frozenset({__file__, contextlib.__file__})  # ExitStack enters and exits for the block around it


class HostName(str):
    """A host name in canonical form. :raises RuleError: for addresses, patterns, and what is no name."""

    __slots__ = ()

    def __new__(cls, name: str) -> HostName:
        if not isinstance(name, str):
            raise RuleError(f"a host name is text, not {type(name).__name__}", 'write HostName("api.example.com")')
        if "*" in name or "/" in name or ":" in name:
            raise RuleError(f"{name!r} is no single host name", "write the name alone: api.example.com")
        return str.__new__(cls, canonical_host(name))

    def rules(self) -> tuple[Rule, ...]:
        """Every port of this host and of no other; the policy around it decides which are open."""
        return parse_rule(f"tcp://{self}:1-65535"), parse_rule(f"udp://{self}:1-65535")


class Scope:
    """One narrowing: a context manager and a decorator, usable again and by many tasks at once."""

    __slots__ = ("_parts",)
    _parts: _Parts
    judge = property(lambda self: self._parts.judge)
    text = property(lambda self: self._parts.text)

    def __init__(self, judge: Judge, text: str) -> None:
        if hasattr(self, "_parts"):
            raise AttributeError("a scope does not change")
        object.__setattr__(self, "_parts", _Parts(judge, text, {}, {}, [()]))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a scope does not change: {name} cannot be assigned to")

    __delattr__ = None  # type: ignore[assignment]

    def __enter__(self) -> Scope:
        self._refuse_contradiction()
        judge, _, approved, opened, _ = self._parts
        entry = Entry(judge, approved, _place(sys._getframe(1)))
        opened[id(entry)] = entry
        _scopes.set((*_scopes.get(), entry))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened = self._parts.opened
        here = _place(sys._getframe(1))
        known = list(opened.values())
        mine = next((entry for entry in reversed(known) if entry.place == here), known[0] if len(known) == 1 else None)
        if mine is None:  # whose exit this is cannot be told: nothing is widened
            return
        opened.pop(id(mine), None)
        now = _scopes.get()
        if any(entry is mine for entry in now):  # by identity; elsewhere it is another context's
            _scopes.set(tuple(entry for entry in now if entry is not mine))

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, in this scope whenever its body runs."""
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        for flag, wrapped in _WRAPPED:
            if flags & flag:
                return _like(wrapped(self, function), function)
        return _like(_function(self, function), function)

    def _refuse_contradiction(self) -> None:
        """:raises RuleError: where nothing that is open around this scope is open in it."""
        checked = self._parts.checked
        around = [scope.judge for scope in _scopes.get()]
        if state.in_force is not None:
            around.insert(0, state.in_force.judge)
        if len(around) == len(checked[0]) and all(a is b for a, b in zip(around, checked[0], strict=True)):
            return
        for judge in around:
            if not _meet(self.judge, judge):
                outer = ", ".join(judge.texts[:6]) or "nothing"
                raise RuleError(
                    f"{self.text} leaves nothing open: around it is open {outer}",
                    "a scope narrows what is open around it; allow the rule there first",
                )
        checked[0] = tuple(around)


def _place(frame: FrameType | None) -> tuple[int, CodeType]:
    """Of the block that enters or exits: its frame, which lives as long as the block is open, and its code."""
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename in _THROUGH:
        frame = frame.f_back
    assert frame is not None
    return id(frame), frame.f_code


def _meet(inner: Judge, outer: Judge) -> bool:
    mine = [rule for rule in inner.rules if not rule.deny]
    return any(overlaps(rule, other) for other in outer.rules if not other.deny for rule in mine)


def scope(allow: Iterable[str]) -> Scope:
    """A scope in which only `allow`, of what is open around it, stays open. :raises RuleError: for malformed rules."""
    judge = judging.of_texts(allow)
    return Scope(judge, f"scope(allow={list(judge.texts)})")


def pinned_to(host: HostName | str) -> Scope:
    """A scope of one host, by name, on the ports that are open around it."""
    name = host if isinstance(host, HostName) else HostName(host)
    return Scope(judging.of_rules(name.rules()), f"pinned_to({str(name)!r})")


def _like(wrapped: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    from functools import update_wrapper

    return update_wrapper(wrapped, function)


def _function(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def in_function(*args: Any, **kwargs: Any) -> Any:
        with scope:
            made = function(*args, **kwargs)
        wrapped = _MADE.get(type(made))  # by a partial, another decorator's wrapper, an object whose __call__ is async
        return made if wrapped is None else wrapped(scope, lambda: made)()

    return in_function


def _coroutine(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    async def in_coroutine(*args: Any, **kwargs: Any) -> Any:
        with scope:
            return await function(*args, **kwargs)

    return in_coroutine


def _generator(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def in_generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        body = function(*args, **kwargs)
        step, given = body.send, None
        while True:
            try:
                with scope:
                    value = step(given)
            except StopIteration as e:
                return e.value
            try:
                given = yield value
                step = body.send
            except GeneratorExit:
                with scope:
                    body.close()
                raise
            except BaseException as e:  # noqa: BLE001 - it belongs to the generator it was thrown into
                step, given = body.throw, e

    return in_generator


def _async_generator(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    async def in_async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        body = function(*args, **kwargs)
        step, given = body.asend, None
        while True:
            try:
                with scope:
                    value = await step(given)
            except StopAsyncIteration:
                return
            try:
                given = yield value
                step = body.asend
            except GeneratorExit:
                with scope:
                    await body.aclose()
                raise
            except BaseException as e:  # noqa: BLE001 - it belongs to the generator it was thrown into
                step, given = body.athrow, e

    return in_async_generator


_MADE: dict[type, Callable[..., Any]] = {
    CoroutineType: _coroutine,
    GeneratorType: _generator,
    AsyncGeneratorType: _async_generator,
}
_WRAPPED = (
    (_CO_COROUTINE, _coroutine),
    (_CO_GENERATOR, _generator),
    (_CO_ASYNC_GENERATOR, _async_generator),
)
