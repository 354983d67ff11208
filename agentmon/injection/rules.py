"""The indicators, read from rules.toml once: one RE2 set that says which matched, and each pattern by itself."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import re2


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    says: str
    pattern: Any  # re2's compiled form


@dataclass(frozen=True, slots=True)
class Rules:
    rules: tuple[Rule, ...]
    together: Any  # re2.Set, in the order of `rules`

    def matching(self, text: str) -> list[Rule]:
        """Those that match somewhere in a text in plain form (plain.py)."""
        return [self.rules[n] for n in sorted(self.together.Match(text) or ())]


@lru_cache(maxsize=1)
def load() -> Rules:
    """The rules that ship with agentmon. A service calls it before it drops root: homes may be closed afterwards."""
    text = Path(__file__).with_name("rules.toml").read_text(encoding="utf-8")
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = 64 << 20
    together = re2.Set.SearchSet(options)
    found = []
    for entry in tomllib.loads(text)["rule"]:
        found.append(Rule(entry["id"], entry["says"], re2.compile(entry["pattern"], options)))
        together.Add(entry["pattern"])
    together.Compile()
    return Rules(tuple(found), together)
