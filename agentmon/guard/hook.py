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
from os import register_at_fork, uname

from agentmon.guard import capability, children, judge, names, scopes, state, targets, vouching
from agentmon.guard.errors import EgressLocked, EgressViolation
from agentmon.guard.state import OBSERVE, State
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.policy.rules import decide as deciding
from agentmon.policy.rules.hosts import OWN_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Mapping
    from types import CodeType, FunctionType
    from typing import Any, NamedTuple

    from agentmon.guard.judge import Judge, Verdict
    from agentmon.guard.targets import Address

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

    class Live(NamedTuple):
        state: State
        approved: dict[object, tuple[bytes, ...]]
        looked: dict[object, str]
else:
    Control = namedtuple("Control", "install change uninstall open_for_test in_force locked tampered voucher started")
    Live = namedtuple("Live", "state approved looked")

MAX_APPROVED = 4096
_PROBE = "agentmon.guard.installed"
RELAXED = frozenset({"default", "scope"})  # what observing lets pass; protected, denied and unreadable stay refused


def _sealed() -> tuple[tuple[Mapping[str, Any], str, FunctionType, CodeType], ...]:
    """(namespace, name, function, its code) of what a check runs through: none of it may be replaced."""
    namespaces: tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...] = (
        (vars(judge), ("named", "addressed", "looked_up", "led_to")),
        (vars(targets), ("host_and_port", "literal")),
        (vars(capability), ("is_open",)),
        (vars(deciding.PolicySet), ("_decide", "decide_address")),
    )
    return tuple((where, name, where[name], where[name].__code__) for where, names in namespaces for name in names)


def build() -> Control:  # noqa: C901, PLR0915 - one closure: what it holds has no other name
    """The hook and the functions that change what it holds. Called once, when the package is imported."""
    live: Live | None = None
    token: object = None
    tampered = ""
    hooked = False
    changing = RLock()
    started: list[children.Child] = []
    told: set[str] = set()
    known = names.Names()
    voucher = vouching.Voucher()
    telling: ContextVar[bool] = ContextVar("agentmon_guard_telling", default=False)
    sealed = _sealed()
    # Captured: replacing them in their modules changes nothing here (and is noticed).
    named, addressed, looked_up, led_to = judge.named, judge.addressed, judge.looked_up, judge.led_to
    host_and_port, literal, protocol = targets.host_and_port, targets.literal, targets.protocol
    family_of, type_of, proto_of = targets.family_of, targets.type_of, targets.proto_of
    loopback_open, scopes_now, vouch = capability.is_open, scopes.current, voucher.vouch
    running_test = capability.running_test
    public = vars(state)

    # ── what is in force ─────────────────────────────────────────────────

    def mirrored(now: Live) -> None:
        """What the module shows must be what decides."""
        nonlocal tampered
        if public.get("in_force") is not now.state:
            with changing:  # another thread may be replacing both at this moment
                if public.get("in_force") is not (None if live is None else live.state):
                    tampered = "agentmon.guard.state.in_force was assigned to"
        if tampered:
            raise EgressViolation("", 0, reason="tampered", detail=tampered, rules=now.state.judge.texts)

    def verify(now: Live) -> None:
        """Before anything is decided anew: nothing that decides was replaced."""
        nonlocal tampered
        for namespace, name, function, code in sealed:
            if namespace.get(name) is not function or function.__code__ is not code:
                tampered = f"{name}() was replaced"
        mirrored(now)

    def install(new: State, given: object) -> None:
        """Put `new` in force; `given` is the token of the lock, before and after."""
        nonlocal token
        with changing:
            check_token(given)
            token = given
            put(new)

    def change(to: Callable[[State | None], State], given: object) -> None:
        with changing:
            check_token(given)
            put(to(live.state if live is not None else None))

    def uninstall(given: object) -> None:
        with changing:
            check_token(given)
            forget()

    def put(new: State) -> None:
        nonlocal live, hooked
        if tampered:
            raise EgressViolation("", 0, reason="tampered", detail=tampered, rules=new.judge.texts)
        live = Live(new, {}, {})
        state.in_force = new
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
        observed = now.state.mode == OBSERVE and violation.reason in RELAXED
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
            if len(told) < MAX_APPROVED:
                told.add(violation.target)
            _say(f"observe: would refuse {violation.target}")
        if not observed:
            raise violation

    def judged(now: Live, ask: Callable[[Judge], Verdict], port: int, address: str, proto: str, host: str = "") -> bool:
        """True where the policy and every scope allow. False where refused, but observed. Else it raises."""
        inner = scopes_now()
        for number, each in enumerate((now.state.judge, *now.state.within, *(scope.judge for scope in inner))):
            verdict = ask(each)
            if verdict.reason == judge.ALLOW:
                continue
            reason, detail = verdict.reason, verdict.detail
            if reason == "loopback" and loopback_open():
                return True
            if reason == "default":
                reason, detail = "scope" if number else reason, proto if proto == "udp" else ""
                if address == "" and (wrong := _not_a_name(verdict.host)):
                    reason, detail = "form", wrong
            shown = verdict.host or host
            refuse(
                now,
                EgressViolation(shown, port, address, verdict.rule, rules=each.texts, reason=reason, detail=detail),
            )
            return False
        return True

    # ── connect, sendto, sendmsg ─────────────────────────────────────────

    def connecting(now: Live, args: tuple[Any, ...]) -> None:
        sock, address = args[0], args[1]
        if address is None:  # sendmsg on a connected socket
            return
        if type(address) is tuple and len(address) > 1 and type(address[0]) is str and type(address[1]) is int:
            key = (address[0], address[1], type_of(sock), proto_of(sock), family_of(sock))
            values = now.approved.get(key)
            if values is not None and (not (inner := scopes_now()) or all(key in scope.approved for scope in inner)):
                if tampered or public["in_force"] is not now.state:
                    mirrored(now)
                if voucher.status == vouching.ACTIVE:
                    vouch(sock, values)
                return
        else:
            key = None
        verify(now)
        arrive(now, sock, address, key)

    def arrive(now: Live, sock: _socket.socket, address: object, key: object) -> None:
        family = family_of(sock)
        if family not in targets.INET:
            if family not in targets.LOCAL:
                refuse(now, _formless(now, address, "family", f"family {family}"))
            return
        try:
            host, port = host_and_port(address, family)
        except targets.Unreadable as e:
            return refuse(now, _formless(now, address, "form", str(e)))
        proto = protocol(type_of(sock), proto_of(sock))
        if proto is None:
            kind = f"protocol {proto_of(sock)} of socket type {type_of(sock)}"
            return refuse(now, EgressViolation(host, port, rules=now.state.judge.texts, reason="protocol", detail=kind))
        where = literal(host)
        goals = by_name(now, host, port, proto, family) if where is None else by_address(now, where, port, proto, key)
        if voucher.status == vouching.ACTIVE:
            vouch(sock, tuple(vouching.value_of(goal, port, proto) for goal in goals))

    def bottle_page(name: str) -> bool:
        """agentmon.internal answers inside every bottle, on port 80, with the bottle's own allowlist and budget."""
        return voucher.status == vouching.ACTIVE and name == OWN_NAME

    def by_address(now: Live, where: Address, port: int, proto: str, key: object) -> tuple[Address, ...]:
        def ask(each: Judge) -> Verdict:
            return addressed(each, where, known.of(where), port, proto)

        if ask(now.state.judge).reason == "default":
            known.chase()
        text = str(where)
        if port == 80 and proto == "tcp" and any(map(bottle_page, known.of(where))):
            return (where,)
        if judged(now, ask, port, text, proto) and key is not None and not loopback_open():
            remember(now, key, (vouching.value_of(where, port, proto),))
        return (where,)

    def by_name(now: Live, host: str, port: int, proto: str, family: int) -> tuple[Address, ...]:
        """CPython has looked `host` up already, and does not say what it found: ask again, vouch for each answer."""
        approved = judged(now, lambda each: named(each, host, port, proto), port, "", proto, host)
        goals = known.addresses(host, family)
        if not goals and approved:
            refuse(now, EgressViolation(host, port, rules=now.state.judge.texts, reason="unknown"))
        for goal in goals:
            judged(now, partial(led_to, host=host, address=goal, port=port, proto=proto), port, str(goal), proto, host)
        return goals[: vouching.MAX_DESTINATIONS]

    def remember(now: Live, key: object, values: tuple[bytes, ...]) -> None:
        if len(now.approved) >= MAX_APPROVED:
            now.approved.clear()
        now.approved[key] = values
        for scope in scopes_now():
            if len(scope.approved) >= MAX_APPROVED:
                scope.approved.clear()
            scope.approved[key] = values

    # ── lookups ──────────────────────────────────────────────────────────

    def looking_up(now: Live, args: tuple[Any, ...]) -> None:
        look_up(now, args[0], args[2], args[1])

    def looking_up_v4(now: Live, args: tuple[Any, ...]) -> None:
        look_up(now, args[0], targets.AF_INET)

    def look_up(now: Live, host: object, family: int, port: object = None) -> None:
        if type(host) is str and not scopes_now():
            seen = now.looked.get(host)
            if seen is not None and (not seen or known.fresh(seen, family)):
                return mirrored(now)
        verify(now)
        if host is None or host in ("", b""):  # the addresses of this machine, for listening
            return
        try:
            text = targets.host_text(host, family)
        except targets.Unreadable as e:
            return refuse(now, _formless(now, (host, 0), "form", str(e)))
        name = "" if literal(text) is not None else text  # an address is judged when it is connected to
        if name and not _own_name(name):
            if not bottle_page(name) and not judged(
                now, lambda each: looked_up(each, name), targets.number(port), "", "", name
            ):
                return
            if not known.fresh(name, family):
                known.learn(name, family)
            if judge.loopback_name(name):
                return
        if len(now.looked) >= MAX_APPROVED:
            now.looked.clear()
        if type(host) is str:
            now.looked[host] = name

    def looking_back(now: Live, args: tuple[Any, ...]) -> None:
        """gethostbyaddr, getnameinfo: an address in a question is data that leaves; a name is a lookup."""
        verify(now)
        asked = args[0][0] if isinstance(args[0], tuple) else args[0]
        try:
            text = targets.host_text(asked, targets.AF_INET)
        except targets.Unreadable as e:
            return refuse(now, _formless(now, (asked, 0), "form", str(e)))
        where = literal(text)
        if where is None:
            return look_up(now, text, 0)
        judged(now, lambda each: judge.spoken_of(each, where, known.of(where)), 0, str(where), "")

    # ── bind, processes ──────────────────────────────────────────────────

    def binding(now: Live, args: tuple[Any, ...]) -> None:
        if now.state.bind == state.BIND_ANY or family_of(args[0]) not in targets.INET:
            return
        host, port = host_and_port(args[1], family_of(args[0]))
        where = literal(host)
        if port and not (where is not None and where.is_loopback and loopback_open()):
            refuse(now, EgressViolation("", port, host, rules=now.state.judge.texts, reason="bind"))

    def answered(now: Live, args: tuple[Any, ...]) -> None:
        nonlocal hooked
        hooked = True

    def starting(event: str, now: Live, args: tuple[Any, ...]) -> None:
        child = children.of_event(event, args)
        if started and children.same_start(started[-1], child):
            return
        started.append(child)
        del started[: -children.KEPT]
        if now.state.on_child is not None and not telling.get():
            mark = telling.set(True)
            try:
                now.state.on_child(child)
            finally:
                telling.reset(mark)

    handlers: dict[str, Callable[[Live, tuple[Any, ...]], None]] = {
        "socket.connect": connecting,
        "socket.sendto": connecting,
        "socket.sendmsg": connecting,
        "socket.getaddrinfo": looking_up,
        "socket.gethostbyname": looking_up_v4,
        "socket.gethostbyaddr": looking_back,
        "socket.getnameinfo": looking_back,
        "socket.bind": binding,
        **{name: partial(starting, name) for name in children.EVENTS},
        "import": children.importing,
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
        except EgressViolation:
            raise
        except Exception as e:  # what cannot be checked is refused
            detail = f"{type(e).__name__}: {e}"
            raise EgressViolation("", 0, rules=now.state.judge.texts, reason="error", detail=detail) from e

    def after_fork() -> None:
        nonlocal changing
        changing = RLock()
        known.forget_lock()

    register_at_fork(after_in_child=after_fork)
    return Control(
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


def _formless(now: Live, address: object, reason: str, detail: str) -> EgressViolation:
    """A refusal of what has no readable host or port."""
    first = address[0] if isinstance(address, tuple) and address else address
    return EgressViolation(str(first)[:200], 0, rules=now.state.judge.texts, reason=reason, detail=detail)


def _not_a_name(host: str) -> str:
    try:
        canonical_host(host)
    except RuleError as e:
        return e.message
    return ""


def _own_name(name: str) -> bool:
    """This machine's name: smtplib and others look it up to introduce themselves. Unless it is a loopback name."""
    return name == uname().nodename and not judge.loopback_name(name)


def _say(text: str) -> None:
    if sys.stderr is not None:
        print(f"agentmon.guard: {text}", file=sys.stderr)
