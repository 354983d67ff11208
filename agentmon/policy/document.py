"""The YAML edge: a file becomes mappings, lists and scalars that know their line; every error names file, line and key.

A scalar keeps its text, and the reader of a key says what it expects. So `log: off` is the word and not a boolean,
`22:30` is no sexagesimal number, and a version `1.10` loses no zero. Only a subset of YAML is taken: one document,
no anchors, aliases or tags, no duplicate keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agentmon.errors import BadInput

MAX_BYTES = 16 << 20
MAX_DEPTH = 12
SHOWN = 60  # characters of a value in an error
QUOTE_HINT = 'a rule that begins with * or ! must stand in quotes: "*.example.com:443"'

T = TypeVar("T")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same events, from libyaml where it is built in


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: printed as FILE:LINE: key."""

    file: str
    line: int
    key: str = ""

    def at(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, what: str, hint: str = "") -> BadInput:
        key = f" {self.key}:" if self.key else ""
        return BadInput(f"{self.at()}:{key} {what}", hint)


@dataclass(frozen=True, slots=True)
class Scalar:
    place: Place
    text: str
    quoted: bool

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.text in {"", "~", "null", "Null", "NULL"}


@dataclass(frozen=True, slots=True)
class Items:
    place: Place
    values: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    place: Place
    values: dict[str, Node]


Node = Scalar | Items | Mapping


def read(path: Path) -> str:
    """The text of a file.

    :raises BadInput: if it is not there, not readable, not a file, too large or not UTF-8.
    """
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such file", "check the path") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be read: {e.strerror}", "check the path and its permissions") from e
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path}: larger than {MAX_BYTES >> 20} MiB", "split it with `extends:`")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise BadInput(f"{path}:{line}: not UTF-8 (byte 0x{data[e.start]:02x})", "save the file as UTF-8") from e


def parse(text: str, file: str) -> Mapping:
    """The mapping that a file's text holds; an empty file is an empty mapping.

    :raises BadInput: for whatever is not in the subset above.
    """
    try:
        return _Tree(text, file).document()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = mark.line + 1 if mark else 1
        problem = (e.problem or "not YAML").replace("found character '\\t' that cannot start any token", "a tab")
        lines = text.splitlines()
        source = lines[line - 1] if line <= len(lines) else ""
        starred = "*" in source or "!" in source
        hint = QUOTE_HINT if starred else "indent with spaces; put text with special characters in quotes"
        raise BadInput(f"{file}:{line}: not YAML: {problem}", hint) from e
    except yaml.YAMLError as e:  # a control character: reader errors carry no line
        raise BadInput(f"{file}: not YAML: {str(e).splitlines()[0]}", "take control characters out") from e


class _Tree:
    """Builds nodes from parser events; recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str, file: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self._file = file

    def document(self) -> Mapping:
        next(self._events)  # the stream begins
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return Mapping(Place(self._file, 1), {})
        root = self._node(next(self._events), "", 0)
        next(self._events)  # the document ends
        extra = next(self._events)
        if not isinstance(extra, yaml.StreamEndEvent):
            raise self._place(extra).error("a second document begins here", "one file is one document: take out '---'")
        if isinstance(root, Scalar) and root.is_null:
            return Mapping(root.place, {})
        if not isinstance(root, Mapping):
            raise root.place.error(f"{describe(root)} where keys were expected", "write `key: value` lines")
        return root

    def _place(self, event: Any, key: str = "", line: int = 0) -> Place:
        return Place(self._file, line or event.start_mark.line + 1, key)

    def _node(self, event: Any, key: str, depth: int, line: int = 0) -> Node:
        place = self._place(event, key, line)
        if isinstance(event, yaml.AliasEvent):
            raise place.error(f"'*{event.anchor}' is an alias, and aliases are not taken", QUOTE_HINT)
        if event.anchor is not None:
            raise place.error(f"'&{event.anchor}' is an anchor, and anchors are not taken", "write the value out")
        if event.tag is not None and event.tag != "!":
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            hint = QUOTE_HINT if not shown.startswith("!!") else "take the tag out"
            raise place.error(f"{shown!r} is a tag, and tags are not taken", hint)
        if depth > MAX_DEPTH:
            raise place.error(f"nested deeper than {MAX_DEPTH} levels", "no key needs that")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(place, event.value, quoted=bool(event.style))  # plain: None, or "" from libyaml
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(place, tuple(self._items(key, depth)))
        return Mapping(place, dict(self._pairs(key, depth)))

    def _items(self, key: str, depth: int) -> Iterator[Node]:
        number = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, f"{key}[{number}]", depth + 1)
            number += 1

    def _pairs(self, key: str, depth: int) -> Iterator[tuple[str, Node]]:
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._node(event, key, depth + 1)
            if not isinstance(name, Scalar):
                raise name.place.error(f"{describe(name)} as a key", "keys are words")
            if name.text in lines:
                first = lines[name.text]
                what = f"{name.text!r} stands twice (first in line {first})"
                raise name.place.error(what, "put both values under one key")
            lines[name.text] = name.place.line
            inner = f"{key}.{name.text}" if key else name.text
            # A value is placed where its key stands: a block below it begins in a later line.
            yield name.text, self._node(next(self._events), inner, depth + 1, name.place.line)


def describe(node: Node) -> str:
    """The value as an error shows it."""
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if node.is_null:
        return "nothing"
    return repr(node.text if len(node.text) <= SHOWN else node.text[:SHOWN] + "…")


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is none of `known`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def check_keys(mapping: Mapping, known: Iterable[str]) -> None:
    """:raises BadInput: for the first key that is none of `known`."""
    names = frozenset(known)
    for key, value in mapping.values.items():
        if key not in names:
            place = Place(value.place.file, value.place.line, value.place.key.rpartition(".")[0])
            raise place.error(f"unknown key {key!r}", suggestion(key, names))


# ── readers: what a key expects ──────────────────────────────────────────────


def mapping(node: Node, expected: str) -> Mapping:
    if isinstance(node, Scalar) and node.is_null:
        return Mapping(node.place, {})
    if not isinstance(node, Mapping):
        hint = "write {key: value, …}, or one indented `key: value` line each"
        raise node.place.error(f"{describe(node)}; expected {expected}", hint)
    return node


def text(node: Node, expected: str = "text") -> str:
    if not isinstance(node, Scalar) or node.is_null or not node.text:
        hint = "write it after the colon, or leave the key out"
        raise node.place.error(f"{describe(node)}; expected {expected}", hint)
    return node.text


def choice(node: Node, allowed: tuple[str, ...]) -> str:
    value = text(node, " | ".join(allowed))
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"write {' or '.join(allowed)}"
        raise node.place.error(f"{value!r}; expected {' | '.join(allowed)}", hint)
    return value


def integer(node: Node, *, least: int, most: int, expected: str) -> int:
    value = text(node, expected)
    digits = value.replace("_", "")
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
    if number is None or (isinstance(node, Scalar) and node.quoted) or not least <= number <= most:
        hint = "take the quotes away" if number is not None and least <= number <= most else "write a whole number"
        raise node.place.error(f"{describe(node)}; expected {expected}, {least} to {most}", hint)
    return number


def boolean(node: Node) -> bool:
    value = text(node, "true or false")
    if value not in {"true", "false"} or (isinstance(node, Scalar) and node.quoted):
        raise node.place.error(f"{describe(node)}; expected true or false", "write true or false, without quotes")
    return value == "true"


def items(node: Node, expected: str) -> tuple[Node, ...]:
    if isinstance(node, Scalar) and node.is_null:
        return ()
    if not isinstance(node, Items):
        raise node.place.error(f"{describe(node)}; expected {expected}", "write [a, b], or one '- …' line each")
    return node.values


def texts(node: Node, expected: str) -> tuple[str, ...]:
    return tuple(text(item, expected) for item in items(node, expected))


def each(node: Node, expected: str, read_one: Callable[[Node], T]) -> tuple[T, ...]:
    return tuple(read_one(item) for item in items(node, expected))


def plain(node: Node) -> Any:
    """The node as plain Python values: what a reader with its own validation (a provider's declaration) is given."""
    if isinstance(node, Items):
        return [plain(item) for item in node.values]
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.values.items()}
    if node.is_null:
        return None
    if not node.quoted and node.text in {"true", "false"}:
        return node.text == "true"
    if not node.quoted and node.text.isascii() and node.text.isdigit():
        return int(node.text)
    return node.text
