"""An event as a sentence: who did what, what came of it, by which layer, why, and what would allow it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

from agentmon.events import is_command
from agentmon.render.reasons import UNREACHED, reason_text
from agentmon.render.secrets import secret_text
from agentmon.render.states import state
from agentmon.render.words import clock, printable

# kind: (what happened, what was tried, the preposition before a destination)
_VERBS = {
    "connect": ("connected", "tried to connect", "to"),
    "send": ("sent a datagram", "tried to send a datagram", "to"),
    "packet": ("sent a packet", "tried to send a packet", "to"),
    "dns": ("asked for", "asked for", ""),
    "request": ("requested", "requested", ""),
    "websocket": ("opened a WebSocket", "tried to open a WebSocket", "to"),
    "socket": ("opened a socket", "tried to open a socket", "to"),
    "bypass": ("bypassed its guard", "bypassed its guard", "to"),
    "escape": ("connected from a foreign namespace", "tried to connect from a foreign namespace", "to"),
}
_LISTENS = ("bound a socket", "tried to bind a socket", "to")
_NOWHERE = {"dns": "a name", "request": "something"}  # objects of verbs that need one
_KERNEL = frozenset({"bpf", "host-nft", "bottle-nft"})


def paragraph(event: Mapping[str, Any], zone: tzinfo | None = None) -> str:
    """One line, and a second with the command that would allow it, or with what else helps, where there is one."""
    head = f"{clock(str(event.get('ts', '')), zone)} {printable(str(event.get('bottle') or '-'))}: {sentence(event)}"
    return f"{head}\n{hint_line(event)}"


def hint_line(event: Mapping[str, Any]) -> str:
    """The second line; "" where nothing helps."""
    hint = str(event.get("hint") or "")
    if not hint:
        return ""
    return f"    {'allow it' if is_command(hint) else 'hint'}: {printable(hint)}\n"


def sentence(event: Mapping[str, Any]) -> str:
    """Without time and bottle: `curl (pid 12) asked for www.example: refused by the resolver, no rule allows it`."""
    kind, verdict = str(event.get("kind", "")), str(event.get("verdict", ""))
    if kind == "secret":
        count = int(event.get("count") or 0)
        return f"{_who(event)} {secret_text(event)}" + (f" ({count} times)" if count > 1 else "")
    if kind not in _VERBS:
        return state(event)
    if event.get("reason") == "stranger":
        return f"{_who(event)} is in the bottle's network namespace, and {reason_text(event)}"
    text = f"{_who(event)} {_what(event)}{_outcome(verdict, event)}"
    count = int(event.get("count") or 0)
    return f"{text} ({count} times)" if count > 1 else text


def _what(event: Mapping[str, Any]) -> str:
    kind, reason = str(event["kind"]), event.get("reason")
    done, tried, to = _LISTENS if reason == "listen" else _VERBS[kind]
    if reason == "client-tls":
        done, to = "broke off its TLS handshake", "with the proxy for"
    elif event.get("verdict") == "refused" or reason in UNREACHED:
        done = tried
    where = _where(event)
    if not where and (event.get("detail") or {}).get("others"):
        where = "other names" if kind == "dns" else "other destinations"
    if where:
        return " ".join(filter(None, (done, to, where)))
    return f"{done} {_NOWHERE[kind]}" if kind in _NOWHERE and reason != "client-tls" else done


def _outcome(verdict: str, event: Mapping[str, Any]) -> str:
    reason, kind = event.get("reason"), event.get("kind")
    if reason == "client-tls":
        return f": {reason_text(event)}"
    if verdict == "refused":
        return f": refused{_by(event)}, {_why(event)}{_library(event)}"
    if verdict == "observed" and kind == "bypass":
        return f": let through{_by(event)} (guard: observe), {_why(event)}{_library(event)}"
    if verdict == "observed":
        return f": let through under OBSERVE{_by(event)}, {_why(event)}"
    if verdict:
        return f": {printable(verdict)}{_by(event)}" + (f", but {_why(event)}" if reason else "")
    return ""


def _library(event: Mapping[str, Any]) -> str:
    """A guarded process and its reader want to know which native code it was."""
    library = str(event.get("library") or "")
    return f" (called by {printable(library)})" if library and event.get("kind") == "bypass" else ""


def _who(event: Mapping[str, Any]) -> str:
    name = printable(str(event.get("comm") or "")) or "a process"
    return f"{name} (pid {event['pid']})" if event.get("pid") else name


def _where(event: Mapping[str, Any]) -> str:
    if event.get("path"):
        return printable(str(event["path"]))
    host, dst, port = str(event.get("host") or ""), str(event.get("dst") or ""), event.get("port")
    shown = printable(host or (f"[{dst}]" if ":" in dst else dst))
    where = f"{shown}:{port}" if shown and port else shown
    if host and dst:
        where += f" ({printable(dst)})"
    elif names := (event.get("detail") or {}).get("names"):
        where += f" ({printable(' or '.join(map(str, names)))})"
    return f"{where}/{event['proto']}" if event.get("proto") == "udp" and where else where


def _by(event: Mapping[str, Any]) -> str:
    layer = str(event.get("layer") or "")
    if not layer:
        return ""
    return f" by {printable(layer)}" if layer in _KERNEL else f" by the {printable(layer)}"


def _why(event: Mapping[str, Any]) -> str:
    text = reason_text(event) or "no reason given"
    rule = str(event.get("rule") or "")
    return f"{text} ({printable(rule)})" if rule else text
