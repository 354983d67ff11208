"""Judging connects, lookups and binds, event by event.

connect, sendto, sendmsg   approved before? or: family, host, port, protocol → by address (with the names that led
                           there) or by name → vouch → the call goes on
getaddrinfo, gethostby…    by name; what is approved is learned, so that the connect can be judged by its name
gethostbyaddr, getnameinfo the address is a question to a name server: open on some port, or refused
"""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from os import uname

from agentmon.guard import capability, judge, scopes, state, targets, vouching
from agentmon.guard.errors import EgressViolation
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.policy.rules.hosts import OWN_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, NamedTuple

    from agentmon.guard.judge import Judge, Verdict
    from agentmon.guard.names import Names
    from agentmon.guard.state import State
    from agentmon.guard.targets import Address

    class Live(NamedTuple):
        """One policy in force, and what has been approved under it."""

        state: State
        approved: dict[object, tuple[bytes, ...]]
        looked: dict[tuple[str, object, int], str]

    class Desk(NamedTuple):
        """What the hook lends: `mirrored` and `verify` raise where something was tampered with; `refuse` raises,
        unless observing relaxes this refusal."""

        mirrored: Callable[[Live], None]
        verify: Callable[[Live], None]
        refuse: Callable[[Live, EgressViolation], None]
        voucher: vouching.Voucher
        known: Names
else:
    Live = namedtuple("Live", "state approved looked")
    Desk = namedtuple("Desk", "mirrored verify refuse voucher known")

MAX_APPROVED = 4096
_PLAIN = frozenset({int, str})
# http.server looks up the address it binds. What these questions say is known, and a connect is judged all the same.
_SERVING = frozenset({"127.0.0.1", "::1", "0.0.0.0", "::"})
_KINDS = {1: "tcp", 2: "udp"}  # SOCK_STREAM, SOCK_DGRAM


def build(desk: Desk) -> dict[str, Callable[[Live, tuple[Any, ...]], None]]:  # noqa: C901, PLR0915 - one closure
    """The handler of each event."""
    mirrored, verify, refuse, voucher, known = desk
    # Captured: replacing them in their modules changes nothing here (and is noticed).
    named, addressed, looked_up, led_to = judge.named, judge.addressed, judge.looked_up, judge.led_to
    host_and_port, literal, protocol = targets.host_and_port, targets.literal, targets.protocol
    family_of, type_of, proto_of = targets.family_of, targets.type_of, targets.proto_of
    loopback_open, scopes_now, vouch = capability.is_open, scopes.current, voucher.vouch
    asked = frozenset({vouching.ACTIVE, vouching.UNASKED})

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
            values = now[1].get(key)  # by place: the names of its fields are not verified yet
            if values is not None and (not (inner := scopes_now()) or all(key in scope.approved for scope in inner)):
                mirrored(now)
                if voucher.status in asked:
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
        if voucher.status in asked:
            vouch(sock, tuple(vouching.value_of(goal, port, proto) for goal in goals))

    def bottle_page(name: str, port: int = 80, proto: str = "tcp") -> bool:
        """agentmon.internal answers inside every bottle, on port 80, with the bottle's own allowlist and budget."""
        return name == OWN_NAME and port == 80 and proto == "tcp" and voucher.status == vouching.ACTIVE

    def by_address(now: Live, where: Address, port: int, proto: str, key: object) -> tuple[Address, ...]:
        def ask(each: Judge) -> Verdict:
            return addressed(each, where, known.of(where), port, proto)

        if ask(now.state.judge).reason == "default":
            known.chase()
        text = str(where)
        if any(bottle_page(name, port, proto) for name in known.of(where)):
            return (where,)
        if judged(now, ask, port, text, proto) and key is not None and not loopback_open():
            remember(now, key, (vouching.value_of(where, port, proto),))
        return (where,)

    def by_name(now: Live, host: str, port: int, proto: str, family: int) -> tuple[Address, ...]:
        """CPython has looked `host` up already, and does not say what it found: ask afresh, every time, vouch for each
        answer. Where the last answer, if it is fresh, was another one, nobody knows which of them CPython was given."""
        approved = bottle_page(host, port, proto) or judged(
            now, lambda each: named(each, host, port, proto), port, "", proto, host
        )
        before = known.answer(host, family) if known.fresh(host, family) else ()
        goals = known.learn(host, family)
        for goal in dict.fromkeys((*goals, *before)):
            judged(now, partial(led_to, host=host, address=goal, port=port, proto=proto), port, str(goal), proto, host)
        if approved and (not goals or (before and set(before) != set(goals))):
            refuse(now, EgressViolation(host, port, rules=now.state.judge.texts, reason="unknown"))
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
        look_up(now, args[0], args[2], args[1], args[3])

    def looking_up_v4(now: Live, args: tuple[Any, ...]) -> None:
        look_up(now, args[0], targets.AF_INET)

    def look_up(now: Live, host: object, family: int, port: object = None, kind: int = 0) -> None:
        key = None
        if type(host) is str and (port is None or type(port) in _PLAIN):
            key = (host, port, kind)
            seen = now[2].get(key)
            if seen is not None and not scopes_now() and (not seen or known.fresh(seen, family)):
                return mirrored(now)
        verify(now)
        if host is None or host in ("", b""):  # the addresses of this machine, for listening
            return
        try:
            text = targets.host_text(host, family)
        except targets.Unreadable as e:
            return refuse(now, _formless(now, (host, 0), "form", str(e)))
        name = "" if literal(text) is not None else text  # an address is judged when it is connected to
        if name and not _own_name(name) and not by_lookup(now, name, family, targets.number(port), kind):
            return
        if key is not None and not loopback_open():
            if len(now.looked) >= MAX_APPROVED:
                now.looked.clear()
            now.looked[key] = name

    def by_lookup(now: Live, name: str, family: int, port: int, kind: int) -> bool:
        """May `name` be asked for? And is what it leads to of any use: a connect whose error a client might lose in
        a task group is refused here, where it surfaces. False where observed."""
        proto = _KINDS.get(kind, "")
        own = bottle_page(name)
        allowed = own or judged(now, lambda each: looked_up(each, name), port, "", proto, name)
        # While that is being learned, this very lookup comes by again: fresh, and without an answer yet.
        goals = known.answer(name, family) if known.fresh(name, family) else known.learn(name, family)
        if own or not allowed or not goals:
            return allowed
        address = "" if judge.usable(goals) else str(goals[0])
        return judged(now, lambda each: judge.opens(each, name, goals, port, proto), port, address, proto, name)

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
        if str(where) in _SERVING:
            return
        judged(now, lambda each: judge.spoken_of(each, where, known.of(where)), 0, str(where), "")

    # ── bind, processes ──────────────────────────────────────────────────

    def binding(now: Live, args: tuple[Any, ...]) -> None:
        family = family_of(args[0])
        if family in targets.LOCAL or (family in targets.INET and now.state.bind == state.BIND_ANY):
            return
        verify(now)
        if family not in targets.INET:  # once bound, AF_PACKET and its like send without another event
            return refuse(now, _formless(now, args[1], "family", f"family {family}"))
        host, port = host_and_port(args[1], family)
        where = literal(host)
        if port and not (where is not None and where.is_loopback and loopback_open()):
            refuse(now, EgressViolation("", port, host, rules=now.state.judge.texts, reason="bind"))

    return {
        "socket.connect": connecting,
        "socket.sendto": connecting,
        "socket.sendmsg": connecting,
        "socket.getaddrinfo": looking_up,
        "socket.gethostbyname": looking_up_v4,
        "socket.gethostbyaddr": looking_back,
        "socket.getnameinfo": looking_back,
        "socket.bind": binding,
    }


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
