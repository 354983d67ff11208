"""What a provider's declaration says, and the protocol of a usage parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from agentmon import wire


class Metering(Enum):
    METERED = "metered"  # usage is read from the response; a hold is taken first
    FREE = "free"  # known to cost nothing (models list, token counting)
    REFUSED = "refused"  # known, and not offered through agentmon


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request may cost at most, in tokens: `input` uncached, `output` its own bound or the learned one."""

    model: str
    input: int
    output: int


class Parser(Protocol):
    """Reads one response body. feed() never raises and never keeps more than one event (capped) plus 64 KiB."""

    def feed(self, data: bytes) -> None:
        """Decoded body bytes, in any chunking."""

    def close(self) -> None:
        """The body has ended, or broke off."""

    def usage(self) -> wire.Usage | None:
        """The merged usage so far; None while the provider has said nothing. `complete` only after a regular end."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`path` is a glob over the normalised path (no query); the first endpoint that matches method and path decides."""

    method: str
    path: str
    metering: Metering
    parser: Callable[[Mapping[str, str]], Parser] | None = None  # response headers (lower case) → parser
    estimate: Callable[[bytes], Estimate] | None = None  # request body → estimate
    rewrite: Callable[[bytes], tuple[bytes, bool]] | None = None  # request body → (body, include_usage added)


@dataclass(frozen=True, slots=True)
class Client:
    """How a provider's own command-line client runs in a private HOME: paths it reads and writes, variables."""

    rw: tuple[str, ...] = ()  # relative to HOME: state and credentials of the client
    ro: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # passed through from the invoking environment


@dataclass(frozen=True, slots=True)
class Provider:
    """One declaration. `hosts` are metered: an endpoint of theirs that nothing below covers is refused, not passed
    unmetered. `also` are hosts the client needs that carry no usage (sign-in, telemetry stays out)."""

    name: str
    hosts: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    also: tuple[str, ...] = ()
    client: Client = Client()
    error_body: Callable[[dict[str, object]], bytes] | None = None  # typed in-stream error event, SSE bytes
