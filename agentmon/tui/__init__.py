"""tui: `agentmon top`. One model, two front ends.

    source.py (edge) ── Raw ─▶ model.py (pure) ── View ─▶ app.py, panes.py (textual)
     control socket, ledger    tree, rates, sorting   └─▶ agentmon.render.top: --once as text and JSON

The source asks from a thread of its own; what it could not ask is said in the view, not raised.
"""
