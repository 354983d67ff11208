"""From events to what a policy would have had to open: names where a process had asked for one, else addresses.

    connect, send, packet ─ to an address ─┐  the names this process (or its parent) had looked up before, which had
    dns ─ a process's lookups ─────────────┘  resolved to it ─▶ by name; none ─▶ by address
    dns, connect (relay), request ─ refused by name ─▶ by name

What no rule opens is set aside with the word for why. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, NamedTuple

from agentmon.events import OWN
from agentmon.policy.rules import RuleError, canonical_host, stripped
from agentmon.policy.rules.grammar import SERVED

_KINDS = frozenset({"connect", "send", "packet", "dns", "request", "websocket", "socket", "bypass"})
_MISSING_RULE = frozenset({"default", "policy", ""})  # reasons that a rule would have changed
_HTTPS = 443  # what is assumed of a name that was refused before anything connected


class Need(NamedTuple):
    """One of `host` and `address` is set. `path`: of a request that was refused although its host is open."""

    host: str
    address: str
    proto: str
    port: int
    path: str = ""

    @property
    def where(self) -> str:
        place = self.host or (f"[{self.address}]" if ":" in self.address else self.address)
        return f"{place}:{self.port}{self.path}" + ("/udp" if self.proto == "udp" else "")

    @property
    def served(self) -> bool:
        """Whether relay or proxy can hold it to its name."""
        return bool(self.host) and self.proto == "tcp" and self.port in SERVED


class Unmet(NamedTuple):
    """What is not proposed, and the word for why: an event's reason, or one of learn.py's."""

    what: str
    because: str


@dataclass(slots=True)
class Evidence:
    """What was seen of one need. `names`: all that had resolved to its addresses. `assumed`: no port was seen."""

    count: int = 0
    first: str = ""
    last: str = ""
    processes: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    verdicts: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    either: set[str] = field(default_factory=set)
    assumed: bool = True
    rule: str = ""

    def add(self, event: Mapping[str, Any]) -> None:
        at = str(event.get("ts", ""))
        self.count += max(int(event.get("count") or 0), 1)
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)
        for known, key in ((self.processes, "comm"), (self.layers, "layer"), (self.verdicts, "verdict")):
            if event.get(key):
                known.add(str(event[key]))
        self.names.update(_names(event))
        self.rule = self.rule or str(event.get("rule") or "")

    def merge(self, other: Evidence) -> None:
        """Take the other's in."""
        self.count += other.count
        self.first = min(self.first or other.first, other.first)
        self.last = max(self.last, other.last)
        for mine, theirs in (
            (self.processes, other.processes), (self.layers, other.layers), (self.verdicts, other.verdicts),
            (self.names, other.names), (self.either, other.either),
        ):  # fmt: skip
            mine |= theirs
        self.assumed = self.assumed and other.assumed


class _Connect(NamedTuple):
    """Of one process, to one place; `needs`: by each name that may have been meant. `sorting`: perhaps libc's."""

    process: int
    needs: tuple[Need, ...]
    sorting: bool


@dataclass(slots=True)
class Needs:
    """All that was found in one bottle's events."""

    needs: dict[Need, Evidence] = field(default_factory=dict)
    unmet: dict[Unmet, Evidence] = field(default_factory=dict)
    events: int = 0
    first: str = ""
    last: str = ""


def needs(events: Iterable[Mapping[str, Any]], verdicts: frozenset[str]) -> Needs:
    """:param events: the contract's JSON objects of one bottle. :param verdicts: of those that count."""
    reader = _Reader(verdicts)
    for event in sorted(events, key=lambda e: str(e.get("ts", ""))):
        if event.get("kind") in _KINDS:
            reader.take(event)
    return reader.finish()


class _Reader:
    def __init__(self, verdicts: frozenset[str]) -> None:
        self._verdicts = verdicts
        self._found = Needs()
        self._asked: dict[int, dict[str, None]] = {}  # process → names it has looked up so far, the last one last
        self._lookups: dict[str, Evidence] = {}
        self._connects: dict[_Connect, Evidence] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        verdict, kind = str(event.get("verdict", "")), event["kind"]
        if kind == "dns" and verdict != "refused":
            self._looked_up(event)
        if verdict not in self._verdicts:
            return
        self._found.events += 1
        at = str(event.get("ts", ""))
        self._found.first, self._found.last = self._found.first or at, at
        if kind == "dns" and verdict != "refused":
            return
        reason = str(event.get("reason") or "")
        if (event.get("detail") or {}).get("others"):
            self._set_aside(Unmet("", "others"), event)
        elif reason not in _MISSING_RULE or kind in {"socket", "bypass"}:
            self._set_aside(Unmet(_shown(event), reason), event)
        elif event.get("host"):
            self._by_name(event)
        else:
            self._by_address(event)

    def _looked_up(self, event: Mapping[str, Any]) -> None:
        host = _canonical(str(event.get("host", "")))
        if host:
            asked = self._asked.setdefault(_process(event), {})
            asked.pop(host, None)
            asked[host] = None
            self._lookups.setdefault(host, Evidence()).add(event)

    def _by_name(self, event: Mapping[str, Any]) -> None:
        host = _canonical(str(event["host"]))
        if not host:
            self._set_aside(Unmet(_shown(event), "bad-name"), event)
            return
        asked_only = event["kind"] == "dns"
        if asked_only and host.startswith("_"):  # RFC 2782, 8552: asked about, and nothing connects to it (apt does)
            self._set_aside(Unmet(host, "lookup"), event)
            return
        port = _HTTPS if asked_only else int(event.get("port") or _HTTPS)
        path = str((event.get("detail") or {}).get("path") or "") if event["kind"] == "request" else ""
        self._add(Need(host, "", "tcp", port, path), event, assumed=asked_only)

    def _by_address(self, event: Mapping[str, Any]) -> None:
        proto, port = str(event.get("proto") or "tcp"), int(event.get("port") or 0)
        try:
            address = ip_address(str(event.get("dst", "")))
        except ValueError:
            self._set_aside(Unmet(_shown(event), "no-place"), event)
            return
        if stripped(address):
            self._set_aside(Unmet(_shown(event), "protected"), event)
            return
        maybe_sorting = proto == "udp" and event["kind"] == "connect"
        own = any(address in network for network in OWN)
        if proto not in {"tcp", "udp"} or not port or own:
            why = "sorting" if maybe_sorting else "own" if own else "no-port"
            self._set_aside(Unmet(_shown(event), why), event)
            return
        names = self._names_meant(event)
        needs = tuple(Need(name, "", proto, port) for name in names) or (Need("", str(address), proto, port),)
        connect = _Connect(_process(event), needs, maybe_sorting)
        self._connects.setdefault(connect, Evidence(assumed=False)).add(event)

    def _names_meant(self, event: Mapping[str, Any]) -> list[str]:
        """The last one asked for first. Lookups of allowed names are told under observe only: of a refusal, every name
        may be the one."""
        names = [host for name in _names(event) if (host := _canonical(name))]
        if event.get("verdict") == "refused":
            return names
        asked = self._asked.get(int(event.get("ppid") or 0), {}) | self._asked.get(_process(event), {})
        return [name for name in reversed(asked) if name in names]

    def _add(self, need: Need, event: Mapping[str, Any], *, assumed: bool) -> None:
        evidence = self._found.needs.setdefault(need, Evidence())
        evidence.add(event)
        evidence.assumed = evidence.assumed and assumed

    def _set_aside(self, unmet: Unmet, event: Mapping[str, Any]) -> None:
        self._found.unmet.setdefault(unmet, Evidence()).add(event)

    def finish(self) -> Needs:
        """UDP connects that libc made while it sorted addresses are no needs; nor are lookups that led nowhere."""
        found = self._found
        used = {(c.process, c.needs[0].host) for c in self._connects if len(c.needs) == 1}
        meant = {connect: _meant(connect, used) for connect in self._connects}
        streams = {(c.process, n.where) for c, needs in meant.items() for n in needs if n.proto == "tcp"}
        for connect, evidence in self._connects.items():
            for need in meant[connect]:
                if connect.sorting and (connect.process, need._replace(proto="tcp").where) in streams:
                    found.unmet.setdefault(Unmet(need.where, "sorting"), Evidence()).merge(evidence)
                    continue
                kept = found.needs.setdefault(need, Evidence())
                kept.merge(evidence)
                kept.either |= {other.host for other in connect.needs} - {need.host}
        led_to = {need.host for need in found.needs}
        for host, evidence in self._lookups.items():
            if host not in led_to and evidence.verdicts & self._verdicts:
                found.unmet.setdefault(Unmet(host, "lookup"), evidence)
        return found


def _meant(connect: _Connect, used: set[tuple[int, str]]) -> tuple[Need, ...]:
    """Of several names, the one asked for last; and those that this process has asked for and is not known to have
    connected to: equal connects are told once, so that they may be hidden in this one."""
    last, *others = connect.needs
    return (last, *(need for need in others if (connect.process, need.host) not in used))


def _process(event: Mapping[str, Any]) -> int:
    return int(event.get("tgid") or event.get("pid") or 0)


def _names(event: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in (event.get("detail") or {}).get("names", ())]


def _canonical(name: str) -> str:
    try:
        return canonical_host(name)
    except RuleError:
        return ""


def _shown(event: Mapping[str, Any]) -> str:
    """The destination as far as it is known."""
    if event.get("path"):
        return str(event["path"])
    host, dst, port = str(event.get("host") or ""), str(event.get("dst") or ""), event.get("port")
    place = host or (f"[{dst}]" if ":" in dst else dst)
    path = str((event.get("detail") or {}).get("path") or "") if event.get("kind") == "request" else ""
    return (f"{place}:{port}{path}" if port else place) + ("/udp" if event.get("proto") == "udp" and place else "")
