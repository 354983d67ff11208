"""Events for people: one struct, its JSON form, and the one place where a refusal's sentence and hint are composed."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import msgspec

from agentmon.addresses import Pool

Own = tuple[IPv4Network | IPv6Network, ...]
OWN: Own = tuple(network for network in (Pool().v4, Pool().v6) if network is not None)

# What a bottle sends, asks for and is refused: what `log: off` leaves out. Attempts on the supervision itself stay.
TRAFFIC = frozenset({"connect", "send", "dns", "packet", "socket", "request", "websocket"})

_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # what may stand in a command that people copy
# The reasons for which a command helps. All others (deny, protected, inspected, not-tls, method, limit …) are refusals
# that no allow rule changes; a reason that is not known here gets no command.
_NO_RULE = frozenset({"default", "policy"})
_CUT = frozenset({"budget", "cut"})
_TEXTS = {
    "expired": "an address is open while the answer that named it is valid: the client has to look the name up again",
    "label": "a name below a wildcard is too long or looks like data: write a rule that gives it exactly",
    "label-rate": "names below a wildcard carry more than `limits: {name_bytes_per_min: …}` of the manifest permits",
    "addresses": "names lead to more addresses than `limits: {addresses: …}` of the manifest permits at a time",
    "unvouched": "code beside this process's guard connects on its own: let it go through the guard, or write"
    " `guard: observe` into the bottle's manifest (then it is reported only)",
}


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
    path: str = ""
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
    """host:port, address:port or what is known of it, with brackets around IPv6; the path of a unix socket."""
    if event.path:
        return event.path
    where = event.host or (f"[{event.dst}]" if ":" in event.dst else event.dst)
    return f"{where}:{event.port}" if event.port and where else where


def hint(event: Event, own: Own = OWN) -> str:
    """What an operator can do about it: the command that would permit what was refused, where one would (a missing
    rule, a cut), else what the event itself says; "" where nothing helps (a deny, a protected destination …).

    :param own: the networks of the bottles and services: no rule opens these.
    """
    if event.verdict != "refused" or not event.bottle:
        return event.hint
    if event.reason in _CUT:
        return _resume(event)
    if event.reason == "listen":
        return f"write `listen: [{event.proto or 'tcp'}:{event.port}]` into the bottle's manifest"
    if event.reason == "unix":
        return _unix(event)
    if event.reason in _NO_RULE:
        return _allow(event, own) or event.hint
    return event.hint or _TEXTS.get(event.reason, "")


def is_command(text: str) -> bool:
    """Whether a hint is a command, to be typed as it stands."""
    return text.startswith("agentmon ")


def _unix(event: Event) -> str:
    if not event.path.startswith("/") or not event.path.isprintable() or "/." in event.path:
        return "name the socket by its absolute path, without .. and //"
    return f"write `unix: [{event.path}]` into a manifest of the host's bottles_dir"


def _resume(event: Event) -> str:
    """Without a figure `resume` says which budget it needs, if it needs one."""
    used = event.detail.get("used")
    more = f" --budget {used * 2}" if event.reason == "budget" and isinstance(used, int) and used > 0 else ""
    return f"agentmon resume {event.bottle}{more}"


def _allow(event: Event, own: Own) -> str:
    if event.host:
        if not _NAME.fullmatch(event.host):
            return ""
        rule = event.host if event.kind == "dns" or event.port in {0, 80} else f"{event.host}:{event.port}"
    elif event.dst and event.port and event.proto in {"tcp", "udp", ""} and not _inside(event.dst, own):
        # What is refused at an address that a name had resolved to is a direct name's: others are served by us.
        name = next((n for n in event.detail.get("names", ()) if _NAME.fullmatch(n)), "")
        rule = f"{event.proto or 'tcp'}://{f'{name}:{event.port}' if name else destination(event)}"
    else:
        return ""
    return f"agentmon allow {event.bottle} {rule}"


def _inside(text: str, own: Own) -> bool:
    """Also true of what is no address: no rule can be written for it."""
    try:
        address = ip_address(text)
    except ValueError:
        return True
    return any(address in network for network in own)
