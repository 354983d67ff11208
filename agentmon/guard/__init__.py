"""guard: a readable refusal at the guilty line of a Python process, and the kernel's knowledge of who was asked.

    call ─▶ audit event ─▶ hook.py ─▶ targets.py   what is meant: family, protocol, host, port
                                      judge.py     by the rules of agentmon.policy.rules, shared with the daemon
                                      names.py     which name led to this address
                                      scopes.py    narrower here? (pinned_to, scope)
                                      vouching.py  tell the kernel; the call goes on      errors.py  or the refusal
    capability.py  loopback, for one running test      children.py  processes started from here      state.py  in force

Standard library only; works in any Python ≥ 3.11, with or without agentmon on the host. It patches nothing. It finds
accidents and habits: native code that connects on its own is held by the kernel (docs/guard.md).

    EgressGuard.install(allow=["api.anthropic.com:443", "*.stripe.com"])
"""

from __future__ import annotations

from agentmon.guard import children, hook, scopes, sockets, state
from agentmon.guard import judge as judging
from agentmon.guard.errors import EgressLocked, EgressViolation, EgressWarning
from agentmon.guard.scopes import HostName, Scope
from agentmon.policy.rules import RuleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agentmon.guard.children import Child
    from agentmon.guard.state import State, Status

__all__ = ["EgressGuard", "EgressLocked", "EgressViolation", "EgressWarning", "HostName", "RuleError"]

_control = hook.build()


class EgressGuard:
    """The guard of this process (strictly: of this interpreter). There is one; nothing is made of this class."""

    @staticmethod
    def install(
        allow: Iterable[str],
        *,
        mode: str = state.ENFORCE,
        on_blocked: Callable[[EgressViolation], object] | None = None,
        lock: object = None,
        bind: str = state.BIND_ANY,
        on_child: Callable[[Child], object] | None = None,
    ) -> None:
        """Hold this process to `allow` (rules as in CONTRACTS, `!` denies) from the next call on.

        Again: replaces the policy; with a lock in force, only with its token. `mode="observe"` reports what no rule
        allows, and lets it pass; loopback and whatever no rule could open stay refused. `on_blocked` sees every
        refusal and permits none. `bind="ephemeral"` refuses to bind ports other than 0. `on_child` sees every process
        started from here that is not a fork; those that do not inherit the policy have `inherits` False.

        :raises RuleError: for a malformed rule, with its place and the right form.
        :raises ValueError: for an unknown mode or bind.
        :raises EgressLocked: where a guard is installed with another lock.
        """
        _check(mode, state.MODES, "mode")
        _check(bind, state.BINDS, "bind")
        new = state.State(mode, judging.of_texts(allow), (), bind, on_blocked, on_child)
        before = sockets.connected()
        _control.install(new, lock)
        children.equip_multiprocessing()
        sockets.report(before)

    @staticmethod
    def extend(allow: Iterable[str], *, lock: object = None) -> None:
        """Add rules to those in force, for a plugin's own destinations.

        :raises RuleError: for a malformed rule.  :raises EgressLocked: without the lock's token.
        :raises RuntimeError: where no guard is installed.
        """
        more = judging.of_texts(allow)

        def wider(now: State | None) -> State:
            if now is None:
                raise RuntimeError("no guard is installed: call EgressGuard.install(allow=[…]) first")
            rules = {rule.text: rule for rule in (*now.judge.rules, *more.rules)}
            return now._replace(judge=judging.of_rules(tuple(rules.values())))

        _control.change(wider, lock)

    @staticmethod
    def uninstall(*, lock: object = None) -> None:
        """Check nothing any more; the hook itself stays, and does nothing. :raises EgressLocked: without the token."""
        _control.uninstall(lock)

    @staticmethod
    def reset_for_test() -> None:
        """Uninstall, whatever the lock: for tests of code that installs.

        :raises EgressLocked: outside a running pytest test.
        """
        _control.open_for_test()

    @staticmethod
    def scope(allow: Iterable[str]) -> Scope:
        """Only these, of what is open: `with`, or a decorator of functions, coroutines, generators.

        :raises RuleError: for malformed rules; on entering, where nothing would be left open.
        """
        return scopes.scope(allow)

    @staticmethod
    def pinned_to(host: HostName | str) -> Scope:
        """Only this host, on the ports that are open for it. :raises RuleError: for what is no host name."""
        return scopes.pinned_to(host)

    @staticmethod
    def child_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment in which a Python child installs this policy, the scopes of the caller included."""
        return children.child_env(env)

    @staticmethod
    def status() -> Status:
        """What is in force, whether the kernel vouches, and what the guard knows that it does not hold."""
        now, voucher = _control.in_force(), _control.voucher
        return state.Status(
            installed=now is not None,
            mode=now.mode if now else "",
            rules=now.judge.texts if now else (),
            locked=_control.locked(),
            bind=now.bind if now else "",
            vouching=voucher.status,
            vouches_refused=voucher.failed,
            sockets_before=sockets.before,
            children=_control.started(),
            tampered=_control.tampered(),
        )


def _check(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(known)}")
