"""One system call in a loop, timed, from a cgroup that each line of stdin names: `sysloop.py`. Needs root to move.

    {"cgroup": PROCS_FILE, "what": "setsockopt"|"spawn", "times": N}

Answers nanoseconds a call, the median of CHUNKS parts of the loop: setsockopt(2) of TCP_NODELAY on one socket, or
posix_spawn and reaping of /bin/true.
"""

import json
import os
import socket
import statistics
import sys
import time

CHUNKS = 20
clock = time.perf_counter_ns


def setsockopt(times: int) -> int:
    with socket.socket() as sock:
        call = sock.setsockopt
        began = clock()
        for _ in range(times):
            call(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY
        return clock() - began


def spawn(times: int) -> int:
    began = clock()
    for _ in range(times):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return clock() - began


print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open(asked["cgroup"], "w") as procs:
        procs.write(str(os.getpid()))
    work = {"setsockopt": setsockopt, "spawn": spawn}[asked["what"]]
    part = max(1, asked["times"] // CHUNKS)
    print(json.dumps({"ns": statistics.median(work(part) / part for _ in range(CHUNKS))}), flush=True)
