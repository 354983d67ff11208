"""What agentmon's processes say to each other: framed msgpack over Unix sockets, every message a typed struct.

    frame = length (u32, big endian, of the payload) + payload (msgpack map with a "t" tag)

    daemon   ─ SetBottle DropBottle CutBottle ─▶ resolver, relay, proxy     ◀─ Ready Ack Report Commit ─
    daemon   ─ SetCredentials SetSecrets SetRules SetApprovals SetProviders ─▶ proxy    ◀─ Ack ─
    daemon   ─ SetNames ─▶ resolver                                         ◀─ Ack ─
    proxy    ─ Propose Withdraw ─▶ daemon                                   ◀─ Decided ─
    proxy    ─ Reserve Settle Progress Release ─▶ ledger                    ◀─ Granted Denied Settled Done Failed ─
    daemon   ─ OpenRun CloseRun SetBudget Enforced Audit ─▶ ledger          ◀─ Crossed (unasked) ─
    daemon   ─ Proposed Decide Undecided ─▶ ledger                          ◀─ Done Failed ─
    relay, proxy ─ Lookup ─▶ resolver                                       ◀─ Looked ─
    command line ─ Request ─▶ daemon                                        ◀─ Reply, Item… ─

Who may say what is decided by SO_PEERCRED at the receiving end, never by the content. A frame over
MAX_FRAME or one that does not decode ends the connection. Messages with an `id` are answered by
exactly one message with the same `id`.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

MAX_FRAME = 16 << 20
VERSION = 3  # of this file; services of another version are replaced by a starting daemon

_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The peer sent something that is not a frame, or a frame that is no known message."""


class Message(msgspec.Struct, tag=True, tag_field="t", omit_defaults=True, frozen=True):
    """Base of all messages."""


# ── policy, pushed by the daemon ─────────────────────────────────────────────


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """A manifest's `routes:` entry, validated; see the manifest contract."""

    host: str
    auth_header: str = ""  # "" with auth_credential "": the bottle's own passes
    auth_credential: str = ""
    auth_none: bool = False
    methods: tuple[str, ...] = ()  # empty: all
    paths: tuple[str, ...] = ()
    headers: dict[str, str | None] = {}  # name: glob of the value it must have; None: it must not be there
    query: dict[str, str | None] = {}
    outbound: str = "supervise"
    inbound: str = "warn"
    scan_headers_except: tuple[str, ...] = ()
    git_fetch: bool = False


class BottleView(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that resolver, relay and proxy know of a bottle. Rules are canonical texts, deny rules with their `!`."""

    slot: int
    bottle: str
    run: str  # unique id of this run
    addr4: str
    addr6: str = ""
    epoch: int = 0
    mode: str = "enforce"  # closed | enforce | observe | cut
    rules: tuple[str, ...] = ()
    inspected: tuple[str, ...] = ()  # host patterns decrypted although their rule is a name rule (providers, routes)
    routes: tuple[Route, ...] = ()
    relay: tuple[str, ...] = ()  # the addresses the resolver answers with: [v4, v6]
    proxy: tuple[str, ...] = ()
    agent: str = ""
    log: str = "blocks"
    unreadable: str = "settle"  # settle | cut: answers whose usage cannot be read
    limits: dict[str, int] = {}


class SetBottle(Message, frozen=True):
    id: int
    view: BottleView


class SetCredentials(Message, frozen=True):
    """To the proxy only: all credentials of one run's routes, by name; one that is not there refuses its requests."""

    id: int
    slot: int
    run: str
    values: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SetCredentials(slot={self.slot}, names={sorted(self.values)})"


class SetSecrets(Message, frozen=True):
    """To the proxy only: every value that must not leave this run's bottle, by "env NAME" or "credential NAME", and the
    key of the digests that approvals are remembered by."""

    id: int
    slot: int
    run: str
    key: bytes
    values: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SetSecrets(slot={self.slot}, names={sorted(self.values)})"


class SetNames(Message, frozen=True):
    """To the resolver only: digests of what must not stand in the names that this run asks for (agentmon.dlp.names)."""

    id: int
    slot: int
    run: str
    key: bytes
    digests: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"SetNames(slot={self.slot}, digests={len(self.digests)})"


class SetRules(Message, frozen=True):
    """To the proxy only: the rules by which secrets are found, the text of a file in gitleaks' format; b"": the shipped
    ones. An Ack with an error: those in force stay."""

    id: int
    source: str
    text: bytes

    def __repr__(self) -> str:
        return f"SetRules(source={self.source!r}, bytes={len(self.text)})"


class SetApprovals(Message, frozen=True):
    """To the proxy only: what was approved in this run so far, as (host, Proposal.digest), and how long an answer to a
    Propose may take."""

    id: int
    slot: int
    run: str
    approved: tuple[tuple[str, bytes], ...] = ()
    wait_s: int = 300

    def __repr__(self) -> str:
        return f"SetApprovals(slot={self.slot}, approved={len(self.approved)})"


class SetProviders(Message, frozen=True):
    """To the proxy only: the settings' `providers:` as they are now. Requests under way keep what they began with."""

    id: int
    providers: dict[str, Any] = {}


class Propose(Message, frozen=True):
    """Proxy to daemon: may this leave? Fields as in agentmon.proxy.outbound.Proposal; answered by Decided, when
    somebody has decided or nobody will. Who asks again while it waits shares the answer."""

    id: int
    slot: int
    run: str
    host: str
    method: str
    path: str
    detector: str
    where: str
    context: str
    digest: bytes


class Withdraw(Message, frozen=True):
    """Proxy to daemon: nobody waits for the answer to the Propose with this id any more. Not answered."""

    id: int


class Decided(Message, frozen=True):
    """`decision`: a value of agentmon.proxy.outbound.Decision."""

    id: int
    decision: str


class DropBottle(Message, frozen=True):
    id: int
    slot: int


class CutBottle(Message, frozen=True):
    """The bottle's budget is spent (`spent` fills the 403 body) or an operator cut it (`spent` empty)."""

    id: int
    slot: int
    spent: dict[str, Any] = {}
    crossed_ns: int = 0  # CLOCK_MONOTONIC of the settle that crossed, 0: an operator


class Ready(Message, frozen=True):
    """First message of a service on a control connection."""

    service: str
    pid: int
    version: int = VERSION


class Ack(Message, frozen=True):
    id: int
    error: str = ""
    closed: int = 0  # CutBottle: streams ended
    at_ns: int = 0  # CutBottle: CLOCK_MONOTONIC when the last one was closed


class Report(Message, frozen=True):
    """An event for people; fields as in agentmon.events.Event.

    `proto` and `port`: the bottle's own end of the socket that asked, by which the daemon finds the process. With an
    `id` it is answered by Ack once the process is known (or known to be gone): the service answers the bottle then,
    so that a process cannot be gone before it is named.
    """

    event: dict[str, Any]
    slot: int = 0
    proto: str = ""
    port: int = 0
    id: int = 0


class Commit(Message, frozen=True):
    """Resolver to daemon: `name` resolved to `addresses`; may they be opened? Answered by Committed; then it answers.

    `purpose` "bottle": for the bottle's own direct flows; the ports are the policy's (`ports` is empty).
    `purpose` "service": for relay or proxy, which dial `ports` (TCP) from the service namespace.
    `ttl_s` is the element's timeout: it outlives every answer that carries these addresses.
    """

    id: int
    slot: int
    name: str
    addresses: tuple[str, ...]
    ttl_s: int
    purpose: str = "bottle"  # bottle | service
    ports: tuple[int, ...] = ()


class Committed(Message, frozen=True):
    id: int
    addresses: tuple[str, ...] = ()  # what was opened; empty: refused
    reason: str = ""  # "addresses": some or all were left out, the bottle has too many


class Lookup(Message, frozen=True):
    """Relay or proxy to resolver: vetted, committed upstream addresses of a permitted name."""

    id: int
    slot: int
    name: str
    port: int


class Looked(Message, frozen=True):
    id: int
    addresses: tuple[str, ...] = ()
    ttl_s: int = 0
    error: str = ""  # denied | nxdomain | timeout | servfail | stripped | uncommitted | limit


# ── ledger ───────────────────────────────────────────────────────────────────


class BudgetDef(msgspec.Struct, frozen=True):
    """A budget in weighted tokens for one provider ("*": any) in one window."""

    provider: str
    tokens: int
    per: str = "run"  # run | hour | day | week | month
    shadow: bool = False


class ScopeDef(msgspec.Struct, frozen=True):
    """scope: agent | bottle | parent | host | ceiling. `name`: of the agent, bottle, manifest; the host's is "host"."""

    scope: str
    name: str
    budgets: tuple[BudgetDef, ...] = ()


class OpenRun(Message, frozen=True):
    """A bottle starts: whom its usage is charged to, most specific scope first."""

    id: int
    slot: int
    bottle: str
    run: str
    agent: str
    scopes: tuple[ScopeDef, ...]
    weights: dict[str, int]


class CloseRun(Message, frozen=True):
    id: int
    slot: int
    run: str


class SetBudget(Message, frozen=True):
    """`resume --budget`, `budget set`: the new amount for a running bottle's scope."""

    id: int
    scope: str
    name: str
    run: str  # "" for scopes other than agent and bottle
    budget: BudgetDef
    uid: int


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One canonical usage row. `input` is uncached; `output` includes `reasoning`; counts are tokens."""

    provider: str
    model: str = ""
    request_id: str = ""
    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    source: str = "wire"  # wire | estimate | reconciled
    complete: bool = True
    raw: bytes = b""  # the provider's usage JSON


class Reserve(Message, frozen=True):
    id: int
    slot: int
    provider: str
    model: str
    input: int  # estimated uncached input tokens
    output: int  # max output tokens of the request, or a learned bound
    key: str  # unique per request attempt


class Granted(Message, frozen=True):
    id: int
    hold: int
    tokens: int  # weighted tokens held, possibly shrunk to what remains


class Denied(Message, frozen=True):
    """Nothing remains, or `waits`: less than it may need until requests in flight are settled, and asking again may
    help. `scope`, `name`, `per`: the budget that refused."""

    id: int
    scope: str
    name: str
    provider: str
    tokens: int
    used: int
    held: int
    per: str
    waits: bool = False


class Settle(Message, frozen=True):
    id: int
    hold: int
    usage: Usage


class Settled(Message, frozen=True):
    id: int
    duplicate: bool = False  # this request_id was settled before; nothing was added
    crossed: bool = False


class Progress(Message, frozen=True):
    """Cumulative usage in mid-stream; may cross a budget before the end. Not a row."""

    id: int
    hold: int
    usage: Usage


class Release(Message, frozen=True):
    id: int
    hold: int  # 0: the one of `slot` and `key`, if there is one; for who was not told its number
    slot: int = -1
    key: str = ""


class Done(Message, frozen=True):
    id: int
    value: Any = None


class Failed(Message, frozen=True):
    id: int
    error: str  # class name from agentmon.errors, or "unavailable"
    message: str
    hint: str = ""


class Crossed(Message, frozen=True):
    """Ledger to daemon, unasked, in the commit that crossed: cut these bottles. `threshold` < 100 only informs, and
    `shadow` are bottles that are charged to a shadow budget: they are told of it and never cut."""

    slots: tuple[int, ...]
    scope: str
    name: str
    provider: str
    per: str
    tokens: int
    used: int
    threshold: int = 100
    at_ns: int = 0  # CLOCK_MONOTONIC of the commit
    shadow: tuple[int, ...] = ()


class Enforced(Message, frozen=True):
    """Daemon to ledger: one row of enforcement_v."""

    id: int
    slot: int
    bottle: str
    run: str
    policy: str  # cutoff | freeze | kill | resume
    trigger: str  # budget | operator
    by: str  # scope:name or uid:N
    latency_ns: int
    result: str


class Audit(Message, frozen=True):
    id: int
    uid: int
    action: str
    target: str
    detail: dict[str, Any] = {}


class Proposed(Message, frozen=True):
    """Daemon to ledger: a row of approvals_v that waits, without the value. Answered by Done: its number."""

    id: int
    bottle: str
    run: str
    kind: str  # secret
    host: str
    method: str
    path: str
    detector: str
    where: str
    context: str


class Decide(Message, frozen=True):
    """Daemon to ledger: how a proposal ended. Answered by Done, or Failed where it has ended already."""

    id: int
    number: int
    state: str  # approved | rejected | expired | withdrawn
    uid: int | None = None  # None: nobody decided
    reason: str = ""


class Undecided(Message, frozen=True):
    """Daemon to ledger: what waits of this run was asked of an earlier daemon and is withdrawn."""

    id: int
    run: str
    reason: str


class Read(Message, frozen=True):
    """Root to a ledger that is no file: SQL that only reads; "": `ledger check`. Answered by Done: a list of dicts."""

    id: int
    sql: str
    values: tuple[Any, ...] = ()


class Totals(Message, frozen=True):
    """Daemon to ledger: used and held by scope and provider of a running bottle. Answered by Done: a list of dicts."""

    id: int
    slot: int


# ── control socket ───────────────────────────────────────────────────────────


class Request(Message, frozen=True):
    id: int
    op: str
    args: dict[str, Any] = {}


class Reply(Message, frozen=True):
    """The end of a request. `error` set: {class, message, hint, exit}. Descriptors may travel with it."""

    id: int
    value: Any = None
    error: dict[str, Any] = {}


class Item(Message, frozen=True):
    """One element of a streamed answer."""

    id: int
    value: Any


AnyMessage = (
    SetBottle | SetCredentials | SetSecrets | SetNames | SetRules | SetApprovals | SetProviders
    | Propose | Withdraw | Decided | DropBottle | CutBottle | Ready | Ack | Report | Commit | Committed
    | Lookup | Looked
    | OpenRun | CloseRun | SetBudget | Reserve | Granted | Denied | Settle | Settled | Progress | Release
    | Done | Failed | Crossed | Enforced | Audit | Proposed | Decide | Undecided | Read | Totals
    | Request | Reply | Item
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """The frame of one message."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a byte stream into messages; feed() returns those that are complete.

    :raises WireError: from feed(), after which the stream is unusable.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[AnyMessage]:
        buffer = self._buffer
        buffer += data
        out: list[AnyMessage] = []
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise WireError(f"frame of {length} bytes; at most {MAX_FRAME} are allowed")
            if len(buffer) - at - 4 < length:
                break
            try:
                out.append(_decoder.decode(memoryview(buffer)[at + 4 : at + 4 + length]))
            except msgspec.MsgspecError as e:
                raise WireError(str(e)) from e
            at += 4 + length
        del buffer[:at]
        return out
