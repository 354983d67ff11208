"""One client of a ledger: `settler.py SOCKET SLOT ROWS WINDOW RATE`. Takes its holds, says "ready", and at a line of
stdin settles them: WINDOW under way at once, or RATE a second where that is not 0. Answers {seconds, latency_ms}."""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agentmon import wire
from agentmon.blocking import BlockingChannel

path, slot, rows, window, rate = sys.argv[1], *map(int, sys.argv[2:])
channel = BlockingChannel.connect(path, 60)
channel.recv()


def answer(kind: type) -> object:
    while not isinstance(message := channel.recv(), kind):
        assert not isinstance(message, wire.Failed | wire.Denied), message
    return message


holds = []
for first in range(0, rows, 256):
    count = min(256, rows - first)
    for n in range(first, first + count):
        key = f"{os.getpid()}-{n}"
        channel.send(wire.Reserve(channel.next_id(), slot, "claude", "claude-bench", 100, 200, key))
    holds += [answer(wire.Granted).hold for _ in range(count)]
usages = [wire.Usage("claude", "claude-bench", f"{os.getpid()}-{n}", 100, output=150) for n in range(rows)]

print("ready", flush=True)
sys.stdin.readline()
sent: dict[int, float] = {}
latency = []


def settled() -> None:
    number = answer(wire.Settled).id
    latency.append(time.perf_counter() - sent.pop(number))


began = time.perf_counter()
for n, (hold, usage) in enumerate(zip(holds, usages, strict=True)):
    if rate:
        time.sleep(max(0.0, began + n / rate - time.perf_counter()))
    elif len(sent) >= window:
        settled()
    number = channel.next_id()
    sent[number] = time.perf_counter()
    channel.send(wire.Settle(number, hold, usage))
    if rate:
        settled()
while sent:
    settled()
took = time.perf_counter() - began
print(json.dumps({"seconds": took, "latency_ms": [1000 * x for x in latency]}), flush=True)
