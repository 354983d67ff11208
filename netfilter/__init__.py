"""netfilter: deny-by-default network namespaces for single jobs, with allowlists that change atomically.

    spec.py ─▶ render.py ─▶ transaction.py (describe, undo) ─▶ nft.py (libnftables)
                                                              └▶ netns.py (pyroute2: links, routes, rules, conntrack, diag)
    host.py puts the edges behind the `Netfilter` protocol; fake.py is the same without a kernel; probe.py asks what the kernel has.

A library of its own: it imports neither agentmon nor ebpf. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
"""
