"""The metering worker with a real ledger, beside no proxy and a bare mitmdump: requests, CPU, first and paced deltas.

All of it on loopback addresses: 127.A.0.4 the worker, .5 mitmdump, .16 the client, 127.A.1.2 the upstream. Each has
a process of its own; upstream and load are Python as well, so `direct` shows how much room they leave.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.figure import Figure, interleaved, median, pairwise, quantile, spread
from bench.process import ROOT, Failed, cpu_ms, end, memory_mb
from tests.support import proxy_rig

JOBS = Path(__file__).parent / "jobs"
SNI = "api.anthropic.com"
KINDS = {"c1": ("json", 1), "c16": ("json", 16), "sse": ("sse", 1), "paced": ("paced", 4)}
STREAMS = 200  # at once, for the memory they need
WAYS = ("direct", "mitmdump", "agentmon")
_ALL, _WORKER = slice(None), slice(1)  # of the processes whose CPU is counted: the worker, the ledger
_ADDON = "def responseheaders(flow):\n    flow.response.stream = True\n"


def measure(tmp: Path, quick: bool) -> list[Figure]:
    seconds = 0.7 if quick else 2.0
    with contextlib.ExitStack() as stack:
        rig = proxy_rig.start(tmp)
        stack.callback(rig.stop)
        rig.bottle("api.anthropic.com:443", budget=10**15)
        upstream = _upstream(tmp, f"{rig.net}.1.2", stack)
        rig.lookups.address = upstream
        port, mitmdump = _mitmdump(tmp, rig, stack)
        assert rig.ledger is not None
        pids = {"agentmon": (rig.proxy.pid, rig.ledger.pid), "mitmdump": (mitmdump.pid,), "direct": ()}
        ca = tmp / "all-ca.pem"
        ca.write_text("".join(p.read_text() for p in (rig.ca, tmp / "outside-ca.pem", tmp / "mitm/mitmproxy-ca.pem")))
        to = {"direct": (upstream, 443), "mitmdump": (f"{rig.net}.0.5", port), "agentmon": (rig.address, 443)}

        def load(kind: str, way: str, seconds: float = seconds) -> dict[str, Any]:
            name, clients = KINDS[kind]
            options = {
                "to": to[way], "source": rig.source, "connect": f"{upstream}:443" if way == "mitmdump" else "",
                "ca": str(ca), "sni": SNI, "kind": name, "clients": clients, "seconds": seconds,
            }  # fmt: skip
            return _load(options, pids[way])

        def memory() -> dict[str, float]:
            return {way: memory_mb(pids[way][0], "Pss") for way in WAYS if pids[way]}

        for way in WAYS:
            load("c16", way, 0.5)
        idle, full = memory(), {}
        for way in idle:
            options = {"to": to[way], "source": rig.source, "connect": f"{upstream}:443" if way == "mitmdump" else "",
                       "ca": str(ca), "sni": SNI, "kind": "slow", "clients": STREAMS, "seconds": 0.1}  # fmt: skip
            full[way] = _load(options, (), partial(memory_mb, pids[way][0], "Pss"))["during"]
        seen: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for kind in KINDS:
            rounds = (1 if kind == "paced" else 2) if quick else (3 if kind == "paced" else 5)
            seen[kind] = _rounds(rounds, partial(load, kind))
        after = memory()
        if rig.nothing_held() is False:
            raise Failed("holds are left: not every request was settled")
    return [
        *_json(seen),
        *_streams(seen),
        *_memory(idle, full, after, sum(r["requests"] for r in seen["c16"]["agentmon"])),
    ]


def _memory(idle: dict[str, float], full: dict[str, float], after: dict[str, float], requests: int) -> list[Figure]:
    def beside(id: str, values: dict[str, float], goal: str, note: str) -> Figure:
        return Figure(id, values["agentmon"], "MB", goal, {"mitmdump": values["mitmdump"]}, note=note)

    return [
        beside("proxy.pss_mb", idle, "", "proportional set size of the worker, after a few requests"),
        beside("proxy.pss_200_mb", full, "<= 110", f"with {STREAMS} slow streams under way"),
        beside("proxy.pss_after_mb", after, "", f"after all of this load, {requests} requests at c=16 among it"),
    ]


def _rounds(rounds: int, load: Callable[[str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kept: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}

    def once(way: str) -> float:
        kept[way].append(load(way))
        return 0.0

    interleaved(rounds, {way: partial(once, way) for way in WAYS})
    return kept


def _json(seen: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Figure]:
    def rates(kind: str) -> dict[str, list[float]]:
        return {way: [r["requests"] / r["seconds"] for r in seen[kind][way]] for way in WAYS}

    def p50(kind: str, way: str) -> list[float]:
        return [median(r["latency_ms"]) for r in seen[kind][way]]

    def beside(id: str, kind: str, goal: str, note: str = "") -> Figure:
        got = rates(kind)
        ours = got.pop("agentmon")
        peers = {way: median(v) for way, v in got.items()}
        return Figure(id, median(ours), "req/s", goal, peers, {w: pairwise(ours, v) for w, v in got.items()},
                      spread(ours), note=note)  # fmt: skip

    added = [a - b for a, b in zip(p50("c1", "agentmon"), p50("c1", "direct"), strict=True)]
    added_bare = [a - b for a, b in zip(p50("c1", "mitmdump"), p50("c1", "direct"), strict=True)]
    return [
        beside("proxy.json.rps", "c1", ">= 450", "one kept connection; each request held and settled in a real ledger"),
        beside("proxy.json.c16.rps", "c16", "", "16 kept connections"),
        _metering(seen, "proxy.metering.ratio", "c1", "<= 1.15", _ALL, "worker and ledger, c=1"),
        _metering(seen, "proxy.metering.c16.ratio", "c16", "<= 1.15", _ALL, "worker and ledger, c=16"),
        _metering(seen, "proxy.metering.worker_ratio", "c1", "", _WORKER, "the worker alone, c=1"),
        Figure("proxy.json.added_ms", median(added), "ms", peers={"mitmdump": median(added_bare)},
               spread=spread(added), note="p50 of a request less p50 direct, c=1"),
    ]  # fmt: skip


def _metering(
    seen: dict[str, dict[str, list[dict[str, Any]]]], id: str, kind: str, goal: str, parts: slice, note: str
) -> Figure:
    """CPU a request over bare mitmdump's, round by round, with all that a bottle is held to unless told otherwise."""

    def cpu(way: str, parts: slice) -> list[float]:
        return [sum(r["cpu_ms"][parts]) / r["requests"] for r in seen[kind][way]]

    ours, bare = cpu("agentmon", parts), cpu("mitmdump", _ALL)
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    ms = (
        f"; CPU a request {median(ours):.2f} ms, mitmdump {median(bare):.2f}; searches of requests and answers included"
    )
    return Figure(id, median(ratios), "×", goal, spread=spread(ratios), note=note + ms)


def _streams(seen: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Figure]:
    first = {way: [median(r["first_ms"]) for r in seen["sse"][way]] for way in WAYS}
    whole = {way: [median(r["latency_ms"]) for r in seen["sse"][way]] for way in WAYS}
    delay = {way: [quantile(r["delay_ms"], 0.99) for r in seen["paced"][way]] for way in WAYS}
    added = [a - b for a, b in zip(first["agentmon"], first["direct"], strict=True)]
    bare = [a - b for a, b in zip(first["mitmdump"], first["direct"], strict=True)]
    calm = {way: [median(r["first_ms"]) for r in seen["paced"][way]] for way in WAYS}
    calm_added = [a - b for a, b in zip(calm["agentmon"], calm["direct"], strict=True)]
    calm_bare = [a - b for a, b in zip(calm["mitmdump"], calm["direct"], strict=True)]
    return [
        _metering(seen, "proxy.metering.sse.ratio", "sse", "", _ALL, "worker and ledger, streams of 200 deltas"),
        Figure("proxy.ttfb_added_ms", median(added), "ms", "<= 3", {"mitmdump": median(bare)}, {}, spread(added),
               note=f"first of 200 deltas written at full speed; direct {median(first['direct']):.2f} ms"),
        Figure("proxy.ttfb_paced_added_ms", median(calm_added), "ms", "", {"mitmdump": median(calm_bare)}, {},
               spread(calm_added), note="first delta where the others follow at 50/s, as models write"),
        Figure("proxy.sse.whole_ms", median(whole["agentmon"]), "ms", "",
               {w: median(v) for w, v in whole.items() if w != "agentmon"}, {}, spread(whole["agentmon"]),
               note="200 deltas at full speed"),
        Figure("proxy.paced.p99_ms", median(delay["agentmon"]), "ms", "<= 2.5",
               {w: median(v) for w, v in delay.items() if w != "agentmon"}, {}, spread(delay["agentmon"]),
               note="a delta, upstream's write to client's read; 4 streams of 50 deltas/s"),
    ]  # fmt: skip


def _upstream(tmp: Path, address: str, stack: contextlib.ExitStack) -> str:
    process = subprocess.Popen(
        [sys.executable, str(JOBS / "upstream.py"), str(tmp / "outside-leaf.pem"), address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(end, process)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise Failed("the upstream did not start")
    return address


def _mitmdump(tmp: Path, rig: proxy_rig.Rig, stack: contextlib.ExitStack) -> tuple[int, subprocess.Popen[bytes]]:
    program = shutil.which("mitmdump", path=str(ROOT / ".venv/bin"))
    if program is None:
        raise Failed("no mitmdump beside the interpreter: make setup")
    (tmp / "addon.py").write_text(_ADDON)
    port, log = 8080, tmp / "mitmdump.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "-q", "--listen-host", f"{rig.net}.0.5", "-p", str(port), "--set", f"confdir={tmp}/mitm", "--set",
             f"ssl_verify_upstream_trusted_ca={tmp}/outside-ca.pem", "-s", str(tmp / "addon.py")],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    stack.callback(end, process)
    deadline = time.monotonic() + 20
    while not (tmp / "mitm/mitmproxy-ca.pem").exists() or not _listens(f"{rig.net}.0.5", port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"mitmdump did not start: {log.read_text()}")
        time.sleep(0.05)
    return port, process


def _listens(address: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((address, port)) == 0


def _load(options: dict[str, Any], pids: tuple[int, ...], during: Callable[[], float] | None = None) -> dict[str, Any]:
    """What jobs/load.py measured, and the CPU milliseconds of each process in its window.

    :param during: called two seconds into the window.
    """
    process = subprocess.Popen(
        [sys.executable, str(JOBS / "load.py"), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "go\n":
            raise Failed(f"load: {process.stderr.read().strip()[-600:]}")
        before = [cpu_ms(pid) for pid in pids]
        if during is not None:
            time.sleep(2.0)
        value = during() if during is not None else 0.0
        line = process.stdout.readline()
        after = [cpu_ms(pid) for pid in pids]
        if not line:
            raise Failed(f"load: {process.stderr.read().strip()[-600:]}")
        result: dict[str, Any] = json.loads(line)
        return result | {"during": value, "cpu_ms": [b - a for a, b in zip(before, after, strict=True)]}
    finally:
        end(process)
