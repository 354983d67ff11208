"""cli: the command `agentmon`. Options in, one request to the daemon or one pure function, text or JSON out.

    main.py      commands by name, imported when used; the only place that turns errors into messages and exit statuses
    control.py   the control socket: connect, start a daemon, ask      run.py pump.py   a command in a bottle
    listing.py   ps, events, usage      operator.py   cut … deny       policy.py budget.py ledger.py service.py

stdout is data, stderr is messages. Texts are composed in agentmon.render.
"""
