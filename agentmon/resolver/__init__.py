"""resolver: the only place where a bottle learns an address; unprivileged, in the service namespace.

    UDP, TCP :53 ─ server.py ─▶ desk.py ─ message.parse ─▶ answer.decide(name, view)
                                  │                            │ denied   → NXDOMAIN now, reporting counts
                                  │                            │ service  → relay's or proxy's address now
                                  │                            └ upstream → resolve.py, turns.py
                                  │                                          │ cache.py ◀─ chain.py ◀─ upstream.py
                                  │                                          └ strip.py: what is never answered
                                  └◀─ message.reply ◀─ commits.py ─ Commit ─▶ daemon: all layers open, then the answer
    lookup.sock ─ lookups.py ─▶ decide_name ─▶ resolve.py ─▶ commits.py (purpose "service")
    control socket ─ __main__.py ─▶ views: one View per bottle, replaced as a whole

message, answer, chain, cache, rate, shares and strip are pure (time is passed in); server, upstream and lookups do I/O.
"""
