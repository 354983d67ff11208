"""posture: what on this host agentmon's promises rest on, looked at now and judged.

    probe_*.py ── gather.py ──▶ facts.Facts ── rules_*.py, judge.py ──▶ findings ──▶ agentmon.render.posture
     (edges: /proc, files, nft,  (frozen; what could   (pure)
      BPF, the daemon's answer)   not be seen says why)
    canary.py  a throw-away bottle that attacks itself; only what was just tried is claimed

Nothing here changes the host. A probe that fails or does not answer in time is `unknown`, never `ok`.
"""
