"""Narrowing the policy for a block, a function, a coroutine or a generator; never widening it.

A scope lives in a context variable: a task has its own, tasks that interleave do not see each other's, and
`asyncio.to_thread` carries it along. A thread started otherwise begins without scopes; the policy itself holds there.
A generator is in its scope only while its own body runs, not between two of its values.
"""

from __future__ import annotations

from contextvars import ContextVar

from agentmon.guard import judge as judging
from agentmon.guard import state
from agentmon.policy.rules import RuleError, canonical_host, overlaps, parse_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any

    from agentmon.guard.judge import Judge
    from agentmon.policy.rules import Rule

_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200  # inspect, without importing it
_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("agentmon_guard_scopes", default=())
current = _scopes.get


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

    __slots__ = ("_checked", "approved", "judge", "text")

    def __init__(self, judge: Judge, text: str) -> None:
        self.judge = judge
        self.text = text
        self.approved: dict[object, object] = {}
        self._checked: tuple[Judge, ...] = ()

    def __enter__(self) -> Scope:
        self._refuse_contradiction()
        _scopes.set((*_scopes.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # By value, not by token: a generator may be closed in another context than it was begun in.
        now = _scopes.get()
        for at in range(len(now) - 1, -1, -1):
            if now[at] is self:
                _scopes.set(now[:at] + now[at + 1 :])
                return

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
        around = [scope.judge for scope in _scopes.get()]
        if state.in_force is not None:
            around.insert(0, state.in_force.judge)
        if len(around) == len(self._checked) and all(a is b for a, b in zip(around, self._checked, strict=True)):
            return
        for judge in around:
            if not _meet(self.judge, judge):
                outer = ", ".join(judge.texts[:6]) or "nothing"
                raise RuleError(
                    f"{self.text} leaves nothing open: around it is open {outer}",
                    "a scope narrows what is open around it; allow the rule there first",
                )
        self._checked = tuple(around)


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
            return function(*args, **kwargs)

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


_WRAPPED = (
    (_CO_COROUTINE, _coroutine),
    (_CO_GENERATOR, _generator),
    (_CO_ASYNC_GENERATOR, _async_generator),
)
