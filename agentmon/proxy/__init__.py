"""proxy: the workers that decrypt inspected names, meter providers, and answer what is refused.

    bottle ─TLS, SNI─▶ edge_connection (one per client connection) ─ hooks ─▶ edge.Hooks
                           │                ├ decide.py     request facts + bottle → Allow | Refuse | Tell (pure)
                           │                ├ exchange.py   hold → forward → settle | release, exactly once
                           │                └ tap.py        copy of the answer → provider's parser (pure)
    upstream ◀ vetted ─────┘
      address
    worker.py  control messages: SetBottle, DropBottle, CutBottle      bottles bodies settlement introspect: pure

mitmproxy is seen by edge*.py only. Every hook is wrapped: an exception ends the connection and is reported.
"""
