"""Every place on the host that agentmon writes to, as one table.

`AGENTMON_ROOT` in the environment prefixes /etc, /var/lib and /run for tests that need a second, private
installation. It is read once, by root processes only; the job's environment never reaches them.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(os.environ.get("AGENTMON_ROOT", "/"))

ETC = ROOT / "etc/agentmon"
SETTINGS = ETC / "settings.yml"
BOTTLES = ETC / "bottles"
CREDENTIALS = ETC / "credentials"  # NAME, root 0600: what routes' auth: puts in

LIB = ROOT / "var/lib/agentmon"
LEDGER = LIB / "ledger/ledger.db"  # owner agentmon-ledger, directory 0700
EVENTS = LIB / "events/events.db"  # owner root
CA_DIR = LIB / "ca"  # mitmproxy-ca.pem (key, agentmon-proxy 0600), ca.pem (certificate, 0644)
RULES = LIB / "rules"  # what the shipped rules for secrets compile to, root
SAVED = LIB / "saved"  # RUN/: private state of frozen bottles, root 0700
CI = LIB / "ci"  # NAME.json, NAME.steps: sessions of `agentmon ci`, root 0700
EPOCH = LIB / "epoch"  # last epoch handed out, decimal

RUN = ROOT / "run/agentmon"
CONTROL_SOCKET = RUN / "control.sock"
LOCK = RUN / "daemon.lock"
STATE = RUN / "state"  # SLOT.json: what a restarted daemon needs to adopt a bottle
SVC = RUN / "svc"  # resolver.sock relay.sock proxy-N.sock ledger.sock lookup.sock, *.pid, *.log
HOMES = RUN / "homes"  # private HOME of running bottles
RESTORED = RUN / "restored"  # SLOT/: /tmp and /var/tmp of bottles that came back from what was saved, root 0700
TRUST = RUN / "trust"  # SLOT.pem bundles, mounted into bottles

NETNS = Path("/run/netns")  # shared with ip(8); our names start with "am-"
BPFFS = Path("/sys/fs/bpf/agentmon")
