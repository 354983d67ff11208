"""daemon: agentmond, the only process that changes kernel state. It applies what control/ decides.

__main__/app.py   one asyncio loop: control socket, services, BPF events ─▶ control.step ─▶ applier
applier.py        one method per action (kernel.py for nft, BPF and cgroups; jobs.py for what is launched)
ops.py            requests of the command line        services.py   resolver, relay, proxy, ledger
commits.py        names that the resolver proposes     reports.py sightings.py whose.py   events, their processes
eventlog.py       events to disk and followers
cgroups.py files.py persist.py netns_cookie.py        one edge each
"""
