"""CI mode: a whole runner held or observed, its traffic told by step and compared with what a repository expects.

    ci start ─ attach ─▶ bottle ─▶ events ─┐
    watch.py ─ /proc: environments ─▶ steps ┴─ ci report: what was reached, by which step, what is not in the baseline

session.py what start leaves for stop and report · steps.py names of steps, and whose an event is (pure)
watch.py the process that reads environments · place.py a namespace that steps enter · baseline.py the file (pure)
"""
