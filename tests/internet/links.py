"""The namespace of the stand-in internet, its veth to the host, and the routes: made as a whole, removed as a whole.

Under each route lies an `unreachable` one of a high metric: when the link goes first, nothing takes the default route.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.internet import taken, world

_CLONE_NEWNET = 0x40000000
_LOCK = "\0amnet-world"
_FALLBACK_METRIC = 65000
_OTHERS_S = 70.0  # longer than a closed connection waits for its peer (tcp_fin_timeout)

_OPEN = (world.DNS, world.WEB, world.DIRECT, *world.APIS.values())

# Packets to forbidden hosts are counted before anything answers; ports without a server of their own end in the sink.
_RULES = f"""
table inet amnet {{
    set seen4 {{ type ipv4_addr . inet_proto; flags dynamic; size 65535; counter; }}
    set seen6 {{ type ipv6_addr . inet_proto; flags dynamic; size 65535; counter; }}
    chain count {{
        type filter hook prerouting priority raw;
        ip daddr {world.FORBIDDEN_NETS[0]} update @seen4 {{ ip daddr . meta l4proto }}
        ip6 daddr {world.FORBIDDEN_NETS[1]} update @seen6 {{ ip6 daddr . meta l4proto }}
    }}
    chain sink {{
        type nat hook prerouting priority dstnat;
        tcp dport {{ {", ".join(map(str, world.TLS_PORTS + world.HTTP_PORTS))} }} accept
        ip daddr {world.FORBIDDEN_NETS[0]} meta l4proto {{ tcp, udp }} dnat ip to {world.DNS[0]}:{world.SINK_PORT}
        ip6 daddr {world.FORBIDDEN_NETS[1]} meta l4proto {{ tcp, udp }} dnat ip6 to [{world.DNS[1]}]:{world.SINK_PORT}
    }}
}}
"""


class Busy(RuntimeError):
    """Another stand-in internet runs on this host, or somebody talks to an address that it takes, and goes on."""


class Failed(RuntimeError):
    """ip(8) or nft(8) refused; the message is theirs."""


@contextlib.contextmanager
def only_one(within_s: float) -> Iterator[None]:
    """Hold the host's only stand-in internet; its addresses are fixed. The lock dies with the process.

    :raises Busy: after `within_s`."""
    deadline = time.monotonic() + within_s
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind(_LOCK)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Busy("another stand-in internet is running on this host") from None
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The world exists and this thread is in its namespace; afterwards the thread is back and nothing is left. Root."""
    remove()
    if left := taken.free(world.FORBIDDEN_NETS, _OTHERS_S):
        raise Busy(f"this host is connected to {', '.join(sorted(left))}, which it would take; wait for that to end")
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _make()
        _enter(Path("/run/netns") / world.NETNS)
        yield
    finally:
        _setns(host)
        os.close(host)
        remove()


def remove() -> None:
    """Remove what this or a killed run made; idempotent."""
    for argv in (
        f"ip link delete {world.HOST_LINK}",
        f"ip netns delete {world.NETNS}",
        *(f"ip route delete unreachable {net} metric {_FALLBACK_METRIC}" for net in _all_nets()),
    ):
        subprocess.run(argv.split(), capture_output=True, check=False)


def counted() -> dict[str, dict[str, int]]:
    """Bytes and packets that reached each forbidden address, by protocol. In the world's namespace."""
    listing = json.loads(_run("nft", "-j", "list", "table", "inet", "amnet"))
    seen: dict[str, dict[str, int]] = {}
    for item in listing["nftables"]:
        for element in item.get("set", {}).get("elem", []):
            address, proto = element["elem"]["val"]["concat"]
            counter = element["elem"]["counter"]
            entry = seen.setdefault(str(address), {"bytes": 0, "packets": 0})
            entry["bytes"] += counter["bytes"]
            entry["packets"] += counter["packets"]
            entry[f"{proto}_bytes"] = entry.get(f"{proto}_bytes", 0) + counter["bytes"]
    return seen


def _all_nets() -> tuple[str, ...]:
    return world.OPEN_NETS + world.FORBIDDEN_NETS + world.NOWHERE_NETS


def _make() -> None:
    netns, link = world.NETNS, world.HOST_LINK
    _batch(
        *(f"route add unreachable {net} metric {_FALLBACK_METRIC}" for net in _all_nets()),
        f"netns add {netns}",
        f"link add {link} type veth peer name eth0 netns {netns}",
        f"address add {world.HOST4}/24 dev {link}",
        f"address add {world.HOST6}/64 dev {link} nodad",
        f"link set {link} up",
    )
    _batch(
        "link set lo up",
        *(f"address add {four}/24 dev eth0" for four, _ in _OPEN),
        *(f"address add {six}/64 dev eth0 nodad" for _, six in _OPEN),
        "link set eth0 up",
        *(f"route add local {net} dev lo" for net in world.FORBIDDEN_NETS),
        "route add local 198.51.100.96/27 dev lo",  # many.allowed.example
        f"route add local {world.RACE_NET} dev lo",
        f"route add default via {world.HOST4}",
        f"route add default via {world.HOST6}",
        netns=netns,
    )
    _run("ip", "netns", "exec", netns, "nft", "-f", "-", stdin=_RULES)
    _batch(
        f"route add {world.FORBIDDEN_NETS[0]} via {world.DNS[0]} dev {link}",
        f"route add {world.FORBIDDEN_NETS[1]} via {world.DNS[1]} dev {link}",
        f"route add {world.RACE_NET} via {world.DNS[1]} dev {link}",
    )


def _batch(*commands: str, netns: str = "") -> None:
    options = ["-n", netns] if netns else []
    _run("ip", *options, "-batch", "-", stdin="".join(f"{command}\n" for command in commands))


def _run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip()}\n{stdin}")
    return done.stdout


def _enter(netns: Path) -> None:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
    finally:
        os.close(fd)


def _setns(fd: int) -> None:
    """setns(2) for this thread; os.setns is there from Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
