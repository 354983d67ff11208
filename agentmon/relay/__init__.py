"""relay: holds a bottle's TLS connections to the names of its policy, without decrypting them.

    accept (:443) ─ source address ─▶ slot ─ hello.py ─▶ SNI ─ gate.py ─▶ may this bottle speak to it here?
                                                                │ no: TLS alert, close, Report (repeats counted)
                                                                └ yes: Lookup ─▶ resolver; dial.py ─▶ upstream
    flow.py    one accepted connection from first byte to last; pump.py and pipes.py move the bytes
    flows.py   who has which flows: limits; closes what a new policy, a cut or a removal ends

hello and gate are pure. The name that was checked is the name that is dialled: there is no second lookup, and the
client's first bytes are passed on exactly as they came.
"""
