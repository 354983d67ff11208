"""What of a request says who asks: the bottle's own credentials, taken out, and the route's, put in. Pure.

A header is compared without case and with "_" as "-", which some servers take for the same. Query keys are compared
decoded twice: what a server behind another could still read as a key goes too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

from agentmon import wire
from agentmon.credentials.secret import Secret

HEADERS = frozenset(
    (
        "authorization", "proxy-authorization", "x-authorization", "cookie", "x-api-key", "api-key", "apikey",
        "x-goog-api-key", "x-goog-iam-authorization-token", "x-auth-token", "x-access-token", "x-amz-security-token",
        "ocp-apim-subscription-key", "private-token", "job-token", "deploy-token", "x-token",
    )
)  # fmt: skip
QUERY = frozenset(
    (
        "key", "api-key", "apikey", "x-api-key", "access-token", "auth-token", "oauth-token", "token", "authorization",
        "subscription-key", "private-token", "job-token", "sig", "signature", "client-secret",
        "x-amz-credential", "x-amz-signature", "x-amz-security-token", "x-goog-credential", "x-goog-signature",
    )
)  # fmt: skip
_SEPARATORS = re.compile(r"([&;])")


def strips(route: wire.Route | None) -> bool:
    """Whether the bottle's own credentials stay behind."""
    return route is not None and (route.auth_none or bool(route.auth_credential))


def own_headers(names: Iterable[str], route: wire.Route) -> list[str]:
    """Of `names`, those that carry the bottle's own credentials; the route's header is one of them."""
    known = HEADERS | {_plain(route.auth_header)}
    return [name for name in names if _plain(name) in known]


def is_own(name: str) -> bool:
    """Whether a header of this name carries the client's own credentials."""
    return _plain(name) in HEADERS


def without_keys(target: str) -> str:
    """The request target without query parameters that are credentials; the others stay byte for byte."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    parts = _SEPARATORS.split(query)  # parameter, separator, parameter …
    kept = [(before, part) for before, part in zip(["", *parts[1::2]], parts[::2], strict=True) if not _is_key(part)]
    rest = "".join((before if n else "") + part for n, (before, part) in enumerate(kept))
    return f"{path}?{rest}" if rest else path


def without_protocol_keys(protocols: str) -> str:
    """A WebSocket's subprotocols without those by which browsers send a key (OpenAI's realtime does)."""
    kept = [name.strip() for name in protocols.split(",")]
    return ", ".join(name for name in kept if name and "api-key" not in _plain(name))


def header_value(route: wire.Route, secret: Secret) -> str:
    """What the route's header is set to: for authorization, a value without a scheme is a bearer token (RFC 6750)."""
    value = secret.reveal()
    bare = route.auth_header == "authorization" and " " not in value
    return f"Bearer {value}" if bare else value


def _is_key(part: str) -> bool:
    return _plain(unquote_plus(unquote_plus(part.partition("=")[0]))) in QUERY or (
        _plain(unquote_plus(unquote_plus(part)).partition("=")[0]) in QUERY
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")
