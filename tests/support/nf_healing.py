"""The daemon's healing over a lab, and root at work in its bottles: for tests and bench/."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from agentmon.control.state import Phase
from agentmon.daemon.healing import Healing
from agentmon.events import Event
from netfilter.heal import HealingNetfilter
from tests.support.nf_lab import Lab


class Root:
    """Root in a bottle, at work beside the lab's thread, which stays free for the daemon's calls."""

    def __init__(self, lab: Lab, slot: int) -> None:
        self.slot = slot
        self._space = lab.run(os.open, f"/run/netns/am-{slot}", os.O_RDONLY)

    def run(self, *argv: str, text: str = "") -> str:
        command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._space}", *argv]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0 or argv[0] in {"sh", "ip"}, done.stderr[:500]
        return done.stdout

    def nft(self, text: str) -> None:
        self.run("nft", "-f", "-", text=text)

    def ip(self, lines: list[str]) -> None:
        """What is refused is passed over: our table may have been put back meanwhile."""
        self.run("ip", "-force", "-batch", "-", text="\n".join(lines))

    @contextlib.contextmanager
    def again_and_again(self, script: str) -> Iterator[None]:
        """While this lasts."""
        command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._space}", "sh", "-c", f"while :; do {script}; done"]
        loop = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()

    def has_table(self) -> bool:
        listed = self.run("sh", "-c", "nft list chain inet agentmon output 2>&1")
        return "goto refuse" in listed

    def close(self) -> None:
        os.close(self._space)


STORM = "nft flush ruleset; ip addr add 192.0.2.9/32 dev eth0; nft add table inet theirs; ip route flush table main"


class Daemon:
    """The daemon's healing over a lab, in a thread; the lab's thread is the kernel's."""

    def __init__(self, lab: Lab, nf: HealingNetfilter, slots: Iterable[int]) -> None:
        self.events: list[Event] = []
        self.lab = lab
        bottles: Any = {slot: SimpleNamespace(name=f"b{slot}", phase=Phase.RUNNING) for slot in slots}
        self._healing = Healing(nf, self._in_kernel, lambda: bottles, self.events.append, lambda *_: None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    async def _in_kernel(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(self.lab.run, call, *args)

    def _run(self) -> None:
        self._loop.run_until_complete(self._healing.open())
        self._task = self._loop.create_task(self._healing.watch())
        self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> Daemon:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def told(self, slot: int) -> list[Event]:
        return [e for e in self.events if e.bottle == f"b{slot}"]
