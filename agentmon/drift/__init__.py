"""drift: whether a provider is still what agentmon was built against; a nightly job with a key of its own.

    calls.py ─▶ ask.py (edge: TLS, HTTP) ─▶ observe.py ─▶ Observation ─▶ compare.py ─▶ agentmon.render.drift
    (data)      one small request each       shapes, usage   (JSON: the       │
                                             as parsed)       baseline) ──────┘

Nothing but shapes is kept: names of fields and their types, never a value that a model said, never the key.
"""
