"""Which provider owns a host, which endpoint a request is: exact, canonical, without surprises.

    path pattern = "/" segment { "/" segment };  "*" matches inside one segment, "**" across segments, both at least one
    host pattern = name | "*." name (any depth below) | name with "*" inside labels (letters, digits, hyphens)

A path is compared in one normal form; one that could mean two things (encoded slashes, dot segments, backslashes, NUL)
has no normal form and is refused where it matters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import unquote

from agentmon.providers.declaration import Endpoint, Metering, Provider, Socket

# Asking whether a host is there costs nothing: clients do it before their first request.
BODYLESS = (Endpoint("HEAD", "/", Metering.FREE), Endpoint("HEAD", "/**", Metering.FREE))

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_TWICE = re.compile(r"%25(?:25)*(?:2[EFef]|5[Cc]|00)")  # a dot, slash, backslash or NUL to whom decodes again
_DOTS = re.compile(r"\.\.?((;|%(3B|3F|23|20|09|0A|0D)).*)?")  # also with what some servers leave off behind it
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normal_path(target: str) -> str | None:
    """The path of a request target, without its query.

    Percent-encoding of unreserved characters is undone (RFC 3986, 6.2.2). None where two servers could disagree about
    its meaning.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") or "\\" in path or "#" in path or any(c <= " " or c > "~" for c in path):
        return None

    def unescape(match: re.Match[str]) -> str:
        char = chr(int(match[1], 16))
        return char if char in _UNRESERVED else match[0].upper()

    path = _ESCAPE.sub(unescape, path)
    if any(bad in path for bad in ("%2F", "%5C", "%00")) or _TWICE.search(path):
        return None
    if any(_DOTS.fullmatch(segment) for segment in path.split("/")):
        return None
    return path


def ambiguous(path: str) -> bool:
    """Whether a normalised path has parts that some servers drop or decode again: no endpoint of a metered host."""
    return any(mark in path for mark in ("//", ";", "%25"))


def overrides_method(target: str) -> bool:
    """Whether a query asks the server to take the request for one of another method, as Google's can."""
    return "httpmethod" in unquote(target.partition("?")[2]).lower()


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join({"**": ".+", "*": "[^/]+"}.get(p, re.escape(p)) for p in parts))


def path_matches(glob: str, path: str) -> bool:
    """Whether a normalised path is covered by a pattern; case matters."""
    return _pattern(glob).fullmatch(path) is not None


@lru_cache(maxsize=1024)
def _host(pattern: str) -> re.Pattern[str]:
    below = pattern.startswith("*.")
    parts = pattern[2 * below :].split("*")
    return re.compile((r".+\." if below else "") + "[a-z0-9-]+".join(re.escape(part) for part in parts))


def host_matches(pattern: str, host: str) -> bool:
    """Whether a canonical host name is one of a declaration's pattern."""
    return pattern == host or ("*" in pattern and _host(pattern).fullmatch(host) is not None)


def owner(providers: Mapping[str, Provider], host: str) -> Provider | None:
    """The provider whose `hosts` cover this canonical host name."""
    for provider in providers.values():
        if any(host_matches(pattern, host) for pattern in provider.hosts):
            return provider
    return None


def endpoint(provider: Provider, method: str, path: str) -> Endpoint | None:
    """The first endpoint that covers method and normalised path; None: not known, so refused."""
    for candidate in provider.endpoints:
        if candidate.method in {"*", method} and path_matches(candidate.path, path):
            return candidate
    return None


def socket(provider: Provider, path: str) -> Socket | None:
    """The WebSocket that a normalised path is; None: nothing is known that tells its usage, so refused."""
    return next((known for known in provider.sockets if path_matches(known.path, path)), None)
