"""launch: from a frozen description of a job to a process in its bottle, and nothing else of the host in sight.

    daemon ── client.Spawner ──(AF_UNIX packets, descriptors)──▶ spawner.py: root, single-threaded, outlives the daemon
                                                                    │ fork
                                   stdio, session, setns(net), wait │
                                   move into the frozen leaf cgroup │ (thawed by the daemon after the probe)
                                                                    ▼
    bwrap (argv.py: mounts, pid/ipc/uts namespaces, seccomp.py) ─▶ setsid ─▶ setpriv (uid, no capabilities) ─▶ command

What the daemon uses (imported from the module named, so that the root process stays small)::

    from agentmon.launch.client import Spawner
    from agentmon.launch.spec import LaunchSpec, ProbeSpec, ProbeResult, Spawned, Exited, Job
    from agentmon.launch.etc import etc_files               # pure: resolv.conf, hosts, passwd … for LaunchSpec.files
    from agentmon.launch.environment import job_environment # pure: the caller's environment made fit for a bottle

    spawner = Spawner(path=paths.SVC / "spawner.sock")
    jobs: list[Job] = await spawner.start()      # adopts a running spawner (its jobs) or starts one
    spawned: Spawned = await spawner.spawn(spec) # the process waits in spec.cgroup (frozen); nothing of the job ran yet
        spawned.pid                              # bwrap's pid on the host
        spawned.fds                              # the caller's to send on and close:
                                                 #   tty: (master, status)   else: (stdin_w, stdout_r, stderr_r, status)
    result: ProbeResult = await spawner.probe(probe_spec)    # result.ok, result.problems
    await spawner.signal(slot, signum)           # to the command (terminal signals: to its process group)
    exited: Exited = await spawner.exits.get()   # slot, run, exit, signal   (asyncio.Queue)
    spawner.lost                                 # asyncio.Event: set when the spawner process has gone
    await spawner.close()                        # jobs go on; an idle spawner without a daemon ends by itself

The status descriptor yields one JSON line `{"exit": N, "signal": N}` when the command ends, then end of file; end of
file without a line means that the spawner itself was killed. `exit` is as a shell reports it (128 + signal).
All client calls raise agentmon.errors.AgentmonError subclasses.
"""
