"""What is wrong with a list of endpoints: never asked, unmetered by accident, not whole. For every declaration.

The first endpoint that covers a request decides, so their order is part of what they say.
"""

from __future__ import annotations

from functools import lru_cache

from agentmon.providers.declaration import Endpoint, Metering
from agentmon.providers.overlap import path_covers, paths_overlap


@lru_cache(maxsize=64)
def endpoints(listed: tuple[Endpoint, ...]) -> str:
    """The first thing that is wrong, "" if nothing is."""
    for number, endpoint in enumerate(listed):
        whole = endpoint.parser is not None and endpoint.output is not None and endpoint.convention is not None
        if whole is not (endpoint.metering is Metering.METERED):
            return f"{_name(endpoint)}: what is metered, and only that, has a parser, an output and a convention"
        for earlier in listed[:number]:
            if _method_covers(earlier, endpoint) and path_covers(earlier.path, endpoint.path):
                return f"{_name(endpoint)} is never asked: {_name(earlier)} stands before it and covers it"
        if wrong := freed(listed[:number], (endpoint,)):
            return wrong
    return ""


def freed(first: tuple[Endpoint, ...], then: tuple[Endpoint, ...]) -> str:
    """A free endpoint in `first` that takes away from a metered one in `then`, and is not one case of it."""
    for free in first:
        for metered in then:
            if free.metering is not Metering.FREE or metered.metering is not Metering.METERED:
                continue
            if not (_method_covers(free, metered) or _method_covers(metered, free)):
                continue
            one_case = path_covers(metered.path, free.path) and not path_covers(free.path, metered.path)
            if paths_overlap(free.path, metered.path) and not one_case:
                return f"{_name(free)} is free, but covers what {_name(metered)} meters"
    return ""


def _method_covers(wide: Endpoint, narrow: Endpoint) -> bool:
    return wide.method in {"*", narrow.method}


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"
