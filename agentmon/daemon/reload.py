"""SIGHUP: credentials are read anew, and the routes of the manifests under bottles_dir that running bottles came from.

Rules, budgets and the rest stay as the bottle was started, or as `allow` and `deny` made them since. Each bottle
changes as a whole or not at all: a file that cannot be used leaves its routes in force. Requests under way go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from agentmon.control import events as e
from agentmon.control.state import Bottle, Phase
from agentmon.daemon.credentials import Credentials
from agentmon.errors import AgentmonError
from agentmon.events import Event
from agentmon.policy import change, manifest, merge, unbuilt
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider


def rerouted(policy: EffectivePolicy, settings: Settings, providers: Mapping[str, Provider]) -> EffectivePolicy:
    """The policy with its routes as the manifest has them now; the same where it came from no file of bottles_dir.

    :raises AgentmonError: with file, line and key. :raises OSError: a file cannot be read.
    """
    file = Path(policy.sources[0]) if policy.sources else None
    if file is None or not file.resolve().is_relative_to(settings.bottles_dir.resolve()):
        return policy
    chain = manifest.load_chain(str(file), settings.bottles_dir, manifest.reader({}, settings.bottles_dir))
    unbuilt.refuse(settings, chain)
    routes = merge.routes(chain)
    inspected = merge.inspected(routes, providers)
    merge.check_conflicts(change.placed(policy), inspected)
    return replace(policy, routes=routes, inspected=inspected)


class Reload:
    """For one daemon. :param dispatch: to the controller. :param emit: an event."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        bottles: Callable[[], Mapping[int, Bottle]],
        dispatch: Callable[[e.Event], object],
        emit: Callable[[Event], object],
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._bottles = bottles
        self._dispatch = dispatch
        self._emit = emit

    async def all(self, credentials: Credentials) -> None:
        """Every running bottle."""
        await credentials.again()
        for bottle in tuple(self._bottles().values()):
            if bottle.phase in {Phase.STARTING, Phase.STOPPING}:
                continue
            try:
                new = rerouted(bottle.policy, self._settings, self._providers)
            except (AgentmonError, OSError) as error:
                why = f"{error}; the routes in force stay"
                hint = error.hint if isinstance(error, AgentmonError) else ""
                self._emit(Event("policy", "refused", bottle=bottle.name, reason=why, hint=hint, layer="daemon"))
                continue
            if new != bottle.policy:
                removal = change.is_removal(bottle.policy, new)
                self._dispatch(e.PolicyChanged(0, bottle.slot, new, removal, 0, "routes were read anew"))
