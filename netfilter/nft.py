"""libnftables, the only user of it: one context per network namespace, one call per transaction. Needs CAP_NET_ADMIN.

A context's netlink socket belongs to the namespace of the thread that made it, for good.
"""

from __future__ import annotations

import errno
import json
import re
from typing import Any

from netfilter import netns
from netfilter.errors import KernelRefused, Missing

_ERRNO = {
    "No such file or directory": errno.ENOENT,
    "File exists": errno.EEXIST,
    "Operation not permitted": errno.EPERM,
    "Device or resource busy": errno.EBUSY,
    "Operation not supported": errno.EOPNOTSUPP,
    "Invalid argument": errno.EINVAL,
}


class Nft:
    """One context.

    :param namespace: name in /run/netns; "" is the caller's own.
    :raises Missing: no libnftables.
    """

    def __init__(self, namespace: str = "") -> None:
        self._context: Any = netns.inside(namespace, _context) if namespace else _context()

    def run(self, text: str, what: str = "nft transaction") -> None:
        """Apply `text` (nft(8) syntax) as one transaction: all of it, or nothing.

        :raises KernelRefused: with the first line that nft complained about.
        """
        status, _, complaint = self._context.cmd(text)
        if status != 0:
            first = next((line for line in str(complaint).splitlines() if "rror" in line), str(complaint).strip())
            found = re.search(r": ([A-Z][^:;]+)(?:;|$)", first)
            number = _ERRNO.get(found.group(1).strip() if found else "", errno.EINVAL)
            raise KernelRefused(number, what, first)

    def listing(self, text: str) -> list[dict[str, Any]]:
        """The objects that `list …` prints. Reads every set of the table: never on a hot path.

        :raises KernelRefused: ENOENT: there is no such object.
        """
        self._context.set_json_output(True)
        try:
            status, out, complaint = self._context.cmd(text)
        finally:
            self._context.set_json_output(False)
        if status != 0:
            raise KernelRefused(errno.ENOENT, text, str(complaint).strip().splitlines()[0] if complaint else "")
        objects: list[dict[str, Any]] = json.loads(out)["nftables"] if out else []
        return objects


def _context() -> Any:
    try:
        import nftables  # the one place; its absence is a message, not a traceback
    except ImportError as e:
        raise Missing("python3-nftables", "apt-get install python3-nftables nftables") from e
    try:
        context = nftables.Nftables()
    except OSError as e:
        raise Missing("libnftables", "apt-get install libnftables1 nftables") from e
    context.set_handle_output(False)
    return context
