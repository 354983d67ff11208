"""render: data to text for people. Pure functions, no I/O, shared by the command line, reports and later the dashboard.

    words.py    one value: tokens, durations, times, text that a job supplied made safe to print
    table.py    rows to columns      bottles.py budgets.py usage.py events.py policy.py    one kind of data each
    events.py uses reasons.py (why something was refused) and states.py (what became of a bottle)

Input is the `--json` form of the contract, so that whatever is shown can also be had as data.
"""
