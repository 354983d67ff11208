"""`routes:` of a manifest: what the proxy does with requests to a host, read into wire.Route."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentmon import wire
from agentmon.policy import document, values
from agentmon.policy.document import Mapping, Node, Place, Scalar
from agentmon.policy.rules import RuleError, host_pattern

OUTBOUND = ("block", "redact", "supervise")
INBOUND = ("off", "warn", "block")
_KEYS = ("host", "auth", "methods", "paths", "headers", "query", "outbound", "inbound", "scan_headers", "git_fetch")
_FRAMING = ("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 section 5.6.2


@dataclass(frozen=True, slots=True)
class PlacedRoute:
    route: wire.Route
    place: Place  # of its host
    places: dict[str, Place] = field(default_factory=dict, compare=False)  # of each key that is written


def route(node: Node) -> PlacedRoute:
    """One entry of `routes:`.

    :raises BadInput: with file, line, key and what was expected.
    """
    table = document.mapping(node, "host: and what is done with its requests")
    document.check_keys(table, _KEYS)
    if "host" not in table.values:
        raise node.place.error("host: is missing", "a route says which host it is for")
    found: dict[str, Any] = {"host": _host(table.values["host"])}
    for key, read in (("methods", _method), ("paths", _path)):
        if (inner := values.optional(table, key)) is not None:
            found[key] = document.each(inner, f"a list of {key}", read)
    for key, name in (("headers", _condition_header), ("query", _parameter)):
        if (inner := values.optional(table, key)) is not None:
            found[key] = _conditions(inner, name)
    for key, allowed in (("outbound", OUTBOUND), ("inbound", INBOUND)):
        if (inner := values.optional(table, key)) is not None:
            found[key] = document.choice(inner, allowed)
    if (inner := values.optional(table, "git_fetch")) is not None:
        found["git_fetch"] = document.boolean(inner)
    if (inner := values.optional(table, "scan_headers")) is not None:
        found["scan_headers_except"] = _scan_headers(inner)
    if (inner := values.optional(table, "auth")) is not None:
        found.update(_auth(inner))
    places = {key: inner.place for key, inner in table.values.items()}
    return PlacedRoute(wire.Route(**found), table.values["host"].place, places)


def routes(node: Node) -> tuple[PlacedRoute, ...]:
    return document.each(node, "a list of routes", route)


def _host(node: Node) -> str:
    written = document.text(node, "a host such as api.example.com")
    try:
        return host_pattern(written)
    except RuleError as e:
        hint = "a route names a host without scheme, port and path" if ":" in written or "/" in written else e.hint
        raise node.place.error(e.message, hint) from e


def _method(node: Node) -> str:
    written = document.text(node, "a method such as POST")
    if not _TOKEN.fullmatch(written) or written != written.upper():
        raise node.place.error(f"{written!r}; expected a method in capitals, such as POST", "HTTP methods are words")
    return written


def _path(node: Node) -> str:
    written = document.text(node, "a path such as /v1/*")
    if not written.startswith("/") or any(c in written for c in "?# \t\\") or not written.isprintable():
        raise node.place.error(f"{written!r}; expected a path such as /v1/*", "begin with '/', leave the query out")
    return written


def _header(node: Node) -> str:
    written = document.text(node, "a header name such as x-api-key")
    if not _TOKEN.fullmatch(written):
        raise node.place.error(f"{written!r}; expected a header name such as x-api-key", "leave the colon out")
    return written.lower()


def _condition_header(node: Node) -> str:
    return _header(node).replace("_", "-")  # as they are compared


def _parameter(node: Node) -> str:
    written = document.text(node, "a query parameter such as api-version")
    if not written or not written.isprintable() or any(c in written for c in "&;=?# %+"):
        raise node.place.error(f"{written!r}; expected the name of a query parameter", "write it decoded, without '='")
    return written


def _conditions(node: Node, name: Callable[[Node], str]) -> dict[str, str | None]:
    """Names with the glob that each must match; null: must not be there."""
    found: dict[str, str | None] = {}
    for written, inner in document.mapping(node, "names and values: {x-team: blue-*, x-debug: null}").values.items():
        key = name(Scalar(inner.place, written, quoted=True))
        none = isinstance(inner, Scalar) and inner.is_null
        found[key] = None if none else document.text(inner, 'a value, "*" for any, or null for none')
    return found


def _scan_headers(node: Node) -> tuple[str, ...]:
    if isinstance(node, Mapping):
        document.check_keys(node, ("except",))
        inner = values.optional(node, "except")
        return () if inner is None else document.each(inner, "a list of headers", _header)
    document.choice(node, ("all",))
    return ()


def _auth(node: Node) -> dict[str, Any]:
    if isinstance(node, Scalar):
        document.choice(node, ("none",))
        return {"auth_none": True}
    table = document.mapping(node, "none, or {header: x-api-key, credential: NAME}")
    document.check_keys(table, ("header", "credential"))
    for key in ("header", "credential"):
        if key not in table.values:
            raise node.place.error(f"{key}: is missing", "write {header: x-api-key, credential: NAME}, or none")
    credential = document.text(table.values["credential"], "the name of a credential")
    if not values.CREDENTIAL.fullmatch(credential):
        hint = "a manifest holds the name of a credential, never the secret itself"
        raise table.values["credential"].place.error("not the name of a credential", hint)
    header = _header(table.values["header"])
    if header in _FRAMING:
        raise table.values["header"].place.error(
            f"{header!r} carries no credential", "such as authorization, x-api-key"
        )
    return {"auth_header": header, "auth_credential": credential}
