"""An observation of one provider, as it is kept as a baseline, and a difference of two. Values."""

from __future__ import annotations

from enum import Enum

import msgspec

FORMAT = 1


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call's answer. `shape`: of a JSON body; `events` and `order`: of a stream; `headers`: names that are kept."""

    status: int
    kind: str  # content type without parameters
    headers: list[str] = []
    shape: dict[str, list[str]] = {}
    events: dict[str, dict[str, list[str]]] = {}
    order: list[str] = []
    usage: dict[str, bool] = {}  # what holds of the usage as agentmon's own parser read it


class Observation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is compared. `issuers`: of the certificate chain, leaf's first; `sdk`: its version, "": none."""

    format: int
    provider: str
    host: str
    at: str
    tls: str
    alpn: str
    issuers: list[str]
    sdk: str
    answers: dict[str, Answer]


class Weight(Enum):
    """How bad a difference is."""

    BREAKS = "breaks"  # agentmon reads or relies on it: metering may be wrong
    CHANGED = "changed"  # somebody should look
    NOTED = "noted"  # expected to move: not drift


class Difference(msgspec.Struct, frozen=True):
    """`where`: the call and the field, "stream: message_start: message.usage.input_tokens"."""

    weight: Weight
    where: str
    was: str
    now: str
    what: str
