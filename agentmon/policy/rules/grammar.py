"""The grammar of one rule, and its parser.

    rule      = [ "!" ] ( url / raw / plain )              "!" denies, and wins
    url       = ( "https" / "http" ) "://" host [ path ]   port 443 / 80; an explicit :443 / :80 is accepted
    raw       = ( "tcp" / "udp" ) "://" ( host ":" ports / where [ ":" ports ] )
    plain     = ( host / where ) [ ":" ports ]
    host      = name / "*." name                           "*." is any depth below, not the name itself
    where     = IPv4 [ "/" len ] / "[" IPv6 "]" [ "/" len ]   IPv6 without ports may go without brackets
    ports     = part *( "," part )      part = port / port "-" port
    path      = "/" …                                      "*" stands for any characters, "/" included

What an allow rule opens, and how deep it is checked:

    host                     TCP 443 by name, TCP 80 inspected
    host:443  https://host   TCP 443 by name               https://host/path   TCP 443 inspected
    host:80   http://host    TCP 80 inspected              http://host/path    TCP 80 inspected
    host:ports               TCP, direct (neither 443 nor 80 among them)
    where                    TCP and UDP, every port, direct
    where:ports              TCP, direct
    tcp://… udp://…          that protocol, direct, also on 443 and 80

A deny rule never covers less than its reader expects: without a scheme it denies TCP and UDP, without ports it denies
every port. `!https://host/path` denies these paths only, and makes the host inspected.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError

from agentmon.policy.rules import ports as port_sets
from agentmon.policy.rules.hosts import RuleError, canonical_host, reserved
from agentmon.policy.rules.ports import Ports
from agentmon.policy.rules.ranges import uncoverable

TYPE_CHECKING = False
if TYPE_CHECKING:
    Network = IPv4Network | IPv6Network
    Part = tuple[str, Ports, "Depth"]

MAX_RULE = 2048
HTTPS: Ports = ((443, 443),)
HTTP: Ports = ((80, 80),)
SERVED = frozenset({443, 80})  # the ports that relay and proxy listen on
_DEFAULT_PORT = {"https": 443, "http": 80}
_SCHEMES = ("https", "http", "tcp", "udp")
_SCHEME_HINTS = {
    "wss": "write https:// (a WebSocket is a request like any other)",
    "ws": "write http:// (a WebSocket is a request like any other)",
    "ssh": "write tcp://host:22",
    "git": "write tcp://host:9418",
    "ftp": "write tcp://host:21",
    "dns": "names are resolved by agentmon itself; write udp://address:53 for a server of your own",
    "quic": "write udp://host:443",
}


class Depth(IntEnum):
    """How deep traffic under a rule is checked. Deeper is greater."""

    DIRECT = 1  # addresses and ports, in the kernel
    NAME = 2  # the TLS name, by the relay; not decrypted
    INSPECTED = 3  # every request, by the proxy


class Rule:
    """One parsed rule. `text` is canonical and determines everything else; two rules are equal if their texts are.

    `host` is a name or "*.name", or "" where `network` is set. `proto` is "tcp", "udp" or "any"; `path` is None
    without one. `depth` is the depth on its main port; `parts` has (proto, ports, depth) for each.
    """

    __slots__ = ("deny", "depth", "host", "network", "parts", "path", "ports", "proto", "scheme", "text")

    text: str
    deny: bool
    scheme: str
    host: str
    network: Network | None
    proto: str
    ports: Ports
    path: str | None
    depth: Depth
    parts: tuple[Part, ...]

    def __init__(
        self, *, deny: bool, scheme: str, host: str, network: Network | None, path: str | None, parts: tuple[Part, ...]
    ) -> None:
        put = object.__setattr__
        put(self, "deny", deny)
        put(self, "scheme", scheme)
        put(self, "host", host)
        put(self, "network", network)
        put(self, "path", path)
        put(self, "parts", parts)
        put(self, "proto", parts[0][0] if len({p for p, _, _ in parts}) == 1 else "any")
        put(self, "ports", port_sets.merged([pair for _, pairs, _ in parts for pair in pairs]))
        put(self, "depth", parts[0][2])
        put(self, "text", self._canonical())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Rule does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Rule does not change: {name}")

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Rule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return parse_rule, (self.text,)

    @property
    def target(self) -> str:
        """The text without its "!"."""
        return self.text[1:] if self.deny else self.text

    @property
    def wildcard(self) -> bool:
        return self.host.startswith("*.")

    def depth_at(self, proto: str, port: int) -> Depth | None:
        """The depth at which this rule covers `port` of `proto`; None where it does not cover it."""
        for part_proto, pairs, depth in self.parts:
            if part_proto == proto and port_sets.contains(pairs, port):
                return depth
        return None

    def same_target(self, other: Rule) -> bool:
        """True where both speak of the same traffic, however written (`https://h` and `h:443`), deny or allow."""
        if self.target == other.target:
            return True
        mine = (self.host, self.network, self.path, frozenset(self.parts))
        return mine == (other.host, other.network, other.path, frozenset(other.parts))

    def _canonical(self) -> str:
        mark = "!" if self.deny else ""
        scheme = f"{self.scheme}://" if self.scheme else ""
        where = self.host if self.network is None else _network_text(self.network)
        every = self.ports == port_sets.ALL and (self.deny or self.network is not None)
        default = self.scheme in _DEFAULT_PORT or every or self._bare()
        ports = "" if default else ":" + port_sets.text_of(self.ports)
        return f"{mark}{scheme}{where}{ports}{self.path or ''}"

    def _bare(self) -> bool:
        # `host` and `host:80,443` open the same; the shorter one is canonical.
        return not self.deny and not self.scheme and bool(self.host) and self.ports == ((80, 80), (443, 443))


def parse_rule(text: str) -> Rule:
    """The rule that `text` says.

    :raises RuleError: with what to write instead.
    """
    if not isinstance(text, str):
        raise RuleError(f"a rule is text, not {type(text).__name__}", 'put it in quotes: "api.example.com:443"')
    _check_characters(text)
    deny = text.startswith("!")
    body = text[1:] if deny else text
    if body.startswith("!"):
        raise RuleError(f"rule {text!r} has more than one '!'", "one '!' denies")
    if not body:
        raise RuleError("the rule is empty", "write host[:port], https://host/path, tcp://host:port or a network")
    scheme, separator, rest = body.partition("://")
    if not separator:
        scheme, rest = "", body
    scheme = scheme.lower()
    if scheme and scheme not in _SCHEMES:
        hint = _SCHEME_HINTS.get(scheme, "https://, http://, tcp:// and udp:// exist")
        raise RuleError(f"{scheme + '://'!r} is not a scheme of rules", hint)
    path = None
    if scheme in _DEFAULT_PORT and "/" in rest:
        rest, _, tail = rest.partition("/")
        path = "/" + tail
    if "@" in rest:
        clean = rest.rpartition("@")[2]
        shown = f"{scheme}://{clean}" if scheme else clean
        raise RuleError("the rule has credentials in it", f"write {shown}; credentials go under routes: auth:")
    where, port_text = _split(rest, scheme)
    ports = port_sets.parse_ports(port_text) if port_text is not None else None
    network = _network(where)
    if network is not None:
        return _address_rule(deny, scheme, network, ports)
    return _name_rule(deny, scheme, host_pattern(where), ports, _checked_path(path, scheme, where))


def _check_characters(text: str) -> None:
    if len(text) > MAX_RULE:
        raise RuleError(f"the rule has {len(text)} characters", f"a rule has at most {MAX_RULE}")
    if "\0" in text:
        raise RuleError(f"rule {text!r} has a NUL character in it", "take it out")
    for c in text:
        if c.isspace():
            raise RuleError(f"rule {text!r} has a space in it", "write one rule without spaces; several as a list")
        if not c.isprintable():
            raise RuleError(f"rule {text!r} has a control character in it", "take it out")


def _split(rest: str, scheme: str) -> tuple[str, str | None]:
    """(host, address or network; text of the ports or None)."""
    if rest.startswith("["):
        inside, bracket, after = rest[1:].partition("]")
        if not bracket:
            raise RuleError(f"{rest!r} has no closing bracket", "write [2001:db8::1]:443")
        if "/" in inside:
            raise RuleError(f"{rest!r} has its prefix length inside the brackets", "write [2001:db8::]/32:443")
        if ":" not in inside:
            raise RuleError(f"{rest!r} has brackets around something that is no IPv6 address", f"write {inside}{after}")
        prefix, colon, port_text = after.partition(":")
        if prefix and not prefix.startswith("/"):
            raise RuleError(f"{rest!r} has {prefix!r} after the bracket", "write [2001:db8::1]:443")
        return inside + prefix, port_text if colon else None
    if rest.count(":") > 1:
        return rest, None  # IPv6 without brackets, or nothing that makes sense
    where, colon, port_text = rest.partition(":")
    name_with_path = "/" in port_text or ("/" in where and not _digits(where.rpartition("/")[2]))
    if name_with_path:
        clean = rest.replace(":443", "").lstrip("/")
        raise RuleError(f"{rest!r} has a path, but no https://", f"write https://{clean or 'host/path'}")
    return where, port_text if colon else None


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _network(where: str) -> Network | None:
    """The network, or None for a name."""
    if "%" in where:
        raise RuleError(f"{where!r} has an interface in it", "link-local addresses cannot be reached from a bottle")
    address_text, slash, length = where.partition("/")
    address: IPv4Address | IPv6Address
    try:
        address = IPv6Address(address_text) if ":" in address_text else IPv4Address(address_text)
    except AddressValueError:
        if ":" in address_text:
            hint = "write an IPv6 address with a port in brackets: [2001:db8::1]:443"
            raise RuleError(f"{where!r} is neither host:port nor an IPv6 address", hint) from None
        if slash:
            hint = "write a network as 10.0.0.0/8, a path as https://host/path"
            raise RuleError(f"{where!r} is not a network", hint) from None
        return None
    width = 32 if address.version == 4 else 128
    if slash and not (_digits(length) and int(length[:4]) <= width):
        what = f"prefix length {length!r} in {where!r} is not 0 to {width}"
        raise RuleError(what, "write 10.0.0.0/8 or [2001:db8::]/32")
    size = f"/{int(length)}" if slash else f"/{width}"
    kind = IPv4Network if address.version == 4 else IPv6Network
    try:
        return kind(f"{address}{size}")
    except (ValueError, NetmaskValueError):
        proper = kind(f"{address}{size}", strict=False)
        hint = f"write {_network_text(proper)} for the network, or {address} for the one address"
        raise RuleError(f"{where!r} has address bits beyond its prefix length", hint) from None


def _network_text(network: Network) -> str:
    base = str(network.network_address)
    base = f"[{base}]" if network.version == 6 else base
    return base if network.prefixlen == network.max_prefixlen else f"{base}/{network.prefixlen}"


def host_pattern(text: str) -> str:
    """The canonical form of a name or "*.name".

    :raises RuleError: for other uses of "*", and whatever canonical_host refuses.
    """
    if text.strip("*") == "" and text:
        raise RuleError(f"rule {text!r} would allow everything", "name hosts; *.example.com is all that is below one")
    if "*" not in text:
        return canonical_host(text)
    if all(c in "0123456789.*" for c in text):
        raise RuleError(f"{text!r} looks like a pattern of addresses", _glob_hint(text))
    if not text.startswith("*.") or "*" in text[2:]:
        hint = "'*.' may stand once, in front: *.example.com covers any depth below example.com"
        raise RuleError(f"'*' in {text!r} stands where it cannot", hint)
    return "*." + canonical_host(text[2:])


def _glob_hint(text: str) -> str:
    octets = text.split(".")
    fixed = []
    for octet in octets:
        if not (octet.isdigit() and int(octet) <= 255):
            break
        fixed.append(str(int(octet)))
    if 1 <= len(fixed) <= 3 and all(o == "*" for o in octets[len(fixed) :]):
        return f"write the network: {'.'.join(fixed + ['0'] * (4 - len(fixed)))}/{8 * len(fixed)}"
    return "write a network: 10.0.0.0/8"


def _address_rule(deny: bool, scheme: str, network: Network, ports: Ports | None) -> Rule:
    shown = _network_text(network)
    if scheme in _DEFAULT_PORT:
        hint = f"write tcp://{shown}:{_DEFAULT_PORT[scheme]} (checked by address and port only)"
        raise RuleError(f"{scheme}:// needs a name: nothing proves an address by TLS", hint)
    touched = None if deny else uncoverable(network)
    if touched:
        reason, protected = touched
        what = f"covers {reason} addresses ({protected})"
        if network.prefixlen >= protected.prefixlen:
            what = f"is {'an' if reason[0] in 'aeiouI' else 'a'} {reason} address"
        mapped = network.network_address.ipv4_mapped if isinstance(network.network_address, IPv6Address) else None
        hint = f"write {mapped}" if mapped else f"no bottle can reach {protected}; write networks that leave it out"
        raise RuleError(f"{shown} {what}", hint)
    if ports == port_sets.ALL and not deny:
        scheme = scheme or "tcp"  # without ports, the canonical text would mean UDP as well
    if scheme:
        protos: tuple[str, ...] = (scheme,)
    else:
        protos = ("tcp",) if ports is not None and not deny else ("tcp", "udp")
    parts = tuple((proto, ports or port_sets.ALL, Depth.DIRECT) for proto in protos)
    return Rule(deny=deny, scheme=scheme, host="", network=network, path=None, parts=parts)


def _name_rule(deny: bool, scheme: str, host: str, ports: Ports | None, path: str | None) -> Rule:
    if not deny:
        _check_not_reserved(host)
    if scheme in _DEFAULT_PORT:
        default = _DEFAULT_PORT[scheme]
        if ports not in (None, ((default, default),)):
            shown = port_sets.text_of(ports or ())
            raise RuleError(f"{scheme}:// is held on port {default} only, not {shown}", f"write tcp://{host}:{shown}")
        depth = Depth.NAME if scheme == "https" and path is None else Depth.INSPECTED
        parts: tuple[Part, ...] = (("tcp", ((default, default),), depth),)
    elif scheme:
        if ports is None and not deny:
            raise RuleError(f"{scheme}://{host} has no port", f"write {scheme}://{host}:PORT")
        parts = ((scheme, ports or port_sets.ALL, Depth.DIRECT),)
    elif deny:
        parts = (("tcp", ports or port_sets.ALL, Depth.NAME), ("udp", ports or port_sets.ALL, Depth.NAME))
    else:
        parts = _plain_parts(host, ports)
    return Rule(deny=deny, scheme=scheme, host=host, network=None, path=path, parts=parts)


def _plain_parts(host: str, ports: Ports | None) -> tuple[Part, ...]:
    by_name, inspected = ("tcp", HTTPS, Depth.NAME), ("tcp", HTTP, Depth.INSPECTED)
    if ports is None or ports == ((80, 80), (443, 443)):
        return by_name, inspected
    if ports == HTTPS:
        return (by_name,)
    if ports == HTTP:
        return (inspected,)
    if any(port_sets.contains(ports, port) for port in SERVED):
        shown = port_sets.text_of(ports)
        hint = f"write {host} for 443 and 80, or tcp://{host}:{shown} to have all of them checked by address only"
        raise RuleError(f"{host}:{shown} mixes 443 or 80 with other ports", hint)
    return (("tcp", ports, Depth.DIRECT),)


def _check_not_reserved(host: str) -> None:
    why = reserved(host[2:] if host.startswith("*.") else host)
    if why == "agentmon's own":
        raise RuleError(f"{host} is agentmon's own name", "it answers inside every bottle; take the rule out")
    if why:
        raise RuleError(f"{host} is a {why} name", f"no bottle can reach {why} addresses; take the rule out")


def _checked_path(path: str | None, scheme: str, host: str) -> str | None:
    if path is None:
        return None
    if path == "/":
        hint = f"write {scheme}://{host}, or {scheme}://{host}/* to have requests inspected"
        raise RuleError("the path '/' would allow the front page alone", hint)
    for c in "?#":
        if c in path:
            raise RuleError(f"path {path!r} has {c!r} in it", "rules look at the path only: leave out what follows it")
    if not path.isascii():
        raise RuleError(f"path {path!r} is not ASCII", "write it percent-encoded")
    if "\\" in path or any(segment in {".", ".."} for segment in path.split("/")):
        raise RuleError(f"path {path!r} is not in its plain form", "leave out '.', '..' and backslashes")
    return path


def path_matches(pattern: str, path: str) -> bool:
    """True where `path` (normalised, without query) fits `pattern`; "*" stands for any characters. Linear time."""
    first, *rest = pattern.split("*")
    if not rest:
        return path == pattern
    last = rest.pop()
    if len(path) < len(first) + len(last) or not path.startswith(first) or not path.endswith(last):
        return False
    at, end = len(first), len(path) - len(last)
    for piece in rest:
        found = path.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
