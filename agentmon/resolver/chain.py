"""What one upstream response says about a name: only what hangs together with the question counts.

response ─ follow ─▶ Chain(addresses, ttl, target): the CNAMEs from the question's name onwards, then the
addresses at their end. Records that the chain does not reach are ignored, wherever they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentmon.resolver.records import CNAME, NOERROR, NXDOMAIN, Malformed, Question, Response, host_text

MAX_CNAMES = 12
_RCODES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}


class Unusable(Exception):
    """The response is not one (loop in the aliases, server failure); the next server may know better."""


@dataclass(frozen=True, slots=True)
class Chain:
    """`target` is set when the response ends at an alias whose addresses must be asked for; `ttl_s` is the least of all
    records used. No addresses and no target: the name has none (`exists` False: NXDOMAIN)."""

    addresses: tuple[str, ...]
    ttl_s: int
    target: str = ""
    exists: bool = True


def follow(response: Response, asked: Question) -> Chain:
    """:raises Unusable: see there."""
    if response.rcode not in {NOERROR, NXDOMAIN}:
        raise Unusable(f"upstream answered {_RCODES.get(response.rcode, f'code {response.rcode}')}")
    at = asked.name
    ttl_s = 0x7FFFFFFF
    for hop in range(MAX_CNAMES + 1):
        here = response.sets.get((at, asked.rdtype))
        if here is not None:
            return Chain(tuple(here.data), min(ttl_s, here.ttl_s))
        alias = response.sets.get((at, CNAME))
        if alias is None:
            if hop and response.rcode == NOERROR and response.negative_s is None:
                return Chain((), ttl_s, target=_target(at))
            return Chain((), min(ttl_s, response.negative_s or 0), exists=response.rcode == NOERROR)
        ttl_s = min(ttl_s, alias.ttl_s)
        at = alias.target
    raise Unusable("upstream's aliases form a loop")


def _target(name: bytes) -> str:
    try:
        return host_text(name)
    except Malformed as e:
        raise Unusable(str(e)) from e
