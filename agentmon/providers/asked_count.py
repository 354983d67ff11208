"""The question that a provider's own count endpoint is asked, and how far its answer is believed. Pure; none raises.

request  ── question() ──▶ body of POST counting.path ── the provider ──▶ tokens() ──▶ held()
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from agentmon.providers.declaration import Counting, Estimate
from agentmon.providers.estimate import MAX_COUNT
from agentmon.providers.jsonread import parse_object
from agentmon.providers.request import Request

MOST_BYTES = 4 << 20  # of a question: it is kept a second time
ANSWER_BYTES = 64 << 10
_DOUBT = 64  # a count below this part of the estimate is not followed further down


def question(counting: Counting, request: Request) -> bytes | None:
    """The request as its count endpoint takes it; None where that would leave out what may bring input."""
    fields = request.fields
    if not fields or request.files_bytes or len(request.body) > MOST_BYTES:
        return None
    if not fields.keys() <= counting.takes | counting.leaves:
        return None
    try:
        body = msgspec.json.encode({name: value for name, value in fields.items() if name in counting.takes})
    except (ValueError, RecursionError):  # text that is no Unicode
        return None
    return body if len(body) <= MOST_BYTES else None


def tokens(counting: Counting, body: bytes) -> int | None:
    """The count in an answer; None for anything that is none."""
    value = (parse_object(body) or {}).get(counting.member)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_COUNT:
        return None
    return value


def held(estimate: Estimate, count: int) -> Estimate:
    """The estimate with the count as its input; `output` stays.

    A count may be larger, and is followed. It is not followed below a small part of the estimate: a server that
    always says 1 would let any number of requests in at once.
    """
    return replace(estimate, input=max(count, -(-estimate.input // _DOUBT)))
