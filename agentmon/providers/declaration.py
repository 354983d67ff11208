"""What a provider's declaration says, and the protocol of a usage parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from agentmon import wire
from agentmon.providers.counting import count_tokens
from agentmon.providers.request import Request


class Metering(Enum):
    METERED = "metered"  # usage is read from the response; a hold is taken first
    FREE = "free"  # known to cost nothing (models list, token counting)
    REFUSED = "refused"  # known, and not offered through agentmon


class Convention(Enum):
    """Whether the input that a protocol tells includes what came from a cache; the row's `input` never does."""

    APART = "cached apart"
    INCLUDED = "cached included"


class Signing(Enum):
    """Whether requests are signed over head and body (AWS SigV4): then neither is changed on its way."""

    UNSIGNED = "unsigned"
    SIGNED = "signed"


class Gate(Enum):
    """What the input part of a hold goes by. Settings opt in to COUNT: `providers: {NAME: {count: true}}`."""

    ESTIMATE = "estimate"  # ours
    COUNT = "count"  # the provider's, asked for when the estimate has no room; where that fails, ours


@dataclass(frozen=True, slots=True)
class Counting:
    """A provider's own way to count the input of a request before it is sent, free of charge: POST `path`, JSON."""

    path: str
    takes: frozenset[str]  # members of the request that the question has as well
    leaves: frozenset[str]  # members that bring no input; with any other member there is no question
    headers: frozenset[str]  # besides those that carry credentials; lower case
    member: str = "input_tokens"  # of the answer


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request may cost at most, in tokens: `input` uncached, `output` its own bound or the learned one."""

    model: str
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Over a WebSocket, the client asks for a response. `event`: its own id of that message, "" if it gave none."""

    event: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Said:
    """What one message of the provider means. `kind`: begun | text | ended | spoken | error.

    `number`: of the response ("" where it is not told); `usage`: of one that ended with it, or of speech written down;
    `tokens`: of text that came; `event`: of the client's message that an error is about.
    """

    kind: str
    number: str = ""
    usage: wire.Usage | None = None
    tokens: int = 0
    event: str = ""


class SocketParser(Protocol):
    """Reads both sides of one WebSocket, whole messages of either opcode; no method raises, what is kept is bounded."""

    def asked(self, data: bytes) -> Asked | None:
        """A message of the client; None where it asks for no response."""

    def begun(self) -> Estimate:
        """Of a response that the server begins by itself."""

    def said(self, data: bytes) -> Said | None:
        """A message of the provider; None where it says nothing that costs."""


class Parser(Protocol):
    """Reads one response body. feed() never raises and never keeps more than one event (capped) plus 64 KiB.

    Parsers may have, besides: `streams` (an SSE event of ours may follow), `overflowed` (an event was over the cap),
    `damaged` (the framing is lost: nothing that follows can be read),
    `output_seen` (tokens of the text so far), `ends_with_body` (nothing inside the body tells its regular end).
    """

    def feed(self, data: bytes) -> None:
        """Decoded body bytes, in any chunking."""

    def close(self) -> None:
        """The body has ended, or broke off."""

    def usage(self) -> wire.Usage | None:
        """The merged usage so far; None while the provider has said nothing. `complete` only after a regular end."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`path` is a glob over the normalised path (no query); the first endpoint that matches method and path decides.

    A metered one has `parser`, `output` and `convention`; protocols make them (openai.chat, anthropic.messages …).
    """

    method: str
    path: str
    metering: Metering
    parser: Callable[[Mapping[str, str]], Parser] | None = None  # response headers (lower case) → parser
    output: Callable[[Request], int] | None = None  # request → the most tokens its answer may put out
    rewrite: Callable[[bytes], tuple[bytes, bool]] | None = None  # request body → (body, include_usage added)
    convention: Convention | None = None
    counting: Counting | None = None  # of a metered one; asked only with Gate.COUNT


@dataclass(frozen=True, slots=True)
class Socket:
    """A path where WebSockets are spoken whose messages tell usage; all others of a metered host are refused.

    `parser`: the model that the handshake names ("" if it names none) → reader of one socket's messages.
    """

    path: str  # as an Endpoint's
    parser: Callable[[str], SocketParser]


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
    hosts: tuple[str, ...]  # a name; *.name, any depth below; a `*` inside a label, letters, digits and hyphens
    endpoints: tuple[Endpoint, ...]
    also: tuple[str, ...] = ()
    client: Client = Client()
    error_body: Callable[[dict[str, object]], bytes] | None = None  # typed in-stream error event, SSE bytes
    count_tokens: Callable[[Request], int] = count_tokens  # input of a request, at most; before it is sent
    signing: Signing = Signing.UNSIGNED
    sockets: tuple[Socket, ...] = ()
    gate: Gate = Gate.ESTIMATE


def free(method: str, *paths: str) -> tuple[Endpoint, ...]:
    """Endpoints that cost nothing."""
    return tuple(Endpoint(method, path, Metering.FREE) for path in paths)


def refused(method: str, *paths: str) -> tuple[Endpoint, ...]:
    """Endpoints that are known, and whose cost cannot be read from an answer."""
    return tuple(Endpoint(method, path, Metering.REFUSED) for path in paths)
