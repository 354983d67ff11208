"""`alert:` of the settings: a command that is told of thresholds, cuts and tampering as they happen.

Events themselves are bounded by nobody: root in a bottle makes as many `tamper` as it likes. So each bottle has a
purse; what is left out is counted in the next alert of that bottle, and stands in `agentmon events`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentmon.daemon.hook import Hook

KINDS = frozenset({"threshold", "cutoff", "freeze", "kill", "tamper", "escape"})
BURST = 10  # alerts of one bottle at once; then one every REFILL_S
REFILL_S = 10.0
_BOTTLES = 1000  # purses that are kept


@dataclass(slots=True)
class _Purse:
    full: float
    at_s: float
    left_out: int = 0


class Alerts:
    """Follows the event log of one daemon."""

    def __init__(self, hook: Hook, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._hook = hook
        self._clock_s = clock_s
        self._purses: dict[str, _Purse] = {}

    def saw(self, event: dict[str, Any]) -> None:
        """An event as `agentmon events --json` shows it; `left_out` is added where alerts of its bottle were."""
        if event["kind"] not in KINDS:
            return
        purse = self._purse(str(event.get("bottle", "")))
        if purse.full < 1:
            purse.left_out += 1
            return
        purse.full -= 1
        more = {"left_out": purse.left_out} if purse.left_out else {}
        purse.left_out = 0
        self._hook.tell({**event, **more})

    def _purse(self, bottle: str) -> _Purse:
        now_s = self._clock_s()
        purse = self._purses.pop(bottle, None) or _Purse(BURST, now_s)
        self._purses[bottle] = purse  # the one that was not used for longest goes first
        if len(self._purses) > _BOTTLES:
            del self._purses[next(iter(self._purses))]
        purse.full = min(BURST, purse.full + (now_s - purse.at_s) / REFILL_S)
        purse.at_s = now_s
        return purse
