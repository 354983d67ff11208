"""The decision on one request, from its head alone and before anything is forwarded: pure.

SNI (or, in plain HTTP, nothing) = Host = :authority = policy     on every request, not only the first
provider's host: an endpoint that the declaration does not cover is refused, never passed unmetered
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agentmon import wire
from agentmon.credentials.secret import Secret
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.providers import match
from agentmon.providers.declaration import Endpoint, Metering, Provider, Socket
from agentmon.proxy import bodies, git, wellformed
from agentmon.proxy.bottles import Bottle
from agentmon.proxy.routed import Asked, Uncovered, choose

INTERNAL = "agentmon.internal"
_REPEATING = frozenset({"TRACE", "TRACK"})  # RFC 9110 section 9.3.8


@dataclass(frozen=True, slots=True)
class Facts:
    """A request's head. `hosts`: every Host header; `authority`: of the target or :authority, "" if it has none."""

    method: str
    target: str
    port: int  # we were connected to
    sni: str | None  # canonical; None on plain HTTP
    hosts: tuple[str, ...]
    authority: str = ""
    upgrade: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # as they came

    @property
    def content_type(self) -> str:
        return ", ".join(self._values("content-type"))

    @property
    def opens_socket(self) -> bool:
        """Whether it asks for a WebSocket, and nothing else, as RFC 6455 section 4.1 says; without a body."""
        tokens = {token.strip().lower() for value in self._values("connection") for token in value.split(",")}
        bodies_told = [value for value in self._values("content-length") if value.strip() != "0"]
        return (
            self.upgrade.strip().lower() == "websocket"
            and "upgrade" in tokens
            and self.method == "GET"
            and [value.strip() for value in self._values("sec-websocket-version")] == ["13"]
            and len(self._values("sec-websocket-key")) == 1
            and not bodies_told
            and not self._values("transfer-encoding")
        )

    def _values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer `status` with `error`; `reason`, `rule` and `hint` are for the event."""

    status: int
    error: bodies.Error
    reason: str
    host: str
    path: str = ""
    rule: str = ""

    @property
    def hint(self) -> str:
        """What an operator could do; "" where the event composes it (a missing rule, a cut)."""
        return _HINTS.get(self.reason, "")


@dataclass(frozen=True, slots=True)
class Tell:
    """Answer from what is known here: http://agentmon.internal."""

    path: str


@dataclass(frozen=True, slots=True)
class Allow:
    """Forward to `host`; a hold is needed where it is `metered`. `observed`: only observe mode lets it through.
    `secret`: what `route` puts in."""

    host: str
    path: str
    provider: Provider | None = None
    endpoint: Endpoint | None = None
    observed: bool = False
    rule: str = ""
    route: wire.Route | None = None
    secret: Secret | None = None
    lfs: bool = False  # its body says whether it may go: decide_body()
    upgrades: bool = False  # it asks for a WebSocket
    socket: Socket | None = None  # of a provider's host: how its messages are metered

    @property
    def metered(self) -> bool:
        return self.endpoint is not None and self.endpoint.metering is Metering.METERED

    @property
    def holds_method(self) -> bool:
        """Whether something was decided by the method, so that the server has to take the request for one of it."""
        return self.provider is not None or (self.route is not None and bool(self.route.methods))


Verdict = Allow | Refuse | Tell

_HINTS = {
    "host": "no rule helps: SNI, Host and :authority have to name one host",
    "path": "no rule helps, unless the manifest's routes: leave this path out",
    "header": "the route's headers: in the manifest say what has to be sent",
    "query": "the route's query: in the manifest says what has to be sent",
    "method": "add the method to the manifest's routes:",
    "credential": "put the credential on this host: docs/operations/secrets.md",
    "upgrade": "no rule helps: only WebSockets (RFC 6455) pass",
    "plain": "the client has to use https",
    "framing": "no rule helps: the client has to send what every server reads alike",
    "git-push": "no rule helps: commits leave a bottle by its files",
    "git-fetch": "write git_fetch: true into the host's route in the manifest",
    "unreadable": "unreadable: settle in the settings and manifests lets such answers pass, charged as held",
    "endpoint": "no rule helps: what cannot be metered is refused on a provider's host",
}


def decide(bottle: Bottle, facts: Facts, providers: Mapping[str, Provider]) -> Verdict:
    """What is to be done with this request."""
    host = host_of(facts)
    broken = wellformed.fault(facts.method, facts.headers)
    if broken is not None:
        return Refuse(broken[0], bodies.egress_denied(broken[1], host or ""), "framing", host or "")
    if host is None:
        shown = (facts.sni or facts.authority or ", ".join(facts.hosts))[:200]
        message = "The request's host is missing, repeated, or not the one the connection was opened for."
        return Refuse(403, bodies.egress_denied(message, shown), "host", shown)
    path = match.normal_path(facts.target)
    if host == INTERNAL:
        return Tell(path or "/")
    name = bottle.view.bottle
    if bottle.view.mode == "closed":
        return Refuse(403, bodies.egress_denied("This bottle has not started yet.", host), "closed", host)
    if bottle.cut:
        reason = "budget" if bottle.spent else "cut"
        return Refuse(403, bodies.cut_off(bottle.spent, host, name), reason, host, path or "")
    if path is None:
        message = "The path can be read in more than one way (encoded slash, dot segment, backslash) and is refused."
        return Refuse(403, bodies.egress_denied(message, host), "path", host)
    return _by_policy(bottle, facts, host, path, match.owner(providers, host))


def host_of(facts: Facts) -> str | None:
    """The one host that TLS, Host and :authority agree on, canonical; None if they do not."""
    named = {_canonical(text, facts.port) for text in (*facts.hosts, *([facts.authority] if facts.authority else []))}
    if len(facts.hosts) > 1 or len(named) != 1:
        return None
    host = named.pop()
    return host if host is not None and facts.sni in {None, host} else None


def _canonical(text: str, port: int) -> str | None:
    host, colon, written = text.partition(":")
    if colon and written != str(port):
        return None
    try:
        return canonical_host(host)
    except RuleError:
        return None


def _by_policy(bottle: Bottle, facts: Facts, host: str, path: str, provider: Provider | None) -> Verdict:
    name = bottle.view.bottle
    said = bottle.policy.decide_request(host, facts.port, path)
    observed = not said.allowed and said.reason == "default" and bottle.view.mode == "observe"
    rule = said.rule.text if said.rule is not None else ""
    if not said.allowed and not observed:
        message = f"{host}{path} is not allowed by this bottle's policy."
        hint = f"the operator can: agentmon allow {name} {host}:{facts.port}" if said.reason == "default" else ""
        return Refuse(403, bodies.egress_denied(message, host, hint), said.reason, host, path, rule)
    if facts.upgrade and not facts.opens_socket:
        message = f"Upgrading the connection ({facts.upgrade[:40]}) is not supported: only a WebSocket's handshake is."
        return Refuse(403, bodies.egress_denied(message, host), "upgrade", host, path, rule)
    allow = Allow(host, path, provider, None, observed, rule, upgrades=bool(facts.upgrade))
    return _by_route(bottle, facts, allow)


def _by_route(bottle: Bottle, facts: Facts, allow: Allow) -> Verdict:
    host, path = allow.host, allow.path
    asked = Asked(facts.method, path, facts.target.partition("?")[2], facts.headers)
    found = choose(bottle.view.routes, host, asked)
    if isinstance(found, Uncovered):
        hint = f"the operator can change routes: in the manifest of {bottle.view.bottle}"
        return Refuse(403, bodies.egress_denied(found.message, host, hint), found.reason, host, path, allow.rule)
    allow = replace(allow, route=found)
    if allow.holds_method and match.overrides_method(facts.target):
        message = "The query asks the server to take the request for one of another method."
        return Refuse(403, bodies.egress_denied(message, host), "method", host, path, allow.rule)
    use = git.use_of(facts.method, facts.target, facts.content_type)
    if use is git.Use.PUSH:
        return _push(allow)
    if use is not git.Use.NONE and not (found is not None and found.git_fetch):
        error = bodies.egress_denied(git.FETCH_SAYS, host, git.FETCH_HINT.format(host=host))
        return Refuse(403, error, "git-fetch", host, path, allow.rule)
    allow = replace(allow, lfs=use is git.Use.LFS_BATCH)
    if found is not None and found.auth_credential:
        if facts.method in _REPEATING:
            message = f"{facts.method} asks {host} to send back what it was sent, and it is sent a credential."
            return Refuse(403, bodies.egress_denied(message, host), "method", host, path, allow.rule)
        if facts.sni is None:
            message = f"{host} is given its credential by https only."
            return Refuse(403, bodies.egress_denied(message, host), "plain", host, path, allow.rule)
        secret = bottle.credentials.get(found.auth_credential)
        if secret is None:
            message = f"The credential {found.auth_credential!r} for {host} is not there; nothing is sent without it."
            hint = "the operator can put it on the host: agentmon events says what is missing"
            return Refuse(403, bodies.egress_denied(message, host, hint), "credential", host, path, allow.rule)
        allow = replace(allow, secret=secret)
    return allow if allow.provider is None else _by_provider(allow.provider, facts, allow)


def _push(allow: Allow) -> Refuse:
    return Refuse(403, bodies.egress_denied(git.PUSH_SAYS, allow.host), "git-push", allow.host, allow.path, allow.rule)


def decide_body(allow: Allow, coding: str, raw: bytes) -> Refuse | None:
    """Of a request that is allowed as far as its body does not say something else."""
    return _push(allow) if allow.lfs and not git.lfs_downloads(coding.strip().lower(), raw) else None


def _by_provider(provider: Provider, facts: Facts, allow: Allow) -> Verdict:
    host, path = allow.host, allow.path
    if facts.sni is None:
        message = f"{host} is a metered host and is reached by https only."
        return Refuse(403, bodies.egress_denied(message, host), "plain", host, path, allow.rule)
    unclear = match.ambiguous(path) or match.overrides_method(facts.target)
    if allow.upgrades:
        known = None if unclear else match.socket(provider, path)
        if known is None:
            message = f"WebSockets at {path} of {host} cannot be metered by agentmon and are refused; use plain HTTP."
            return Refuse(403, bodies.egress_denied(message, host), "endpoint", host, path, allow.rule)
        return replace(allow, socket=known)
    endpoint = None if unclear else match.endpoint(provider, facts.method, path)
    if endpoint is None or endpoint.metering is Metering.REFUSED:
        message = f"{facts.method[:20]} {path} of {host} cannot be metered by agentmon and is refused."
        hint = f"endpoints of {provider.name} that can be: see `agentmon policy explain`"
        return Refuse(403, bodies.egress_denied(message, host, hint), "endpoint", host, path, allow.rule)
    return replace(allow, endpoint=endpoint)
