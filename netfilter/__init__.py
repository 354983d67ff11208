"""netfilter: deny-by-default network namespaces for single jobs, with allowlists that change atomically.

    spec.py ─▶ render.py (nft text, pure) ─▶ nft.py (libnftables: one transaction)          ┐
               flows.py  (live flows: judged pure, changed by conntrack netlink, inet_diag) ├─ host.py ─▶ kernel
               links.py  (pyroute2: veth, routes, backstop rules)   netns.py   counters.py  ┘
    fake.py keeps the same protocol (spec.Netfilter) without a kernel; probe.py asks what the kernel has.

A library of its own: it imports neither agentmon nor ebpf. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
"""
