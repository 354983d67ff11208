"""What a dashboard shows, from what was asked: the tree of bottles, rates, exhaustion, order, search. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

WINDOW_NS = 120 * 1_000_000_000  # over which a burn rate is taken
_EVENTS = 500


@dataclass(frozen=True, slots=True)
class Raw:
    """One round of asking. `bottles`, `approvals`: values of the daemon's requests; `budgets`, `live`: rows of the
    ledger; `problem`: why there is no answer from the daemon, `blind`: why there is none from the ledger."""

    at_ns: int
    bottles: tuple[Mapping[str, Any], ...] = ()
    approvals: tuple[Mapping[str, Any], ...] = ()
    budgets: tuple[Mapping[str, Any], ...] = ()
    live: tuple[Mapping[str, Any], ...] = ()
    problem: str = ""
    blind: str = ""


class Order(Enum):
    NAME = "name"
    USED = "used"
    BURN = "burn"
    LEFT = "left"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Meter:
    """Of the budget with the least left: weighted tokens. `limit` 0: no budget."""

    used: int = 0
    held: int = 0
    limit: int = 0
    of: str = ""  # "bottle claude", "host *"

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used - self.held)

    @property
    def share(self) -> float:
        """Of the limit, 0 to 1, what is used or held."""
        return min(1.0, (self.used + self.held) / self.limit) if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the tree. `depth` 0: the host; `bottle` "": it is a host or parent."""

    key: str
    depth: int
    name: str
    bottle: str = ""
    state: str = ""
    meter: Meter = Meter()
    burn: int = 0  # weighted tokens a minute
    left_s: int | None = None  # to exhaustion at this rate
    refused: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    live: int = 0  # requests under way
    processes: int = 0
    command: str = ""
    owner: int = 0


@dataclass(frozen=True, slots=True)
class Live:
    """One request under way."""

    bottle: str
    provider: str
    model: str
    held: int


@dataclass(frozen=True, slots=True)
class View:
    lines: tuple[Line, ...]
    live: tuple[Live, ...]
    approvals: tuple[Mapping[str, Any], ...]
    at_ns: int
    problem: str = ""
    blind: str = ""
    hidden: int = 0  # bottles that the search leaves out

    @property
    def bottles(self) -> int:
        return sum(1 for line in self.lines if line.bottle) + self.hidden


class Model:
    """Keeps what a single round cannot tell: rates, and refusals since it began."""

    def __init__(self) -> None:
        self._used: dict[str, deque[tuple[int, int]]] = {}
        self._refused: dict[str, Counter[str]] = {}
        self.events: deque[Mapping[str, Any]] = deque(maxlen=_EVENTS)
        self.count = 0  # of all events, also those that are not kept

    def told(self, event: Mapping[str, Any]) -> None:
        """An event, as the contract has it, as it comes."""
        self.events.append(event)
        self.count += 1
        if event.get("verdict") == "refused" and event.get("layer"):
            of = self._refused.setdefault(str(event.get("bottle", "")), Counter())
            of[str(event["layer"])] += max(1, int(event.get("count") or 0))

    def view(self, raw: Raw, order: Order = Order.NAME, search: str = "") -> View:
        live = tuple(_live(row) for row in raw.live)
        busy = Counter(one.bottle for one in live)
        lines = [self._bottle(row, raw.at_ns, busy) for row in raw.bottles]
        keys = {line.key for line in lines} | {"host"} | {f"parent {p}" for p in _parents(raw)}
        self._used = {key: kept for key, kept in self._used.items() if key in keys}
        wanted = [line for line in lines if _matches(line, search)]
        tree = self._tree(raw, _ordered(wanted, order))
        hidden = len(lines) - len(wanted)
        return View(tuple(tree), live, raw.approvals, raw.at_ns, raw.problem, raw.blind, hidden)

    def _bottle(self, row: Mapping[str, Any], at_ns: int, busy: Mapping[str, int]) -> Line:
        name = str(row["bottle"])
        meter = tightest(row.get("budgets") or ())
        layers = self._refused.get(name, Counter())
        burn, left = self._rate(name, at_ns, meter)
        state = str(row["phase"]) + (" OBSERVE" if row.get("observe") else "")
        return Line(
            name, 1, name, name, state, meter, burn, left, sum(layers.values()), dict(layers), busy.get(name, 0),
            len(row.get("processes") or ()), " ".join(row.get("command") or ()), int(row.get("owner") or 0),
        )  # fmt: skip

    def _rate(self, key: str, at_ns: int, meter: Meter) -> tuple[int, int | None]:
        """(tokens a minute over the window, seconds until nothing is left)."""
        kept = self._used.setdefault(key, deque())
        if kept and meter.used < kept[-1][1]:  # another window of the budget began
            kept.clear()
        kept.append((at_ns, meter.used))
        while at_ns - kept[0][0] > WINDOW_NS and len(kept) > 2:
            kept.popleft()
        span_ns, burned = at_ns - kept[0][0], meter.used - kept[0][1]
        if span_ns <= 0 or burned <= 0:
            return 0, None
        burn = round(burned * 60_000_000_000 / span_ns)
        left = round(meter.remaining * span_ns / burned / 1_000_000_000) if meter.limit else None
        return burn, left

    def _tree(self, raw: Raw, lines: Sequence[Line]) -> Iterable[Line]:
        """Host, then each parent with its bottles, then those without one."""
        meters = _shared(raw)
        yield self._shared_line("host", 0, "this host", meters.get(("host", ""), Meter()), raw.at_ns, lines)
        of = {str(row["bottle"]): _parent(row) for row in raw.bottles}
        for parent in sorted({p for p in of.values() if p}):
            children = [line for line in lines if of.get(line.bottle) == parent]
            if children:
                meter = meters.get(("parent", parent), Meter())
                yield self._shared_line(f"parent {parent}", 1, parent, meter, raw.at_ns, children)
                yield from (_deeper(line) for line in children)
        yield from (line for line in lines if not of.get(line.bottle))

    def _shared_line(self, key: str, depth: int, name: str, meter: Meter, at_ns: int, lines: Sequence[Line]) -> Line:
        layers: Counter[str] = Counter()
        for line in lines:
            layers.update(line.layers)
        burn, left = self._rate(key, at_ns, meter)
        return Line(
            key, depth, name, "", "", meter, burn or sum(line.burn for line in lines), left, sum(layers.values()),
            dict(layers), sum(line.live for line in lines), sum(line.processes for line in lines),
        )  # fmt: skip


def tightest(budgets: Iterable[Mapping[str, Any]]) -> Meter:
    """Of a bottle's budgets, the one with the smallest share left."""
    found = [meter for row in budgets if not row.get("shadow") and (meter := _meter(row)).limit]
    return max(found, key=lambda m: m.share, default=Meter())


def _meter(row: Mapping[str, Any]) -> Meter:
    of = f"{row.get('scope', '')} {row.get('provider', '')}".strip()
    return Meter(int(row.get("used") or 0), int(row.get("held") or 0), int(row.get("tokens") or 0), of)


def _shared(raw: Raw) -> dict[tuple[str, str], Meter]:
    """The tightest budget of the host and of each parent."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in raw.budgets:
        if row.get("scope") in {"host", "parent"}:
            name = "" if row["scope"] == "host" else str(row.get("name", ""))
            rows.setdefault((str(row["scope"]), name), []).append(row)
    return {key: tightest(found) for key, found in rows.items()}


def _parent(row: Mapping[str, Any]) -> str:
    """The nearest manifest that its manifest extends; "" for none."""
    return next((str(name) for scope, name in row.get("scopes") or () if scope == "parent"), "")


def _parents(raw: Raw) -> set[str]:
    return {parent for row in raw.bottles if (parent := _parent(row))}


def _live(row: Mapping[str, Any]) -> Live:
    return Live(str(row["bottle"]), str(row["provider"]), str(row["model"]), int(row["tokens"]))


def _deeper(line: Line) -> Line:
    return replace(line, depth=2)


def _matches(line: Line, search: str) -> bool:
    text = f"{line.name} {line.state} {line.command}".lower()
    return all(word in text for word in search.lower().split())


def _ordered(lines: list[Line], order: Order) -> list[Line]:
    lines = sorted(lines, key=lambda line: line.name)
    if order is Order.USED:
        return sorted(lines, key=lambda line: -line.meter.share)
    if order is Order.BURN:
        return sorted(lines, key=lambda line: -line.burn)
    if order is Order.LEFT:
        return sorted(lines, key=lambda line: (line.left_s is None, line.left_s or 0))
    return sorted(lines, key=lambda line: -line.refused) if order is Order.REFUSED else lines
