"""What a request may cost at most, before anybody has answered: its input as counted, and the bound it names itself."""

from __future__ import annotations

from collections.abc import Callable

from agentmon.providers.declaration import Endpoint, Estimate, Provider
from agentmon.providers.jsonread import count, table
from agentmon.providers.request import Request

DEFAULT_OUTPUT = 4096  # the request names no bound
MAX_COUNT = 1 << 40

_CHOICES = ("n", "generationConfig.candidateCount")


def of(provider: Provider, endpoint: Endpoint, request: Request) -> Estimate:
    """The estimate of one request to a metered endpoint."""
    output = endpoint.output(request) if endpoint.output is not None else 0
    return Estimate(request.model, min(provider.count_tokens(request), MAX_COUNT), min(output, MAX_COUNT))


def bound(*names: str, default: int = DEFAULT_OUTPUT) -> Callable[[Request], int]:
    """The most an answer may put out: the first of the members `names` that is set; dots lead into inner objects.

    `n` (choices asked for) multiplies. `default=0` for endpoints without output.
    """

    def output(request: Request) -> int:
        values = (_member(request, name) for name in names)
        most = next((v for v in values if v is not None), default)
        return most * max(1, min(next((c for c in (_member(request, n) for n in _CHOICES) if c), 1), 1000))

    return output


def _member(request: Request, name: str) -> int | None:
    *outer, last = name.split(".")
    place = request.fields
    for key in outer:
        place = table(place.get(key))
    value = place.get(last)
    return count(int(value)) if isinstance(value, str) and value.isascii() and value.isdigit() else count(value)
