"""The provider's own books: what it served to whom, independent of anything agentmon counts."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.internet.script import Script

SOON = {"retry-after-ms": "20"}  # with a refusal: clients that try again wait no longer


@dataclass
class Served:
    """One billed call. `output` grows while a stream runs; `complete` says that its end was sent."""

    id: str
    api: str
    key: str  # the last four characters
    model: str
    stream: bool
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    complete: bool = False


@dataclass
class Books:
    calls: list[Served] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)  # requests answered by an error, never billed
    _turns: Counter[str] = field(default_factory=Counter)

    def open(self, prefix: str, api: str, key: str, model: str, plan: Script, *, stream: bool) -> Served:
        call = Served(new_id(prefix), api, key[-4:], model, stream, plan.input, plan.cache_read, plan.cache_write)
        self.calls.append(call)
        return call

    def fails(self, model: str, plan: Script) -> bool:
        """Whether this call of `model` gets the status of its script."""
        self._turns[model] += 1
        return plan.status != 200 and not 0 < plan.times < self._turns[model]

    def as_json(self) -> dict[str, Any]:
        return {"calls": [asdict(call) for call in self.calls], "refused": self.refused}


def new_id(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(18).replace("-", "a").replace("_", "b")
