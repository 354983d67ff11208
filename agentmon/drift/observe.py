"""From replies to an observation: shapes, names of headers, and whether agentmon's own parsers read the usage."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping

from agentmon import wire
from agentmon.drift import shape
from agentmon.drift.ask import Handshake, Reply
from agentmon.drift.calls import Call, Target
from agentmon.drift.model import FORMAT, Answer, Observation
from agentmon.errors import AgentmonError, Refused
from agentmon.providers import match
from agentmon.providers.declaration import Provider

_HEADERS = ("ratelimit", "retry-after", "request-id", "organization", "processing-ms")


def observe(
    target: Target, provider: Provider, hands: Handshake, ask: Callable[[Call], Reply], at: str
) -> tuple[Observation, dict[str, Reply]]:
    """:param ask: one call, as agentmon.drift.ask.ask. The replies are returned for `--save`.
    :raises AgentmonError: a call has no whole answer, or the key is refused.
    """
    replies = {call.name: ask(call) for call in target.calls}
    for call in target.calls:
        if replies[call.name].status in {401, 403} and not call.fails:
            what = f"{target.host} refuses the key ({replies[call.name].status})"
            raise Refused(what, f"put a key that works on this host as credential {target.credential!r}")
    counted = {c.name: _input(target, provider, c, replies[c.name]) for c in target.calls}
    answers = {c.name: _answer(target, provider, c, replies[c.name], counted) for c in target.calls}
    found = Observation(
        FORMAT, target.provider, target.host, at, hands.tls, hands.alpn, hands.issuers, _sdk(target.sdk), answers
    )
    return found, replies


def _answer(target: Target, provider: Provider, call: Call, reply: Reply, counted: Mapping[str, int | None]) -> Answer:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip()
    headers = sorted(name for name in reply.headers if any(part in name for part in _HEADERS))
    try:
        if kind == "text/event-stream":
            parts = {"events": shape.of_stream(reply.body), "order": shape.order(reply.body)}
        else:
            parts = {"shape": shape.of_json(reply.body)}
    except ValueError as e:
        raise AgentmonError(f"{target.host}{call.path} ({call.name}): {e}", "look at it with --save DIR") from e
    usage = _facts(target, provider, call, reply, counted)
    return Answer(reply.status, kind, headers, usage=usage, **parts)  # type: ignore[arg-type]


def _row(target: Target, provider: Provider, call: Call, reply: Reply) -> wire.Usage | None:
    """As the proxy reads it."""
    endpoint = match.endpoint(provider, "GET" if call.body is None else "POST", call.path)
    if endpoint is None or endpoint.parser is None or reply.status != 200:
        return None
    parser = endpoint.parser(reply.headers)
    parser.feed(reply.body)
    parser.close()
    return parser.usage()


def _input(target: Target, provider: Provider, call: Call, reply: Reply) -> int | None:
    """Tokens of the request as the answer tells them, cached ones included."""
    if call.counts:
        return _told(reply)
    row = _row(target, provider, call, reply)
    return None if row is None else row.input + row.cache_read + row.cache_write_5m + row.cache_write_1h


def _told(reply: Reply) -> int | None:
    """Of an endpoint that counts; None where it does not, which its shape says, too."""
    try:
        value = json.loads(reply.body)["input_tokens"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, int) else None


def _facts(
    target: Target, provider: Provider, call: Call, reply: Reply, counted: Mapping[str, int | None]
) -> dict[str, bool]:
    if call.fails or call.counts:
        return {}
    row = _row(target, provider, call, reply)
    facts = {
        "usage is read": row is not None,
        "usage is complete": row is not None and row.complete,
        "input is told": row is not None and row.input > 0,
        "output is told": row is not None and row.output > 0,
        "an id is told": row is not None and bool(row.request_id),
    }
    if call.same_as:
        facts[f"input is counted as in {call.same_as}"] = counted[call.name] == counted[call.same_as]
    return facts


def _sdk(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
