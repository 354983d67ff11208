"""What the guard raises, and the sentences people read."""

from __future__ import annotations

import sys
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

LAYER = "guard"
_SHOWN = 6
# Clients that make a connection error (and a retry) of every Exception, except of this class of theirs (module, name):
# where one is loaded, a violation is of that class too, and so comes out of its calls as what it is.
_LET_THROUGH = (("anthropic", "AnthropicError"),)


class EgressLocked(RuntimeError):
    """The guard is installed with a lock, and what was asked needs its token."""


class EgressWarning(RuntimeWarning):
    """Something the guard cannot hold: sockets older than it."""


class EgressViolation(RuntimeError):
    """A refusal. Not an OSError: HTTP clients swallow those as failed connects.

    `host` is the name that was meant, "" for none; `port` 0 for none; `address` the address in question, "" where only
    a name is known; `rule` the deny rule that decided, "" for none; `rules` the rules in force, as texts.
    `reason`: default (no rule allows it) · deny · protected (no rule could) · loopback · scope · form · family ·
    protocol · bind · unknown · tampered ·
    error.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made: Self = super().__new__(_of_clients_kind(cls))
        return made

    def __init__(
        self,
        host: str,
        port: int,
        address: str = "",
        rule: str = "",
        layer: str = LAYER,
        *,
        rules: tuple[str, ...] = (),
        reason: str = "default",
        detail: str = "",
    ) -> None:
        self.host = host
        self.port = port
        self.address = address
        self.rule = rule
        self.layer = layer
        self.rules = rules
        self.reason = reason
        self.detail = detail
        super().__init__(f"refused by the {layer}: {self.target}: {self._why()}. {self.hint}")

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        more = {"rules": self.rules, "reason": self.reason, "detail": self.detail}
        return _again, (self.host, self.port, self.address, self.rule, self.layer, more)

    @property
    def target(self) -> str:
        """What was tried: `name:port`, with the address where both are known."""
        where = self.host or (f"[{self.address}]" if ":" in self.address else self.address) or "this call"
        port = f":{self.port}" if self.port else ""
        also = f" ({self.address})" if self.host and self.address and self.host != self.address else ""
        return f"{where}{port}{also}"

    @property
    def hint(self) -> str:
        """How to allow it, or why nothing does."""
        if self.reason in ("default", "scope"):
            return self._allow_hint()
        return {
            "loopback": "No rule opens loopback; a test asks for the fixture egress_test_loopback.",
            "deny": f"Take {self.rule!r} out of the rules to allow it.",
            "protected": "No rule can allow it.",
            "form": "Write the host as an A-label name or a plain address, the port as a number.",
            "family": "The guard knows AF_INET, AF_INET6 and AF_UNIX.",
            "protocol": "Rules speak of TCP and UDP.",
            "bind": "Bind to port 0, or install with bind='any'.",
            "unknown": "Look the name up first, and connect to an address of the answer.",
            "tampered": "Start the process again.",
        }.get(self.reason, "What cannot be checked is refused.")

    def _allow_hint(self) -> str:
        rule = self._rule_to_add()
        if self.reason == "scope":
            return f"Widen the scope around this call, or leave it: allow=[{rule!r}]."
        in_force = ", ".join(self.rules[:_SHOWN]) or "none"
        more = f" and {len(self.rules) - _SHOWN} more" if len(self.rules) > _SHOWN else ""
        return f"Allow it with EgressGuard.install(allow=[…, {rule!r}]). Rules in force: {in_force}{more}."

    def _rule_to_add(self) -> str:
        where = self.host or (f"[{self.address}]" if ":" in self.address else self.address)
        if not self.port:
            return where
        return f"udp://{where}:{self.port}" if self.detail == "udp" else f"{where}:{self.port}"

    def _why(self) -> str:
        return {
            "default": "no rule allows it",
            "deny": f"denied by {self.rule}",
            "protected": f"{self.detail or 'protected'} destinations are never open",
            "loopback": "loopback is refused in every mode",
            "scope": "the scope in force leaves it out",
            "form": self.detail,
            "family": f"sockets of {self.detail} are not judged by rules",
            "protocol": f"{self.detail} is neither TCP nor UDP",
            "bind": "bound ports are refused",
            "unknown": "which address it leads to could not be learned",
            "tampered": "the guard's own state was changed",
            "error": f"the check itself failed ({self.detail})",
        }[self.reason]

    @staticmethod
    def found_in(error: BaseException | None) -> EgressViolation | None:
        """The violation behind `error`: itself, its cause or context, or a member of its group.

        For what catches every Exception and raises its own: task groups, and the API clients' connection errors.
        """
        seen: set[int] = set()
        for each in _behind(error, seen):
            if isinstance(each, EgressViolation):
                return each
        return None


def _of_clients_kind(cls: Any) -> Any:
    """`cls`, or a class of the same name that is also of the kinds that loaded clients let through."""
    for module, name in _LET_THROUGH:
        try:
            kind: Any = getattr(sys.modules.get(module), name, None)
            if type(kind) is type and issubclass(kind, Exception) and not issubclass(cls, kind):
                cls = _both(cls, kind)  # type: ignore[arg-type]  # types hash
        except Exception:  # noqa: BLE001 - a module of that name that is something else
            continue
    return cls


@cache
def _both(cls: Any, kind: Any) -> Any:
    made = type(cls.__name__, (cls, kind), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    RuntimeError.__new__(made)  # a TypeError where their memory layouts do not fit, as with OSError
    return made


def _behind(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _behind(member, seen)
    yield from _behind(error.__cause__, seen)
    yield from _behind(error.__context__, seen)


def _again(
    host: str, port: int, address: str, rule: str, layer: str, more: dict[str, str | tuple[str, ...]]
) -> EgressViolation:
    return EgressViolation(host, port, address, rule, layer, **more)  # type: ignore[arg-type]
