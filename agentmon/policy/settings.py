"""The host's settings: /etc/agentmon/settings.yml as one frozen value; a missing file means the defaults."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agentmon import paths
from agentmon.addresses import MAX_PROXIES, Pool
from agentmon.errors import BadInput
from agentmon.policy import document, values
from agentmon.policy.document import Items, Node, Place, Scalar
from agentmon.policy.effective import WEIGHTS
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.policy.values import CREDENTIAL, Budget, PlacedRule
from agentmon.providers import registry

SHUTDOWNS = ("cutoff", "freeze", "kill")  # from the mildest to the strictest
LOGS = ("off", "blocks", "full")
UNREADABLE = ("settle", "cut")  # from the milder to the stricter
Server = tuple[str, int] | tuple[str, int, str]  # address, port, and over TLS what its certificate is for


_SHARED = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class Grants:
    """What members of group agentmon may do that would otherwise need root."""

    observe: bool = False  # run --observe
    raise_budget: bool = False  # --budget above what the host gives
    approve: bool = False  # approvals approve and reject, for bottles of one's own


@dataclass(frozen=True, slots=True)
class Settings:
    """Every key of settings.yml, validated. `upstream_dns` {}: the system's servers; "." is the default suffix."""

    budget: tuple[Budget, ...] = ()
    ceiling: tuple[Budget, ...] = ()
    weights: Mapping[str, int] = field(default_factory=lambda: dict(WEIGHTS))
    shutdown: str = "cutoff"
    unreadable: str = "settle"
    deny: tuple[PlacedRule, ...] = ()
    log: str = "blocks"
    ledger: str = "sqlite:///" + str(paths.LEDGER)
    approvals_timeout_s: int = 300
    approvals_hook: tuple[str, ...] = ()  # argv, run for each proposal
    approvals_operator: bool = True  # somebody may answer; False: what would have to be asked is refused at once
    dlp_rules: str = ""  # a file in gitleaks' format; "": the one that agentmon ships
    upstream_proxy: str | None = None
    upstream_dns: Mapping[str, tuple[Server, ...]] = field(default_factory=dict)
    upstream_ca: tuple[str, ...] = ()  # besides the system's
    events_age_s: int = 7 * 86400
    events_bytes: int = 256 << 20
    usage_age_s: int | None = None  # None: for ever
    alert: tuple[str, ...] = ()  # argv
    proxies: int = field(default_factory=lambda: default_proxies())  # workers that bottles are spread over
    grants: Grants = Grants()
    credentials: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name: argv of the command that prints it
    providers: Mapping[str, Any] = field(default_factory=dict)  # for agentmon.providers.registry.load
    bottles_dir: Path = paths.BOTTLES
    pool: Pool = field(default_factory=Pool)
    source: str = ""  # the file, "" without one
    places: Mapping[str, Place] = field(default_factory=dict, compare=False)  # where each key stands

    @property
    def ledger_is_shared(self) -> bool:
        """Whether hosts share it, in PostgreSQL."""
        return self.ledger.startswith(_SHARED)


def default_proxies() -> int:
    """A worker for every two processors, four at most."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def default_path() -> Path:
    """$AGENTMON_SETTINGS, else /etc/agentmon/settings.yml."""
    named = os.environ.get("AGENTMON_SETTINGS")
    return Path(named) if named else paths.SETTINGS


def load(path: Path | str | None = None) -> Settings:
    """The settings in `path` (default: default_path()).

    A file that was named, by option or environment, must exist; the ordinary one may be missing.

    :raises BadInput: with file, line, key and what was expected.
    """
    file = Path(path) if path is not None else default_path()
    if file == paths.SETTINGS and not file.exists():
        return Settings()
    return parse(document.read(file), str(file))


def parse(text: str, file: str) -> Settings:
    """The settings that a file's text holds.

    :raises BadInput: as load().
    """
    table = document.parse(text, file)
    document.check_keys(table, _READERS)
    found: dict[str, Any] = {"source": file, "places": {key: node.place for key, node in table.values.items()}}
    for key, read in _READERS.items():
        node = values.optional(table, key)
        if node is not None:
            found.update(read(node))
    return Settings(**found)


def _one(name: str, read: Callable[[Node], Any]) -> Callable[[Node], dict[str, Any]]:
    return lambda node: {name: read(node)}


def _weights(node: Node) -> dict[str, int]:
    table = document.mapping(node, "per mille by kind of token")
    document.check_keys(table, WEIGHTS)
    most = 1_000_000
    given = {k: document.integer(v, least=0, most=most, expected="per mille") for k, v in table.values.items()}
    return WEIGHTS | given


def _ledger(node: Node) -> str:
    url = document.text(node, "sqlite:////path/ledger.db")
    if url.startswith(_SHARED):
        return _shared(node, url)
    if url.startswith("sqlite:////"):
        return url
    raise node.place.error(f"{url!r}; expected sqlite:////absolute/path or postgresql://…", "four slashes: a full path")


def _shared(node: Node, url: str) -> str:
    """No message quotes the URL: a password may stand in it."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _port = parts.port, int(query.get("port", ["5432"])[0])
    except ValueError as e:
        raise node.place.error(f"no URL: {e}", "postgresql://USER@HOST:5432/NAME") from None
    if parts.password is not None or "password" in query:
        what = "a password stands in the URL, where everybody reads it"
        raise node.place.error(what, f"take it out, into a file: install -m 600 FILE {paths.CREDENTIALS}/ledger")
    return url


def _upstream(node: Node) -> dict[str, Any]:
    table = document.mapping(node, "proxy, dns, ca")
    document.check_keys(table, ("proxy", "dns", "ca"))
    readers = {"proxy": ("upstream_proxy", _proxy), "dns": ("upstream_dns", _dns), "ca": ("upstream_ca", _ca)}
    found = {}
    for key, (name, read) in readers.items():
        inner = values.optional(table, key)
        if inner is not None:
            found[name] = read(inner)
    return found


def _proxy(node: Node) -> str:
    url = document.text(node, "http://proxy.example:3128")
    parts = urlsplit(url)
    try:
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port
        usable = False
    if not usable:
        raise node.place.error(f"{url!r}; expected http://host:port or https://host:port", "write the scheme")
    if parts.username is not None or parts.password is not None:
        raise node.place.error("the URL has credentials in it", "settings.yml is world-readable; leave them out")
    return url


def _dns(node: Node) -> dict[str, tuple[Server, ...]]:
    if isinstance(node, Scalar):
        if node.text == "system":
            return {}
        return {".": (_server(node),)}
    if isinstance(node, Items):
        return {".": _servers(node)}
    out: dict[str, tuple[Server, ...]] = {}
    for suffix, inner in document.mapping(node, "system, a list of servers, or servers by suffix").values.items():
        if isinstance(inner, Scalar) and inner.text == "system":
            if suffix != ".":
                raise inner.place.error("'system' stands for the default only", 'write ".": system, or leave "." out')
            continue
        try:
            name = "." if suffix == "." else canonical_host(suffix)
        except RuleError as e:
            raise inner.place.error(f"suffix {suffix!r}: {e.message}", e.hint) from e
        out[name] = (_server(inner),) if isinstance(inner, Scalar) else _servers(inner)
    return out


def _servers(node: Node) -> tuple[Server, ...]:
    found = document.each(node, "a list of servers", _server)
    if not found:
        raise node.place.error("no server", "name at least one, or write `dns: system`")
    return found


def _server(node: Node) -> Server:
    written = document.text(node, "a server's address")
    name, at, plain = written.removeprefix("tls://").rpartition("@")
    over_tls = written.startswith("tls://")
    host, port = plain, "853" if over_tls else "53"
    if plain.startswith("["):
        host, _, rest = plain[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else (port if not rest else "")
    elif plain.count(":") == 1:
        host, _, port = plain.partition(":")
    good_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or not good_port or "%" in host or (at and not over_tls):
        what = "expected an address, address:port or [IPv6]:port, or tls://NAME@ before it"
        raise node.place.error(f"{written!r}; {what}", "no names here, but that of a certificate")
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        hint = "the resolver asks from its own network namespace: name a server that is reachable on the network"
        raise node.place.error(f"{written!r} is not reachable from the resolver", hint)
    if not over_tls:
        return str(address), int(port)
    try:
        return str(address), int(port), canonical_host(name) if at else str(address)
    except RuleError as e:
        raise node.place.error(f"{written!r}: {e.message}", e.hint) from e


def _ca(node: Node) -> tuple[str, ...]:
    if isinstance(node, Scalar) and node.text == "system":
        return ()
    nodes = (node,) if isinstance(node, Scalar) else document.items(node, "system, a path, or a list of paths")
    return tuple(absolute(n) for n in nodes if not (isinstance(n, Scalar) and n.text == "system"))


def absolute(node: Node) -> str:
    path = document.text(node, "an absolute path")
    if not path.startswith("/") or ".." in path.split("/"):
        raise node.place.error(f"{path!r}; expected an absolute path without '..'", "write it from / on")
    return path


def _retention(node: Node) -> dict[str, Any]:
    table = document.mapping(node, "events, events_bytes, usage")
    document.check_keys(table, ("events", "events_bytes", "usage"))
    found: dict[str, Any] = {}
    if (events := values.optional(table, "events")) is not None:
        found["events_age_s"] = values.duration(events)
    if (events_bytes := values.optional(table, "events_bytes")) is not None:
        found["events_bytes"] = values.size(events_bytes)
    if (usage := values.optional(table, "usage")) is not None:
        for_ever = isinstance(usage, Scalar) and usage.text == "forever"
        found["usage_age_s"] = None if for_ever else values.duration(usage)
    return found


def _credentials(node: Node) -> dict[str, tuple[str, ...]]:
    table = document.mapping(node, "commands by the credential's name")
    found = {}
    for name, inner in table.values.items():
        if not CREDENTIAL.fullmatch(name):
            raise inner.place.error(f"{name!r} is not the name of a credential", "small letters, digits, . _ -")
        command = document.mapping(inner, "{command: [/usr/bin/COMMAND, ARGUMENT]}")
        document.check_keys(command, ("command",))
        if "command" not in command.values:
            raise inner.place.error("command: is missing", f"files need no entry: {paths.CREDENTIALS / name}")
        found[name] = _alert(command.values["command"])
    return found


def _alert(node: Node) -> tuple[str, ...]:
    argv = document.texts(node, "words") if isinstance(node, Items) else _split(node)
    if not argv or not argv[0].startswith("/"):
        hint = "write /usr/bin/COMMAND: no PATH is searched"
        raise node.place.error(f"{document.describe(node)}; expected a command with its absolute path", hint)
    return argv


def _split(node: Node) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(document.text(node, "a command")))
    except ValueError as e:
        raise node.place.error(f"{document.describe(node)}: {e}", "close the quotes, or write a list") from e


def _grants(node: Node) -> Grants:
    table = document.mapping(node, "observe, raise_budget, approve")
    document.check_keys(table, ("observe", "raise_budget", "approve"))
    return Grants(**{key: document.boolean(value) for key, value in table.values.items()})


def _providers(node: Node) -> dict[str, Any]:
    table = document.mapping(node, "declarations by provider")
    found: dict[str, Any] = {}
    for name, inner in table.values.items():
        declaration = document.mapping(inner, "a declaration")
        found[name] = document.plain(declaration)
        try:
            registry.load(found)
        except BadInput as e:
            what = e.message.removeprefix("providers: ").removeprefix(f"{name}: ")
            key, colon, rest = what.partition(": ")
            if colon and key in declaration.values:
                raise declaration.values[key].place.error(rest, e.hint) from e
            raise inner.place.error(what, e.hint) from e
    return found


def _pool(node: Node) -> Pool:
    table = document.mapping(node, "v4, v6")
    document.check_keys(table, ("v4", "v6"))
    default = Pool()
    v4, v6 = default.v4, default.v6
    if (given4 := values.optional(table, "v4")) is not None:
        v4 = _network(given4, IPv4Network, "10.213.0.0/16")
    if "v6" in table.values:
        given6 = values.optional(table, "v6")
        v6 = None if given6 is None else _network(given6, IPv6Network, "fd61:6d6f:6e::/64, or null")
    try:
        return Pool(v4, v6)
    except ValueError as e:
        raise node.place.error(str(e)) from e


def _network(node: Node, kind: Callable[[str], Any], expected: str) -> Any:
    written = document.text(node, expected)
    try:
        network = kind(written)
    except ValueError as e:
        raise node.place.error(f"{written!r}: {e}; expected {expected}", "write a network, without host bits") from e
    if not network.is_private or network.is_loopback or network.is_link_local:
        raise node.place.error(f"{written!r} is not a private network", f"choose one that you do not use: {expected}")
    return network


def _dlp(node: Node) -> dict[str, Any]:
    table = document.mapping(node, "rules")
    document.check_keys(table, ("rules",))
    inner = values.optional(table, "rules")
    return {} if inner is None else {"dlp_rules": absolute(inner)}


def _approvals_timeout(node: Node) -> int:
    return document.integer(node, least=1, most=86400, expected="seconds")


def _approvals(node: Node) -> dict[str, Any]:
    table = document.mapping(node, "hook, operator")
    document.check_keys(table, ("hook", "operator"))
    found: dict[str, Any] = {}
    if (hook := values.optional(table, "hook")) is not None:
        found["approvals_hook"] = _alert(hook)
    if (operator := values.optional(table, "operator")) is not None:
        found["approvals_operator"] = document.boolean(operator)
    return found


_READERS: Mapping[str, Callable[[Node], dict[str, Any]]] = {
    "budget": _one("budget", values.budgets),
    "ceiling": _one("ceiling", values.budgets),
    "weights": _one("weights", _weights),
    "shutdown": _one("shutdown", lambda node: document.choice(node, SHUTDOWNS)),
    "unreadable": _one("unreadable", lambda node: document.choice(node, UNREADABLE)),
    "deny": _one("deny", values.deny_rules),
    "log": _one("log", lambda node: document.choice(node, LOGS)),
    "ledger": _one("ledger", _ledger),
    "approvals_timeout": _one("approvals_timeout_s", _approvals_timeout),
    "approvals": _approvals,
    "dlp": _dlp,
    "upstream": _upstream,
    "retention": _retention,
    "alert": _one("alert", _alert),
    "grants": _one("grants", _grants),
    "credentials": _one("credentials", _credentials),
    "providers": _one("providers", _providers),
    "bottles_dir": _one("bottles_dir", lambda node: Path(absolute(node))),
    "addresses": _one("pool", _pool),
    "proxies": _one("proxies", lambda node: document.integer(node, least=1, most=MAX_PROXIES, expected="workers")),
}

__all__ = ["Grants", "Settings", "absolute", "default_path", "load", "parse"]
