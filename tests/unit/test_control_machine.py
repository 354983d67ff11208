"""The daemon's judgement as transcripts: an event goes in, the names of the actions come out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentmon import wire
from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.machine import MAX_EPOCH, step
from agentmon.control.state import Bottle, Host, Job, Phase
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule

JOB = Job(("true",), (), "/", 1000, 1000, (), tty=False)
START = ["MakeCgroup", "MakeFiles", "MakeNet", "ApplyClosed", "Together", "Probe", "Thaw", "Started"]
CLEAN = ["DropViews", "CloseRun", "ForgetBpf", "DeleteNet", "RemoveCgroup", "RemoveFiles"]


def policy(name: str = "one", **changes: object) -> EffectivePolicy:
    return EffectivePolicy(bottle=name, rules=(parse_rule("a.example:443"),), **changes)  # type: ignore[arg-type]


def names(actions: tuple[a.Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


def host(**bottles: Phase) -> Host:
    out = Host(16, 20, epoch=5)
    for number, (name, phase) in enumerate(bottles.items()):
        out = out.put(Bottle(16 + number, name, f"run-{name}", phase, policy(name), JOB, epoch=number + 1))
    return replace(out, last=15 + len(bottles))


def test_run_goes_from_closed_to_open_and_thaws_last() -> None:
    before = Host(16, 20, epoch=5)
    after, actions = step(before, e.RunRequested(7, policy(), JOB, "r1", 123))
    assert names(actions) == ["Answer", "Save", *START]
    assert actions[0] == a.Answer(16, 7, 16)
    together = next(action for action in actions if isinstance(action, a.Together))
    assert [names(branch) for branch in together.branches] == [["Launch"], ["OpenRun", "PushViews", "ApplyRules"]]
    bottle = after.bottles[16]
    assert (bottle.phase, bottle.epoch, after.epoch, bottle.started_ns) == (Phase.STARTING, 6, 6, 123)
    after, actions = step(after, e.StartFinished(16, 99))
    assert (after.bottles[16].phase, after.bottles[16].pid, names(actions)) == (Phase.RUNNING, 99, ["Save"])


def test_a_name_is_used_once() -> None:
    after, actions = step(host(one=Phase.RUNNING), e.RunRequested(7, policy(), JOB, "r", 0))
    assert names(actions) == ["Fail"] and "already running" in actions[0].message  # type: ignore[attr-defined]
    assert len(after.bottles) == 1


def test_pool_and_epochs_run_out_with_a_message() -> None:
    full = host(a=Phase.RUNNING, b=Phase.RUNNING, c=Phase.RUNNING, d=Phase.RUNNING, e=Phase.RUNNING)
    _, (fail,) = step(full, e.RunRequested(7, policy("f"), JOB, "r", 0))
    assert isinstance(fail, a.Fail) and "address pool is used up" in fail.message
    _, (fail,) = step(replace(host(), epoch=MAX_EPOCH), e.RunRequested(7, policy("f"), JOB, "r", 0))
    assert isinstance(fail, a.Fail) and "epochs are used up" in fail.message


def test_a_slot_that_is_held_unknown_is_never_handed_out() -> None:
    """Starting there would fail, and cleaning up after it let go of what is held."""
    before = replace(host(), unknown=frozenset({16, 18}))
    after, _ = step(before, e.RunRequested(1, policy("x"), JOB, "r", 0))
    assert after.last == 17
    after, _ = step(after, e.RunRequested(1, policy("y"), JOB, "r", 0))
    assert after.last == 19


def test_a_freed_slot_is_used_again_as_late_as_possible() -> None:
    now, _ = step(host(), e.RunRequested(1, policy("x"), JOB, "r", 0))
    now = now.drop(16)
    slots = []
    for n in range(4):
        now, _ = step(now, e.RunRequested(1, policy(f"n{n}"), JOB, "r", 0))
        slots.append(now.last)
    assert slots == [17, 18, 19, 20]
    now, _ = step(now, e.RunRequested(1, policy("again"), JOB, "r", 0))
    assert now.last == 16


def test_failed_start_is_undone_and_told() -> None:
    after, actions = step(host(one=Phase.STARTING), e.PlanFailed(16, "HostLacks", "no nft", "install it"))
    assert names(actions) == ["Emit", "SettleState", "KillAll", *CLEAN, "Ended"]
    assert actions[-1].error == {"class": "HostLacks", "message": "no nft", "hint": "install it"}  # type: ignore[attr-defined]
    assert after.bottles[16].phase is Phase.STOPPING
    assert step(after, e.PlanFailed(16, "x", "y", "")) == (after, ())


def test_exit_and_lost_client_end_the_bottle_once() -> None:
    after, actions = step(host(one=Phase.RUNNING), e.Exited(16, 3))
    assert names(actions) == ["SettleState", "KillAll", *CLEAN, "Ended"] and actions[-1].status == 3  # type: ignore[attr-defined]
    assert step(after, e.ClientGone(16)) == (after, ())
    assert step(host(), e.Exited(99, 0)) == (host(), ())


@pytest.mark.parametrize(
    ("shutdown", "phase", "tail"),
    [("cutoff", Phase.CUT, []), ("freeze", Phase.FROZEN, ["Freeze"]), ("kill", Phase.CUT, ["KillAll"])],
)
def test_crossing_cuts_by_the_bottles_policy(shutdown: str, phase: Phase, tail: list[str]) -> None:
    before = host(one=Phase.RUNNING)
    before = before.put(replace(before.bottles[16], policy=policy(shutdown=shutdown)))
    crossed = wire.Crossed((16,), "bottle", "one", "claude", "run", 100, 120, at_ns=55)
    after, actions = step(before, e.BudgetCrossed(crossed))
    saved = ["SaveState"] if shutdown == "freeze" else []
    assert names(actions) == ["CutKernel", "CloseStreams", *tail, "Save", "Emit", *saved]
    assert after.bottles[16].phase is phase
    assert after.bottles[16].spent == {
        "scope": "bottle", "name": "one", "provider": "claude", "tokens": 100, "used": 120, "per": "run",
    }  # fmt: skip
    assert actions[1].crossed_ns == 55  # type: ignore[attr-defined]
    assert step(after, e.BudgetCrossed(crossed)) == (after, ())


def test_one_crossing_cuts_every_bottle_of_the_scope() -> None:
    crossed = wire.Crossed((16, 17, 40), "host", "host", "claude", "month", 100, 120)
    after, actions = step(host(one=Phase.RUNNING, two=Phase.RUNNING), e.BudgetCrossed(crossed))
    assert [b.phase for b in after.bottles.values()] == [Phase.CUT, Phase.CUT]
    assert names(actions).count("CutKernel") == 2


def test_threshold_only_informs() -> None:
    crossed = wire.Crossed((16,), "bottle", "one", "claude", "run", 100, 81, threshold=80)
    before = host(one=Phase.RUNNING)
    after, actions = step(before, e.BudgetCrossed(crossed))
    assert after == before and names(actions) == ["Emit"]


def test_a_shadow_budget_is_told_and_cuts_nobody() -> None:
    before = host(one=Phase.RUNNING)
    for threshold, more in ((80, ""), (100, ": it would have been cut")):
        crossed = wire.Crossed((), "host", "host", "claude", "day", 100, 120, threshold=threshold, shadow=(16, 17))
        after, (told,) = step(before, e.BudgetCrossed(crossed))
        assert after == before and isinstance(told, a.Emit)
        assert (told.event["kind"], told.event["verdict"]) == ("threshold", "observed")
        assert told.event["reason"] == f"{threshold}% of host host, a shadow budget{more}"


def cut_by_budget() -> Host:
    crossed = wire.Crossed((16,), "bottle", "one", "claude", "run", 100, 120)
    return step(host(one=Phase.RUNNING), e.BudgetCrossed(crossed))[0]


def test_resume_needs_more_than_was_used() -> None:
    before = cut_by_budget()
    for tokens, words, more in (
        (0, "spent its claude budget: 120 of 100", "claude=240"), (110, "already spent: 120", "240"),
    ):  # fmt: skip
        after, (fail,) = step(before, e.Operator(3, "resume", "one", 0, tokens))
        assert isinstance(fail, a.Fail) and words in fail.message and f"--budget {more}" in fail.hint
        assert after == before


def test_resume_goes_by_what_is_spent_now() -> None:
    """Raised by `budget set` meanwhile, or another window: nothing more is asked for. And the other way round."""
    before = cut_by_budget()
    after, actions = step(before, e.Operator(3, "resume", "one", 0, standing={16: ()}))
    assert after.bottles[16].phase is Phase.RUNNING and "SetBudget" not in names(actions)
    own = dict(before.bottles[16].spent or {}, used=130)
    other = {"scope": "ceiling", "name": "host", "provider": "*", "tokens": 50, "used": 130, "per": "day"}
    both = {16: (other, own)}
    _, (fail,) = step(before, e.Operator(3, "resume", "one", 0, 125, standing={16: (own,)}))
    assert isinstance(fail, a.Fail) and "125 tokens are already spent: 130" in fail.message
    _, (fail,) = step(before, e.Operator(3, "resume", "one", 0, 500, standing=both))
    assert isinstance(fail, a.Fail) and "ceiling host spent its * budget: 130 of 50" in fail.message
    assert fail.hint == "agentmon budget set ceiling:host * 260"
    _, actions = step(before, e.Operator(3, "resume", "one", 0, 500, standing={16: (own,)}))
    raised = actions[1]
    assert isinstance(raised, a.SetBudget) and raised.bottle.spent == own and raised.tokens == 500


def test_what_root_stopped_only_root_resumes() -> None:
    for verb in ("cut", "freeze"):
        before, _ = step(host(one=Phase.RUNNING), e.Operator(3, verb, "one", 0))
        _, (fail,) = step(before, e.Operator(4, "resume", "one", 1000))
        assert isinstance(fail, a.Fail) and (fail.error, fail.hint) == ("Refused", "sudo agentmon resume one")
        assert step(before, e.Operator(4, "resume", "one", 0))[0].bottles[16].held_by == -1
        before, _ = step(host(one=Phase.RUNNING), e.Operator(3, verb, "one", 1000))
        assert step(before, e.Operator(4, "resume", "one", 1000))[0].bottles[16].phase is Phase.RUNNING


def test_resume_opens_services_before_the_kernel_with_a_new_epoch() -> None:
    before = cut_by_budget()
    after, actions = step(before, e.Operator(3, "resume", "one", 0, 500))
    steps = ["SetBudget", "PushViews", "ApplyRules", "Enforced", "Thaw", "DropState", "Save"]
    assert names(actions) == ["Mark", *steps, "Emit", "Answer"]
    assert after.bottles[16].phase is Phase.RUNNING and after.bottles[16].epoch == before.epoch + 1
    assert actions[1].provider == "claude"  # type: ignore[attr-defined]


def test_a_failed_resume_stays_cut() -> None:
    before = cut_by_budget()
    cut = before.bottles[16]
    after, actions = step(before, e.Operator(3, "resume", "one", 0, 500))
    assert isinstance(actions[0], a.Mark)
    after, actions = step(after, e.PlanFailed(16, "AgentmonError", "ledger away", "", before=actions[0].before))
    assert after.bottles[16] == cut
    assert names(actions) == ["Emit", "PushViews", "ApplyRules", "Save"]


def test_allow_opens_kernel_first_and_keeps_the_epoch_deny_closes_names_first_with_a_new_one() -> None:
    before = host(one=Phase.RUNNING)
    wider = policy()
    after, actions = step(before, e.PolicyChanged(3, 16, wider, removal=False, uid=0, what="allow x"))
    assert names(actions) == ["Mark", "ApplyRules", "PushViews", "Save", "Emit", "Answer"]
    assert after.bottles[16].epoch == 1
    after, actions = step(before, e.PolicyChanged(3, 16, wider, removal=True, uid=0, what="deny x"))
    assert names(actions) == ["Mark", "PushViews", "ApplyRules", "Save", "Emit", "Answer"]
    assert after.bottles[16].epoch == 6


def test_a_cut_bottle_takes_new_rules_without_opening() -> None:
    after, actions = step(cut_by_budget(), e.PolicyChanged(3, 16, policy(), removal=False, uid=0, what="allow x"))
    assert "ApplyRules" not in names(actions) and after.bottles[16].phase is Phase.CUT


def test_operator_verbs_answer_wrong_bottles_and_phases() -> None:
    _, (fail,) = step(host(one=Phase.RUNNING), e.Operator(3, "cut", "nope", 0))
    assert isinstance(fail, a.Fail) and fail.hint == "running: one"
    wrong = (("resume", Phase.RUNNING), ("cut", Phase.CUT), ("kill", Phase.STOPPING), ("freeze", Phase.STOPPING))
    for verb, phase in wrong:
        _, (fail,) = step(host(one=phase), e.Operator(3, verb, "one", 0))
        assert isinstance(fail, a.Fail) and phase.value in fail.message


def test_a_saved_bottle_that_is_named_like_a_slot_is_itself() -> None:
    """Who may discard his own saved bottle "16" must not kill what runs in slot 16."""
    before = host(one=Phase.RUNNING)
    saved = replace(before.bottles[16], name="16", run="run-16", phase=Phase.FROZEN, policy=policy("16"))
    after, actions = step(before.keep(saved), e.Operator(3, "kill", "16", 1000))
    assert after.bottles == before.bottles and "KillAll" not in names(actions)
    assert not after.saved and names(actions)[0] == "DropState"


def test_cut_all_takes_every_running_bottle_and_answers_once() -> None:
    after, actions = step(host(one=Phase.RUNNING, two=Phase.CUT, three=Phase.RUNNING), e.Operator(3, "cut", "", 0))
    assert names(actions).count("CutKernel") == 2 and names(actions).count("Answer") == 1
    assert {b.phase for b in after.bottles.values()} == {Phase.CUT}


def test_cut_all_and_kill_all_take_bottles_that_start() -> None:
    before = host(one=Phase.STARTING, two=Phase.RUNNING, three=Phase.STOPPING)
    for verb, step_, phase in (("cut", "CutKernel", Phase.CUT), ("kill", "KillAll", Phase.STOPPING)):
        after, actions = step(before, e.Operator(3, verb, "", 0))
        answer = actions[-1]
        assert isinstance(answer, a.Answer) and answer.value["bottles"] == ["one", "two"]
        assert [r["bottle"] for r in answer.value["refused"]] == ["three"]
        assert {m.slot for m in actions if type(m).__name__ == step_} == {16, 17}
        assert after.bottles[16].phase is after.bottles[17].phase is phase
    _, (fail,) = step(before, e.Operator(3, "freeze", "one", 0))
    assert isinstance(fail, a.Fail) and "is starting" in fail.message


def test_a_bottle_cut_while_it_starts_stays_cut_and_ends_if_the_start_fails() -> None:
    cut, _ = step(host(one=Phase.STARTING), e.Operator(3, "cut", "one", 0))
    started, actions = step(cut, e.StartFinished(16, 99))
    assert (started.bottles[16].phase, started.bottles[16].pid, names(actions)) == (Phase.CUT, 99, ["Save"])
    _, actions = step(started, e.PlanFailed(16, "HostLacks", "no row", ""))
    assert names(actions) == ["Emit"]  # it runs: what is in force stays
    ended, actions = step(cut, e.PlanFailed(16, "HostLacks", "the probe failed", ""))
    assert ended.bottles[16].phase is Phase.STOPPING and names(actions)[-1] == "Ended"
    resumed, _ = step(started, e.Operator(3, "resume", "one", 0))
    assert resumed.bottles[16].phase is Phase.RUNNING


def test_all_says_which_ones_were_refused() -> None:
    before = host(one=Phase.CUT, two=Phase.CUT)
    before = before.put(replace(before.bottles[16], spent={"scope": "bottle", "name": "one", "provider": "claude",
                                                           "tokens": 1, "used": 2, "per": "run"}))  # fmt: skip
    after, actions = step(before, e.Operator(3, "resume", "", 0))
    answer = actions[-1]
    assert isinstance(answer, a.Answer) and answer.value["bottles"] == ["two"]
    assert [r["bottle"] for r in answer.value["refused"]] == ["one"] and answer.value["refused"][0]["hint"]
    assert (after.bottles[16].phase, after.bottles[17].phase) == (Phase.CUT, Phase.RUNNING)


def test_a_fence_found_while_starting_comes_behind_the_start() -> None:
    before = host(one=Phase.STARTING)
    after, actions = step(before, e.PolicyChanged(0, 16, policy(), removal=True, uid=0, what="fence"))
    assert names(actions) == ["ApplyRules"]
    assert (after.bottles[16].phase, after.bottles[16].epoch) == (Phase.STARTING, before.epoch + 1)


def test_kill_records_the_enforcement_after_the_last_process() -> None:
    _, actions = step(host(one=Phase.RUNNING), e.Operator(3, "kill", "16", 0))
    assert names(actions)[:3] == ["KillAll", "DropState", "Enforced"] and names(actions)[-2:] == ["Ended", "Answer"]


def test_adoption_takes_the_epoch_and_tells_the_services() -> None:
    bottle = Bottle(18, "old", "r", Phase.RUNNING, policy("old"), JOB, epoch=77)
    after, actions = step(Host(16, 20, epoch=5), e.Adopted(bottle))
    assert after.epoch == 77 and after.bottles[18] == bottle and names(actions) == ["PushViews", "ApplyRules"]


def test_every_action_says_what_it_is() -> None:
    _, actions = step(Host(16, 20), e.RunRequested(7, policy(), JOB, "r1", 123))
    assert [action.describe() for action in actions][3] == "make files (bottle in slot 16)"
