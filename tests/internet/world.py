"""Who lives where in the stand-in internet: addresses, names, and what answers there. Data only.

    host ── amnet0 198.51.100.1 ══ veth ══ eth0 (namespace amnet-world) ── every address below

198.51.100.0/24 and 2001:db8:1::/64 are hosts that a policy may allow; 203.0.113.0/24 and 2001:db8:2::/64 are hosts
that no policy of a test allows: whatever arrives there is counted, on every port and protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Network

NETNS = "amnet-world"
HOST_LINK = "amnet0"
HOST4, HOST6 = "198.51.100.1", "2001:db8:1::1"

DNS = ("198.51.100.53", "2001:db8:1::53")
WEB = ("198.51.100.10", "2001:db8:1::10")
DIRECT = ("198.51.100.11", "2001:db8:1::11")
APIS = {  # the providers: what answers there is in model_apis.py; an address for each, as they share none
    name: (f"198.51.100.{number}", f"2001:db8:1::{number}")
    for number, name in enumerate(
        ("claude", "openai", "codex", "gemini", "azure", "openrouter", "mistral", "vertex", "bedrock"), start=20
    )
}
ANTHROPIC, OPENAI = APIS["claude"], APIS["openai"]
FORBIDDEN = ("203.0.113.10", "2001:db8:2::10")

OPEN_NETS = ("198.51.100.0/24", "2001:db8:1::/64")
FORBIDDEN_NETS = ("203.0.113.0/24", "2001:db8:2::/64")
NOWHERE_NETS = ("10.99.0.0/16", "fd99::/64")  # what private names answer with: unreachable while the stand-in runs

RACE = "race.example"  # nN.race.example has address number N of RACE_NET, and nobody else
RACE_NET = "2001:db8:1::a:0/112"  # in OPEN_NETS; the echo answers on each address

TLS_PORTS = (443, 8443)
HTTP_PORTS = (80, 8080)
ECHO_PORT = 9000  # TCP and UDP, on every open address
SINK_PORT = 9999  # where every other port of a forbidden host ends

TTL_S = 60


@dataclass(frozen=True)
class Name:
    """What the authoritative server says about one name; `*.` in front covers any depth below, not the name itself."""

    addresses: tuple[str, ...] = ()
    cname: str = ""
    ttl: int = TTL_S
    fault: str = ""  # servfail | silent


NAMES: dict[str, Name] = {
    "api.anthropic.com": Name(ANTHROPIC),
    "api.openai.com": Name(OPENAI),
    "chatgpt.com": Name(APIS["codex"]),
    "generativelanguage.googleapis.com": Name(APIS["gemini"]),
    "mine.openai.azure.com": Name(APIS["azure"]),
    "openrouter.ai": Name(APIS["openrouter"]),
    "api.mistral.ai": Name(APIS["mistral"]),
    "us-east5-aiplatform.googleapis.com": Name(APIS["vertex"]),
    "bedrock-runtime.us-east-1.amazonaws.com": Name(APIS["bedrock"]),
    "example.com": Name(WEB),  # what README.md and docs/quickstart.md reach
    "www.example.org": Name(FORBIDDEN),
    "www.allowed.example": Name(WEB),
    "other.allowed.example": Name(WEB),  # shares its address with www: SNI and Host tell them apart
    "direct.allowed.example": Name(DIRECT),
    "*.wild.example": Name(WEB),
    "*.mirror.example": Name(WEB),
    "chain.allowed.example": Name(cname="middle.allowed.example"),
    "middle.allowed.example": Name(cname="www.allowed.example"),
    "loop.allowed.example": Name(cname="pool.allowed.example"),
    "pool.allowed.example": Name(cname="loop.allowed.example"),
    "v4only.allowed.example": Name(DIRECT[:1]),
    "v6only.allowed.example": Name(DIRECT[1:]),
    "short.allowed.example": Name(DIRECT, ttl=1),
    "many.allowed.example": Name(tuple(f"198.51.100.{i}" for i in range(100, 180))),  # does not fit into UDP
    "servfail.allowed.example": Name(fault="servfail"),
    "silent.allowed.example": Name(fault="silent"),
    "loopback.allowed.example": Name(("127.0.0.1", "::1")),
    "metadata.allowed.example": Name(("169.254.169.254", "fd00:ec2::254")),
    "private.allowed.example": Name(("10.99.0.1", "fd99::1")),
    "mapped.allowed.example": Name(("::ffff:127.0.0.1",)),
    "untrusted.allowed.example": Name(WEB),  # its certificate is signed by nobody
    "wrongname.allowed.example": Name(WEB),  # its certificate is for another name
    "www.forbidden.example": Name(FORBIDDEN),
    "*.forbidden.example": Name(FORBIDDEN),
}

SELF_SIGNED = "untrusted.allowed.example"
MISNAMED = "wrongname.allowed.example"


def lookup(name: str) -> Name | None:
    """The entry for `name` in lower case without the trailing dot; None: it does not exist."""
    if name in NAMES:
        return NAMES[name]
    labels = name.split(".")
    if name.endswith("." + RACE) and labels[0][1:].isdecimal() and int(labels[0][1:]) < 1 << 16:
        return Name((str(IPv6Network(RACE_NET)[int(labels[0][1:])]),))
    return next((NAMES[w] for i in range(1, len(labels)) if (w := "*." + ".".join(labels[i:])) in NAMES), None)
