"""Events for people: one struct, its JSON form, and the one place where a refusal's sentence and hint are composed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec


class Event(msgspec.Struct, omit_defaults=True, frozen=True):
    """One thing that happened. Fields that do not apply stay at their default and are absent from JSON (the contract
    names them). `ts_ns` is CLOCK_REALTIME; JSON shows it as `ts`, RFC 3339 UTC with nanoseconds."""

    kind: str
    verdict: str = ""
    bottle: str = ""
    reason: str = ""
    layer: str = ""
    pid: int = 0
    tgid: int = 0
    ppid: int = 0
    uid: int = -1
    comm: str = ""
    exe: str = ""
    cmdline: str = ""
    proto: str = ""
    dst: str = ""
    port: int = 0
    host: str = ""
    rule: str = ""
    syscall: str = ""
    library: str = ""
    library_evidence: str = ""
    offset: int = 0
    epoch: int = 0
    count: int = 0
    hint: str = ""
    detail: dict[str, Any] = {}
    ts_ns: int = 0


def now_ns() -> int:
    return time.time_ns()


def rfc3339(ts_ns: int) -> str:
    """2026-01-02T03:04:05.000000006Z"""
    seconds, ns = divmod(ts_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"


def to_dict(event: Event) -> dict[str, Any]:
    """The contract's JSON object: `ts` first, absent fields left out."""
    data: dict[str, Any] = msgspec.to_builtins(event)
    data.pop("ts_ns", None)
    return {"ts": rfc3339(event.ts_ns)} | data


def destination(event: Event) -> str:
    """host:port, address:port or what is known of it, with brackets around IPv6."""
    where = event.host or (f"[{event.dst}]" if ":" in event.dst else event.dst)
    return f"{where}:{event.port}" if event.port and where else where


def allow_hint(event: Event) -> str:
    """The command that would permit what was refused; "" where no rule could (protected destination, spent budget)."""
    if event.verdict != "refused" or not event.bottle:
        return ""
    if event.reason == "budget":
        return f"agentmon resume {event.bottle} --budget TOKENS"
    if event.reason in {"protected", "spoof", "family", "netns", "closed"}:
        return ""
    if event.host:
        rule = event.host if event.kind == "dns" or event.port in {0, 80} else f"{event.host}:{event.port}"
    elif event.dst:
        scheme = "udp" if event.proto == "udp" else "tcp"
        rule = f"{scheme}://{destination(event)}"
    else:
        return ""
    return f"agentmon allow {event.bottle} {rule}"
