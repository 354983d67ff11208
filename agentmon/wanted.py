"""Which events are asked for: one filter for what is stored, what comes, and what the command line shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Wanted:
    """Every field that is not empty has to fit. `host`: a name, an address, or `*.name` for all that is below one."""

    bottle: str = ""
    kind: str = ""
    verdict: str = ""
    layer: str = ""
    host: str = ""

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Wanted:
        """From a request's arguments; others are left alone."""
        return cls(*(str(args.get(name) or "") for name in cls.__slots__))

    def args(self) -> dict[str, str]:
        """What of() takes: the arguments of a request."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """:param event: the contract's JSON object."""
        plain = (
            (self.bottle, "bottle"), (self.kind, "kind"), (self.verdict, "verdict"), (self.layer, "layer"),
        )  # fmt: skip
        return all(not value or event.get(key) == value for value, key in plain) and self._at_host(event)

    def _at_host(self, event: Mapping[str, Any]) -> bool:
        if not self.host:
            return True
        names = [str(event.get("host", "")), *map(str, (event.get("detail") or {}).get("names", ()))]
        if self.host.startswith("*."):
            return any(name.endswith(self.host[1:]) for name in names)
        return self.host in {*names, event.get("dst")}
