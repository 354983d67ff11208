"""One measured number, as CONTRACTS' `bench/results/latest.json` has it, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figure:
    """`goal` is "<= N" or ">= N" in `unit`, "" for a number that explains another one.

    `peers`: what was measured beside it, in the same rounds and the same unit. `ratio`: ours divided by each of them.
    `spread`: [min, max] over the rounds.
    """

    id: str
    value: float
    unit: str
    goal: str = ""
    peers: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    spread: list[float] = field(default_factory=list)
    command: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if not self.goal:
            return None
        sign, number = self.goal.split()
        return self.value <= float(number) if sign == "<=" else self.value >= float(number)

    def as_json(self) -> dict[str, Any]:
        rounded = {k: _round(v) for k, v in asdict(self).items()}
        return rounded | {"goal": self.goal or None, "met": self.met}

    def as_line(self) -> str:
        goal = f"{self.goal} {'met' if self.met else 'MISSED'}" if self.goal else ""
        spread = f"[{show(self.spread[0])}..{show(self.spread[1])}]" if self.spread else ""
        beside = "  ".join(
            f"{name} {show(value)}" + (f" (×{show(self.ratio[name])})" if name in self.ratio else "")
            for name, value in self.peers.items()
        )
        line = f"{self.id:34} {show(self.value):>9} {self.unit:6} {spread:22} {goal:18} {beside}".rstrip()
        return line + (f"\n{'':34} {self.note}" if self.note else "")


def show(value: float) -> str:
    """Three significant figures, no exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}"


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _round(v) for k, v in value.items()}
    return [_round(v) for v in value] if isinstance(value, list) else value


def interleaved(rounds: int, work: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each of `work` once a round, in turn, the order reversed every other round: what drifts, drifts for all."""
    got: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: 1 if number % 2 == 0 else -1]:
            got[name].append(work[name]())
    return got


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Iterable[float]) -> list[float]:
    values = list(values)
    return [min(values), max(values)]


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def against(
    id: str, unit: str, got: dict[str, list[float]], name: str, goal: str = "", command: str = "", note: str = ""
) -> Figure:
    """The median of `got[name]`, with all others as its peers and ratios taken round by round."""
    ours = got[name]
    peers = {peer: median(values) for peer, values in got.items() if peer != name}
    ratio = {peer: pairwise(ours, values) for peer, values in got.items() if peer != name}
    return Figure(id, median(ours), unit, goal, peers, ratio, spread(ours), command, note)
