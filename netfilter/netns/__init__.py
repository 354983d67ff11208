"""Network namespaces and what is in them, over netlink: the only user of pyroute2.

    namespaces.py  names in /run/netns, entered by threads of their own
    wire.py        messages (encoded by pyroute2) sent many at a time, one acknowledgement each
    links.py       veth pairs, addresses, routes, neighbours, policy rules       sysctl.py  switches under /proc/sys/net
    conntrack.py   a bottle's live flows: list, re-mark, delete       sockets.py their TCP sockets: list, destroy

pyroute2's own sockets run an asyncio loop per request: 15 ms for the links of one bottle, 2 ms with one batch.
"""
