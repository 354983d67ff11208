"""The audit hook (PEP 578), and the state it decides by.

    event ─▶ verify (nothing was changed behind its back) ─▶ approved before? ─▶ judge ─▶ vouch ─▶ the call goes on
                                                                                └▶ EgressViolation at the caller's line

A hook cannot be removed: without a state it returns at once. It is per interpreter; a subinterpreter needs its own
`install`. Everything that decides is held in closures, and what is in force is one tuple, replaced in one assignment,
so that threads (free-threaded builds too) see either the old or the new. Nothing here is skipped while a check is
already running: a lookup that the guard makes itself is judged like any other.
"""

from __future__ import annotations

import sys
from _thread import RLock
from collections import namedtuple
from contextvars import ContextVar
from functools import partial
from itertools import count
from os import register_at_fork

from agentmon.guard import (
    capability,
    children,
    errors,
    flows,
    judge,
    names,
    scopes,
    sealing,
    state,
    targets,
    vouching,
)
from agentmon.guard.errors import EgressLocked, EgressViolation
from agentmon.guard.flows import Live
from agentmon.guard.state import OBSERVE, State
from agentmon.policy.rules import decide, grammar, hosts, ports, ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NamedTuple

    class Control(NamedTuple):
        """What the API may do; everything else stays inside."""

        install: Callable[[State, object], None]
        change: Callable[[Callable[[State | None], State], object], None]
        uninstall: Callable[[object], None]
        open_for_test: Callable[[], None]
        in_force: Callable[[], State | None]
        locked: Callable[[], bool]
        tampered: Callable[[], str]
        voucher: vouching.Voucher
        started: Callable[[], tuple[children.Child, ...]]

else:
    Control = namedtuple("Control", "install change uninstall open_for_test in_force locked tampered voucher started")

MAX_TOLD = 4096
SELDOM = 63  # of what was approved before, every 64th looks for tampering again, and the first after an assignment
_PROBE = "agentmon.guard.installed"
RELAXED = frozenset({"default", "scope"})  # what observing lets pass; protected, denied and unreadable stay refused


def _sealed(touch: Callable[[], None]) -> tuple[Callable[[], str], Callable[[], str]]:
    """What says whether anything that a check runs through was replaced: these modules, whole. `touch` is called when
    one of their names is assigned to."""
    mine = sys.modules[__name__]
    guard = (mine, flows, judge, targets, capability, children, scopes, names, vouching, state, errors, sealing)
    modules = (*guard, decide, ranges, hosts, ports, grammar)
    sealing.watch(modules, touch)
    return sealing.seal(modules, frozenset({"state.in_force"}))


def build() -> Control:  # noqa: C901, PLR0915 - one closure: what it holds has no other name
    """The hook and the functions that change what it holds. Called once, when the package is imported."""
    live: Live | None = None
    token: object = None
    tampered = ""
    touched = True
    hooked = False
    changing = RLock()
    started: list[children.Child] = []
    told: set[str] = set()
    known = names.Names()
    voucher = vouching.Voucher()
    telling: ContextVar[bool] = ContextVar("agentmon_guard_telling", default=False)
    telling_child: ContextVar[bool] = ContextVar("agentmon_guard_telling_child", default=False)

    def touch(*_: object) -> None:
        """Something of these modules, or the code or the defaults of some function, is being assigned to."""
        nonlocal touched
        touched = True

    running_test = capability.running_test
    # Held here, so that replacing a name of a module changes nothing before it is noticed.
    violates, observing, relaxed, tick = EgressViolation, OBSERVE, RELAXED, count().__next__
    public = vars(state)

    # ── what is in force ─────────────────────────────────────────────────

    def mirrored(now: Live) -> None:
        """What the module shows must be what decides."""
        nonlocal tampered
        if public.get("in_force") is not now.state:
            with changing:  # another thread may be replacing both at this moment
                if public.get("in_force") is not (None if live is None else live.state):
                    tampered = "agentmon.guard.state.in_force was assigned to"
        if not tampered and (touched or not tick() & SELDOM):
            look()
        if tampered:
            raise violates("", 0, reason="tampered", detail=tampered, rules=now.state.judge.texts)

    def look() -> None:
        """Compare everything that decides; the insides of functions only where one may have been assigned to."""
        nonlocal tampered, touched
        inside, touched = touched, False
        tampered = changed() or (changed_inside() if inside else "")

    def verify(now: Live) -> None:
        """Before anything is decided anew: nothing that decides was replaced."""
        if not tampered:
            look()
        mirrored(now)

    def install(new: State, given: object) -> None:
        """Put `new` in force; `given` is the token of the lock, before and after."""
        nonlocal token
        with changing:
            check_token(given)
            put(new)
            token = given

    def change(to: Callable[[State | None], State], given: object) -> None:
        with changing:
            check_token(given)
            put(to(live.state if live is not None else None))

    def uninstall(given: object) -> None:
        with changing:
            check_token(given)
            forget()

    def put(new: State) -> None:
        nonlocal live, hooked, touched
        if tampered:
            raise EgressViolation("", 0, reason="tampered", detail=tampered, rules=new.judge.texts)
        live = Live(new, {}, {})
        state.in_force = new
        touched = True  # without a state the hook hears of nothing
        if not hooked:
            sys.addaudithook(hook)
            sys.audit(_PROBE)
            if not hooked:  # an earlier hook may refuse others, and sys.addaudithook then says nothing
                forget()
                raise RuntimeError("another audit hook of this process refuses new ones: install the guard first")
        if voucher.status == vouching.UNASKED:
            voucher.register()

    def forget() -> None:
        nonlocal live, token, tampered
        live, token, tampered = None, None, ""
        state.in_force = None
        voucher.unregister()

    def check_token(given: object) -> None:
        if token is None:
            return
        same = given is token or (type(given) is type(token) and isinstance(given, str | bytes) and given == token)
        if not same:
            raise EgressLocked("the guard is locked: pass lock= with the token it was installed with")

    def open_for_test() -> None:
        """Forget everything, lock included; only for a test that runs in this thread."""
        if running_test() is None:
            raise EgressLocked("reset_for_test is for a running pytest test; elsewhere: uninstall(lock=token)")
        with changing:
            forget()
            started.clear()
            told.clear()

    # ── refusing ─────────────────────────────────────────────────────────

    def refuse(now: Live, violation: EgressViolation) -> None:
        """Tell of it, and raise it; where observing relaxes this, only tell."""
        observed = now.state.mode == observing and violation.reason in relaxed
        tell = now.state.on_blocked
        if tell is not None and not telling.get():
            mark = telling.set(True)  # inherited by tasks that it starts: what they are refused is not told again
            try:
                tell(violation)
            except Exception as e:  # noqa: BLE001 - it may observe; whatever it does opens nothing
                violation.add_note(f"on_blocked raised {type(e).__name__}: {e}")
                if observed:
                    _say(f"on_blocked raised {type(e).__name__}: {e}")
            finally:
                telling.reset(mark)
        elif tell is None and observed and violation.target not in told:
            if len(told) < MAX_TOLD:
                told.add(violation.target)
            _say(f"observe: would refuse {violation.target}")
        if not observed:
            raise violation

    def answered(now: Live, args: tuple[Any, ...]) -> None:
        nonlocal hooked
        hooked = True

    def starting(event: str, now: Live, args: tuple[Any, ...]) -> None:
        verify(now)
        child = children.of_event(event, args)
        if started and children.same_start(started[-1], child):
            return
        started.append(child)
        del started[: -children.KEPT]
        if now.state.on_child is not None and not telling_child.get():
            mark = telling_child.set(True)
            try:
                now.state.on_child(child)
            finally:
                telling_child.reset(mark)

    handlers: dict[str, Callable[[Live, tuple[Any, ...]], None]] = {
        **flows.build(flows.Desk(mirrored, verify, refuse, voucher, known)),
        **{name: partial(starting, name) for name in children.EVENTS},
        "import": children.importing,
        "object.__setattr__": touch,  # __code__, __defaults__, __kwdefaults__: these raise an event each
        "object.__delattr__": touch,
        _PROBE: answered,
    }
    handler_of = handlers.get

    def hook(event: str, args: tuple[Any, ...]) -> None:
        handler = handler_of(event)
        if handler is None:
            return
        now = live
        if now is None:
            return
        try:
            handler(now, args)
        except violates:
            raise
        except Exception as e:  # what cannot be checked is refused
            detail = f"{type(e).__name__}: {e}"
            raise violates("", 0, rules=now.state.judge.texts, reason="error", detail=detail) from e

    def after_fork() -> None:
        nonlocal changing
        if not changing.acquire(blocking=False):  # held by a thread that is not here: it was replacing the two of them
            state.in_force = None if live is None else live.state
        changing = RLock()
        known.forget_lock()

    register_at_fork(after_in_child=after_fork)
    control = Control(
        install=install,
        change=change,
        uninstall=uninstall,
        open_for_test=open_for_test,
        in_force=lambda: None if live is None else live.state,
        locked=lambda: token is not None,
        tampered=lambda: tampered,
        voucher=voucher,
        started=lambda: tuple(started),
    )
    children.carried_by(control)
    changed, changed_inside = _sealed(touch)
    return control


def _say(text: str) -> None:
    if sys.stderr is not None:
        print(f"agentmon.guard: {text}", file=sys.stderr)
