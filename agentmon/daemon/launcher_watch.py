"""Watches the spawner: one that was killed is replaced, and its jobs are ended, as nobody would tell how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from agentmon.control.events import Broken
from agentmon.control.state import Bottle
from agentmon.errors import AgentmonError
from agentmon.events import Event
from agentmon.launch.client import Spawner

_AGAIN_S = 1.0
_WHAT = "the process that launches and waits for jobs was killed"
_HINT = "agentmon run starts the command again; dmesg says whether the kernel ran out of memory"


async def watch(
    spawner: Spawner,
    bottles: Callable[[], Mapping[int, Bottle]],
    dispatch: Callable[[Broken], object],
    tell: Callable[[Event], object],
) -> None:
    """Until cancelled. What was attached has no launcher and goes on; a spawner that lives after all keeps its jobs."""
    while True:
        await spawner.lost.wait()
        try:
            jobs = await spawner.start()
        except (OSError, AgentmonError) as error:
            tell(Event("daemon", "refused", layer="daemon", reason=f"no command can be started: {error}"))
            await asyncio.sleep(_AGAIN_S)
            continue
        held = {job.slot: job.run for job in jobs}  # since start() returned nothing else has run
        gone = [slot for slot, b in bottles().items() if b.attached is None and held.get(slot) != b.run]
        tell(Event("daemon", "observed", layer="daemon", reason=f"{_WHAT}; started again, {len(gone)} jobs are ended"))
        for slot in gone:
            dispatch(Broken(slot, _WHAT, _HINT))
