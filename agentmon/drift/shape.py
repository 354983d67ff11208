"""The shape of JSON and of an event stream: which fields there are, of which types. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

_TYPES: dict[type, str] = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null",
}  # fmt: skip
Shape = dict[str, list[str]]  # "usage.input_tokens" → ["number"]; "content[].type" → ["string"]


def of_json(body: bytes) -> Shape:
    """:raises ValueError: it is no JSON."""
    return _merged(_walk("", json.loads(body)))


def of_stream(body: bytes) -> dict[str, Shape]:
    """The shape of each kind of event, by its `event:` name, else the `type` in its data, else "data".

    :raises ValueError: the data of an event is neither JSON nor [DONE].
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, data in events(body):
        if data == "[DONE]":
            kinds.setdefault("[DONE]", [])
            continue
        value = json.loads(data)
        kind = name or (str(value.get("type") or "data") if isinstance(value, dict) else "data")
        kinds.setdefault(kind, []).extend(_walk("", value))
    return {kind: _merged(found) for kind, found in sorted(kinds.items())}


def order(body: bytes) -> list[str]:
    """Kinds of events as they came first, each once: what a reader may rely on."""
    found = []
    for name, data in events(body):
        value = {} if data == "[DONE]" else json.loads(data)
        found.append("[DONE]" if data == "[DONE]" else name or str(value.get("type") or "data"))
    return list(dict.fromkeys(found))


def events(body: bytes) -> Iterator[tuple[str, str]]:
    """(event name, data) of a whole stream, WHATWG HTML, server-sent events."""
    text = body.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for block in text.split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            if field == "event":
                name = value.removeprefix(" ")
            elif field == "data":
                data.append(value.removeprefix(" "))
        if data:
            yield name, "\n".join(data)


def _walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if path:
        yield path, _TYPES[type(value)]
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(f"{path}[]", inner)


def _merged(found: Iterable[tuple[str, str]]) -> Shape:
    merged: dict[str, set[str]] = {}
    for path, kind in found:
        merged.setdefault(path, set()).add(kind)
    return {path: sorted(kinds) for path, kinds in sorted(merged.items())}
