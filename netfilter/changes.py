"""What differs from what we wrote, and who changed it: values that watch.py and heal.py hand out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from netfilter.blockers import Blocker
from netfilter.spec import Netfilter


class Place(Enum):
    """Where something was changed."""

    HOST = "host"
    BOTTLE = "bottle"  # inside its network namespace


class Kind(Enum):
    """What has to be looked at, and put back as a whole."""

    RULES = "rules"  # the table of the place
    ROUTING = "routing"  # the backstop's rules
    DEVICE = "device"  # a veth, either end: name, state, MAC, addresses, routes, neighbours
    FORWARDING = "forwarding"
    NAMESPACE = "namespace"  # its name in /run/netns
    UNKNOWN = "unknown"  # more happened than the kernel could tell: everything there is to be looked at


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as we wrote it. `slot` None: what all bottles share, the host's table included."""

    slot: int | None
    place: Place
    kind: Kind
    what: str
    lost: bool = False  # cannot be put back under a running job


@dataclass(frozen=True, slots=True)
class Change(Difference):
    """A difference that the kernel told of as it was made. `pid` (in the first PID namespace; of the thread) and
    `comm` are there where the kernel says them: for changes of nftables."""

    pid: int = 0
    comm: str = ""


class Changes(Protocol):
    """What `SelfHealing.watch` returns: to be polled by its descriptor."""

    def fileno(self) -> int: ...

    def changes(self) -> list[Change]:
        """Everything since the last call; does not wait."""

    def close(self) -> None: ...


class SelfHealing(Netfilter, Protocol):
    """A Netfilter that notices what others do to what it made."""

    def watch(self) -> Changes:
        """Watch from now on, for every bottle, also those to come. Call it after `open_host`."""

    def check(self, slot: int | None) -> list[Difference]:
        """What is not as it would be written now, of the host (None) or of one bottle. Lists: never on a hot path."""

    def restore(self, differences: Iterable[Difference]) -> list[Difference]:
        """Put back what these name: a table in one transaction, a device as a whole. What really differed; `lost` where
        it could not be put back.

        :raises KernelRefused: the kernel takes it no longer; what it concerns stays closed."""

    def blockers(self) -> list[Blocker]:
        """Chains of others that drop what bottles are permitted. Lists every table: only where something failed."""


def told(parts: Iterable[str], at_most: int = 4) -> str:
    """A sentence's part for people: each once, in order, the rest counted."""
    every = list(dict.fromkeys(parts))
    more = f" and {len(every) - at_most} more" if len(every) > at_most else ""
    return ", ".join(every[:at_most]) + more
