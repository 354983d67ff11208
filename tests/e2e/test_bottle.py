"""A running bottle: rules that change under it, both families, metering, cuts, freezing, and faults of what meters."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon.daemon.cgroups import Tree
from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')
HEADERS = "-H 'x-api-key: sk-test' -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json'"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("bottle")) as made:
        made.start_daemon()
        yield made


class Shell:
    """A bottle with a shell in it."""

    def __init__(self, world: World, name: str, *options: str) -> None:
        self.world, self.name = world, name
        self.job: Job = world.run("--name", name, *options, "--", *SHELL)
        assert self("echo up") == "up"

    def __call__(self, text: str, seconds: float = 20.0) -> str:
        self.job.say(text)
        out = []
        while (line := self.job.line(seconds)) != "[done]":
            out.append(line)
        return "\n".join(out)

    def status(self, url: str, *options: str) -> str:
        words = " ".join(options)
        return self(f"curl -sS -m 8 -o /dev/null -w '%{{http_code}}\\n' {words} {url} 2>/dev/null || true")

    def message(self, model: str, *, crosses: bool = False) -> tuple[int, dict[str, Any]]:
        """One Messages call by curl: (status, body). The body is there, but for the call that `crosses` the budget: the
        cut may end it before its answer."""
        body = {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
        out = self(
            f"curl -sS -m 10 -w '\\n%{{http_code}}\\n' {HEADERS} -d '{json.dumps(body)}' "
            "https://api.anthropic.com/v1/messages 2>/dev/null"
        )
        text, _, status = out.rpartition("\n")
        assert text or crosses, f"status {status}, and no body"
        return int(status), json.loads(text) if text else {}

    def end(self) -> int:
        self.job.say("exit 0")
        return self.job.end()[0]


def test_allow_and_deny_take_effect_while_it_runs(world: World) -> None:
    shell = Shell(world, "live", "--allow", "www.allowed.example:443")
    assert shell.status("https://other.allowed.example/") == "000"
    would = world.agentmon("allow", "live", "tcp://203.0.113.77:9", "--dry-run").stdout
    assert "203.0.113.77 . tcp . 9" in would and "inside" in would, would
    assert "203.0.113.77" not in world.agentmon("policy", "explain", "live").stdout
    assert "end the flows" in world.agentmon("deny", "live", "www.allowed.example", "--dry-run").stdout
    assert shell.status("https://www.allowed.example/") == "200"
    world.agentmon("allow", "live", "other.allowed.example:443")
    assert shell.status("https://other.allowed.example/") == "200"
    world.agentmon("deny", "live", "other.allowed.example:443")
    assert shell.status("https://other.allowed.example/") == "000"
    assert shell.status("https://www.allowed.example/") == "200"
    done = world.agentmon("allow", "live", "https://user:pw@x.example", check=False)
    assert done.returncode == 2 and "hint:" in done.stderr
    assert shell.end() == 0


def test_a_direct_flow_dies_with_its_rule_and_another_goes_on(world: World) -> None:
    """Two downloads over direct rules, slow enough to live through the change."""
    name = "direct.allowed.example"
    shell = Shell(world, "flows", "--allow", f"tcp://{name}:8443", "--allow", f"tcp://{name}:8080")
    bulk = "bulk?n=400000000"
    assert shell.status(f"http://{name}:8080/") == "200"
    shell(
        f"curl -sS --limit-rate 3M -o /dev/null -w '%{{size_download}}' http://{name}:8080/{bulk} >/tmp/a 2>&1 & a=$!"
    )
    shell(
        f"curl -sSk --limit-rate 3M -o /dev/null -w '%{{size_download}}' https://{name}:8443/{bulk} >/tmp/b 2>&1 & b=$!"
    )
    shell("sleep 1.0")
    world.agentmon("deny", "flows", f"tcp://{name}:8080")
    assert shell("wait $a; echo $?") != "0"
    assert shell("kill -0 $b && echo alive") == "alive"
    assert shell("kill $b; wait $b; cat /tmp/b | head -c 200; echo") != "0"
    assert shell.status(f"http://{name}:8080/") == "000"
    assert shell.status(f"https://{name}:8443/", "-k") == "200"
    assert shell.end() == 0


@pytest.mark.parametrize("family", ["4", "6"])
def test_both_families_pass_and_are_refused_alike(world: World, family: str) -> None:
    shell = Shell(
        world, f"family{family}", "--allow", "www.allowed.example:443", "--allow", "tcp://direct.allowed.example:8443"
    )
    assert shell.status("https://www.allowed.example/", f"-{family}") == "200"
    assert shell.status("https://direct.allowed.example:8443/", f"-{family}") == "200"
    before = world.counters()["forbidden"]
    literal = "203.0.113.10" if family == "4" else "[2001:db8:2::10]"
    assert "onnect" in shell(f"curl -sS -m 5 http://{literal}/ 2>&1")
    assert (
        shell(f"ping -{family} -c1 -W1 {literal.strip('[]')} >/dev/null 2>&1 && echo reached || echo refused")
        == "refused"
    )
    assert world.counters()["forbidden"] == before
    event = until(lambda: world.events(f"family{family}", layer="bpf", port=80))[0]
    assert event["comm"] == "curl" and event["verdict"] == "refused" and event["dst"] == literal.strip("[]")
    assert event["hint"] == f"agentmon allow family{family} tcp://{literal}:80"
    assert shell.end() == 0


def test_a_refused_name_names_the_process_that_asked(world: World) -> None:
    shell = Shell(world, "asker")
    shell("curl -sS -m 5 https://www.forbidden.example/ 2>/dev/null")
    event = until(lambda: world.events("asker", kind="dns"))[0]
    assert event["host"] == "www.forbidden.example" and event["comm"] == "curl" and event["pid"] > 0
    assert "www.forbidden.example" not in world.counters()["dns"]
    assert shell.end() == 0


def test_a_call_is_metered_as_the_provider_counts_it(world: World) -> None:
    shell = Shell(world, "metered", "--provider", "claude", "--budget", "100000")
    status, body = shell.message("claude-scripted-in700-out42")
    assert status == 200, body
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (700, 42)
    (row,) = [r for r in world.rows("usage", "--by", "bottle") if r["bottle"] == "metered"]
    assert (row["input"], row["output"], row["weighted"]) == (700, 42, 742)
    assert json.loads(shell("curl -s http://agentmon.internal/healthz; echo"))["bottle"] == "metered"
    assert shell.end() == 0


def test_an_operator_cuts_resumes_and_freezes(world: World) -> None:
    shell = Shell(
        world, "held", "--provider", "claude", "--budget", "100000", "--allow", "tcp://direct.allowed.example:8443"
    )
    url = "https://direct.allowed.example:8443/"
    assert shell.status(url) == "200"
    world.agentmon("cut", "held")
    assert shell.status(url) == "000"
    assert shell.message("claude-scripted-in10-out10")[0] == 403
    world.agentmon("resume", "held")
    assert shell.status(url) == "200"
    assert shell.message("claude-scripted-in10-out10")[0] == 200
    world.agentmon("freeze", "held")
    shell.job.say("echo thawed")
    row = next(r for r in world.rows("ps") if r["bottle"] == "held")
    assert row["phase"] == "frozen"
    assert "frozen 1" in _cgroup_events(row["slot"])
    world.agentmon("resume", "held")
    lines = [shell.job.line() for _ in range(2)]
    assert lines == ["thawed", "[done]"]
    assert shell.status(url) == "200"
    assert shell.end() == 0


def _cgroup_events(slot: int) -> str:
    return (Tree().job(slot) / "cgroup.events").read_text()


def test_a_spent_budget_cuts_and_resume_lets_it_go_on(world: World) -> None:
    shell = Shell(world, "spender", "--provider", "claude", "--budget", "3000", "--allow", "www.allowed.example:443")
    model = "claude-scripted-in1200-out100"
    assert [shell.message(model)[0] for _ in range(2)] == [200, 200]
    shell.message(model, crosses=True)
    assert [shell.message(model)[0] for _ in range(2)] == [403, 403]
    status, body = shell.message("claude-scripted-in10-out10")
    assert status == 403 and body["error"]["type"] == "budget_exhausted"
    assert {"scope", "provider", "tokens", "used"} <= set(body["error"])
    assert shell.status("https://www.allowed.example/") == "000"
    row = next(r for r in world.rows("ps") if r["bottle"] == "spender")
    assert row["phase"] == "cut"
    done = world.agentmon("resume", "spender", check=False)
    assert done.returncode == 3 and "--budget" in done.stderr
    world.agentmon("resume", "spender", "--budget", "50000")
    assert shell.message("claude-scripted-in10-out10")[0] == 200
    assert shell.status("https://www.allowed.example/") == "200"
    assert shell.end() == 0


def test_without_a_ledger_nothing_that_costs_passes_and_it_heals(world: World) -> None:
    billed = len(world.counters()["served"]["calls"])
    shell = Shell(world, "noledger", "--provider", "claude", "--budget", "100000")
    assert shell.message("claude-scripted-in10-out10")[0] == 200
    pid = world.pid_of("ledger")
    os.kill(pid, signal.SIGSTOP)
    try:
        status, body = shell.message("claude-scripted-in10-out10")
        assert status == 503 and body["error"]["type"] == "ledger_unavailable"
        assert len(world.counters()["served"]["calls"]) == billed + 1  # that of before
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: world.pid_of("ledger") != pid, 20)
    until(lambda: shell.message("claude-scripted-in10-out10")[0] == 200, 20)
    calls = world.counters()["served"]["calls"][billed:]
    own_count = tuple(sum(call[kind] for call in calls) for kind in ("input", "output"))

    def booked() -> tuple[int, int]:
        (row,) = [r for r in world.rows("usage", "--by", "bottle") if r["bottle"] == "noledger"]
        return row["input"], row["output"]

    until(lambda: booked() == own_count, 10, f"the provider billed {own_count}: the ledger has something else")
    assert shell.end() == 0


def test_a_killed_proxy_refuses_and_comes_back(world: World) -> None:
    shell = Shell(world, "noproxy", "--provider", "claude", "--budget", "100000")
    assert shell.message("claude-scripted-in10-out10")[0] == 200
    billed = len(world.counters()["served"]["calls"])
    pid = world.pid_of("proxy")
    os.kill(pid, signal.SIGSTOP)
    try:
        body = json.dumps({"model": "claude-scripted-in10-out10", "max_tokens": 64, "messages": []})
        status = shell.status("https://api.anthropic.com/v1/messages", "-m 2", HEADERS, f"-d '{body}'")
        assert status in {"000", "503"}
        assert len(world.counters()["served"]["calls"]) == billed
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: world.pid_of("proxy") != pid, 20)
    until(lambda: shell.status("http://agentmon.internal/healthz") == "200", 20)
    assert shell.message("claude-scripted-in10-out10")[0] == 200
    assert shell.end() == 0


def test_the_jobs_own_exit_status_and_output_pass_through(world: World) -> None:
    done = world.agentmon("run", "--", "sh", "-c", "echo out; echo err >&2; exit 42", check=False)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[0]) == (42, "out\n", "err")
    summary = world.tmp / "summary.json"
    done = world.agentmon("run", "--json-summary", str(summary), "--", "sh", "-c", "kill -TERM $$", check=False)
    assert done.returncode == 143
    told = json.loads(summary.read_text())
    assert (
        told["exit"] == 143
        and told["error"] is None
        and {"bottle", "started", "ended", "refused", "usage"} <= set(told)
    )


def test_observe_relaxes_the_allowlist_and_nothing_else(world: World) -> None:
    shell = Shell(world, "watched", "--observe")
    assert shell.status("https://www.allowed.example/") == "200"  # no rule names it
    for protected in ("http://169.254.1.1/", "http://10.213.0.1/", "http://[fd61:6d6f:6e::1]/"):
        assert shell.status(protected) == "000", protected
    row = next(r for r in world.rows("ps") if r["bottle"] == "watched")
    assert row["observe"] is True and "OBSERVE" in world.agentmon("ps").stdout
    assert until(lambda: world.events("watched", verdict="observed", host="www.allowed.example"))
    assert until(lambda: world.events("watched", verdict="refused", dst="169.254.1.1"))[0]["reason"] == "protected"
    assert shell.end() == 0
