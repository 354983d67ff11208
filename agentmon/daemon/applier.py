"""One method per action of control/actions.py: the only place where a decision becomes a change.

Each reads the bottle's *current* state, so a plan that was queued before a cut never opens what the cut closed.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from agentmon import wire
from agentmon.control import actions as a
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import files, jobs, persist
from agentmon.daemon.attach_plan import Attaching
from agentmon.daemon.endings import Endings
from agentmon.daemon.enforcements import Enforcements
from agentmon.daemon.kernel import mode_of
from agentmon.daemon.services import Service
from agentmon.errors import AgentmonError, HostLacks, Refused
from agentmon.events import Event

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

STREAM_GRACE_S = 0.010  # what the proxy has not closed by then, the kernel destroys
_KILL_DEADLINE_S = 5.0
_VIEWED = ("resolver", "relay")  # and the workers of a bottle

Method = Callable[[Any], Awaitable[None]]


class Applier:
    """Applies actions for one Daemon; methods raise AgentmonError or OSError, which ends the plan they stand in."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._endings = Endings(daemon)
        self._enforcements = Enforcements(lambda *row: daemon.ledger.enforced(*row), daemon.spawn)
        self._epoch = -1  # the last that was saved
        self._attaching = Attaching(daemon)
        self._methods: dict[type[a.Action], Method] = {
            a.MakeCgroup: self._make_cgroup, a.MakeNet: self._make_net, a.ApplyClosed: self._apply_closed,
            a.OpenRun: self._open_run, a.PushViews: self._push_views, a.MakeFiles: self._make_files,
            a.Launch: self._launch, a.ApplyRules: self._apply_rules, a.Probe: self._probe, a.Thaw: self._thaw,
            a.Freeze: self._freeze, a.CutKernel: self._cut_kernel, a.CloseStreams: self._close_streams,
            a.SetBudget: self._set_budget, a.Limit: self._limit, a.Enforced: self._enforced, a.KillAll: self._kill_all,
            a.CloseRun: self._close_run, a.DropViews: self._drop_views, a.ForgetBpf: self._forget_bpf,
            a.DeleteNet: self._delete_net, a.RemoveCgroup: self._remove_cgroup, a.RemoveFiles: self._remove_files,
            a.Save: self._save, a.Emit: self._emit, a.Started: self._started, a.Ended: self._ended,
            a.Answer: self._answer, a.Fail: self._fail, a.Mark: self._mark, a.Together: self._together,
            a.AttachPrograms: self._attaching.programs, a.MoveIn: self._attaching.move_in,
            a.SaveState: self._save_state, a.SettleState: self._settle_state, a.DropState: self._drop_state,
            a.RestoreState: self._restore_state, a.CheckBudget: self._check_budget,
            a.EndOlder: self._attaching.end_older, a.Holds: self._attaching.holds, a.LetGo: self._attaching.let_go,
        }  # fmt: skip

    async def apply(self, action: a.Action) -> None:
        """:raises AgentmonError, OSError: the action did not happen; what it had begun is undone or idempotent."""
        await self._methods[type(action)](action)

    async def _together(self, action: a.Together) -> None:
        """All branches are waited for, also when one fails: nothing of a plan goes on behind its failure."""
        done = await asyncio.gather(*(self._branch(branch) for branch in action.branches), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    async def _branch(self, branch: tuple[a.Action, ...]) -> None:
        for action in branch:
            await self.apply(action)

    def _bottle(self, slot: int) -> Bottle:
        bottle = self._d.host.bottles.get(slot)
        if bottle is None:
            raise AgentmonError(f"the bottle in slot {slot} is gone")
        return bottle

    # ── start ──

    async def _make_cgroup(self, action: a.MakeCgroup) -> None:
        bottle = self._bottle(action.slot)
        if bottle.attached is not None:
            await self._d.in_kernel(self._d.kernel.know, action.slot, bottle.attached)
            return
        pids = bottle.policy.limits.get("pids", 0)
        await self._d.in_kernel(self._d.kernel.make_cgroup, action.slot, pids)

    async def _make_net(self, action: a.MakeNet) -> None:
        bottle = self._bottle(action.slot)
        if bottle.attached is not None:
            await self._attaching.hold(bottle, bottle.attached)
            return
        await self._d.in_kernel(self._d.kernel.make_net, action.slot)

    async def _apply_closed(self, action: a.ApplyClosed) -> None:
        await self._d.in_kernel(self._d.kernel.apply_bpf_closed, self._bottle(action.slot))

    async def _open_run(self, action: a.OpenRun) -> None:
        await self._d.ledger.open(self._bottle(action.slot))

    async def _make_files(self, action: a.MakeFiles) -> None:
        files.make_home(action.slot, action.bottle.job)

    async def _push_views(self, action: a.PushViews) -> None:
        bottle = self._bottle(action.slot)
        if bottle.phase is Phase.STARTING or self._d.credentials.lacks(bottle):
            await self._d.credentials.push(bottle)
        if self._d.approvals.lacks(bottle):
            for proxy in self._d.workers.of(bottle):
                await proxy.call(self._d.approvals.told(bottle, proxy.next_id()))
        bottle = self._bottle(action.slot)  # as it is now: a cut that came meanwhile is not taken back
        view = self._d.kernel.compiled(bottle, mode_of(bottle)).view
        await asyncio.gather(*(self._push(service, view) for service in self._viewers(bottle)))

    def _viewers(self, bottle: Bottle) -> list[Service]:
        return [*self._d.workers.of(bottle), *(self._d.services[name] for name in _VIEWED)]

    async def _push(self, service: Service, view: wire.BottleView) -> None:
        await service.call(wire.SetBottle(service.next_id(), view))

    async def _launch(self, action: a.Launch) -> None:
        bottle = self._bottle(action.slot)
        spec = jobs.launch_spec(
            bottle, self._d.kernel.tree.job(bottle.slot), self._d.trust, self._d.pool, self._d.providers
        )
        spawned = await self._d.spawner.spawn(spec)
        self._d.clients.hold(bottle.slot, spawned)

    async def _apply_rules(self, action: a.ApplyRules) -> None:
        bottle = self._bottle(action.slot)
        if bottle.phase is not Phase.STOPPING and await self._d.in_kernel(self._d.apply_rules, action.slot):
            self._endings.owe(action.slot)

    async def _probe(self, action: a.Probe) -> None:
        """An allowed path works and a forbidden one is refused by each layer, seen from the sibling leaf."""
        slot = action.slot
        before = await self._d.in_kernel(self._d.kernel.nft.refusals, slot)
        self._d.kernel.tree.open_probe(slot)
        result = await self._d.spawner.probe(jobs.probe_spec(self._bottle(slot), self._d.kernel))
        self._d.kernel.tree.close_probe(slot)
        problems = list(result.problems)
        if self._bottle(slot).policy.observe:  # the bottle's own table relaxes all there; the host's and BPF do not
            problems = [p for p in problems if not p.startswith("bottle-nft")]
        if result.frame == "sent" and not await self._counted(slot, before):
            problems.append("the host-side rules did not count the frame that was sent past the other layers")
        self._d.probed[slot] = sum((await self._d.in_kernel(self._d.kernel.nft.refusals, slot)).values())
        if problems:
            why, hint = await self._d.healing.blocked(self._d.pool)
            raise HostLacks(f"the bottle did not pass its own test: {'; '.join(problems)}{why}", hint)

    async def _counted(self, slot: int, before: dict[str, int]) -> bool:
        for _ in range(20):
            now = await self._d.in_kernel(self._d.kernel.nft.refusals, slot)
            if sum(now.values()) > sum(before.values()):
                return True
            await asyncio.sleep(0.002)
        return False

    async def _thaw(self, action: a.Thaw) -> None:
        bottle = self._bottle(action.slot)
        await self._d.saves.stop(bottle.run)
        if bottle.phase is Phase.FROZEN:
            return  # its budget was spent while it started
        if bottle.phase is Phase.STARTING or bottle.unbegun:
            if bottle.attached is not None and bottle.attached.cgroup:
                return  # it was not stopped; a container that its engine paused stays so
            if self._d.sightings is not None:
                self._d.sightings.opened(action.slot)
        self._d.kernel.tree.freeze(action.slot, frozen=False)

    async def _freeze(self, action: a.Freeze) -> None:
        self._d.kernel.tree.freeze(action.slot, frozen=True)

    async def _started(self, action: a.Started) -> None:
        await self._d.started(action.slot)

    # ── cut, resume ──

    async def _cut_kernel(self, action: a.CutKernel) -> None:
        await self._d.in_kernel(self._d.kernel.cut, action.slot)

    async def _close_streams(self, action: a.CloseStreams) -> None:
        """Ends streams, then records the enforcement: time from the crossing commit to the last closed stream."""
        slot, nft = action.slot, self._d.kernel.nft
        self._d.approvals.stop(slot, "the bottle was cut")
        began_ns = action.crossed_ns or time.monotonic_ns()
        acks = asyncio.gather(
            *(self._cut_service(service, action) for service in self._viewers(action.bottle)), return_exceptions=True
        )
        await asyncio.wait({acks}, timeout=STREAM_GRACE_S)
        late = not acks.done()
        if late:  # whichever comes first ends them: the kernel, or the services after all
            destroyed = asyncio.ensure_future(self._d.in_kernel(nft.destroy_flows, slot))
            either: list[asyncio.Future[Any]] = [acks, destroyed]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        failed = acks.done() and any(isinstance(ack, BaseException) for ack in acks.result())
        if failed and not late:
            await self._d.in_kernel(nft.destroy_flows, slot)
        ended_ns = time.monotonic_ns()  # nothing passes any more; what is left is to end flows that nothing answers
        others = await self._end_refused(action)
        closed = sum(ack.closed for ack in await acks if isinstance(ack, wire.Ack))
        result = f"{closed} streams closed, {others} other flows ended"
        result += "; flows destroyed in the kernel after the grace" if late or failed else ""
        row = (action.policy, action.trigger, action.by, max(0, ended_ns - began_ns), result)
        await self._enforcements.record(action.bottle, *row)

    async def _end_refused(self, action: a.CloseStreams) -> int:
        """How many flows were ended; none of a bottle whose start has not come to its network yet."""
        try:
            return await self._d.in_kernel(self._d.kernel.nft.end_refused, action.slot)
        except OSError as error:
            if not action.bottle.unbegun or error.errno != errno.ENOENT:
                raise
            return 0

    async def _cut_service(self, service: Service, action: a.CloseStreams) -> wire.Ack:
        answer = await service.call(wire.CutBottle(service.next_id(), action.slot, action.spent, action.crossed_ns))
        return answer if isinstance(answer, wire.Ack) else wire.Ack(0)

    async def _set_budget(self, action: a.SetBudget) -> None:
        await self._d.ledger.set_budget(action.bottle, action.provider, action.tokens, action.uid)

    async def _limit(self, action: a.Limit) -> None:
        if action.bottle.attached is None:  # what others started has its own limits
            self._d.kernel.tree.limit(action.slot, action.bottle.policy.limits.get("pids", 0))

    async def _enforced(self, action: a.Enforced) -> None:
        goes_on = action.policy == "resume"  # unrecorded nothing does
        record = self._d.ledger.enforced if goes_on else self._enforcements.record
        await record(action.bottle, action.policy, action.trigger, action.by, 0, action.result)

    # ── what outlives a reboot ──

    async def _save_state(self, action: a.SaveState) -> None:
        bottle, pids = action.bottle, self._d.kernel.tree.processes(action.slot)
        if self._d.saves.of(bottle.run) is not None:
            return
        try:
            result = (await self._d.saves.save(bottle, pids, self._d.settings.source)).describe()
        except (AgentmonError, OSError) as error:
            result = f"not saved: {error}"
            hint = "it is frozen all the same; it does not outlive a reboot"
            told = Event("freeze", "observed", bottle=bottle.name, layer="daemon", reason=result, hint=hint)
            self._d.log.add(told)
        await self._enforcements.record(bottle, "save", action.trigger, action.by, 0, result)

    async def _settle_state(self, action: a.SettleState) -> None:
        await self._d.saves.settled(action.bottle.run)

    async def _drop_state(self, action: a.DropState) -> None:
        await self._d.saves.drop(action.bottle.run)

    async def _restore_state(self, action: a.RestoreState) -> None:
        await self._d.saves.restore(self._bottle(action.slot))

    async def _check_budget(self, action: a.CheckBudget) -> None:
        bottle = self._bottle(action.slot)
        for s in await self._d.ledger.spent(action.slot):
            message = f"{s['scope']} {s['name']} spent its {s['provider']} budget: {s['used']} of {s['tokens']} tokens"
            raise Refused(message, f"agentmon resume {bottle.name} --budget {s['provider']}={s['used'] * 2}")

    # ── stop ──

    async def _kill_all(self, action: a.KillAll) -> None:
        tree = self._d.kernel.tree
        tree.kill(action.slot)
        end = time.monotonic() + _KILL_DEADLINE_S
        while tree.populated(action.slot):
            if time.monotonic() > end:
                raise AgentmonError(f"processes of slot {action.slot} survive SIGKILL: {tree.processes(action.slot)}")
            await asyncio.sleep(0.001)

    async def _drop_views(self, action: a.DropViews) -> None:
        if (bottle := self._d.host.bottles.get(action.slot)) is not None:
            self._d.approvals.forget(action.slot, bottle.run)
        await self._d.collect(action.slot)
        viewed = [service for service in self._d.services.values() if service.name != "ledger"]
        await asyncio.gather(*(self._drop(service, action.slot) for service in viewed))

    async def _drop(self, service: Service, slot: int) -> None:
        if service.channel is not None:
            await service.call(wire.DropBottle(service.next_id(), slot))

    async def _close_run(self, action: a.CloseRun) -> None:
        bottle = self._d.host.bottles.get(action.slot)
        if bottle is not None:
            await self._d.ledger.close(bottle)

    async def _forget_bpf(self, action: a.ForgetBpf) -> None:
        self._d.commits.forget(action.slot)
        await self._d.in_kernel(self._d.kernel.forget_bpf, action.slot)
        if self._d.sightings is not None:  # repeats that were still being counted, while the bottle has a name
            await self._d.sightings.settle()

    async def _delete_net(self, action: a.DeleteNet) -> None:
        await self._d.in_kernel(self._d.kernel.delete_net, action.slot)

    async def _remove_cgroup(self, action: a.RemoveCgroup) -> None:
        await self._d.in_kernel(self._d.kernel.remove_cgroup, action.slot)

    async def _remove_files(self, action: a.RemoveFiles) -> None:
        files.remove(action.slot)

    # ── telling ──

    async def _save(self, action: a.Save) -> None:
        bottle = self._d.host.bottles.get(action.slot)
        if bottle is not None and bottle.phase is not Phase.STOPPING:
            if self._epoch != self._d.host.epoch:
                persist.save_epoch(self._d.host.epoch)
                self._epoch = self._d.host.epoch
            persist.save(bottle)

    async def _emit(self, action: a.Emit) -> None:
        self._d.log.add(Event(**action.event))

    async def _ended(self, action: a.Ended) -> None:
        await self._d.ended(action)

    async def _mark(self, action: a.Mark) -> None:
        """Read by the runner only."""

    async def _answer(self, action: a.Answer) -> None:
        self._d.clients.answer(action.request, action.value)

    async def _fail(self, action: a.Fail) -> None:
        self._d.clients.fail(action.request, action.error, action.message, action.hint)
