"""`policy explain BOTTLE DEST` beside what really comes of DEST, tried inside the bottle: same verdict, same layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.blocking import BlockingChannel
from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e

POLICY = """
allow:
  - www.allowed.example:443
  - http://www.allowed.example
  - https://other.allowed.example/v1/*
  - "*.wild.example:443"
  - "!deep.wild.example"
  - tcp://direct.allowed.example:8443
  - udp://direct.allowed.example:9000
  - 198.51.100.11:8080
  - "[2001:db8:1::11]:8080"
  - 198.51.100.11:8082
  - "!198.51.100.11:8082"
  - 203.0.113.10:443
  - 100.64.0.0/10
  - api.anthropic.com
  - chain.allowed.example:443
routes:
  - {host: chain.allowed.example, methods: [POST], paths: ["/echo"]}
"""
SETTINGS = "deny: [203.0.113.10]\n"
SERVICES = (ip_network("10.213.0.0/28"), ip_network("fd61:6d6f:6e::/124"))
PROBER = r'''
import errno, http.client, json, socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE

def probe(host, port, proto, tls, request):
    """Where it ended: {"name": error} | {"connect": error} | {"peer": address} and, of a request, its status."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM)[0]
    except OSError as e:
        return {"name": str(e)}
    sock = socket.socket(*info[:3])
    sock.settimeout(6)
    out = {"peer": info[4][0]}
    try:
        if proto == "udp":
            sock.sendto(b"ping", info[4])
            return out
        sock.connect(info[4])
        if tls:
            sock = context.wrap_socket(sock, server_hostname=host)
        if request:
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            body = b"" if request[0] == "POST" else None
            connection.request(request[0], request[1], headers={"host": host}, body=body)
            answer = connection.getresponse()
            out["status"] = answer.status
            out["body"] = answer.read(4000).decode(errors="replace")
    except OSError as e:
        out["error"] = errno.errorcode.get(e.errno, str(e.errno)) + " " + str(e)
    finally:
        sock.close()
    return out

for line in sys.stdin:
    print(json.dumps(probe(*json.loads(line))), flush=True)
'''


@dataclass(frozen=True)
class Dest:
    """`tried`: (host, port, protocol, TLS, (method, path)), what a client makes of the destination."""

    text: str
    host: str
    port: int = 443
    proto: str = "tcp"
    request: tuple[str, str] | None = None

    @property
    def tried(self) -> tuple[Any, ...]:
        return self.host, self.port, self.proto, self.port == 443 and self.proto == "tcp", self.request


GET = ("GET", "/")
DESTS = [
    # by name
    Dest("www.allowed.example", "www.allowed.example", request=GET),
    Dest("WWW.Allowed.Example.:443", "www.allowed.example", request=GET),
    Dest("https://www.allowed.example/any/path", "www.allowed.example", request=("GET", "/any/path")),
    Dest("a.wild.example:443", "a.wild.example", request=GET),
    Dest("c.wild.example", "c.wild.example", request=GET),
    Dest("wild.example", "wild.example"),
    Dest("deep.wild.example", "deep.wild.example"),
    Dest("http://d.wild.example/", "d.wild.example", 80, request=GET),
    Dest("e.wild.example:80", "e.wild.example", 80, request=GET),
    Dest("a.wild.example:8443", "a.wild.example", 8443),
    Dest("udp://www.allowed.example:443", "www.allowed.example", 443, "udp"),
    Dest("tcp://www.allowed.example:22", "www.allowed.example", 22),
    Dest("nobody.forbidden.example", "nobody.forbidden.example"),
    Dest("nobody2.forbidden.example:8080", "nobody2.forbidden.example", 8080),
    Dest("udp://nobody3.forbidden.example:53", "nobody3.forbidden.example", 53, "udp"),
    Dest("xn--bcher-kva.example", "xn--bcher-kva.example"),
    # inspected
    Dest("http://www.allowed.example/", "www.allowed.example", 80, request=GET),
    Dest("https://other.allowed.example/v1/x", "other.allowed.example", request=("GET", "/v1/x")),
    Dest("https://other.allowed.example/v2/x", "other.allowed.example", request=("GET", "/v2/x")),
    Dest("http://other.allowed.example/v1/x", "other.allowed.example", 80, request=("GET", "/v1/x")),
    Dest("https://chain.allowed.example/echo", "chain.allowed.example", request=("POST", "/echo")),
    Dest("https://chain.allowed.example/bulk", "chain.allowed.example", request=("POST", "/bulk")),
    # a provider's
    Dest("https://api.anthropic.com/v1/models", "api.anthropic.com", request=("GET", "/v1/models")),
    Dest("https://api.anthropic.com/v1/unknown", "api.anthropic.com", request=("GET", "/v1/unknown")),
    Dest("http://api.anthropic.com/", "api.anthropic.com", 80, request=GET),
    Dest("api.anthropic.com:8444", "api.anthropic.com", 8444),
    Dest("api.openai.com", "api.openai.com"),
    # agentmon's own
    Dest("http://agentmon.internal/healthz", "agentmon.internal", 80, request=("GET", "/healthz")),
    Dest("agentmon.internal:22", "agentmon.internal", 22),
    Dest("10.213.0.2:53", "10.213.0.2", 53),
    Dest("10.213.0.3:80", "10.213.0.3", 80),
    Dest("10.213.0.1:22", "10.213.0.1", 22),
    Dest("[fd61:6d6f:6e::1]:22", "fd61:6d6f:6e::1", 22),
    # direct names
    Dest("direct.allowed.example:8443", "direct.allowed.example", 8443),
    Dest("direct.allowed.example", "direct.allowed.example"),
    Dest("udp://direct.allowed.example:9000", "direct.allowed.example", 9000, "udp"),
    Dest("udp://direct.allowed.example:9001", "direct.allowed.example", 9001, "udp"),
    Dest("direct.allowed.example:8444", "direct.allowed.example", 8444),
    # addresses
    Dest("198.51.100.11:8080", "198.51.100.11", 8080),
    Dest("[2001:db8:1::11]:8080", "2001:db8:1::11", 8080),
    Dest("tcp://[::ffff:198.51.100.11]:8080", "::ffff:198.51.100.11", 8080),
    Dest("198.51.100.11:8082", "198.51.100.11", 8082),
    Dest("203.0.113.10", "203.0.113.10"),
    Dest("203.0.113.11:80", "203.0.113.11", 80),
    Dest("[2001:db8:2::10]:80", "2001:db8:2::10", 80),
    Dest("udp://203.0.113.11:53", "203.0.113.11", 53, "udp"),
    # protected
    Dest("169.254.169.254:80", "169.254.169.254", 80),
    Dest("100.100.100.200:80", "100.100.100.200", 80),
    Dest("udp://224.0.0.251:5353", "224.0.0.251", 5353, "udp"),
    Dest("0.0.0.0:80", "0.0.0.0", 80),
    Dest("[fe80::1]:80", "fe80::1", 80),
    Dest("[64:ff9b::c633:640b]:80", "64:ff9b::c633:640b", 80),
    Dest("127.0.0.1:8080", "127.0.0.1", 8080),
    Dest("[::1]:8080", "::1", 8080),
    Dest("localhost:8080", "localhost", 8080),
    Dest("truth:8080", "truth", 8080),
]


class Place:
    """One bottle with the policy, and a prober in it."""

    def __init__(self, world: World, manifest: Path) -> None:
        self.world = world
        self.job: Job = world.run("--name", "truth", "--policy", str(manifest), "--", "python3", "-u", "-c", PROBER)
        until(lambda: [r["phase"] for r in world.rows("ps")] == ["running"])

    def explain(self, *texts: str) -> list[dict[str, Any]]:
        """What the daemon says of each: the command line's own question."""
        channel = BlockingChannel.connect(str(self.world.run_dir / "control.sock"))
        replies = []
        for text in texts:
            request = wire.Request(channel.next_id(), "explain", {"bottle": "truth", "dest": text})
            (reply,) = [answer for answer in channel.stream(request) if isinstance(answer, wire.Reply)]
            assert not reply.error, (text, reply.error)
            replies.append(reply.value["dest"])
        channel.close()
        return replies

    def try_it(self, dest: Dest) -> dict[str, Any]:
        self.job.say(json.dumps(dest.tried))
        came: dict[str, Any] = json.loads(self.job.line(30))
        return came

    def end(self) -> None:
        assert self.job.process.stdin is not None
        self.job.process.stdin.close()
        self.job.process.wait(20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tmp = tmp_path_factory.mktemp("truth")
    manifest = tmp / "truth.yml"
    manifest.write_text(POLICY)
    with World(tmp, SETTINGS) as world:
        world.start_daemon()
        made = Place(world, manifest)
        yield made
        made.end()


def seen(came: dict[str, Any], dest: Dest, events: list[dict[str, Any]]) -> tuple[str, str]:
    """(verdict, layer) of what came: of a refusal by its event, else by where the client found itself."""
    mine = [e for e in events if e["verdict"] == "refused" and _is_about(e, dest, came)]
    if "name" in came or "EPERM" in came.get("error", "") or "egress_denied" in came.get("body", ""):
        assert mine, f"{dest.text} was refused, and no event says so: {came}"
        return "refused", str(mine[0]["layer"])
    assert "error" not in came or came["error"].startswith("ECONNREFUSED"), came
    peer = ip_address(came["peer"])
    if peer.is_loopback:
        return "allowed", "bottle-nft"
    return "allowed", "service" if any(peer in network for network in SERVICES) else "bpf"


def _is_about(event: dict[str, Any], dest: Dest, came: dict[str, Any]) -> bool:
    at = {dest.host.lower(), dest.host, came.get("peer", "")}
    if event["kind"] == "dns":
        return event.get("host") in at
    same_port = (event.get("port"), event.get("proto")) == (dest.port, dest.proto)
    return same_port and bool({event.get("host"), event.get("dst")} & at)


def test_what_is_explained_is_what_comes_of_it(place: Place) -> None:
    """All are tried first, so that events are read once."""
    came = [place.try_it(dest) for dest in DESTS]
    last, last_came = [pair for pair in zip(DESTS, came, strict=True) if "EPERM" in pair[1].get("error", "")][-1]
    until(lambda: any(_is_about(e, last, last_came) for e in place.world.events("truth")))  # the ring is in order
    told = place.world.events("truth")
    wrong = {}
    for dest, what, said in zip(DESTS, came, place.explain(*(dest.text for dest in DESTS)), strict=True):
        methods = said.get("methods")
        says = "refused" if methods and dest.request and dest.request[0] not in methods else said["verdict"]
        verdict, layer = seen(what, dest, told)
        fits = (
            said["layer"] in {"relay", "proxy", "resolver"}
            if layer == "service"
            else layer in said["layer"].split(", ")
        )
        if (says, fits) != (verdict, True):
            wrong[dest.text] = {"said": (says, said["layer"]), "came": (verdict, layer)}
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(DESTS) >= 50


@pytest.mark.parametrize(
    ("dest", "hint"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("https://user:secret@h.example/", "credentials"),
        ("h.example:99999", "1 to 65535"),
        ("10.*", "10.0.0.0/8"),
        ("*.wild.example", "one host"),
        ("!www.allowed.example", "leave the '!' out"),
        ("a b.example", ""),
        ("h.example:80,81", "one port"),
        ("", ""),
    ],
)
def test_garbage_is_an_error_with_what_to_write_instead(place: Place, dest: str, hint: str) -> None:
    done = place.world.agentmon("policy", "explain", "truth", dest, check=False)
    assert done.returncode == 2 and done.stdout == "" and "destination" in done.stderr and hint in done.stderr
