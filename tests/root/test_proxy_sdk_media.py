"""The real openai SDK, unmodified, through a real worker: what it has that is metered, and who else speaks that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmon import trust
from agentmon.providers.registry import load
from tests.support import proxy_rig
from tests.support.provider_cases import CASES, LIE, Case, doc
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root

SCRIPT = Path(proxy_rig.__file__).with_name("sdk_media_calls.py")
ANSWERS = {  # call → the case that answers it
    "completions": "openai completions json",
    "completions stream": "openai completions stream",
    "embeddings": "openai embeddings",
    "images": "openai images json",
    "transcription": "openai transcription tokens",
    "compact": "codex compact",
    "azure": "azure stream",
    "openrouter": "openrouter stream",
    "mistral": "mistral stream",
    "gemini": "gemini openai",
}


def test_every_call_of_the_sdk_is_metered(tmp_path: Path) -> None:
    provided = load()
    text = {"id": "id-1", "object": "text_completion", "model": "m-1", "choices": [{"text": "hello", "index": 0}]}
    whole = doc(text | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    plain = Case("openai completions json", "openai", "/v1/completions", whole, (3, 0, 0, 0, 4, 0), CASES[
        "openai chat json"].headers)  # fmt: skip
    cases = [CASES.get(name, plain) for name in ANSWERS.values()]
    waiting = iter(enumerate(cases))

    async def answer(seen: Any, writer: Any) -> None:
        if seen.target.endswith("/input_tokens"):
            await reply(200, b'{"input_tokens": 11, "object": "response.input_tokens"}')(seen, writer)
            return
        number, case = next(waiting)
        body = case.body.replace(b'"id-1"', b'"id-%d"' % (500 + number))
        kind = case.headers.get("content-type", "application/json")
        await chunked([body], {"content-type": kind})(seen, writer)

    rig = proxy_rig.start(tmp_path)
    try:
        inspected = tuple(host for provider in provided.values() for host in provider.hosts)
        rig.bottle("*.com:443", "*.ai:443", inspected=inspected)
        rig.upstream.script = answer
        bundle = rig.directory / "bundle.pem"
        trust.bundle(rig.directory / "ca", [], bundle)
        environment = {
            "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(p for p in sys.path if p), "HOME": str(rig.directory),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(SCRIPT), rig.address, rig.source], stdout=subprocess.PIPE, text=True, timeout=60,
            env=environment | trust.environment(str(bundle)),
        )  # fmt: skip
        said = {line["call"]: line["said"] for line in map(json.loads, done.stdout.splitlines())}
        rows = rig.rows(len(ANSWERS))
        assert rig.nothing_held()
    finally:
        rig.stop()
    assert said["completions"] == "hello" and said["transcription"] == LIE and said["count"] == 11
    assert said["embeddings"] == [0.5] and said["images"] == "AAAA" and said["compact"].startswith("id-")
    assert all(said[name].startswith("wörd 🙂") for name in ("azure", "openrouter", "mistral", "gemini"))
    wanted = [(c.row[0], c.row[1], c.row[2] + c.row[3], c.row[4], "wire", 1) for c in cases]
    assert [row[2:] for row in rows] == wanted
    owners = ["openai"] * 6 + ["azure", "openrouter", "mistral", "gemini"]
    assert [row[0] for row in rows] == owners
