"""How far estimates were off what was settled, by model: for people, and for choosing the constants of counting.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentmon import wire
from agentmon.providers.declaration import Estimate


@dataclass(frozen=True, slots=True)
class Error:
    """Settled against estimated, per mille: 1000 is exact, below it was held too much, above it too little.

    `short`: how many requests settled more than was estimated, and `worst_per_mille` the furthest of them.
    """

    requests: int
    input_per_mille: int
    output_per_mille: int
    short: int
    worst_per_mille: int


def errors(pairs: Iterable[tuple[Estimate, wire.Usage]]) -> dict[str, Error]:
    """By model, over requests whose usage came complete from the wire; the others were charged as estimated.

    Per-mille figures are of the sums, so that large requests weigh what they cost.
    """
    by_model: dict[str, list[tuple[Estimate, wire.Usage]]] = {}
    for estimate, usage in pairs:
        if usage.complete and usage.source == "wire":
            by_model.setdefault(usage.model or estimate.model, []).append((estimate, usage))
    return {model: _error(found) for model, found in sorted(by_model.items())}


def _error(pairs: list[tuple[Estimate, wire.Usage]]) -> Error:
    totals = [(e.input + e.output, _input(u) + u.output) for e, u in pairs]
    short = [(held, settled) for held, settled in totals if settled > held]
    return Error(
        requests=len(pairs),
        input_per_mille=_ratio(sum(e.input for e, _ in pairs), sum(_input(u) for _, u in pairs)),
        output_per_mille=_ratio(sum(e.output for e, _ in pairs), sum(u.output for _, u in pairs)),
        short=len(short),
        worst_per_mille=max((_ratio(held, settled) for held, settled in short), default=0),
    )


def _input(usage: wire.Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h


def _ratio(estimated: int, settled: int) -> int:
    return settled * 1000 // max(1, estimated)
