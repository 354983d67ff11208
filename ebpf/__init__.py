"""ebpf: cgroup programs that decide each socket operation of a bottle, and tell who made it.

    spec.py ─▶ encode.py (map bytes, pure) ─▶ maps.py (bpf(2): pinned maps, ring) ─▶ kernel
    bpf/*.bpf.c ─▶ loader.py (bcc, in a short-lived child: compile, load, attach, pin)
    links.py pins.py cgroup.py child.py: attachments, where pins stand, cgroup v2, the child that runs the loader
    programs.py (CgroupPrograms) ─▶ entries.py (elements of all policies) collect.py (events of ring and repeats)
    model.py (the verdict in Python) ─▶ fake.py (FakeBpf)     probe.py: what this kernel takes
    ring.py ─▶ events.py (decode, pure)        abi.py mirrors bpf/am_abi.h and is checked against it at start

A library of its own: it imports neither agentmon nor netfilter. Needs CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN (bpffs).
"""
