"""Connects with or without the guard, timed: `guarded.py none|guard|guard-10000 ADDRESS NAME PORT`.

Each line of stdin is "address N" or "name N"; answers the median nanoseconds of N connects that the other side
refuses. Says first what import and install took, in nanoseconds: {"install_ns": …, "cpu_ns": …}.
"""

import json
import sys
import time

clock = time.perf_counter_ns
case, address, name, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
took = cpu = 0
if case != "none":
    more = 10_000 if case == "guard-10000" else 0
    allow = [f"{address}:{port}", f"{name}:{port}", *(f"h{n}.example.com:443" for n in range(more // 2))]
    allow += [f"10.{n >> 8}.{n & 255}.0/24:443" for n in range(more - more // 2)]
    began, cpu_began = clock(), time.process_time_ns()
    from agentmon.guard import EgressGuard

    EgressGuard.install(allow)
    took, cpu = clock() - began, time.process_time_ns() - cpu_began
print(json.dumps({"install_ns": took, "cpu_ns": cpu}), flush=True)

import socket  # noqa: E402 - after the guard: its own import is part of what it costs
import statistics  # noqa: E402


def by_address() -> int:
    sock = socket.socket()
    began = clock()
    sock.connect_ex((address, port))
    ended = clock()
    sock.close()
    return ended - began


def by_name() -> int:
    began = clock()
    try:
        socket.create_connection((name, port))
    except ConnectionRefusedError:
        return clock() - began
    raise SystemExit("connected")


for line in sys.stdin:
    way, times = line.split()
    dial = by_name if way == "name" else by_address
    print(json.dumps({"ns": statistics.median(dial() for _ in range(int(times)))}), flush=True)
