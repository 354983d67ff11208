"""Searching bytes: known values first, then rules, in every view; what is found is told without being shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentmon.dlp import engine, forms, rules, views
from agentmon.dlp.engine import Database
from agentmon.dlp.rules import Rule, Rules
from agentmon.dlp.views import View

MARKER = b"REDACTED-BY-AGENTMON"
NESTED = "nested-encodings"  # more views than are looked at
CROWDED = "too-many-candidates"  # more matches than are judged, or more findings than are told apart
_FINDINGS = 256
_JUDGED = 50_000
_GROWTH = 6  # bytes of all views together for each byte that came
_MORE = 1 << 20
_AROUND = 32
_TAIL = 4 << 10
_TOKEN = re.compile(rb"[\w+/=.%\\~-]*")


@dataclass(frozen=True, slots=True)
class Finding:
    """`start`, `end`: in the bytes that were given. `context`: what stands around it, the value left out. `digest`: the
    same for the same value, wherever and however encoded, in one run; 32 bytes."""

    detector: str  # a rule's id, or "exact:NAME"
    where: str
    start: int
    end: int
    digest: bytes
    context: str = ""


@dataclass(frozen=True, slots=True)
class Detector:
    """The rules, ready to search; one for a process."""

    rules: Rules
    database: Database = field(repr=False)


def detector(file: Path = rules.SHIPPED, keep: Path | None = None) -> Detector:
    """:param keep: where compiled rules are kept, a directory that only this program's owner can write.
    :raises BadInput: the file cannot be used."""
    return of_rules(rules.load(file), keep)


def of_rules(parsed: Rules, keep: Path | None = None) -> Detector:
    """:raises BadInput: a rule that the engine does not take."""
    return Detector(parsed, engine.of_rules(parsed, keep))


def warm(detector: Detector) -> None:
    """Have Python load what searching needs (codecs, at first use), while this process may still read its own files."""
    value = b"a value to be found in all forms"
    data = b"Content-Transfer-Encoding: quoted-printable\\n\\u0041 %41 a\0b=20 " + value + b" " + value.hex().encode()
    scanner = Scanner(detector, {"warm": value}, b"key")
    findings = scanner.scan(data, "body") + scanner.scan(b"a\n" + data + b"=" * 3, "body", form=True)
    redacted(data, findings[:1])


class _Lowered:
    """The bytes that came, in lower case once that is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._lowered: bytes | None = None

    def has(self, words: Iterable[bytes], view: bytes) -> bool:
        """Whether one of `words` is in them, or in `view`."""
        if self._lowered is None:
            self._lowered = self._data.lower()
        return any(word in self._lowered for word in words) or any(word in view.lower() for word in words)


class Scanner:
    """For one run and one set of known values. Thread-safe.

    :param known: values by name, such as {"credential anthropic": b"…"}; those under 8 bytes are not looked for.
    :param key: of the digests.
    """

    def __init__(self, detector: Detector, known: Mapping[str, bytes], key: bytes) -> None:
        self.rules = detector.rules
        self._database = detector.database
        self._key = hashlib.sha256(key).digest()
        literals: dict[bytes, tuple[str, bytes]] = {}
        for name, value in known.items():
            digest = self.digest(value)
            for form in forms.forms(value):
                literals.setdefault(form, (name, digest))
        self._literals = tuple((len(form), name, digest) for form, (name, digest) in literals.items())
        self._exact = engine.of_literals(tuple(literals))

    def __repr__(self) -> str:
        return f"Scanner({len(self.rules.rules)} rules, {len(self._literals)} forms of known values)"

    def digest(self, value: bytes) -> bytes:
        return hashlib.blake2b(value, digest_size=32, key=self._key).digest()

    def scan(self, data: bytes, where: str, *, form: bool = False, since: int = 0) -> tuple[Finding, ...]:
        """What is in `data`, by place. From 256 findings on nothing more is looked for, and CROWDED is one of them:
        what follows was not searched, and whoever approves the others has not seen it.

        :param form: it is application/x-www-form-urlencoded, or a query.
        :param since: only what is found from there on; rules still see all of it for their keywords.
        """
        found: list[Finding] = []
        lowered = _Lowered(data)
        whole = View(data, form=form)
        todo = [View(data[since:], whole, lambda start, end: (start + since, end + since), 0, form) if since else whole]
        left = _GROWTH * len(data) + _MORE
        judged = _JUDGED
        while todo:
            view = todo.pop(0)
            left -= len(view.data)
            if left < 0:
                found.append(Finding(NESTED, where, 0, len(data), self.digest(data)))
                break
            if self._exact is not None:
                found.extend(self._known(view, where))
            if len(found) < _FINDINGS:
                judged -= self._by_rules(view, where, found, lowered)
            if judged < 0 or len(found) >= _FINDINGS:
                found.append(Finding(CROWDED, where, 0, len(data), self.digest(data)))
                break
            todo.extend(views.children(view))
        return _shown(data, _distinct(found)) if found else ()

    def _known(self, view: View, where: str) -> Iterable[Finding]:
        assert self._exact is not None
        for number, end in self._exact.scan(view.data, _FINDINGS):
            size, name, digest = self._literals[number]
            start, stop = view.origin(end - size, end)
            yield Finding(f"exact:{name}", where, start, stop, digest)

    def _by_rules(self, view: View, where: str, found: list[Finding], lowered: _Lowered) -> int:
        """How many candidates were judged."""
        judged = 0
        for number in sorted({number for number, _ in self._database.scan(view.data)}):
            rule = self.rules.rules[number]
            if rule.keywords and not lowered.has(rule.keywords, view.data):
                continue
            for match in rule.pattern.finditer(view.data):
                judged += 1
                span = _secret_span(rule, match)
                if span is None or not rule.is_secret(view.data[slice(*span)], match.group(), _line(view.data, *span)):
                    continue
                found.append(Finding(rule.id, where, *view.origin(*span), self.digest(view.data[slice(*span)])))
                if len(found) >= _FINDINGS or judged > _JUDGED:
                    return judged
        return judged


def redacted(data: bytes, findings: Iterable[Finding]) -> bytes:
    """`data` with a marker in each finding's place. To be scanned again: what is still found cannot be taken out."""
    out = bytearray()
    at = 0
    for start, end in _merged((f.start, f.end) for f in findings):
        out += data[at:start] + MARKER
        at = end
    return bytes(out + data[at:])


def _secret_span(rule: Rule, match: re.Match[bytes]) -> tuple[int, int] | None:
    """Of the rule's group; where an alternative without it matched, of the first group that took part, else of all."""
    for group in (rule.group, *range(1, rule.pattern.groups + 1)):
        start, end = match.span(group)
        if start >= 0 and end > start:
            return start, end
    start, end = match.span()
    return (start, end) if end > start else None


def _line(data: bytes, start: int, end: int) -> bytes:
    first = data.rfind(b"\n", max(0, start - 500), start) + 1 or max(0, start - 500)
    last = data.find(b"\n", end, end + 500)
    return data[first : last if last >= 0 else end + 500]


def _distinct(found: Iterable[Finding]) -> list[Finding]:
    """Known values hide what rules say of the same place; a rule says it of a place once."""
    kept: list[Finding] = []
    for finding in sorted(found, key=_rank):
        overlaps = [f for f in kept if f.start < finding.end and finding.start < f.end]
        if any(f.digest == finding.digest or f.detector == finding.detector for f in overlaps):
            continue
        if any(f.detector.startswith("exact:") and f.start <= finding.start and finding.end <= f.end for f in overlaps):
            continue
        kept.append(finding)
    return sorted(kept, key=lambda f: (f.start, f.end))


def _rank(finding: Finding) -> tuple[bool, bool, int]:
    """Known values first, what says least last, long before short."""
    exact = finding.detector.startswith("exact:")
    return not exact, finding.detector.startswith("generic"), finding.start - finding.end


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out


def _shown(data: bytes, found: list[Finding]) -> tuple[Finding, ...]:
    """With their contexts: up to 32 bytes on each side, of which nothing that could belong to a value."""
    wide = _merged(_token(data, f.start, f.end) for f in found)
    out = []
    for f in found:
        start, end = next((s, e) for s, e in wide if s <= f.start and f.end <= e)
        earlier = max((e for s, e in wide if e <= start), default=0)
        later = min((s for s, e in wide if s >= end), default=len(data))
        before = data[max(earlier, start - _AROUND) : start]
        after = data[end : min(later, end + _AROUND)]
        out.append(Finding(f.detector, f.where, f.start, f.end, f.digest, f"{_plain(before)}[…]{_plain(after)}"))
    return tuple(out)


def _token(data: bytes, start: int, end: int) -> tuple[int, int]:
    """The span with what may be its rest: a rule can have matched a part only."""
    head = data[max(0, start - 256) : start]
    tail = _TOKEN.match(data, end, end + _TAIL)
    before = len(head) - len(re.sub(rb"[\w+/.%~-]*\Z", b"", head))
    if tail is not None and tail.end() == end + _TAIL:
        return start - before, len(data)  # longer than anybody reads: nothing behind it is shown
    return start - before, tail.end() if tail else end


def _plain(piece: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in piece.decode("utf-8", "replace"))
