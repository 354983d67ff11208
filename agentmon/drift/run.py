"""One check from key to report: which providers, where baselines are kept, what is written. Reads credentials: root."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from agentmon import paths
from agentmon.credentials import sources
from agentmon.credentials.secret import Secret
from agentmon.drift import ask, calls, observe
from agentmon.drift.calls import Call, Target
from agentmon.drift.model import FORMAT, Observation
from agentmon.errors import AgentmonError, BadInput
from agentmon.events import rfc3339
from agentmon.policy import settings
from agentmon.providers import registry

BASELINES = paths.LIB / "drift"


def targets(provider: str | None, credential: str | None, model: str | None) -> Iterator[tuple[Target, Secret]]:
    """What is to be asked, with the key of each; one that was not named is passed over without its key.

    :raises BadInput: an unknown provider, or no key at all.
    """
    names = (provider,) if provider else calls.PROVIDERS
    store = sources.store(settings.load().credentials)
    missing: list[AgentmonError] = []
    found = 0
    for name in names:
        target = calls.target(name, model or "")
        if target is None:
            raise BadInput(f"no check is written for the provider {name!r}", f"there are: {', '.join(calls.PROVIDERS)}")
        try:
            key = store.read(credential or target.credential)
        except AgentmonError as error:
            missing.append(error)
            continue
        found += 1
        yield target, key
    if not found:
        raise BadInput(missing[0].message, f"{missing[0].hint} (a key with a small limit of its own)")


def way(connect: str | None, ca: Path | None) -> ask.Way:
    """:raises BadInput: no ADDRESS:PORT."""
    if connect is None:
        return ask.Way(None, ca)
    address, _, port = connect.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"--connect {connect!r}", "write ADDRESS:PORT, such as 127.0.0.1:8443")
    return ask.Way((address.strip("[]"), int(port)), ca)


def look(target: Target, key: Secret, way: ask.Way) -> tuple[Observation, dict[str, ask.Reply]]:
    """:raises AgentmonError: the provider is not reached, refuses the key, or answers with no JSON."""
    provider = registry.load(settings.load().providers)[target.provider]
    hands = ask.handshake(target.host, way)

    def one(call: Call) -> ask.Reply:
        return ask.ask(target, call, key, way)

    return observe.observe(target, provider, hands, one, rfc3339(time.time_ns()))


def file(directory: Path, provider: str) -> Path:
    return directory / f"{provider}.json"


def record(directory: Path, now: Observation) -> None:
    """Sorted and indented: a baseline in a repository has readable diffs.

    :raises BadInput: it cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(now, order="sorted"), indent=1) + b"\n"
    _write(file(directory, now.provider), text)


def load(directory: Path, provider: str) -> Observation:
    """:raises BadInput: there is none, or it is none of this version."""
    path = file(directory, provider)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Observation)
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror}", f"agentmon drift --provider {provider} --record makes it") from e
    except msgspec.DecodeError as e:
        raise BadInput(f"{path}: no baseline of this version: {e}", "record it anew with --record") from e
    if found.format != FORMAT:
        raise BadInput(f"{path}: format {found.format}, this version reads {FORMAT}", "record it anew with --record")
    return found


def save(directory: Path, target: Target, replies: Mapping[str, ask.Reply]) -> None:
    """Bodies as they came, for whoever refreshes the stand-ins. :raises BadInput: they cannot be written."""
    for name, reply in replies.items():
        kind = "sse" if "event-stream" in reply.headers.get("content-type", "") else "json"
        _write(directory / f"{target.provider}-{name.replace(' ', '-')}-{reply.status}.{kind}", reply.body)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror}", "name a directory that can be written") from e
