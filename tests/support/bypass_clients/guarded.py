"""client.py under the real guard: METHOD HOST PORT RULE… installs it for RULEs, then does as client.py.

Prints 0 or the errno (100 for a refusal by the guard itself, 101 when the kernel takes no vouching here), and lives on
until its input ends, so that it can be looked at.
"""

from __future__ import annotations

import sys

from agentmon.guard import EgressGuard, EgressViolation
from tests.support.bypass_clients import client


def main(method: str, host: str, port: int, rules: list[str]) -> int:
    EgressGuard.install(allow=rules)
    if EgressGuard.status().vouching != "active":
        return 101
    try:
        return client.main(method, host, port)
    except EgressViolation:
        return 100


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]), flush=True)
    sys.stdin.read()
