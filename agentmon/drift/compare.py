"""A baseline against what is there now: differences, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentmon.drift.model import Answer, Difference, Observation, Weight

_ORDER = (Weight.BREAKS, Weight.CHANGED, Weight.NOTED)
_USAGE = ("usage", "usageMetadata")  # parts of a path under which a field is read by agentmon


def differences(was: Observation, now: Observation) -> list[Difference]:
    found = [*_transport(was, now), *_calls(was, now)]
    return sorted(found, key=lambda d: (_ORDER.index(d.weight), d.where))


def _transport(was: Observation, now: Observation) -> Iterator[Difference]:
    if was.issuers != now.issuers:
        what = "the certificate is issued by others: nothing is pinned, but see that this is the provider's doing"
        yield Difference(Weight.CHANGED, "TLS issuers", ", ".join(was.issuers), ", ".join(now.issuers), what)
    for where, before, after in (("TLS version", was.tls, now.tls), ("ALPN", was.alpn, now.alpn)):
        if before != after:
            yield Difference(Weight.CHANGED, where, before, after, "another protocol is spoken")
    if was.sdk != now.sdk:
        what = "the SDK that tests and examples use is of another version"
        yield Difference(Weight.NOTED, "SDK", was.sdk or "none", now.sdk or "none", what)


def _calls(was: Observation, now: Observation) -> Iterator[Difference]:
    for name, before in was.answers.items():
        after = now.answers.get(name)
        if after is None:
            yield Difference(Weight.CHANGED, name, "asked", "not asked", "this version asks for less than the baseline")
        elif before.status != after.status or before.kind != after.kind:
            said = [f"{a.status} {a.kind}" for a in (before, after)]
            gone = after.status in {404, 405, 410}
            what = "the endpoint is gone" if gone else "it answers in another way"
            yield Difference(Weight.BREAKS, name, said[0], said[1], what)
        else:
            yield from _answer(name, before, after)
    for name in now.answers.keys() - was.answers.keys():
        yield Difference(
            Weight.NOTED, name, "not asked", "asked", "the baseline is of an older version: record it anew"
        )


def _answer(name: str, was: Answer, now: Answer) -> Iterator[Difference]:
    yield from _fields(name, was.shape, now.shape)
    for event in was.events.keys() | now.events.keys():
        if event not in now.events:
            weight = Weight.BREAKS if _has_usage(was.events[event]) else Weight.CHANGED
            yield Difference(weight, f"{name}: {event}", "sent", "not sent", "an event is gone")
        elif event not in was.events:
            yield Difference(Weight.CHANGED, f"{name}: {event}", "not sent", "sent", "a new event")
        else:
            yield from _fields(f"{name}: {event}", was.events[event], now.events[event])
    both = [e for e in was.order if e in now.order], [e for e in now.order if e in was.order]
    if both[0] != both[1]:
        yield Difference(
            Weight.CHANGED, f"{name}: order", ", ".join(both[0]), ", ".join(both[1]), "events in another order"
        )
    for header in sorted(set(was.headers) ^ set(now.headers)):
        gone = header in was.headers
        said = ("sent", "not sent") if gone else ("not sent", "sent")
        yield Difference(Weight.CHANGED, f"{name}: header {header}", *said, "a header about limits or ids")
    for fact in was.usage.keys() | now.usage.keys():
        before, after = was.usage.get(fact), now.usage.get(fact)
        if before != after and before is not None:
            what = "usage is told in another way than agentmon reads it"
            yield Difference(Weight.BREAKS, f"{name}: {fact}", str(before), str(after), what)


def _fields(where: str, was: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> Iterator[Difference]:
    for path in was.keys() | now.keys():
        read = any(part in _USAGE for part in path.replace("[]", "").split("."))
        place = f"{where}: {path}"
        if path not in now:
            weight = Weight.BREAKS if read else Weight.CHANGED
            yield Difference(weight, place, "/".join(was[path]), "-", "a field is gone")
        elif path not in was:
            yield Difference(Weight.CHANGED, place, "-", "/".join(now[path]), "a new field")
        elif set(now[path]) - set(was[path]):
            weight = Weight.BREAKS if read else Weight.CHANGED
            yield Difference(weight, place, "/".join(was[path]), "/".join(now[path]), "a field of another type")


def _has_usage(shape: Mapping[str, list[str]]) -> bool:
    return any(part in _USAGE for path in shape for part in path.split("."))


def drifted(found: list[Difference]) -> bool:
    return any(d.weight is not Weight.NOTED for d in found)
