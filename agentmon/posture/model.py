"""What a check says: values without I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"  # it could not be looked at; the evidence says why


@dataclass(frozen=True, slots=True)
class Unseen:
    """A fact that could not be had."""

    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule makes of a fact. `remedy` is for everything that is not ok."""

    status: Status
    evidence: str
    remedy: str = ""


def ok(evidence: str) -> Verdict:
    return Verdict(Status.OK, evidence)


def warn(evidence: str, remedy: str) -> Verdict:
    return Verdict(Status.WARN, evidence, remedy)


def fail(evidence: str, remedy: str) -> Verdict:
    return Verdict(Status.FAIL, evidence, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """One rule. `fact` names the field of Facts that `judge` is given; it is never called with an Unseen."""

    id: str  # dotted, stable: scripts name it
    title: str
    why: str  # what an attacker or an accident gains where it is not so
    fact: str
    judge: Callable[[Any], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    id: str
    title: str
    status: Status
    evidence: str
    why: str
    remedy: str = ""
