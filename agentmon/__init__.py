"""agentmon: hold AI agents and CI jobs to a network policy and a token budget, from outside the job.

    policy file ─▶ policy/ ─▶ compile.py ─▶ netfilter specs ┐
                                          ─▶ ebpf specs      ├─▶ daemon/ applies (the only one that does)
                                          ─▶ wire.BottleView ┘      │
    bottle ─ DNS ─▶ resolver/ ── Commit ──────────────────────────▶ │
           ─ TLS ─▶ relay/ or proxy/ ── reserve, settle ─▶ ledger/ ─┘ (Crossed ─▶ cut)

Importing this package imports nothing else: `agentmon.guard` must stay cheap.
"""

__version__ = "0.1.0"
