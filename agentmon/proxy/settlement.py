"""What a request is charged once it is over: pure, one function, every case of METERING "Admission and settlement".

never reached the provider                 → nothing (the hold is released)
answered by an error or a redirect         → nothing: it is not billed
answered, usage complete                   → that usage, from the wire
answered otherwise, or lost                → input + the largest of what was said, seen and held, as an estimate
"""

from __future__ import annotations

import msgspec

from agentmon import wire
from agentmon.providers.declaration import Estimate


def tells_input(usage: wire.Usage) -> bool:
    """Whether the provider has said what came in."""
    return bool(usage.input or usage.cache_read or usage.cache_write_5m or usage.cache_write_1h)


def charge(
    estimate: Estimate,
    provider: str,
    key: str,
    *,
    sent: bool,
    status: int | None,
    usage: wire.Usage | None,
    seen: int = 0,
) -> wire.Usage | None:
    """The row to settle, or None to release.

    :param key: unique per attempt; stands in for a request id that never came.
    :param sent: the provider may have seen the request.
    :param status: of its answer; None if there was none.
    :param seen: tokens that the text of the answer amounts to, as far as it came.
    """
    if not sent or (usage is None and status is not None and status >= 300):
        return None
    if usage is None:
        return wire.Usage(
            provider=provider, model=estimate.model, request_id=key, input=estimate.input,
            output=max(estimate.output, seen), source="estimate", complete=False,
        )  # fmt: skip
    usage = msgspec.structs.replace(
        usage, provider=provider, model=usage.model or estimate.model, request_id=usage.request_id or key
    )
    if usage.complete:
        return usage
    return msgspec.structs.replace(
        usage,
        input=usage.input if tells_input(usage) else estimate.input,
        output=max(usage.output, estimate.output, seen),
        source="estimate",
    )
