"""One body or message stream searched as it comes: findings once per rule, in any chunking, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agentmon.injection.plain import plain
from agentmon.injection.rules import Rules, load
from agentmon.providers.jsonread import parse_object

OVERLAP = 2048  # bytes that are searched again with what follows: longer than any finding
_PIECE = 64 << 10
_BATCH = 4096  # bytes of events
_AROUND = 40  # characters of an excerpt on either side
_LONG = re.compile(r"[^\s]{16,}|\d{4,}")
_SPOKEN = (
    "text",
    "content",
    "delta",
    "arguments",
    "partial_json",
    "thinking",
    "reasoning",
    "output_text",
    "transcript",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """`rule`: its id. `excerpt`: what matched and a little around it, without long words and numbers."""

    rule: str
    says: str
    excerpt: str


class Watch:
    """feed() what comes, in order. A rule is told once."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or load()
        self._told: set[str] = set()
        self._tail = b""

    def feed(self, data: bytes) -> list[Finding]:
        found: list[Finding] = []
        for at in range(0, len(data), _PIECE):
            piece = self._tail + data[at : at + _PIECE]
            self._tail = piece[-OVERLAP:]
            found += self._search(piece)
        return found

    def whole(self, data: bytes) -> list[Finding]:
        """As feed(), of a text that neither continues nor is continued."""
        self._tail = b""
        found = self.feed(data)
        self._tail = b""
        return found

    def _search(self, data: bytes) -> Iterator[Finding]:
        text = plain(data)
        for rule in self._rules.matching(text):
            if rule.id not in self._told and (match := rule.pattern.search(text)) is not None:
                self._told.add(rule.id)
                yield Finding(rule.id, rule.says, _excerpt(text, match.start(), match.end()))


class EventWatch:
    """Events of a stream, or messages of a socket: each by itself, and the text that their deltas spell together."""

    def __init__(self) -> None:
        self._each = Watch()
        self._spelt = Watch()

    def feed(self, data: bytes) -> list[Finding]:
        """`data`: one event's data, or one message."""
        found = self._each.whole(data)
        spoken = spoken_in(data)
        if spoken:
            told = {f.rule for f in found}
            found += [f for f in self._spelt.feed(spoken.encode("utf-8", "ignore")) if f.rule not in told]
        return found


class BatchedEventWatch:
    """As EventWatch, for a copy that nobody waits for: what comes is searched a few kilobytes at a time, which costs a
    tenth. close() searches the rest."""

    def __init__(self) -> None:
        self._each = Watch()
        self._spelt = Watch()
        self._events = bytearray()
        self._spoken: list[str] = []
        self._told: set[str] = set()

    def feed(self, data: bytes) -> list[Finding]:
        self._events += data + b"\n"
        spoken = spoken_in(data)
        if spoken:
            self._spoken.append(spoken)
        return self.close() if len(self._events) >= _BATCH else []

    def close(self) -> list[Finding]:
        spoken, events = "".join(self._spoken).encode("utf-8", "ignore"), bytes(self._events)
        self._spoken.clear()
        self._events.clear()
        found = self._each.whole(events) if events else []
        found += self._spelt.feed(spoken)
        new = {f.rule: f for f in reversed(found) if f.rule not in self._told}
        self._told |= new.keys()
        return [f for f in found if new.get(f.rule) is f]


def spoken_in(data: bytes) -> str:
    """The text of a delta: members by which streams of all providers carry it; "" where it is no JSON object."""
    document = parse_object(data) if data[:1] == b"{" and len(data) < _PIECE else None
    out: list[str] = []
    waiting: list[tuple[str, object]] = [("", document)]
    for _ in range(200):
        if not waiting:
            break
        key, value = waiting.pop()
        if isinstance(value, str) and key in _SPOKEN:
            out.append(value)
        elif isinstance(value, dict):
            waiting += reversed(list(value.items()))
        elif isinstance(value, list):
            waiting += [(key, inner) for inner in reversed(value)]
    return "".join(out)


def _excerpt(text: str, start: int, end: int) -> str:
    shown = text[max(0, start - _AROUND) : min(end, start + 200) + _AROUND]
    shown = "".join(c if c.isprintable() else "�" for c in shown)
    return _LONG.sub("…", shown).strip()[:240]
