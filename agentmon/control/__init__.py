"""control: what should happen, decided without touching anything.

    state.py    Bottle, Host: frozen values        actions.py   what the daemon can be told to do, each with describe()
    events.py   what can happen                    plans.py     actions of start, stop, cut, resume, policy change
    machine.py  (state, event) ─▶ (state, actions)

No I/O, no clock: the daemon passes times in. Every transition is tested as a transcript.
"""
