"""One TCP stream out of a bottle, by a direct rule and through the relay, beside a plain namespace with veth and NAT.

Sender and receiver are Python, but the bytes are moved by sendfile(2), by OpenSSL in pieces of 1 MiB, and by recv(2)
into one buffer; the kernel's copying (plain) and AES (TLS) are what limits `plain namespace` on two cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.figure import Figure, against, interleaved, median, pairwise, spread
from bench.process import Failed, end, run
from tests.internet import world as internet
from tests.support.live import Job, World
from tests.support.proxy_upstream import own_ca

JOBS = Path(__file__).parent / "jobs"
NAMED, RAW = "www.allowed.example", "other.allowed.example"
TO = internet.DIRECT[0]
_REDIRECT = """table inet ambench {
    chain in { type nat hook prerouting priority dstnat - 1; tcp dport 443 redirect to :5443; }
}"""


def measure(tmp: Path, quick: bool) -> list[Figure]:
    size = (128 if quick else 512) << 20
    rounds = 3 if quick else 9
    with World(tmp) as world, contextlib.ExitStack() as stack:
        _sender(tmp, size, stack)
        beside = Plain(stack)  # first: what the daemon itself made a router of is closed to others
        world.start_daemon()
        rules = [f"--allow=tcp://{TO}:{port}" for port in (5201, 5202, 5443)]
        rules += [f"--allow={name}:443" for name in (NAMED, RAW)]
        words = (*rules, "--ro", str(JOBS), "--", "/usr/bin/python3", "-I", str(JOBS / "receiver.py"))
        bottle = Bottle(world.run("--name", "bulk", *words))
        relay = {name: bottle.ask(do="resolve", name=name) for name in (NAMED, RAW)}
        figures = [
            *_bulk(bottle, beside, relay, size, rounds),
            _accepted(bottle, beside, rounds),
        ]
        bottle.end()
    return figures


def _bulk(bottle: Bottle, beside: Plain, relay: dict[str, str], size: int, rounds: int) -> list[Figure]:
    def rate(who: Bottle | Plain, **asked: Any) -> float:
        """MB/s"""
        got = who.ask(**asked)
        if got["bytes"] != size:
            raise Failed(f"{asked}: {got['bytes']} of {size} bytes came")
        return float(got["bytes"] / got["seconds"] / 1e6)

    plain = interleaved(
        rounds,
        {
            "direct rule": partial(rate, bottle, do="plain", to=[TO, 5201]),
            "plain veth+NAT": partial(rate, beside, do="plain", to=[TO, 5201]),
        },
    )
    tls = interleaved(
        rounds,
        {
            "name rule": partial(rate, bottle, do="tls", to=[relay[NAMED], 443], name=NAMED),
            "direct rule": partial(rate, bottle, do="tls", to=[TO, 5443], name=NAMED),
            "plain veth+NAT": partial(rate, beside, do="tls", to=[TO, 5443], name=NAMED),
        },
    )
    raw = interleaved(
        rounds,
        {
            "name rule": partial(rate, bottle, do="hello", to=[relay[RAW], 443], name=RAW),
            "direct rule": partial(rate, bottle, do="hello", to=[TO, 5443], name=RAW),
        },
    )
    told = f"{rounds} × {size >> 20} MiB each"
    return [
        _ratio("bulk.ratio", plain, "direct rule", "plain veth+NAT", ">= 0.95", f"plain TCP, {told}"),
        against("bulk.direct_mb_s", "MB/s", plain, "direct rule"),
        _ratio("relay.bulk.ratio", tls, "name rule", "direct rule", ">= 0.8", f"the same TLS download, {told}"),
        against("relay.bulk_mb_s", "MB/s", tls, "name rule"),
        _ratio(
            "relay.raw.ratio", raw, "name rule", "direct rule", "",
            f"a TLS hello, then bytes without cryptography: nothing but copying, {told}",
        ),
        against("relay.raw_mb_s", "MB/s", raw, "name rule"),
    ]  # fmt: skip


def _ratio(id: str, got: dict[str, list[float]], ours: str, theirs: str, goal: str, note: str) -> Figure:
    each = [a / b for a, b in zip(got[ours], got[theirs], strict=True)]
    return Figure(id, pairwise(got[ours], got[theirs]), "×", goal, spread=spread(each), note=note)


def _accepted(bottle: Bottle, beside: Plain, rounds: int) -> Figure:
    def p50(who: Bottle | Plain) -> float:
        return median(who.ask(do="connect", to=[TO, 5202], times=200))

    p50(bottle)
    got = interleaved(rounds, {"bottle": partial(p50, bottle), "plain veth+NAT": partial(p50, beside)})
    added = [a - b for a, b in zip(got["bottle"], got["plain veth+NAT"], strict=True)]
    figure = Figure("connect.accepted.added_us", median(added), "µs", "<= 20", spread=spread(added))
    figure.peers = {name: median(values) for name, values in got.items()}
    figure.note = "accepted TCP connect by a direct rule, p50 of 200 a round: programs, both nft tables, NAT"
    return figure


class Bottle:
    """The receiver in a bottle."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def ask(self, **asked: Any) -> Any:
        self._job.say(json.dumps(asked))
        return json.loads(self._job.line(60))

    def end(self) -> None:
        status, _, said = self._job.end()
        if status != 0:
            raise Failed(f"the receiver in the bottle: {status} {said}")


class Plain:
    """The receiver in a namespace with a veth pair and masquerading, and no rule of ours."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        name, link = f"ambulk{os.getpid()}", f"ambk{os.getpid()}"
        net = f"10.{100 + os.getpid() % 100}.250"
        stack.callback(_quietly, "nft", "delete", "table", "ip", name)
        stack.callback(_quietly, "ip", "netns", "delete", name)
        stack.callback(_quietly, "ip", "link", "delete", link)
        run("ip", "netns", "add", name)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{net}.1/30", "dev", link)
        run("ip", "link", "set", link, "up")
        for line in ("link set lo up", f"address add {net}.2/30 dev eth0", "link set eth0 up",
                     f"route add default via {net}.1"):  # fmt: skip
            run("ip", "-n", name, *line.split())
        for device in (link, internet.HOST_LINK):
            Path(f"/proc/sys/net/ipv4/conf/{device}/forwarding").write_text("1")
        rule = f"chain out {{ type nat hook postrouting priority srcnat; ip saddr {net}.2 masquerade; }}"
        run("nft", "-f", "-", stdin=f"table ip {name} {{ {rule}; }}")
        argv = ["nsenter", f"--net=/run/netns/{name}", "/usr/bin/python3", "-I", str(JOBS / "receiver.py")]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(end, self._process)

    def ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False)


def _sender(tmp: Path, size: int, stack: contextlib.ExitStack) -> None:
    """In the stand-in internet's namespace, behind every name's port 443; the namespace takes all of it with it."""
    own_ca(tmp)
    inside = ("nsenter", f"--net=/run/netns/{internet.NETNS}")
    run(*inside, "nft", "-f", "-", stdin=_REDIRECT)
    argv = [*inside, sys.executable, str(JOBS / "sender.py"), str(tmp / "outside-leaf.pem"), str(size)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(end, process)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise Failed("the sender did not start")
