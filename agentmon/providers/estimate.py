"""What a request may cost at most, before anybody has answered: from its size and the bound it names itself.

Deliberately simple and on the high side: a hold that is too large shrinks at settlement, one that is too small is
overspend. `BYTES_PER_TOKEN` is low for English prose and about right for code, JSON escapes and other scripts.
"""

from __future__ import annotations

from collections.abc import Callable

from agentmon.providers.body import Json, count, parse_object, text
from agentmon.providers.declaration import Estimate

BYTES_PER_TOKEN = 3
DEFAULT_OUTPUT = 4096  # the request names no bound
MAX_COUNT = 1 << 40


def tokens_of(n_bytes: int) -> int:
    """Tokens that `n_bytes` of text may be, rounded up."""
    return -(-n_bytes // BYTES_PER_TOKEN)


def estimator(*bounds: str, default: int = DEFAULT_OUTPUT) -> Callable[[bytes], Estimate]:
    """An estimate function: `bounds` are the request fields that limit the output, the first that is set counts.

    `n` (choices asked for) multiplies. `default=0` for endpoints without output.
    """

    def estimate(body: bytes) -> Estimate:
        request: Json = parse_object(body) or {}
        values = (count(request.get(bound)) for bound in bounds)
        output = next((v for v in values if v is not None), default)
        choices = max(1, min(count(request.get("n")) or 1, 1000))
        return Estimate(text(request.get("model")), tokens_of(len(body)), min(output * choices, MAX_COUNT))

    return estimate
