"""Live flows when rules change: which go on under a new epoch, which end. Judged by verdict.py, changed by netlink."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from netfilter.bottle import Bottle
from netfilter.netns.conntrack import Conntrack, Entry
from netfilter.spec import EPOCH_MASK
from netfilter.verdict import Flow, Judge, Verdict


class Carried(NamedTuple):
    """A conntrack entry and the mark that it is to have."""

    entry: Entry
    mark: int


def carried(entries: Iterable[Entry], judge: Judge) -> list[Carried]:
    """The entries that the rules allow, learned addresses whose time is over included, with their new marks."""
    found = []
    for entry in entries:
        if _verdict(entry.flow, judge).passes:
            found.append(Carried(entry, entry.flow.mark & ~EPOCH_MASK | judge.rules.epoch))
    return found


def remarking(conntrack: Conntrack, marked: Iterable[Carried]) -> Callable[[], int]:
    marked = tuple(marked)
    return lambda: conntrack.remark((c.entry, c.mark) for c in marked)


def marks_undone(conntrack: Conntrack, marked: Iterable[Carried]) -> Callable[[], int]:
    marked = tuple(marked)
    return lambda: conntrack.remark((c.entry, c.entry.flow.mark) for c in marked)


def listed(bottle: Bottle, conntrack: Conntrack) -> list[Entry]:
    """The bottle's entries in the host's table. One that has never had open rules has none."""
    if bottle.untouched:
        return []
    if bottle.rules is None:
        return conntrack.entries(bottle.addresses())
    return conntrack.entries_of_epoch(bottle.rules.epoch, bottle.addresses())


def refused(entries: Iterable[Entry], judge: Judge | None) -> list[Entry]:
    """The entries that the rules refuse; without rules, all."""
    return [e for e in entries if judge is None or not _verdict(e.flow, judge).passes]


def end(bottle: Bottle, conntrack: Conntrack, entries: Sequence[Entry]) -> int:
    """End these flows in the host's table and the bottle's, and TCP sockets that the rules refuse; how many.

    Sockets first: the resets that they send need the entries to find their way.
    """
    judge, own = bottle.judge, bottle.addresses()
    gone = bottle.inner.sockets.destroy(
        lambda address, port: address not in own and (judge is None or not judge.verdict(address, 6, port).passes)
    )
    bottle.inner.conntrack.delete_same(entries)
    return gone + conntrack.delete(entries)


def destroy(bottle: Bottle, conntrack: Conntrack) -> int:
    """End every flow and every socket, services' included; how many."""
    own, entries = bottle.addresses(), listed(bottle, conntrack)
    gone = bottle.inner.sockets.destroy(lambda address, _: address not in own)
    bottle.inner.conntrack.delete_same(entries)
    return gone + conntrack.delete(entries)


def _verdict(flow: Flow, judge: Judge) -> Verdict:
    return judge.verdict(flow.destination, flow.proto, flow.destination_port)
