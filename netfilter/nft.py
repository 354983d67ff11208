"""libnftables, the only user of it: one context per network namespace, one call per transaction. Needs CAP_NET_ADMIN.

A context's netlink socket belongs to the namespace of the thread that made it, for good.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from netfilter import language
from netfilter.errors import KernelRefused, Missing
from netfilter.language import Command

# libnftables gives the kernel's answer as strerror(3)'s words only.
_BY_WORDS = {os.strerror(number): number for number in errno.errorcode}


class Nft:
    """One context, in the namespace of the calling thread.

    :raises Missing: no libnftables.
    """

    def __init__(self) -> None:
        self._context = _context()

    def run(self, commands: Iterable[Command], what: str) -> None:
        """Apply `commands` as one transaction: all of it, or nothing.

        :raises KernelRefused: with the first line that nft complained about.
        """
        text = language.text(commands)
        if not text:
            return
        status, _, complaint = self._context.cmd(text)
        if status != 0:
            raise _refused(what, str(complaint))

    def run_json(self, commands: Iterable[Command], what: str) -> None:
        """The same through libnftables' JSON parser. :raises KernelRefused:"""
        status, _, complaint = self._context.json_cmd(language.json(commands))
        if status != 0:
            raise _refused(what, str(complaint))

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
            raise _refused(text, str(complaint))
        objects: list[dict[str, Any]] = json.loads(out)["nftables"] if out else []
        return objects


def _refused(what: str, complaint: str) -> KernelRefused:
    first = next((line for line in complaint.splitlines() if "rror" in line), complaint.strip())
    words = re.split(r"[:;] *", first)
    number = next((_BY_WORDS[w.strip()] for w in reversed(words) if w.strip() in _BY_WORDS), errno.EINVAL)
    return KernelRefused(number, what, first)


def _context() -> Any:
    try:
        import nftables  # the one place; its absence is a message, not a traceback
    except ImportError as e:
        raise Missing("python3-nftables", "apt-get install python3-nftables nftables") from e
    try:
        ctypes.CDLL("libnftables.so.1")  # first: a context half made complains when it is collected
        context = nftables.Nftables()
    except OSError as e:
        raise Missing("libnftables", "apt-get install libnftables1 nftables") from e
    context.set_handle_output(False)
    return context
