"""An event as a sentence: who did what, what came of it, by which layer, why, and what would allow it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

from agentmon.render.words import clock, duration, printable, tokens

_VERBS = {
    "connect": "connected to", "send": "sent a datagram to", "dns": "asked for", "packet": "sent a packet to",
    "request": "requested", "websocket": "opened a WebSocket to", "socket": "opened a socket",
    "bypass": "bypassed its guard to", "escape": "connected from a foreign namespace to",
}  # fmt: skip
_TRIED = {
    "connect": "tried to connect to", "send": "tried to send a datagram to", "packet": "tried to send a packet to",
    "websocket": "tried to open a WebSocket to", "socket": "tried to open a socket",
    "escape": "tried to connect from a foreign namespace to",
}  # fmt: skip
_KERNEL = frozenset({"bpf", "host-nft", "bottle-nft"})
_REASONS = {
    "default": "no rule allows it",
    "policy": "no rule allows it",
    "deny": "a rule denies it",
    "cut": "the bottle is cut off",
    "closed": "the bottle is not open yet",
    "protected": "this destination is closed to every bottle",
    "family": "this kind of socket is closed to every bottle",
    "expired": "the address is no longer an answer for any allowed name",
    "spoof": "the source address is not the bottle's own",
    "netns": "the process has left the bottle's network namespace",
    "budget": "its token budget is spent",
}


def paragraph(event: Mapping[str, Any], zone: tzinfo | None = None) -> str:
    """One line, and a second with the command that would allow it where there is one."""
    head = f"{clock(str(event.get('ts', '')), zone)} {printable(str(event.get('bottle') or '-'))}: {sentence(event)}"
    hint = event.get("hint")
    return f"{head}\n    allow it: {printable(str(hint))}\n" if hint else f"{head}\n"


def sentence(event: Mapping[str, Any]) -> str:
    """Without time and bottle: `curl (pid 12) asked for www.example: refused by the resolver, no rule allows it`."""
    kind, verdict = str(event.get("kind", "")), str(event.get("verdict", ""))
    if kind not in _VERBS:
        return _state(kind, verdict, event)
    verb = _TRIED.get(kind, _VERBS[kind]) if verdict == "refused" else _VERBS[kind]
    text = f"{_who(event)} {verb} {_where(event)}".rstrip()
    if verdict == "refused":
        text += f": refused{_by(event)}, {_why(event)}"
    elif verdict == "observed":
        text += f": let through under OBSERVE{_by(event)}, {_why(event)}"
    elif verdict:
        text += f": {printable(verdict)}{_by(event)}"
    count = int(event.get("count") or 0)
    return f"{text} ({count} times)" if count > 1 else text


def _who(event: Mapping[str, Any]) -> str:
    name = printable(str(event.get("comm") or "")) or "a process"
    return f"{name} (pid {event['pid']})" if event.get("pid") else name


def _where(event: Mapping[str, Any]) -> str:
    host, dst, port = str(event.get("host") or ""), str(event.get("dst") or ""), event.get("port")
    shown = printable(host or (f"[{dst}]" if ":" in dst else dst))
    where = f"{shown}:{port}" if shown and port else shown
    if host and dst:
        where += f" ({printable(dst)})"
    return f"{where}/{event['proto']}" if event.get("proto") == "udp" and where else where


def _by(event: Mapping[str, Any]) -> str:
    layer = str(event.get("layer") or "")
    if not layer:
        return ""
    return f" by {printable(layer)}" if layer in _KERNEL else f" by the {printable(layer)}"


def _why(event: Mapping[str, Any]) -> str:
    reason = str(event.get("reason") or "")
    text = _REASONS.get(reason, printable(reason) or "no reason given")
    rule = str(event.get("rule") or "")
    return f"{text} ({printable(rule)})" if rule else text


def _state(kind: str, verdict: str, event: Mapping[str, Any]) -> str:
    """Events about a bottle or the machinery: cutoff, freeze, kill, resume, policy, tamper, lost, daemon, usage …"""
    detail = event.get("detail") or {}
    parts = [printable(kind)]
    if verdict:
        parts.append(printable(verdict))
    text = " ".join(parts)
    if reason := str(event.get("reason") or ""):
        text += f": {_REASONS.get(reason, printable(reason))}"
    if by := detail.get("by"):
        text += f", by {printable(str(by))}"
    if "used" in detail and "tokens" in detail:
        text += f", {tokens(detail['used'])} of {tokens(detail['tokens'])} tokens used"
    if "latency_ns" in detail:
        text += f", after {duration(int(detail['latency_ns']))}"
    if count := int(event.get("count") or 0):
        text += f" ({count} events)" if kind == "lost" else f" ({count} times)"
    return text
