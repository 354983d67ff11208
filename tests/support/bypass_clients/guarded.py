"""client.py under the real guard: guarded.py METHOD HOST PORT RULE… installs it for RULEs, then does what client.py does.

Exits with 0 or the errno; 100 for a refusal by the guard itself, 101 when the kernel takes no vouching here.
"""

from __future__ import annotations

import sys

from agentmon.guard import EgressGuard, EgressViolation
from tests.support.bypass_clients import client


def main(method: str, host: str, port: int, rules: list[str]) -> int:
    EgressGuard.install(allow=rules)
    if not EgressGuard.status().vouching:
        return 101
    try:
        return client.main(method, host, port)
    except EgressViolation:
        return 100


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
