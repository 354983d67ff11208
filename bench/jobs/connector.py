"""connect(2), timed, from a cgroup that each line of stdin names: `connector.py NETNS`. Needs root to move itself.

    {"cgroup": PROCS_FILE, "to": [ADDRESS, PORT], "errno": EXPECTED, "times": N}

Answers the median of nanoseconds; every connect has a socket of its own, made in that cgroup.

"""

import ctypes
import json
import os
import socket
import statistics
import sys
import time

fd = os.open(sys.argv[1], os.O_RDONLY)
assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
print("ready", flush=True)

for line in sys.stdin:
    asked = json.loads(line)
    with open(asked["cgroup"], "w") as procs:
        procs.write(str(os.getpid()))
    to, took, wrong = tuple(asked["to"]), [], 0
    clock = time.perf_counter_ns
    for _ in range(asked["times"]):
        sock = socket.socket()
        began = clock()
        number = sock.connect_ex(to)
        took.append(clock() - began)
        wrong += number != asked["errno"]
        sock.close()
    print(json.dumps({"ns": statistics.median(took), "wrong": wrong}), flush=True)
