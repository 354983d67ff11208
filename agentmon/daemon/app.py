"""agentmond: start-up, the loop, and the end. What is decided is in control/, what is done in applier.py.

start: lock → host rules (closed) → BPF → spawner → services → adopt or clean what an earlier daemon left → socket
end:   SIGTERM leaves running bottles in force for the next daemon; SIGINT, or the last bottle of an --until-idle
       daemon, removes everything
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ebpf.errors
import ebpf.spec
import netfilter.errors
import netfilter.spec
from agentmon import paths, trust, wire
from agentmon.addresses import FIRST_SLOT, MAX_PROXIES, netns
from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.state import Bottle, Host, Phase
from agentmon.credentials import sources
from agentmon.daemon import files, jobs, launcher_watch, persist, specs
from agentmon.daemon.alerts import Alerts
from agentmon.daemon.applier import Applier
from agentmon.daemon.approvals import Approvals
from agentmon.daemon.attach_watch import AttachWatch
from agentmon.daemon.cgroups import Tree
from agentmon.daemon.clients import Clients
from agentmon.daemon.commits import Commits
from agentmon.daemon.credentials import Credentials
from agentmon.daemon.eventlog import EventLog
from agentmon.daemon.healing import Healing
from agentmon.daemon.hook import Hook
from agentmon.daemon.kernel import Kernel, mode_of
from agentmon.daemon.ledger_link import LedgerLink
from agentmon.daemon.ops import Ops
from agentmon.daemon.reload import Reload
from agentmon.daemon.reports import Reports
from agentmon.daemon.runner import Runner
from agentmon.daemon.saved_state import Saved
from agentmon.daemon.saving import Saves
from agentmon.daemon.secrets import RuleFile
from agentmon.daemon.services import Service
from agentmon.daemon.sightings import Sightings
from agentmon.daemon.strangers import Strangers
from agentmon.daemon.workers import Workers
from agentmon.errors import AgentmonError, BadInput, HostLacks
from agentmon.events import Event
from agentmon.launch.client import Spawner
from agentmon.launch.host_sockets import Places, places
from agentmon.policy import unbuilt
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.providers import registry
from netfilter.changes import SelfHealing

T = TypeVar("T")
FIRST_BOTTLE_S = 30.0  # an --until-idle daemon that nobody uses ends after this
LINGER_S = 1.0  # and this long after its last bottle
_ALERTS_S = 2.0  # for what an ending daemon still has to tell
_LEFT_OUT = {
    "vouch": "guard: observe and strict",
    "origin": "the system call and library in events",
    "unix": "holding bottles to the unix sockets of their policy",
    "lsm": "a second verdict by the kernel's security hooks",
    "origin unix": "the path and library of refused unix sockets in events",
}


class Daemon:
    """One per host; `netfilter` and `bpf` are given so that fakes can stand in for the kernel in tests."""

    def __init__(
        self, settings: Settings, *, nft: SelfHealing, bpf: ebpf.spec.Bpf, tree: Tree, until_idle: bool
    ) -> None:
        self.settings = settings
        self.until_idle = until_idle
        self.pool = settings.pool
        self.providers = registry.load(settings.providers)
        self.trust = paths.TRUST / "bundle.pem"
        self.kernel = Kernel(nft, bpf, tree, self.pool, self._places)
        self._kernel_thread = ThreadPoolExecutor(1, "kernel")
        self.clients = Clients()
        self.healing = Healing(nft, self.in_kernel, lambda: self.host.bottles, self._tell, self._broken)
        self.commits = Commits(nft, bpf.learn, self._refence)
        self.spawner = Spawner(path=paths.SVC / "spawner.sock")
        self.services: dict[str, Service] = {}
        host = Host(FIRST_SLOT, self.pool.last_slot, persist.load_epoch(), workers=settings.proxies)
        self.runner = Runner(host, Applier(self).apply, self.clients, self._look_idle)
        self.saves = Saves()
        self.log = EventLog(
            str(paths.EVENTS), max_bytes=settings.events_bytes, max_age_s=settings.events_age_s, log=settings.log
        )
        store = sources.store(settings.credentials)
        self.credentials = Credentials(
            store, lambda: self.host.bottles, lambda bottle: self.workers.of(bottle), self.log.add
        )
        self.credentials.resolver = lambda: self.services.get("resolver")
        self.rules = RuleFile(settings)
        self._reports = Reports(lambda: self.host.bottles, tree.processes, self.log.add)
        self.ledger: LedgerLink
        self._alert = Hook("alert", lambda: self.settings.alert, self.log.add)
        self.log.follow(Alerts(self._alert).saw)
        self.approvals_hook = Hook("approvals: hook", lambda: self.settings.approvals_hook, self.log.add)
        self.approvals = Approvals(
            lambda: self.settings, lambda: self.host.bottles, lambda: self.ledger, self.log.add, self.spawn,
            self.approvals_hook,
        )  # fmt: skip
        self.sightings: Sightings | None = None
        self._loop: asyncio.AbstractEventLoop
        self.ops = Ops(self)
        self.workers = Workers(lambda: self.services.values(), self.approvals)
        self.reload = Reload(self)
        self.probed: dict[int, int] = {}  # slot → packets of the bottle's own test that the host side refused
        self._summaries: dict[int, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._end = asyncio.Event()
        self.keeping = False  # leave bottles in force at the end
        self._quiet_since = time.monotonic()
        self._used = False

    @property
    def host(self) -> Host:
        return self.runner.host

    # ── life ──

    async def run(self) -> None:
        """Until a signal, or idleness; see the module's docstring.

        :raises AgentmonError: it could not start; what it had opened is closed again.
        """
        loop = self._loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop, not self.until_idle)
        loop.add_signal_handler(signal.SIGINT, self.stop, False)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.spawn(self.reload.now(), "reload"))
        try:
            await self._open()
            server = asyncio.create_task(self._accept(self._listen()), name="control socket")
            print("agentmon: ready", file=sys.stderr, flush=True)
            await self._end.wait()
            server.cancel()
        finally:
            await self._close()

    def stop(self, keep: bool) -> None:
        """End the loop; `keep`: running bottles stay in force for the next daemon."""
        self.keeping = keep
        self._end.set()

    async def _open(self) -> None:
        trust.ensure_ca(paths.CA_DIR, owner=specs.USERS["proxy"])
        trust.bundle(paths.CA_DIR, [Path(p) for p in self.settings.upstream_ca], self.trust)
        await self.in_kernel(self.kernel.open, specs.host_spec(self.settings))
        await self.healing.open()
        for group, why in self.kernel.left_out().items():
            print(f"warning: {_LEFT_OUT.get(group, group)}: not on this host ({why})", file=sys.stderr)
        jobs = await self.spawner.start()
        self.spawn(self._watch_exits(), "exits")
        watched = launcher_watch.watch(self.spawner, lambda: self.host.bottles, self.runner.dispatch, self.log.add)
        self.spawn(watched, "launcher")
        held = {slot: b.run for slot, b in persist.load_all().items() if b is not None and self._still_there(b)}
        unreadable = await self.in_kernel(self._clean_dead, {job.slot for job in jobs} | held.keys())
        for slot in unreadable:
            what = f"slot {slot} is attached to something, and its file in {paths.STATE} cannot be read"
            self._stays_held(slot, what)
        for spec in specs.services(self.settings, self.pool):
            self.services[spec.name] = Service(spec, self._on_message, self._on_up, self._on_down)
        self.ledger = LedgerLink(self.services["ledger"])
        await self._end_surplus()
        await asyncio.gather(*(service.start() for service in self.services.values()))
        await self._adopt(held | {job.slot: job.run for job in jobs})
        self.sightings = Sightings(self.kernel.bpf, lambda: self.host.bottles, self.log.add, self.commits.names)
        strangers = Strangers(lambda: self.host.bottles, self.kernel.tree.holds, self.log.add)
        self.spawn(strangers.watch(), "strangers")
        self.spawn(self.healing.watch(), "healing")
        self.spawn(self.credentials.watch(), "credentials")
        self.spawn(self.reload.watch(), "files")
        attached = AttachWatch(
            lambda: self.host.bottles, self.kernel.tree, self._hold_again, self.runner.dispatch, self.log.add
        )
        self.spawn(attached.watch(), "attached")
        self.log.add(Event("daemon", "observed", reason="ready", layer="daemon", pid=os.getpid()))

    async def _end_surplus(self) -> None:
        """Of an earlier daemon that had more proxy workers."""
        left = {path.stem for path in paths.SVC.glob(f"{specs.FIRST_PROXY}-*.pid")} - self.services.keys()
        for spec in specs.services(replace(self.settings, proxies=MAX_PROXIES), self.pool) if left else ():
            if spec.name in left:
                await Service(spec, self._on_message, self._on_up, self._on_down).stop()

    async def _hold_again(self, slot: int) -> tuple[str, ...]:
        return await self.in_kernel(self.kernel.hold_again, slot)

    def _clean_dead(self, alive: set[int]) -> list[int]:
        """Remove every kernel object of slots whose job no spawner holds, before anything new is opened; the slots that
        stay held although nobody knows what they may reach."""
        unreadable = {slot for slot, bottle in persist.load_all().items() if bottle is None}
        kept = []
        for slot in self.kernel.slots() - alive:
            if slot in unreadable and self.kernel.is_attached(slot):
                kept.append(slot)
                continue
            self.kernel.clean(slot)
            files.remove(slot)
        return kept

    def _stays_held(self, slot: int, what: str) -> None:
        """A new bottle in that slot would fail, and its cleaning up would let go of what is held."""
        reason = f"{what}: it stays held as it was, known to nobody"
        print(f"warning: {reason}", file=sys.stderr, flush=True)
        self.log.add(Event("daemon", "refused", layer="daemon", reason=reason))
        self.runner.host = replace(self.runner.host, unknown=self.runner.host.unknown | {slot})

    @staticmethod
    def _still_there(bottle: Bottle) -> bool:
        """Whether a bottle of an earlier daemon is attached to something whose namespace still has our name."""
        try:
            inode = (Path(paths.NETNS) / netns(bottle.slot)).stat().st_ino
        except OSError:
            return False
        return bottle.attached is not None and bottle.attached.inode == inode

    async def _adopt(self, alive: dict[int, str]) -> None:
        """Take over bottles that run; one without a readable state file is ended (nobody knows its policy), and one of
        which a part is gone. Then everything is looked at once: nobody watched while no daemon ran."""
        saved, applying = persist.load_all(), set()
        on_disk = self.saves.load()
        for slot, run in alive.items():
            bottle = saved.get(slot)
            if bottle is not None:  # by another number of workers, another one may be its own
                bottle = replace(bottle, worker=slot % self.settings.proxies)
            if bottle is None or bottle.run != run or bottle.phase in {Phase.STARTING, Phase.STOPPING}:
                await self.in_kernel(self.kernel.clean, slot)
                files.remove(slot)
                continue
            try:
                if bottle.attached is not None:
                    await self.in_kernel(self.kernel.adopt_attached, slot, bottle.attached)
                else:
                    await self.in_kernel(self.kernel.adopt, slot)
            except OSError as error:
                if bottle.attached is None:
                    await self._end_torn(bottle, error)
                else:  # its own root may be the one who prevents it: no reason for the others to have no daemon
                    what = f"slot {slot}, attached to {bottle.attached.what}, cannot be taken over ({error})"
                    self._stays_held(slot, what)
                continue
            applying.add(
                self.runner.dispatch(e.Adopted(bottle, *unbuilt.lacking(bottle.policy, self.kernel.bpf.features())))
            )
            self.spawn(self.approvals.adopted(bottle), "adopted")
            self.log.add(Event("daemon", "observed", bottle=bottle.name, reason="adopted", layer="daemon"))
        await asyncio.gather(*(task for task in applying if task is not None))
        self.healing.look_at_everything()
        await self._keep_saved(on_disk)
        self._used = bool(self.host.bottles)

    async def _keep_saved(self, found: list[Saved]) -> None:
        """What earlier daemons saved: of bottles that are gone it can be resumed; that of bottles which went on since
        is of no use any more."""
        alive = {bottle.run: bottle for bottle in self.host.bottles.values()}
        for saved in found:
            bottle = alive.get(saved.bottle.run)
            if bottle is None:
                self.runner.dispatch(e.Kept(saved.bottle))
            elif bottle.phase is not Phase.FROZEN:
                await self.saves.drop(bottle.run)

    async def _end_torn(self, bottle: Bottle, error: OSError) -> None:
        """A part of it was taken away while no daemon ran, and cannot be put back under a running job."""
        await self.in_kernel(self.kernel.clean, bottle.slot)
        files.remove(bottle.slot)
        reason = f"taken away while no daemon ran, the bottle was ended: {error}"
        print(f"warning: bottle {bottle.name}: {reason}", file=sys.stderr, flush=True)
        self.log.add(Event("tamper", "refused", bottle=bottle.name, layer="daemon", reason=reason))

    async def _close(self) -> None:
        """Let go of bottles (keep) or remove everything; a step that fails is told and the next one is done."""
        if not self.keeping:
            for bottle in tuple(self.host.bottles.values()):
                if bottle.attached is None:  # only detach lets go of what others started
                    self.runner.dispatch(e.ClientGone(bottle.slot))
            await self.runner.drained()
        bottles = self.host.bottles
        held = len(bottles) + len(self.host.unknown)
        self.keeping = held > 0
        if self.sightings is not None:
            await self._step("end the sightings", self.sightings.close())
        self.approvals.close()
        await self.approvals_hook.close()
        await self._alert.settled(_ALERTS_S)
        await self._alert.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        paths.CONTROL_SOCKET.unlink(missing_ok=True)
        await self._step("let go of the spawner", self.spawner.close())
        if self.keeping:
            print(f"agentmon: {held} bottles stay in force; the next daemon adopts them", file=sys.stderr)
            for service in self.services.values():
                service.detach()
        else:
            for service in self.services.values():
                await self._step(f"stop the {service.name}", service.stop())
            await self._step("remove rules, programs and cgroups", self.in_kernel(self.kernel.close))
        self._kernel_thread.shutdown()
        self.log.close()
        if not self.keeping:
            files.remove_all()

    async def _step(self, what: str, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - what comes after it ends threads, without which no process ends
            print(f"warning: could not {what}: {error}; going on", file=sys.stderr)

    def spawn(self, work: Any, name: str) -> None:
        """Run a coroutine for as long as the daemon lives."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def in_kernel(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call of Kernel in its own thread, one after another: pyroute2 cannot be called from inside a loop, and
        the loop goes on reading while the kernel works.

        :raises AgentmonError: the host lacks something, or the policy does not fit into the kernel's maps.
        :raises OSError: the kernel refused.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._kernel_thread, call, *args)
        except netfilter.errors.Missing as e:
            raise HostLacks(f"{e.what} is missing", e.remedy) from e
        except ebpf.errors.Missing as e:
            raise HostLacks(f"{e.what} is missing", e.hint) from e
        except ebpf.errors.Unencodable as e:
            raise BadInput(str(e), e.hint) from e
        except ebpf.errors.UnknownSlot as e:
            raise AgentmonError(f"BPF does not know the bottle: {e}", "kill it and run it again") from e

    def _places(self, bottle: Bottle) -> Places:
        spec = jobs.launch_spec(bottle, self.kernel.tree.job(bottle.slot), self.trust, self.pool, self.providers)
        return places(spec, home_is_private=bottle.policy.home == "private")

    def apply_rules(self, slot: int) -> bool:
        """Both kernel layers to what the bottle's state is *now*; in the kernel thread, so that nothing comes between
        reading the state and applying it but a cut, which comes after and wins. True: flows are still to be ended."""
        bottle = self.host.bottles.get(slot)
        if bottle is not None and bottle.phase is not Phase.STOPPING:
            fenced = self.commits.fenced(slot)
            return self.kernel.apply(bottle, mode_of(bottle), *self.commits.carried(bottle), fenced)
        return False

    def plan_rules(self, bottle: Bottle, policy: EffectivePolicy, removal: bool) -> list[str]:
        """What another policy would do to a bottle's rules of packets; in the kernel thread, and nothing is changed."""
        changed = replace(bottle, policy=policy, epoch=self.host.epoch + 1 if removal else bottle.epoch)
        learned, _ = self.commits.carried(changed)
        return self.kernel.plan(changed, mode_of(changed), learned, self.commits.fenced(bottle.slot))

    def _refence(self, bottle: Bottle) -> None:
        """From the kernel thread: the same policy in a new epoch, so that flows to what is fenced now end too."""
        what = "an address that a direct rule opens is held by a deeper rule: denied as direct"
        event = e.PolicyChanged(0, bottle.slot, bottle.policy, True, 0, what)
        self._loop.call_soon_threadsafe(self.runner.dispatch, event)

    # ── services ──

    async def _on_up(self, service: Service) -> None:
        """A service (re)connected: it is told every running bottle."""
        if self.workers.is_one(service):
            await self.rules.tell(service)
        for bottle in tuple(self.host.bottles.values()):
            if bottle.phase in {Phase.STARTING, Phase.STOPPING}:
                continue
            if service.name == "ledger":
                await self.ledger.open(bottle)
            elif not self.workers.is_one(service) or service in self.workers.of(bottle):
                await self._push(service, bottle)
        if service.name == "ledger":
            await self.ops.trail.flush()

    async def _push(self, service: Service, bottle: Bottle) -> None:
        view = self.kernel.compiled(bottle, mode_of(bottle)).view
        if self.workers.is_one(service):
            await self.credentials.push_to(bottle, [service])
            await service.call(self.approvals.told(bottle, service.next_id()))
        if service.name == "resolver":
            await self.credentials.push_names(bottle)
        await service.call(wire.SetBottle(service.next_id(), view))
        if bottle.phase in {Phase.CUT, Phase.FROZEN}:
            await service.call(wire.CutBottle(service.next_id(), bottle.slot, dict(bottle.spent or {})))

    def _on_down(self, service: Service) -> None:
        self.approvals.lost()
        self.log.add(
            Event("daemon", "refused", layer="daemon", reason=f"the {service.name} has gone away",
                  hint="it is started again; until then what needs it is refused")
        )  # fmt: skip

    async def _on_message(self, service: Service, message: Any) -> None:
        if isinstance(message, wire.Commit):
            self.spawn(self._commit(service, message), "commit")
        elif isinstance(message, wire.Propose) and service.channel is not None:
            self.approvals.propose(service.channel, message)
        elif isinstance(message, wire.Withdraw) and service.channel is not None:
            self.approvals.withdraw(service.channel, message.id)
        elif isinstance(message, wire.Crossed):
            self.runner.dispatch(e.BudgetCrossed(message))
        elif isinstance(message, wire.Report):
            self.spawn(self._report(service, message), "report")

    async def _commit(self, service: Service, message: wire.Commit) -> None:
        try:
            answer = await self.in_kernel(self.commits.commit, self.host.bottles.get(message.slot), message)
        except (OSError, AgentmonError, ValueError) as error:
            answer = wire.Committed(message.id, (), f"not committed: {error}")
            self.log.add(Event("daemon", "refused", layer="daemon", host=message.name, reason=str(error)))
        if service.channel is not None:
            service.channel.send(answer)

    async def _report(self, service: Service, message: wire.Report) -> None:
        await self._reports.take(message)
        if message.id and service.channel is not None:
            service.channel.send(wire.Ack(message.id))

    # ── bottles ──

    def _tell(self, event: Event) -> None:
        self.log.add(event)

    def _broken(self, slot: int, what: str) -> None:
        self.runner.dispatch(e.Broken(slot, what))

    async def _watch_exits(self) -> None:
        while True:
            exited = await self.spawner.exits.get()
            bottle = self.host.bottles.get(exited.slot)
            if bottle is not None and bottle.run == exited.run:
                self.runner.dispatch(e.Exited(exited.slot, exited.exit))

    async def started(self, slot: int) -> None:
        bottle = self.host.bottles[slot]
        self._used = True
        ready_ms = (time.time_ns() - bottle.started_ns) / 1e6
        value = {"slot": slot, "bottle": bottle.name, "run": bottle.run, "ready_ms": round(ready_ms, 3)}
        self.clients.start(slot, value | ({"result": "restarted"} if bottle.restored else {}))

    def started_attached(self) -> None:
        """A bottle was attached: a daemon that ends when it is idle has had one."""
        self._used = True

    async def collect(self, slot: int) -> None:
        """Gather what the summary says, while the kernel and the ledger still know it."""
        bottle = self.host.bottles.get(slot)
        if bottle is None:
            return
        if self.sightings is not None:
            await self.sightings.settle()
        refused = dict(self.log.refused.pop(bottle.name, {}))
        with contextlib.suppress(OSError, KeyError):
            packets = sum((await self.in_kernel(self.kernel.nft.refusals, slot)).values()) - self.probed.pop(slot, 0)
            refused |= {"host-nft": packets} if packets else {}
        usage: dict[str, Any] = {}
        with contextlib.suppress(AgentmonError):
            for row in await self.ledger.totals(slot):
                if row.get("scope") == "bottle":
                    usage[str(row["provider"])] = {
                        k: row[k] for k in ("used", "held", "tokens", "remaining") if k in row
                    }
        self._summaries[slot] = {
            "refused": refused,
            "usage": usage,
            "cut": dict(bottle.spent) if bottle.spent else None,
        }

    async def ended(self, action: a.Ended) -> None:
        bottle = action.bottle
        summary = self._summaries.pop(action.slot, {"refused": {}, "usage": {}, "cut": None})
        repeats = self.log.refused.pop(bottle.name, Counter())  # the services told them when they dropped the bottle
        summary["refused"] = dict(Counter(summary["refused"]) + repeats)
        value = {"bottle": bottle.name, "exit": action.status, **summary}
        self.clients.end(action.slot, value, action.error)
        if (saved := self.saves.of(bottle.run)) is not None:
            self.runner.dispatch(e.Kept(saved.bottle))

    def _look_idle(self) -> None:
        self._quiet_since = time.monotonic()
        if self.until_idle and not self.host.bottles:
            asyncio.get_running_loop().call_later(LINGER_S if self._used else FIRST_BOTTLE_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        quiet_s = time.monotonic() - self._quiet_since
        if not self.host.bottles and quiet_s >= (LINGER_S if self._used else FIRST_BOTTLE_S) - 0.05:
            self.stop(keep=False)

    # ── control socket ──

    def _listen(self) -> socket.socket:
        from agentmon.service import listen_unix

        return listen_unix(paths.CONTROL_SOCKET, group="agentmon")

    async def _accept(self, listener: socket.socket) -> None:
        self._look_idle()
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                sock, _ = await loop.sock_accept(listener)
                self.spawn(self.ops.serve(sock), "client")
