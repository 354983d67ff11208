"""netfilter: deny-by-default network namespaces for single jobs, with allowlists that change atomically.

    spec.py ─▶ elements.py  rules made disjoint          ┐
            ─▶ render.py, render_bottle.py (nft commands) ├─▶ transaction.py ─▶ nft.py , nfnetlink.py
            ─▶ verdict.py   the same decision, in Python ┘                  └─▶ netns/ (pyroute2: links, routes, flows)
    bottle.py, live.py, forwarding.py use the edges; host.py puts them behind the `Netfilter` protocol;
    fake.py is the same without a kernel; probe.py asks what the kernel has.

Pure: spec, elements, language, render, render_bottle, transaction, verdict. A library of its own: it imports neither
agentmon nor ebpf. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
"""
