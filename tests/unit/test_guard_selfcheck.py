"""`python -m agentmon.guard check`: what it says is what the guard does, on every Python present."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentmon.guard import imports, selfcheck
from agentmon.policy.rules import RuleError
from tests.support import guarded
from tests.support import native_files as native

PYTHONS = guarded.versions()


def check(
    *args: str, version: str = PYTHONS[0], env: dict[str, str] | None = None, path: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [guarded.interpreters()[version], "-m", "agentmon.guard", *args]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AGENTMON_")}
    environment = clean | {"PYTHONPATH": f"{guarded.ROOT}:{path}"} | (env or {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def answer(*args: str, **more: Any) -> dict[str, Any]:
    done = check("check", "--json", *args, **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", PYTHONS)
def test_what_it_refuses_is_tried_on_the_hook(version: str) -> None:
    places = ("198.51.100.7:443", "198.51.100.7:80", "api.example.com:443", "other.example:443")
    found = answer("--allow", "198.51.100.7:443", "--allow=api.example.com:443", *places, version=version)
    assert found["guard"] == {"installed": True, "mode": "enforce", "locked": False, "tampered": "",
                              "rules": ["198.51.100.7:443", "api.example.com:443"]}  # fmt: skip
    assert len(found["refuses"]) == len(selfcheck.ALWAYS_REFUSED) and all(each["refused"] for each in found["refuses"])
    assert {each["reason"] for each in found["refuses"][:5]} == {"loopback"}
    assert [(each["destination"], each["refused"]) for each in found["destinations"]] == [
        (places[0], False), (places[1], True), (places[2], False), (places[3], True),
    ]  # fmt: skip


@pytest.mark.parametrize("version", PYTHONS)
def test_outside_a_bottle_nothing_vouches(version: str) -> None:
    assert answer(version=version)["bottle"] == {"name": "", "vouching": "inactive"}
    claimed = answer(version=version, env={"AGENTMON_BOTTLE": "b1"})["bottle"]
    assert claimed == {"name": "b1", "vouching": "inactive"}
    assert (
        "AGENTMON_BOTTLE says b1, but the kernel does not vouch" in check("check", env={"AGENTMON_BOTTLE": "b1"}).stdout
    )


def test_native_code_that_is_loaded_is_named(tmp_path: Path) -> None:
    loud = native.library(native.CONNECTS, tmp_path / "libloud.so")
    quiet = native.library(native.HARMLESS, tmp_path / "libquiet.so")
    (tmp_path / "app.py").write_text(f"import ctypes\nctypes.CDLL({str(loud)!r})\nctypes.CDLL({str(quiet)!r})\n")
    unseen = answer("--import", "app", path=str(tmp_path))["unseen"]
    by_name = {os.path.basename(each["path"]): each["names"] for each in unseen["native"]}
    assert by_name["libloud.so"] == ["connect"] and "libquiet.so" not in by_name
    assert [names for name, names in by_name.items() if name.startswith("_ctypes.")] in ([["ffi_call"]], [])
    assert f"{loud} (connect)" in check("check", "--import", "app", path=str(tmp_path)).stdout


def test_uvloop_is_seen_installed_and_loaded(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").touch()
    assert answer(path=str(tmp_path))["unseen"]["loops"]["uvloop"] == "installed"
    assert answer("--import", "uvloop", path=str(tmp_path))["unseen"]["loops"]["uvloop"] == "loaded"
    assert answer()["unseen"]["loops"]["eventlet"] == "absent"
    (tmp_path / "gevent.py").touch()
    told = check("check", path=str(tmp_path)).stdout
    assert "  uvloop: installed\n  gevent: installed (only its C resolver)\n" in told and "eventlet" not in told


def test_other_interpreters_are_counted(tmp_path: Path) -> None:
    made = "try: import _interpreters as i\nexcept ImportError: import _xxsubinterpreters as i\nkept = i.create()\n"
    (tmp_path / "app.py").write_text(made)
    assert answer("--import", "app", path=str(tmp_path))["unseen"]["interpreters"] == 1
    assert "other interpreters of this process: 1" in check("check", "--import", "app", path=str(tmp_path)).stdout
    assert "other interpreters" not in check("check").stdout


def test_programs_that_were_started_are_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import subprocess\nsubprocess.run(['true', 'x'])\n")
    assert answer("--import", "app", path=str(tmp_path))["unseen"]["children"] == [
        {"event": "subprocess.Popen", "command": "true x"}
    ]


def test_the_policy_in_force_is_the_one_that_is_told() -> None:
    script = """
import subprocess
EgressGuard.install(["198.51.100.7:443"], mode="observe")
args = [sys.executable, "-m", "agentmon.guard", "check", "--json", "198.51.100.7:443"]
done = subprocess.run(args, env=EgressGuard.child_env(), capture_output=True, text=True)
more = subprocess.run([*args, "--allow", "other.example"], env=EgressGuard.child_env(), capture_output=True, text=True)
print(json.dumps([json.loads(done.stdout), more.returncode, more.stderr]))
"""
    found, status, told = guarded.answer(script)
    assert (found["guard"]["mode"], found["guard"]["rules"]) == ("observe", ["198.51.100.7:443"])
    assert all(each["refused"] for each in found["refuses"])  # in every mode
    assert status == 2 and "--allow cannot change it" in told


def test_a_guard_that_does_not_hold_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from agentmon.guard import EgressGuard\nEgressGuard.uninstall()\n")
    done = check("check", "--import", "app", path=str(tmp_path))
    assert done.returncode == 1 and "PASSES" in done.stdout and "not installed" in done.stdout
    (tmp_path / "app.py").write_text("from agentmon.guard import judge\njudge.addressed = lambda *_: None\n")
    done = check("check", "--import", "app", path=str(tmp_path))
    assert done.returncode == 1 and "TAMPERED: judge.addressed was replaced" in done.stdout


def test_it_never_opens_loopback() -> None:
    """In this very process, where pytest runs: not for a test that did not ask, nor by way of the plugin."""
    script = """
from agentmon.guard import capability, selfcheck
EgressGuard.install([])
found = selfcheck.report(["127.0.0.1:80"])
print(json.dumps([capability.is_open(), found["destinations"][0]["refused"], reason(connect("127.0.0.1", 9))]))
"""
    assert guarded.answer(script) == [False, True, "loopback"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["chekc"], "'chekc' is not a command"),
        (["check", "--jsno"], "--jsno is not an option"),
        (["check", "--allow"], "--allow needs a value"),
        (["check", "--allow", "127.0.0.1"], "allow[0]"),
        (["check", "--import", "no_such_module"], "ModuleNotFoundError: No module named 'no_such_module'"),
        (["check", "example.com"], "'example.com' is not a destination"),
        (["check", "example.com:0"], "is not a destination"),
        (["check", "exa mple.com:80"], "exa mple.com"),
    ],
)
def test_bad_input_is_named(args: list[str], error: str) -> None:
    done = check(*args)
    assert done.returncode == 2 and error in done.stderr and "hint: " in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr


def test_help_has_an_example() -> None:
    assert check("--help").returncode == 0 and "Example:" in check("--help").stdout
    assert check().returncode == 2


@pytest.mark.parametrize("text", ["[::1]:80", "192.0.2.1:443", "api.example.com:65535"])
def test_destinations_are_read(text: str) -> None:
    host, port = selfcheck.parsed(text)
    assert text in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize("text", ["", ":80", "host:", "host:99999", "host:８０", "a..b:80"])
def test_other_text_is_no_destination(text: str) -> None:
    with pytest.raises(RuleError):
        selfcheck.parsed(text)


def test_a_modules_symbols(tmp_path: Path) -> None:
    called, offered = imports.dynamic_symbols(str(native.library(native.CONNECTS, tmp_path / "a.so")))
    assert "connect" in called and "go" in offered
    whole = (tmp_path / "a.so").read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-700], b"\x7fELF" + b"\xff" * 400):
        (tmp_path / "b.so").write_bytes(content)
        with pytest.raises(imports.NotRead):
            imports.dynamic_symbols(str(tmp_path / "b.so"))
