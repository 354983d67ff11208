"""What a running bottle's policy was made of, so that it can be made again from files that have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agentmon.policy.options import Options


@dataclass(frozen=True, slots=True)
class Origin:
    """`file`: the manifest as it was named, "" for none. `texts`: of the files outside bottles_dir, as they came with
    the request: the daemon reads none of these. `changes`: by `agentmon allow` ("+RULE") and `deny` ("-RULE") since,
    oldest first."""

    file: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    changes: tuple[str, ...] = ()

    def allowing(self, rule: str) -> Origin:
        return self._with("+", rule.removeprefix("!"))

    def denying(self, rule: str) -> Origin:
        return self._with("-", rule.removeprefix("!"))

    def _with(self, sign: str, rule: str) -> Origin:
        """Of each rule the last of both is kept: what was allowed before a deny decides what the deny has to do."""
        kept = tuple(change for change in self.changes if change != sign + rule)
        return replace(self, changes=(*kept, sign + rule))
