"""What the canary tried and what came of it: values and their judgement. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentmon.posture.model import Finding, Status

_WHY = "what a report only reads may be otherwise; what was just tried is so"


@dataclass(frozen=True, slots=True)
class Attempt:
    """`outcome`: the error the attempt met, or what it reached; `layers`: those whose events told of it."""

    technique: str
    outcome: str
    refused: bool
    layers: tuple[str, ...] = ()


def attempts(
    outcomes: Iterable[Mapping[str, str]], received: Mapping[str, int], events: Iterable[Mapping[str, object]]
) -> list[Attempt]:
    """:param outcomes: what the attacker says: technique, mark (what its receiver would see), outcome, dst, port, host.
    :param received: bytes by mark, counted at the receivers: what decides.
    :param events: the bottle's, as in the contract.
    """
    told = list(events)
    found = []
    for said in outcomes:
        layers = tuple(dict.fromkeys(str(e["layer"]) for e in told if e.get("layer") and _about(said, e)))
        reached = received.get(said["mark"], 0)
        outcome = f"{reached} bytes arrived" if reached else said["outcome"]
        found.append(
            Attempt(said["technique"], outcome, not reached and not said["outcome"].startswith("done"), layers)
        )
    return found


def _about(said: Mapping[str, str], event: Mapping[str, object]) -> bool:
    if event.get("verdict") != "refused":
        return False
    if said.get("host"):
        return event.get("host") == said["host"]
    return bool(said.get("dst")) and (event.get("dst"), str(event.get("port", ""))) == (said["dst"], said["port"])


def judge(found: Sequence[Attempt], control: bool) -> Finding:
    """:param control: whether the one thing that the canary's policy allows did arrive: without it nothing is shown."""
    title, id_ = "A bottle that attacks itself is held", "canary.held"
    if not control:
        what = "the canary's own allowed connection did not arrive: the refusals prove nothing"
        return Finding(id_, title, Status.FAIL, what, _WHY, "see agentmon events --bottle agentmon-canary")
    open_ = [a for a in found if not a.refused]
    if open_:
        what = "; ".join(f"{a.technique}: {a.outcome}" for a in open_)
        return Finding(id_, title, Status.FAIL, what, _WHY, "stop running agents here until this is understood")
    layers = sorted({layer for a in found for layer in a.layers})
    return Finding(id_, title, Status.OK, f"{len(found)} attempts refused; told by {', '.join(layers)}", _WHY)
