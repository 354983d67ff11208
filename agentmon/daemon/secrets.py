"""What must not leave bottles, told to the proxy: the values that are known of each, and the rules for all others.

Of a bottle: what its job was given by its environment under a secret's name, and every credential of the host that
lies in a file, whosever route uses it. Read here as root; kept by the proxy worker, in memory, while the bottle lives.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from agentmon import wire
from agentmon.control.state import Bottle
from agentmon.credentials.sources import Store
from agentmon.daemon.services import Service
from agentmon.dlp import forms, names, rules
from agentmon.errors import AgentmonError, BadInput
from agentmon.policy.document import Place
from agentmon.policy.settings import Settings

_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_RULES_S = 30.0  # a worker compiles them; most of a second on an idle processor


class Secrets:
    """For one daemon. The key of a run's digests is made of this daemon's own, so that workers can be told it anew."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, bottle: Bottle, store: Store, routes: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        """The key and the known values of one run. Reads files.

        :param routes: the credentials of the bottle's own routes, by name; they may come from commands.
        """
        values = {f"env {name}": v for name, v in forms.secret_variables(dict(bottle.job.env)).items()}
        for name in store.in_files():
            if name not in routes:
                try:
                    values[f"credential {name}"] = store.read(name).reveal()
                except (AgentmonError, OSError):
                    continue  # whoever needs it is told
        values |= {f"credential {name}": value for name, value in routes.items()}
        return hashlib.blake2b(bottle.run.encode(), key=self._key).digest(), values


def name_digests(values: Mapping[str, str], key: bytes) -> tuple[bytes, ...]:
    """What the resolver is told of them: of a URL its password, since its host may well be asked for."""
    return names.digests(
        (form for value in values.values() for form in sorted(forms.name_forms(_own_part(value).encode()))), key
    )  # fmt: skip


def _own_part(value: str) -> str:
    found = _PASSWORD.search(value)
    return found[1] if found else value


def rule_text(settings: Settings) -> bytes:
    """The operator's rule file; b"" for the one that agentmon ships.

    :raises BadInput: it cannot be used; with its own line, and the settings' that names it.
    """
    if not settings.dlp_rules:
        return b""
    try:
        rules.load(Path(settings.dlp_rules))
        return Path(settings.dlp_rules).read_bytes()
    except (BadInput, OSError) as error:
        place = settings.places.get("dlp", Place(settings.source or "settings", 1, "dlp"))
        hint = error.hint if isinstance(error, BadInput) else ""
        raise BadInput(f"{place.at()}: {error}", hint or "look at the file") from error


class RuleFile:
    """The rules that proxy workers are told: read when the daemon starts and when settings are read anew."""

    def __init__(self, settings: Settings) -> None:
        """:raises BadInput: see rule_text()."""
        self._text = rule_text(settings)
        self._source = settings.dlp_rules

    async def tell(self, proxy: Service) -> None:
        """Of the rules in force. What only the engine finds wrong is told; the worker stays with what it has."""
        error = await self._told(proxy, self._source, self._text)
        if error:
            print(f"error: {error}; the rules that are in force stay", file=sys.stderr, flush=True)

    async def change(self, proxies: Iterable[Service], settings: Settings) -> None:
        """:raises AgentmonError: the file cannot be used; the rules in force stay."""
        text = rule_text(settings)
        if (text, settings.dlp_rules) == (self._text, self._source):
            return
        told: list[Service] = []
        for proxy in proxies:
            error = await self._told(proxy, settings.dlp_rules, text)
            if error:
                for other in told:  # all workers search by the same rules
                    await self.tell(other)
                raise BadInput(error, "the rules in force stay")
            told.append(proxy)
        self._text, self._source = text, settings.dlp_rules

    async def _told(self, proxy: Service, source: str, text: bytes) -> str:
        try:
            await proxy.call(wire.SetRules(proxy.next_id(), source, text), _RULES_S)
        except AgentmonError as error:
            return str(error)
        return ""
