"""What the kernel under test takes, as JSON on standard output; runs in the guest, before its tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ebpf import probe
from tests.kernel import trampoline


def main() -> None:
    lsm = Path("/sys/kernel/security/lsm")
    found = {
        "release": os.uname().release,
        "lsm": lsm.read_text(encoding="ascii") if lsm.exists() else "",
        "features": {f.feature: f.missing or "yes" for f in probe.probe()} | trampoline.findings(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
