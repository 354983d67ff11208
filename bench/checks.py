"""All that the proxy can check of a request and its answer at once, beside no proxy and a bare mitmdump; 2 KB bodies.

SNI = Host = policy, a route's method, path and header, the credential put in, the body searched for secrets (`outbound:
block`), a hold taken and settled in a real ledger, the answer held and searched for injection (`inbound: block`). As
bench/proxy.py, with its upstream, load and mitmdump.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from agentmon import wire
from bench import proxy
from bench.figure import Figure, interleaved, median, pairwise, spread
from bench.process import Failed
from tests.support import proxy_rig

BODY_BYTES = 2048
CLIENTS = 16


def measure(tmp: Path, quick: bool) -> list[Figure]:
    seconds, rounds = (0.7, 2) if quick else (2.0, 5)
    with contextlib.ExitStack() as stack:
        rig = proxy_rig.start(tmp)
        stack.callback(rig.stop)
        route = wire.Route(
            proxy.SNI, auth_header="x-api-key", auth_credential="claude", methods=("POST",), paths=("/v1/*",),
            headers={"anthropic-version": "2023-*"}, outbound="block", inbound="block",
        )  # fmt: skip
        rig.bottle(f"{proxy.SNI}:443", budget=10**15, routes=(route,))
        given = wire.SetCredentials(rig.control.next_id(), proxy_rig.SLOT, rig.run, {"claude": "sk-of-the-host"})
        assert rig.ask(given).error == ""
        upstream = proxy._upstream(tmp, f"{rig.net}.1.2", stack)
        rig.lookups.address = upstream
        port, mitmdump = proxy._mitmdump(tmp, rig, stack)
        ca = tmp / "all-ca.pem"
        ca.write_text("".join(p.read_text() for p in (rig.ca, tmp / "outside-ca.pem", tmp / "mitm/mitmproxy-ca.pem")))
        to = {"direct": (upstream, 443), "mitmdump": (f"{rig.net}.0.5", port), "agentmon": (rig.address, 443)}
        pids = {"direct": (), "mitmdump": (mitmdump.pid,), "agentmon": (rig.proxy.pid,)}

        def rate(way: str, seconds: float = seconds) -> float:
            options: dict[str, Any] = {
                "to": to[way], "source": rig.source, "connect": f"{upstream}:443" if way == "mitmdump" else "",
                "ca": str(ca), "sni": proxy.SNI, "kind": "json", "clients": CLIENTS, "seconds": seconds,
                "body_bytes": BODY_BYTES,
            }  # fmt: skip
            result = proxy._load(options, pids[way])
            return float(result["requests"] / result["seconds"])

        for way in to:
            rate(way, 0.5)
        rates = interleaved(rounds, {way: partial(rate, way) for way in to})
        if not rig.nothing_held():
            raise Failed("holds are left: not every request was settled")
    ours = rates.pop("agentmon")
    peers = {way: median(values) for way, values in rates.items()}
    ratios = {way: pairwise(ours, values) for way, values in rates.items()}
    note = f"requests/s with every check on, {CLIENTS} kept connections, {BODY_BYTES} bytes each way"
    shown = f"{note}; {median(ours):.0f} req/s, bare mitmdump {peers['mitmdump']:.0f}, direct {peers['direct']:.0f}"
    bare = [a / b for a, b in zip(ours, rates["mitmdump"], strict=True)]
    return [
        Figure("proxy.checks.ratio", ratios["mitmdump"], "of mitmdump", ">= 0.7", {}, {}, spread(bare), note=shown),
        Figure("proxy.checks.rps", median(ours), "req/s", "", peers, ratios, spread(ours), note=note),
    ]
