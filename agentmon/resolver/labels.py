"""What a bottle can say to the world in names: below a wildcard the labels are its own to choose, so they are measured.

The *free part* of a name is what stands before the suffix of the most specific allow rule that covers it: "a.b" of
a.b.wild.example under *.wild.example, nothing of a name that a rule gives exactly. Each question that goes upstream
costs its free part and one byte more, for which family is asked; a purse of `name_bytes_per_min` refills by the second.
So no more than two purses leave by names within any minute, and one a minute after that, whatever the encoding.
Shape is judged as well: it stops the tunnels that exist, not one made for this purpose; the purse holds that one.

Pure: the time is passed in. What is answered from the cache says nothing to anybody outside and costs nothing. In
observe mode an unlisted name has no suffix and is not measured: all addresses are open there anyway.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from math import log2

from agentmon.dlp.names import Known
from agentmon.resolver.rate import Bucket
from agentmon.views import View

BYTES_PER_MIN = 4096
MAX_FREE = 100  # bytes of a free part, dots included; an ordinary one has fewer than 70
MAX_ENTROPY = (
    4.5  # bits a character of one label: base32 of 63 characters has 4.6, words joined by hyphens 4.48 at most
)


class Verdict(Enum):
    """`value` is the reason of the event."""

    FINE = ""
    SHAPE = "label"
    SPENT = "label-rate"
    SECRET = "secret"


@dataclass(slots=True)
class _Purse:
    bucket: Bucket
    generation: int = 0
    suffixes: frozenset[str] = frozenset()  # of allow rules with a wildcard


class Labels:
    """A purse for each bottle."""

    def __init__(self) -> None:
        self._purses: dict[int, _Purse] = {}
        self._known: dict[int, tuple[str, Known]] = {}  # slot → run, what must not stand in its names

    def know(self, slot: int, run: str, known: Known) -> None:
        """All that must not stand in this run's names."""
        self._known[slot] = run, known

    def hides(self, view: View, name: str) -> bool:
        """Whether a piece of a value that is known of this bottle stands in the name."""
        run, known = self._known.get(view.slot, ("", None))
        return known is not None and run == view.wire.run and known.is_in(name)

    def shown(self, view: View, name: str) -> str:
        """The name for an event: of one that hides a value the end only."""
        return f"(hidden).{'.'.join(name.split('.')[-2:])}" if self.hides(view, name) else name

    def spend(self, view: View, name: str, now_ns: int) -> Verdict:
        """Judge a question that is about to go upstream, and pay for it."""
        if view.policy.names_exactly(name):
            return Verdict.FINE
        purse = self._purse(view, now_ns)
        free = free_part(name, purse.suffixes)
        if not free:
            return Verdict.FINE
        if self.hides(view, free):
            return Verdict.SECRET
        if len(free) > MAX_FREE or any(entropy(label) > MAX_ENTROPY for label in free.split(".")):
            return Verdict.SHAPE
        return Verdict.FINE if purse.bucket.take(now_ns, len(free) + 1) else Verdict.SPENT

    def forget(self, slot: int) -> None:
        self._purses.pop(slot, None)
        self._known.pop(slot, None)

    def _purse(self, view: View, now_ns: int) -> _Purse:
        size = view.wire.limits.get("name_bytes_per_min", BYTES_PER_MIN)
        purse = self._purses.get(view.slot)
        if purse is None:
            purse = self._purses[view.slot] = _Purse(Bucket(size, now_ns, period_s=60))
        if purse.generation != view.generation:
            purse.generation = view.generation
            purse.bucket.resize(size)
            purse.suffixes = frozenset(
                rule.host.removeprefix("*.") for rule in view.policy.rules if rule.wildcard and not rule.deny
            )
        return purse


def free_part(name: str, suffixes: frozenset[str]) -> str:
    """The labels before the longest of `suffixes`; "" where none ends the name."""
    labels = name.split(".")
    for at in range(1, len(labels)):
        if ".".join(labels[at:]) in suffixes:
            return ".".join(labels[:at])
    return ""


def entropy(label: str) -> float:
    """Shannon's, in bits a character, by the label's own frequencies."""
    counts = Counter(label)
    return -sum(n / len(label) * log2(n / len(label)) for n in counts.values())
