"""The relay beside other relays and beside no relay: one TCP stream through a router, and many idle connections.

    receiver ── veth ── router: relay, HAProxy, splice loop ── veth ── sender      three namespaces, no rule in any

`routed` is the same stream forwarded by the router's kernel. A relay ends one TCP connection and starts another: on two
cores that sender and receiver already fill, the second one comes out of the same processors. What a relay can reach
here is therefore what the least one (bench/jobs/splice.c) reaches. HAProxy and cc are used where they are installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.figure import Figure, against, interleaved, median, pairwise, spread
from bench.process import Failed, cpu_tree_ms, end, memory_mb, run
from tests.support import names, relay_rig
from tests.support.names import until
from tests.support.proxy_upstream import own_ca

JOBS = Path(__file__).parent / "jobs"
NAME = "other.example"  # sender.py answers other.* with bytes and no cryptography
SECURE = "web.example"
IDLE = 2000
LEAST = "splice loop"
_REDIRECT = """table inet ambench {
    chain in { type nat hook prerouting priority dstnat; tcp dport 443 redirect to :5443; }
}"""
_HAPROXY = """\
global
    maxpipes 1024
    tune.pipesize 1048576
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option splice-request
    option splice-response
listen bench
    bind {relay}:8443
    server s {web}:443
"""


def measure(tmp: Path, quick: bool) -> list[Figure]:
    size = (256 if quick else 1024) << 20
    with relay_rig.between() as net, contextlib.ExitStack() as stack:
        receiver = _route(net, tmp, size, stack)
        net.set(relay_rig.A, NAME, SECURE, limits={"connections": 2 * IDLE})
        net.set(relay_rig.B, NAME, limits={"connections": 2 * IDLE})
        return [
            *_bulk(net, tmp, stack, receiver, size, 3 if quick else 9),
            _tls(receiver, size, 3 if quick else 9),
            *_idle(net),
        ]


def _bulk(
    net: Any, tmp: Path, stack: contextlib.ExitStack, receiver: subprocess.Popen[str], size: int, rounds: int
) -> list[Figure]:
    pids = {"agentmon": net.pids["relay"], **_peers(net.world, tmp, stack)}
    ports = {"agentmon": 443, "HAProxy": 8443, LEAST: 8444}
    cpu: dict[str, list[float]] = {name: [] for name in pids}

    def rate(name: str) -> float:
        """MB/s"""
        before = cpu_tree_ms(pids[name]) if name in pids else 0.0
        to = [names.RELAY, ports[name]] if name in pids else [names.WEB, 443]
        got = _ask(receiver, do="hello", to=to, name=NAME)
        if got["bytes"] != size:
            raise Failed(f"{name}: {got['bytes']} of {size} bytes came")
        if name in pids:
            cpu[name].append((cpu_tree_ms(pids[name]) - before) / size * 1e9)
        return float(got["bytes"] / got["seconds"] / 1e6)

    got = interleaved(rounds, {name: partial(rate, name) for name in ("routed", *pids)})
    told = f"a TLS hello, then bytes without cryptography, {rounds} × {size >> 20} MiB"
    of_routed = {name: pairwise(got[name], got["routed"]) for name in pids}
    figures = [
        against("relay.stream_mb_s", "MB/s", got, "agentmon", note=told),
        Figure("relay.stream.ratio", of_routed.pop("agentmon"), "×", ">= 0.8", of_routed, spread=_each(got, "routed"),
               note="each relay by what the same router forwards without one"),
        against("relay.cpu_ms_a_gb", "ms", cpu, "agentmon"),
    ]  # fmt: skip
    if LEAST in pids:
        ratio = pairwise(got["agentmon"], got[LEAST])
        note = f"of the {LEAST}: what a relay can reach here"
        figures.append(Figure("relay.stream.least_ratio", ratio, "×", spread=_each(got, LEAST), note=note))
    return figures


def _tls(receiver: subprocess.Popen[str], size: int, rounds: int) -> Figure:
    def rate(address: str) -> float:
        got = _ask(receiver, do="tls", to=[address, 443], name=SECURE)
        if got["bytes"] != size:
            raise Failed(f"{address}: {got['bytes']} of {size} bytes came")
        return float(got["bytes"] / got["seconds"] / 1e6)

    got = interleaved(rounds, {"agentmon": partial(rate, names.RELAY), "routed": partial(rate, names.WEB)})
    note = f"the same TLS download, {rounds} × {size >> 20} MiB; MB/s beside it"
    rates = {name: median(values) for name, values in got.items()}
    return Figure("relay.tls.ratio", pairwise(got["agentmon"], got["routed"]), "×", ">= 0.8", rates,
                  spread=_each(got, "routed"), note=note)  # fmt: skip


def _each(got: dict[str, list[float]], peer: str) -> list[float]:
    return spread(a / b for a, b in zip(got["agentmon"], got[peer], strict=True))


def _peers(world: names.World, tmp: Path, stack: contextlib.ExitStack) -> dict[str, int]:
    found = {}
    if haproxy := shutil.which("haproxy"):
        config = tmp / "haproxy.cfg"
        config.write_text(_HAPROXY.format(relay=names.RELAY, web=names.WEB))
        process = world.start([haproxy, "-db", "-f", str(config)], stdout=subprocess.PIPE, text=True)
        stack.callback(end, process)
        found["HAProxy"] = process.pid
    if cc := shutil.which("cc"):
        run(cc, "-O2", "-pthread", "-o", str(tmp / "splice"), str(JOBS / "splice.c"))
        argv = [str(tmp / "splice"), names.RELAY, "8444", names.WEB, "443"]
        process = world.start(argv, stdout=subprocess.PIPE, text=True)
        stack.callback(end, process)
        if process.stdout.readline() != "ready\n":
            raise Failed("the splice loop did not start")
        found[LEAST] = process.pid
    return found


def _route(net: Any, tmp: Path, size: int, stack: contextlib.ExitStack) -> subprocess.Popen[str]:
    """The world of tests/support/names.py as a router: its first bottle and its web server move out, behind veths.

    :returns: bench/jobs/receiver.py with the bottle's address.
    """
    own_ca(tmp)
    (bottle, outside) = (_namespace(stack) for _ in range(2))
    mine = names.addr4(relay_rig.A)
    lines = [
        f"addr del {mine}/32 dev lo", f"addr del {names.WEB}/32 dev lo",
        *_link(net.world, "b0", bottle, "10.99.1", mine), *_link(net.world, "o0", outside, "10.99.2", names.WEB),
    ]  # fmt: skip
    net.world.command(["ip", "-batch", "-"], input="\n".join(lines) + "\n")
    net.world.command(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    for holder, prefix, address in ((bottle, "10.99.1", mine), (outside, "10.99.2", names.WEB)):
        inside = ["nsenter", f"--net=/proc/{holder}/ns/net", "ip"]
        for line in (
            "link set lo up", f"addr add {address}/32 dev lo", f"addr add {prefix}.2/30 dev eth0", "link set eth0 up",
            f"route add default via {prefix}.1 src {address}",
        ):  # fmt: skip
            run(*inside, *line.split())
    run("nsenter", f"--net=/proc/{outside}/ns/net", "nft", "-f", "-", stdin=_REDIRECT)
    sender = _job(stack, outside, sys.executable, str(JOBS / "sender.py"), str(tmp / "outside-leaf.pem"), str(size))
    assert sender.stdout is not None
    if sender.stdout.readline() != "ready\n":
        raise Failed("the sender did not start")
    return _job(stack, bottle, "/usr/bin/python3", "-I", str(JOBS / "receiver.py"))


def _link(world: names.World, device: str, holder: int, prefix: str, behind: str) -> Iterator[str]:
    yield f"link add {device} type veth peer name eth0 netns {holder}"
    yield f"addr add {prefix}.1/30 dev {device}"
    yield f"link set {device} up"
    yield f"route add {behind} via {prefix}.2"


def _namespace(stack: contextlib.ExitStack) -> int:
    """The process that holds it."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
    stack.callback(end, holder)
    mine = os.stat("/proc/self/ns/net").st_ino
    until(lambda: os.stat(f"/proc/{holder.pid}/ns/net").st_ino != mine)
    return holder.pid


def _job(stack: contextlib.ExitStack, holder: int, *argv: str) -> subprocess.Popen[str]:
    inside = ["nsenter", f"--net=/proc/{holder}/ns/net", *argv]
    process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(end, process)
    return process


def _ask(receiver: subprocess.Popen[str], **asked: Any) -> Any:
    assert receiver.stdin is not None and receiver.stdout is not None
    receiver.stdin.write(json.dumps(asked) + "\n")
    receiver.stdin.flush()
    return json.loads(receiver.stdout.readline())


def _idle(net: Any) -> list[Figure]:
    """2,000 flows of another bottle that say nothing after their hello; the server is beside the relay."""
    _raise_descriptors()
    pid = net.pids["relay"]
    before = memory_mb(pid, "Rss")
    hello = relay_rig.hello_of(NAME)
    with contextlib.ExitStack() as stack:
        held = names.WEB2
        net.dns.records["idle.example", "A"] = [held]
        listener = net.world.listen(held, 443)
        stack.callback(listener.close)
        net.set(relay_rig.B, "idle.example", limits={"connections": 2 * IDLE})
        hello = relay_rig.hello_of("idle.example")
        for _ in range(IDLE):
            sock = stack.enter_context(relay_rig.connect(net, relay_rig.B))
            sock.sendall(hello)
            upstream, _ = listener.accept()
            stack.enter_context(upstream)
            if upstream.recv(1 << 16) != hello:
                raise Failed("the relay did not pass the hello on")
        full = memory_mb(pid, "Rss")
    told = f"resident memory of the relay with {IDLE} idle connections; {before:.0f} MB without"
    return [
        Figure("relay.idle_2000_rss_mb", full, "MB", "<= 100", note=told),
        Figure("relay.idle_kb_a_flow", (full - before) * 1024 / IDLE, "kB"),
    ]


def _raise_descriptors() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
