"""Real clients in bottles, in every way that they are used: the ledger has what the providers billed, call by call."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.ledger.reader import Reader
from tests.internet.served import Served
from tests.support.live import ROOT, World, until
from tests.support.provider_calls import CALLS, HOSTS, headers_of, row_of

pytestmark = pytest.mark.e2e

JOBS = ROOT / "tests/e2e/sdk_jobs"
VERSIONS = ("HTTP/1.1", "HTTP/2") if sys.version_info >= (3, 12) else ("HTTP/1.1",)  # older: no HTTP/2 is offered
WAYS = [f"{kind} {version}" for kind in ("sync", "async") for version in VERSIONS]
BUDGETS = ("--budget=claude=100000000", "--budget=openai=100000000")
FAILED = {
    400: "BadRequestError 400", 401: "AuthenticationError 401", 404: "NotFoundError 404", 429: "RateLimitError 429",
    500: "InternalServerError 500",
}  # fmt: skip
SAID: dict[str, Any] = {  # call → what its SDK made of it, in every way
    "claude plain": [31, 0, 0, 12],
    "claude cached": [31, 400, 50, 12],
    "claude limited": [31, 0, 0, 200],
    "claude stream": [9, 32, 100, 0, 40],
    "claude events": "message_stop",
    "claude lies": [8, 33, 0, 0, 40],
    "claude raw": ["HTTP", 34, 0, 0, 5],
    "claude body": True,
    "claude tool": ["tool_use", "look", 35, 0, 0, 20],
    "claude tool stream": ["tool_use", 7, 35, 0, 0, 20],
    "claude count": 4321,
    "claude wrong key": FAILED[401],
    **{f"claude status {status}": FAILED[status] for status in (400, 404, 429, 500)},
    "claude status 413": "ContentTooLargeError 413",
    "claude status 503": "ServiceUnavailableError 503",
    "claude status 529": "OverloadedError 529",
    "claude again": [36, 0, 0, 7],
    "claude again in vain": FAILED[429],
    "claude impatient": "APITimeoutError",
    "claude error in the middle": "APIStatusError 200",
    "claude dies in the middle": "RemoteProtocolError",
    "claude leave": "content_block_delta",
    "claude leave at the end": "message_stop",
    "claude leave at the head": 200,
    "claude cancel": "CancelledError",
    "claude cancel at once": "CancelledError",
    "gpt chat": [71, 20, 12],
    "gpt chat stream": [0, 0, "stop"],
    "gpt chat stream usage": [[82, 30, 41]],
    "gpt chat helper": ["content.done", "stop"],
    "gpt chat lies": [0, 0, "stop"],
    "gpt chat tool": ["look", 53, 0, 20],
    "gpt chat tool stream": ["tool_calls", "look"],
    "gpt responses": [64, 10, 12],
    "gpt responses limited": [54, 0, 200],
    "gpt responses stream": ["response.completed", 55, 0, 40],
    "gpt responses helper": [55, 0, 41],
    "gpt responses tool stream": ["function_call", "look", 56, 0, 20],
    "gpt embeddings": 57,
    "gpt count": 4321,
    "gpt raw": ["HTTP", 58, 0, 5],
    "gpt wrong key": FAILED[401],
    **{f"gpt status {status}": FAILED[status] for status in (400, 404, 429, 500)},
    "gpt status 503": "InternalServerError 503",
    "gpt again": [59, 0, 7],
    "gpt again in vain": FAILED[429],
    "gpt impatient": "APITimeoutError",
    "gpt chat error in the middle": "APIError",
    "gpt responses error in the middle": ["response.failed"],
    "gpt chat dies in the middle": "APIConnectionError",
    "gpt leave": "chat.completion.chunk",
    "gpt leave at the end": "response.completed",
    "gpt cancel": "CancelledError",
}
MOST = {"impatient": 2, "cancel": 1, "cancel at once": 1}  # attempts that may have come to the provider; else exactly 1
FREE = ("count", "wrong key", "status ", "again in vain")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("sdks")
    (directory / "bottles").mkdir()
    with World(directory, f"bottles_dir: {directory}/bottles\n", speaks="h2") as made:
        made.start_daemon()
        yield made


def rows(world: World, bottle: str) -> list[dict[str, Any]]:
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        return reader.rows(bottle=bottle)


def nothing_held(world: World, bottle: str) -> bool:
    return not any(row["held"] for row in world.rows("budget", "show", bottle))


def whose(model: str) -> str:
    """The end of a model's name tells the SDK, the way and the call."""
    found = re.search(r"(claude|gpt)-scripted-.*(-way\d+-call\d+)$", model)
    assert found, model
    return found[1] + found[2]


def test_the_sdks_in_every_way(world: World) -> None:
    venv = Path(sys.prefix).resolve()
    shown = [JOBS, venv, *([] if sys.base_prefix.startswith("/usr") else [Path(sys.base_prefix).resolve()])]
    options = [f"--ro={path}" for path in shown] + [f"--allow={HOSTS[api]}:443" for api in ("claude", "openai")]
    options += ["--env=ANTHROPIC_API_KEY=sk-ant-1", "--env=OPENAI_API_KEY=sk-2", "--env=PYTHONPATH=", *BUDGETS]
    argv = ("--", str(venv / "bin/python"), str(JOBS / "matrix.py"), *WAYS)
    job = world.run("--name", "matrix", *options, *argv)
    asked = {}
    while (line := job.line(60)) != "end":
        call = json.loads(line)
        said, wanted = call["said"], SAID[call["call"]]
        if isinstance(wanted, list) and wanted[0] == "HTTP":
            wanted = [call["way"].partition(" ")[2], *wanted[1:]]
        assert said == wanted, call
        asked[whose(call["model"])] = call["call"]
    assert len(asked) == sum(2 if "cancel" in name else 4 for name in SAID) * len(VERSIONS) // 2

    until(lambda: nothing_held(world, "matrix"), 20, "a hold is left: a request was never settled")
    billed, charged = defaultdict(list), defaultdict(list)
    for served in world.counters()["served"]["calls"]:
        billed[whose(served["model"])].append(served)
    for row in rows(world, "matrix"):
        charged[whose(row["model"])].append(row)
    assert set(billed) == set(charged) <= set(asked)
    for key, name in asked.items():
        equal(name, billed[key], charged[key])
    spoken = {r["version"] for r in world.counters()["requests"] if r["host"] == HOSTS["openai"]}
    assert spoken == set(VERSIONS)  # to the provider; HTTP/2 where the client's side has it
    tried = [len(billed[key]) for key, name in asked.items() if name.endswith("impatient")]
    assert sum(tried) > len(tried), "no attempt was tried again"
    job.say("")
    assert job.end()[0] == 0


def equal(name: str, billed: list[dict[str, Any]], charged: list[dict[str, Any]]) -> None:
    """One row for each billed attempt: the provider's own numbers where it could tell them, and never fewer."""
    call = name.partition(" ")[2]
    if call.startswith(FREE):
        assert not billed and not charged, name
        return
    assert len(billed) == len(charged) <= MOST.get(call, 1), (name, billed, charged)
    assert call in MOST or len(billed) == 1, (name, billed)
    of_id = {row["request_id"]: row for row in charged}
    for served in billed:
        if not served["complete"]:
            row = of_id.get(served["id"], charged[0])
            assert (row["source"], row["complete"]) == ("estimate", 0), (name, served, row)
            assert row["output"] >= served["output"] and row["input"] > 0, (name, served, row)
            assert served["id"] not in of_id or row["input"] == served["input"], (name, served, row)
            continue
        row = charged[0] if call == "embeddings" else of_id[served["id"]]  # their answers have no id
        counted = ("input", "cache_read", "output") if call != "embeddings" else ("input",)
        assert [row[c] for c in counted] == [served[c] for c in counted], (name, served, row)
        assert (row["source"], row["complete"]) == ("wire", 1), (name, row)


ASKS = """
import json, sys, urllib.request
for line in sys.stdin:
    url, headers, body = json.loads(line)
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers | {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        print(answer.status, len(answer.read()), flush=True)
"""


def test_every_provider_at_its_own_name(world: World) -> None:
    job = world.run("--name", "all", *(f"--allow={host}:443" for host in HOSTS.values()), "--", "python3", "-c", ASKS)
    before = len(world.counters()["served"]["calls"])
    for turn, (provider, path, body) in enumerate(CALLS):
        job.say(json.dumps([f"https://{HOSTS[provider]}{path}", headers_of(provider), body]))
        status, length = job.line(30).split()
        assert status == "200" and int(length) > 50, (provider, path)
        served = world.counters()["served"]["calls"][before:]
        charged = until(lambda wanted=turn + 1: (r := rows(world, "all")) and len(r) == wanted and r, 10, path)
        assert len(served) == turn + 1
        columns = ("provider", "model", "input", "cache_read", "cache_write", "output", "source", "complete")
        assert tuple(charged[-1][c] for c in columns) == row_of(provider, path, Served(**served[-1])), path
    assert job.end()[0] == 0


LOOPS = """
import http.client, json, sys, threading, urllib.error, urllib.request
def ask(model, **more):
    body = {"model": model, "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}]} | more
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "content-type": "application/json"}
    return urllib.request.Request("https://api.anthropic.com/v1/messages", json.dumps(body).encode(), headers)
def stream():
    with urllib.request.urlopen(ask("claude-scripted-in100-out300-chunks600-pace20", stream=True), timeout=20) as said:
        print("begun", said.readline().decode().strip(), flush=True)
        last = [line for line in said if line.startswith(b"data:")][-1]
    print("ended", json.loads(last[5:])["error"]["type"], flush=True)
side = threading.Thread(target=stream)
side.start()
tools = [{"name": "look", "input_schema": {"type": "object"}}]
for line in sys.stdin:
    try:
        with urllib.request.urlopen(ask("claude-scripted-in200-out10-tool1", tools=tools), timeout=20) as said:
            print(said.status, json.load(said)["stop_reason"], flush=True)
    except urllib.error.HTTPError as error:
        print(error.code, json.load(error)["error"]["type"], flush=True)
    except (OSError, http.client.HTTPException):
        print("broken", flush=True)
"""


def test_a_tool_loop_and_a_stream_are_cut_while_files_are_read_anew(world: World) -> None:
    """METERING case 26: the cap is crossed in a loop of tools, with a stream beside it and reloads all the time."""
    manifest = world.tmp / "bottles/loop.yml"

    def reload(number: int) -> None:
        route = f"{{host: www.allowed.example, methods: [{('GET', 'HEAD')[number % 2]}]}}"
        manifest.write_text(f"allow: ['{HOSTS['claude']}:443', 'www.allowed.example:443']\nroutes: [{route}]\n")
        assert world.daemon is not None
        if number:
            world.daemon.send_signal(signal.SIGHUP)

    reload(0)
    before, budget = len(world.counters()["served"]["calls"]), 3000
    command = ("--", "python3", "-c", LOOPS)
    job = world.run("--name", "loop", "--policy", str(manifest), "--budget", f"claude={budget}", *command)
    assert job.line(30) == "begun event: message_start"
    said: list[str] = []
    ended: list[str] = []

    def turn(number: int) -> None:
        reload(number)
        job.say("")
        line = job.line(30)
        if line.startswith("ended"):
            ended.append(line)
            line = job.line(30)
        said.append(line)

    for number in range(1, 41):
        turn(number)
        if said[-1].startswith("403"):
            break
    for number in range(41, 51):
        turn(number)
    assert (ended or [job.line(30)]) == ["ended budget_exhausted"]
    assert set(said) - {"broken"} == {"200 tool_use", "403 budget_exhausted"}, said
    assert said.count("broken") <= 1 and said[-10:] == ["403 budget_exhausted"] * 10, said  # by the cut itself
    until(lambda: nothing_held(world, "loop"), 10, "a hold is left")
    assert {row["bottle"]: row["phase"] for row in world.rows("ps")}["loop"] == "cut"
    billed, charged = world.counters()["served"]["calls"][before:], rows(world, "loop")
    assert {call["id"] for call in billed} == {row["request_id"] for row in charged} and len(billed) == len(charged)
    assert sorted(row["complete"] for row in charged) == [0] + [1] * (len(charged) - 1)  # the stream that was cut
    job.say("")
    world.agentmon("kill", "loop")
    job.end()
