"""Rules as data: gitleaks' TOML format, read and checked. Pure but for load().

Understood: id, description, regex, secretGroup, entropy, keywords, allowlists (regexes, stopwords, regexTarget match |
secret | line, condition), the older single `allowlist`, the global allowlist. What is about files (`path`, `paths`,
`commits`) does not apply to traffic: a rule that needs a path is left out, and so is an allowlist that needs one.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2

from agentmon.errors import BadInput

SHIPPED = Path(__file__).with_name("data") / "gitleaks.toml"
MAX_BYTES = 4 << 20
_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")
_TARGETS = ("secret", "match", "line")
_HINT = "the format is that of gitleaks' gitleaks.toml"


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What is no secret although a rule matches: one of its parts says so, or (`every`) all that it has."""

    regexes: tuple[Any, ...] = ()  # compiled by re2
    stopwords: tuple[bytes, ...] = ()  # lower case
    target: str = "secret"
    every: bool = False

    def allows(self, secret: bytes, match: bytes, line: bytes) -> bool:
        text = {"secret": secret, "match": match, "line": line}[self.target]
        said = []
        if self.regexes:
            said.append(any(pattern.search(text) for pattern in self.regexes))
        if self.stopwords:
            lowered = secret.lower()
            said.append(any(word in lowered for word in self.stopwords))
        return all(said) if self.every else any(said)


@dataclass(frozen=True, slots=True)
class Rule:
    """`group`: which group of the pattern is the secret; 0 where it has none. `keywords`, in lower case: one of them is
    in the text; none: it always applies."""

    id: str
    regex: bytes
    pattern: Any  # the same, compiled by re2
    group: int = 0
    entropy: float = 0.0
    keywords: tuple[bytes, ...] = ()
    allowlists: tuple[Allowlist, ...] = ()

    def is_secret(self, secret: bytes, match: bytes, line: bytes) -> bool:
        """Whether what the pattern found is one."""
        if self.entropy and shannon(secret) <= self.entropy:
            return False
        return not any(allowlist.allows(secret, match, line) for allowlist in self.allowlists)


@dataclass(frozen=True, slots=True)
class Rules:
    """One file. `left_out`: ids of rules that are about files."""

    source: str
    rules: tuple[Rule, ...]
    left_out: tuple[str, ...] = ()


def load(path: Path = SHIPPED) -> Rules:
    """:raises BadInput: it cannot be read, or is no rule file; with file, line and key."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise BadInput(
            f"{path}: {e.strerror}", "dlp: {rules: …} in the settings names a file in gitleaks' format"
        ) from e
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path}: more than {MAX_BYTES} bytes", _HINT)
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Rules:
    """:raises BadInput: not TOML, or not such rules; with line and key."""
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except UnicodeDecodeError as e:
        raise BadInput(f"{source}: not UTF-8 at byte {e.start}", _HINT) from e
    except tomllib.TOMLDecodeError as e:
        found = _PLACE.search(str(e))
        line = found[1] if found else "1"
        raise BadInput(f"{source}:{line}: {_PLACE.sub('', str(e)).strip()}", _HINT) from e
    return _Reader(source, text).rules(table)


def shannon(data: bytes) -> float:
    """Bits a byte, 0 for nothing."""
    size = len(data)
    return -sum(n / size * math.log2(n / size) for n in Counter(data).values()) if size else 0.0


def compiled(regex: bytes) -> Any:
    """:raises re2.error: not of RE2's syntax: no look-around, no back references; so every search is linear."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return re2.compile(regex, options)


class _Reader:
    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._starts = [n for n, line in enumerate(text.splitlines(), 1) if line.strip() == "[[rules]]"]
        self._lines = text.splitlines()

    def rules(self, table: dict[str, Any]) -> Rules:
        entries = table.get("rules")
        if not isinstance(entries, list) or not entries:
            raise BadInput(f"{self._source}:1: rules: is missing or empty", _HINT)
        everywhere = tuple(
            found
            for key in ("allowlist", "allowlists")
            for entry in self._tables(table, key, 0)
            if (found := self._allowlist(entry, 0, key)) is not None
        )
        rules, left_out, ids = [], [], set()
        for number, entry in enumerate(entries):
            at = self._starts[number] if number < len(self._starts) else 1
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
                raise self._error(at, "id", "is missing: every rule has one")
            if entry["id"] in ids:
                raise self._error(at, "id", f"{entry['id']!r} is there twice")
            ids.add(entry["id"])
            if "regex" not in entry or "path" in entry:
                left_out.append(entry["id"])
            else:
                rules.append(self._rule(entry, at, everywhere))
        return Rules(self._source, tuple(rules), tuple(left_out))

    def _rule(self, entry: dict[str, Any], at: int, everywhere: tuple[Allowlist, ...]) -> Rule:
        pattern = self._regex(entry["regex"], at, "regex")
        group = entry.get("secretGroup", 1 if pattern.groups else 0)
        if not isinstance(group, int) or not 0 <= group <= pattern.groups:
            raise self._error(at, "secretGroup", f"{group!r}; the regex has {pattern.groups} groups")
        entropy = entry.get("entropy", 0)
        if isinstance(entropy, bool) or not isinstance(entropy, int | float) or not 0 <= entropy <= 8:
            raise self._error(at, "entropy", f"{entropy!r}; expected bits a byte, 0 to 8")
        own = tuple(
            found
            for key in ("allowlist", "allowlists")
            for inner in self._tables(entry, key, at)
            if (found := self._allowlist(inner, at, key)) is not None
        )
        keywords = tuple(word.lower().encode() for word in self._texts(entry, "keywords", at) if word)
        return Rule(entry["id"], pattern.pattern, pattern, group, float(entropy), keywords, own + everywhere)

    def _allowlist(self, entry: dict[str, Any], at: int, key: str) -> Allowlist | None:
        target = entry.get("regexTarget", "secret") or "secret"
        if target not in _TARGETS:
            raise self._error(at, f"{key}.regexTarget", f"{target!r}; expected {', '.join(_TARGETS)}")
        condition = entry.get("condition", "OR")
        if not isinstance(condition, str) or condition.upper() not in {"OR", "||", "AND", "&&", ""}:
            raise self._error(at, f"{key}.condition", f"{condition!r}; expected OR or AND")
        every = condition.upper() in {"AND", "&&"}
        if every and (entry.get("paths") or entry.get("commits")):
            return None
        regexes = tuple(self._regex(text, at, f"{key}.regexes") for text in self._texts(entry, "regexes", at))
        words = tuple(word.lower().encode() for word in self._texts(entry, "stopwords", at))
        return Allowlist(regexes, words, target, every) if regexes or words else None

    def _regex(self, text: object, at: int, key: str) -> Any:
        if not isinstance(text, str):
            raise self._error(at, key, f"{text!r}; expected text")
        try:
            return compiled(text.encode())
        except re2.error as e:
            why = e.args[0].decode("utf-8", "replace") if isinstance(e.args[0], bytes) else str(e)
            raise self._error(at, key, f"{text[:60]!r}: {why}") from e

    def _tables(self, entry: dict[str, Any], key: str, at: int) -> list[dict[str, Any]]:
        found = entry.get(key, [])
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(inner, dict) for inner in found):
            raise self._error(at, key, "expected a table, or a list of them")
        return found

    def _texts(self, entry: dict[str, Any], key: str, at: int) -> list[str]:
        found = entry.get(key, [])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self._error(at, key, "expected a list of texts")
        return found

    def _error(self, at: int, key: str, what: str) -> BadInput:
        """:param at: the line of the rule's [[rules]]; the key's own is looked for below it."""
        last = key.rpartition(".")[2]
        line = at or 1
        for number in range(at, len(self._lines)):
            text = self._lines[number].strip()
            if text == "[[rules]]":
                break
            if text.startswith(last):
                line = number + 1
                break
        return BadInput(f"{self._source}:{line}: {key}: {what}", _HINT)
