"""connect(2), timed, from a cgroup that each line of stdin names: `connector.py NETNS`. Needs root to move itself.

    {"cgroup": PROCS_FILE, "to": [ADDRESS, PORT], "errno": EXPECTED, "times": N, "vouch": BOOL}

Answers the median of nanoseconds; every connect has a socket of its own, made in that cgroup. With `vouch` the process
registers as guarded and vouches for each socket before the time is taken.

"""

import ctypes
import json
import os
import socket
import statistics
import struct
import sys
import time

AM_SOL, REGISTER, VOUCH = 24941, 1, 3  # ebpf/bpf/am_abi.h

fd = os.open(sys.argv[1], os.O_RDONLY)
assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
print("ready", flush=True)

for line in sys.stdin:
    asked = json.loads(line)
    with open(asked["cgroup"], "w") as procs:
        procs.write(str(os.getpid()))
    to, took, wrong = tuple(asked["to"]), [], 0
    vouch = b""
    if asked.get("vouch"):
        vouch = struct.pack("=10s2s4sHBxI", b"", b"\xff\xff", socket.inet_aton(to[0]), to[1], socket.IPPROTO_TCP, 0)
        with socket.socket() as sock:
            sock.setsockopt(AM_SOL, REGISTER, struct.pack("=Q", 1))
    clock = time.perf_counter_ns
    for _ in range(asked["times"]):
        sock = socket.socket()
        if vouch:
            sock.setsockopt(AM_SOL, VOUCH, vouch)
        began = clock()
        number = sock.connect_ex(to)
        took.append(clock() - began)
        wrong += number != asked["errno"]
        sock.close()
    print(json.dumps({"ns": statistics.median(took), "wrong": wrong}), flush=True)
