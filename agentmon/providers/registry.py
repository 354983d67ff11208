"""The providers agentmon knows: built-in declarations and what settings' `providers:` adds to them (docs/providers.md).

    providers:
      claude: {hosts: [claude.corp.example]}                      # more hosts that speak its protocol
      house-llm: {like: openai, hosts: [llm.corp.example]}        # another provider, its own budget, same protocol

Keys: `like` (a built-in name; for new names only), `hosts`, `also`, `rw`, `ro`, `env`: lists of text; `endpoints`:
{"GET /v1/files/**": free, "POST /v2/chat": as /v1/chat/completions, "POST /v1/batches": refused}, asked before the
built-in ones; `count`: true asks the provider itself how much a request brings in, where an estimate has no room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentmon.errors import BadInput
from agentmon.policy.rules import RuleError, host_pattern
from agentmon.providers import (
    anthropic,
    azure,
    bedrock,
    gemini,
    lint,
    mistral,
    openai,
    openrouter,
    vertex,
)
from agentmon.providers.declaration import Client, Endpoint, Gate, Metering, Provider
from agentmon.providers.overlap import hosts_overlap

BUILT_IN: tuple[Provider, ...] = (
    anthropic.PROVIDER, openai.CODEX, openai.PROVIDER, gemini.PROVIDER, azure.PROVIDER, openrouter.PROVIDER,
    mistral.PROVIDER, vertex.PROVIDER, bedrock.PROVIDER,
)  # fmt: skip
_LISTS = ("hosts", "also", "rw", "ro", "env")


def load(additions: Mapping[str, Any] | None = None) -> dict[str, Provider]:
    """All providers by name.

    :raises BadInput: an addition has an unknown key, a value of the wrong type, a host that another provider owns, an
        endpoint that is never asked or that would make a metered one free.
    """
    providers = {p.name: p for p in BUILT_IN}
    for name, addition in (additions or {}).items():
        base = _base(providers, name, addition)
        lists = {key: _texts(name, key, addition.get(key, [])) for key in _LISTS}
        client = Client(
            rw=base.client.rw + lists["rw"], ro=base.client.ro + lists["ro"], env=base.client.env + lists["env"]
        )
        endpoints = _endpoints(name, base, addition.get("endpoints", {}))
        wrong = lint.endpoints(endpoints) or lint.freed(endpoints, base.endpoints)
        if wrong:
            raise BadInput(f"providers: {name}: endpoints: {wrong}", "the first that covers a request decides")
        providers[name] = replace(
            base, name=name, hosts=base.hosts + lists["hosts"], also=base.also + lists["also"], client=client,
            endpoints=endpoints + base.endpoints, gate=_gate(name, base, addition.get("count", False)),
        )  # fmt: skip
    _check_owners(providers)
    return providers


def _base(providers: Mapping[str, Provider], name: str, addition: Any) -> Provider:
    where = f"providers: {name}"
    if not isinstance(addition, Mapping):
        raise BadInput(
            f"{where}: expected a table of {', '.join(_LISTS)}, got {addition!r}", "write {hosts: [llm.example]}"
        )
    for key in addition:
        if key not in (*_LISTS, "like", "endpoints", "count"):
            raise BadInput(f"{where}: unknown key {key!r}", f"known keys: like, endpoints, count, {', '.join(_LISTS)}")
    if name in providers:
        if "like" in addition:
            raise BadInput(f"{where}: like: is for new names; {name} is built in", "leave like: out")
        return providers[name]
    like = addition.get("like")
    if not isinstance(like, str) or like not in {p.name for p in BUILT_IN}:
        names = ", ".join(sorted(p.name for p in BUILT_IN))
        raise BadInput(f"{where}: like: expected one of {names}, got {like!r}", "say whose protocol it speaks")
    if not addition.get("hosts"):
        raise BadInput(f"{where}: hosts: is missing", "name the hosts that speak this protocol")
    return replace(providers[like], hosts=(), also=())


def _gate(name: str, base: Provider, value: Any) -> Gate:
    where = f"providers: {name}: count"
    if not isinstance(value, bool):
        raise BadInput(f"{where}: expected true or false, got {value!r}", "leave it out for false")
    if value and not any(endpoint.counting for endpoint in base.endpoints):
        can = ", ".join(sorted(p.name for p in BUILT_IN if any(e.counting for e in p.endpoints)))
        raise BadInput(
            f"{where}: {name} has no count endpoint that could be asked", f"these and what is like them: {can}"
        )
    return Gate.COUNT if value else Gate.ESTIMATE


def _texts(name: str, key: str, value: Any) -> tuple[str, ...]:
    where = f"providers: {name}: {key}"
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
        raise BadInput(f"{where}: expected a list of text, got {value!r}", "write [a, b]")
    if key not in {"hosts", "also"}:
        return tuple(value)
    return tuple(_host(where, v) for v in value)


def _host(where: str, written: str) -> str:
    """The canonical pattern; a `*` inside a label is tried as a letter."""
    host = written.lower().rstrip(".")
    try:
        host_pattern(host if host.startswith("*.") and "*" not in host[2:] else host.replace("*", "x"))
    except RuleError as e:
        raise BadInput(f"{where}: {written!r}: {e.message}", e.hint) from e
    labels = host.removeprefix("*.").split(".")
    if any("*" in label for label in labels[-2:]) or any(label.count("*") > 1 for label in labels):
        raise BadInput(f"{where}: {written!r} covers too much", "name the provider's own domain: *.llm.example")
    return host


def _endpoints(name: str, base: Provider, value: Any) -> tuple[Endpoint, ...]:
    where = f"providers: {name}: endpoints"
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: expected a table, got {value!r}", '"GET /v1/files/**": free')
    out = []
    for key, said in value.items():
        method, _, path = str(key).partition(" ")
        if not (method.isupper() or method == "*") or not path.startswith("/"):
            raise BadInput(f"{where}: expected METHOD /path, got {key!r}", '"GET /v1/files/**": free')
        if said in ("free", "refused"):
            out.append(Endpoint(method, path, Metering(said)))
            continue
        like = str(said).removeprefix("as ") if str(said).startswith("as ") else None
        found = next((e for e in base.endpoints if e.path == like and e.metering is Metering.METERED), None)
        if found is None:
            metered = ", ".join(f"as {e.path}" for e in base.endpoints if e.metering is Metering.METERED)
            raise BadInput(f"{where}: {key}: expected free, refused, {metered}, got {said!r}", "write one of them")
        out.append(replace(found, method=method, path=path, counting=None))  # which is where the original is
    return tuple(out)


def _check_owners(providers: Mapping[str, Provider]) -> None:
    taken: list[tuple[str, str]] = []
    for provider in providers.values():
        for host in provider.hosts:
            other = next(((h, n) for h, n in taken if n != provider.name and hosts_overlap(h, host)), None)
            if other is not None:
                both = host if other[0] == host else f"{host} and {other[0]}"
                what = f"providers: host {both} belongs to {other[1]} and to {provider.name}"
                raise BadInput(what, "a host has one owner: name it once")
            taken.append((host, provider.name))
