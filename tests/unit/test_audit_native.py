"""The audit of an environment: packages, joining, layer 3's events, the contract, the text, the command line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths
from agentmon.audit_native import elf, linter, report, sightings, tree
from agentmon.audit_native.judge import join, judge
from agentmon.audit_native.model import Finding, Image, Owner, Way
from agentmon.cli.main import main
from agentmon.errors import BadInput
from agentmon.events import Event
from agentmon.ledger.events_store import EventStore
from agentmon.render.audit_native import audit_text
from tests.support import native_files as native

ROOT = Path(__file__).parents[2]
NO_EVENTS = sightings.nothing_known("no daemon")


@pytest.fixture(autouse=True)
def no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CONTROL_SOCKET", tmp_path / "none.sock")
    monkeypatch.setattr(paths, "EVENTS", tmp_path / "none.db")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment with two packages: one that connects through its own library, one without native code."""
    venv = tmp_path / "venv"
    site = venv / "lib/python3.13/site-packages"
    lib = native.library(native.CONNECTS, site / "loud.libs/libloud-0a1b2c3d.so.1", "-Wl,-soname,libloud-0a1b2c3d.so.1")
    links = f"-L{lib.parent}", f"-l:{lib.name}", "-Wl,--no-as-needed"
    native.library("extern int go(int); int loud(void) { return go(0); }", site / "loud/_loud.so", *links)
    native.library(native.HARMLESS, site / "quiet/_quiet.so")
    (site / "loud/__init__.py").touch()
    (venv / "pyvenv.cfg").write_text("home = /nonexistent/bin\nversion = 3.13.0\n")
    for name, files in {"Loud.Pkg": ["loud/__init__.py", "loud/_loud.so", "loud.libs/libloud-0a1b2c3d.so.1"],
                        "quiet": ["quiet/_quiet.so", "../../../bin/quiet-tool"]}.items():  # fmt: skip
        info = site / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return venv


def audited(venv: Path) -> dict[str, dict[str, Any]]:
    data = report.to_dict(report.audit(tree.of_venv(venv)), NO_EVENTS)
    return {os.path.basename(f["path"]): f for f in data["findings"]}


def test_files_belong_to_their_packages(venv: Path) -> None:
    native.program(native.CONNECTS, venv / "bin/quiet-tool")
    found = audited(venv)
    owners = {name: (f["package"], f["version"]) for name, f in found.items()}
    assert owners == {
        "_loud.so": ("Loud.Pkg", "1.2"), "libloud-0a1b2c3d.so.1": ("Loud.Pkg", "1.2"), "_quiet.so": ("quiet", "1.2"),
        "quiet-tool": ("quiet", "1.2"),
    }  # fmt: skip
    assert found["quiet-tool"]["kind"] == "program" and found["quiet-tool"]["static"]
    assert found["_loud.so"]["modules"] == ["loud"]


def test_what_loads_a_library_that_connects_connects_through_it(venv: Path) -> None:
    found = audited(venv)
    assert found["_loud.so"]["could"] == {"through": ["libloud-0a1b2c3d.so.1"]}
    assert found["libloud-0a1b2c3d.so.1"]["could"] == {"connect": ["connect"]}
    assert not found["_quiet.so"]["past_the_guard"]


def test_through_a_library_that_only_passes_calls_on() -> None:
    connects = frozenset({"connect"})
    chain = {
        "/e/a.so": Image(needed=("b.so",)),
        "/e/b.so": Image(needed=("c.so", "b.so")),
        "/e/c.so": Image(needed=("a.so",), imports=connects),
        "/e/d.so": Image(needed=("libc.so.6",)),
    }
    found = join({path: judge(path, image, Owner()) for path, image in chain.items()})
    assert {p: f.past_the_guard for p, f in found.items()} == {
        "/e/a.so": True, "/e/b.so": True, "/e/c.so": True, "/e/d.so": False,
    }  # fmt: skip


def test_the_interpreter_and_its_socket_module_are_heard_by_the_guard() -> None:
    python = judge(
        "/b/python3", Image(imports=frozenset({"connect"}), defines=frozenset({"PySys_AddAuditHook"})), Owner()
    )
    calls = Image(imports=frozenset({"connect", "PySys_Audit"}))
    own = judge("/usr/lib/python3.13/lib-dynload/_socket.cpython-313-x86_64-linux-gnu.so", calls, Owner())
    posing = judge("/v/site-packages/_socket.cpython-313-x86_64-linux-gnu.so", calls, Owner())
    assert (python.past_the_guard, own.past_the_guard, posing.past_the_guard) == (False, False, True)


def test_this_very_environment() -> None:
    data = report.to_dict(report.audit(tree.of_venv(Path(sys.prefix))), NO_EVENTS)
    could = {f["path"].rpartition("/")[2].split(".")[0]: f["could"] for f in data["findings"]}
    by_package: dict[str, set[str]] = {}
    for f in data["findings"]:
        by_package.setdefault(f["package"], set()).update(f["could"])
        assert f["version"] or not f["package"]
    assert {"connect", "resolve"} <= by_package["uvloop"]
    assert "connect" in by_package["cryptography"]
    assert "call" in could["_cffi_backend"] and "call" in could["_ctypes"]
    assert not by_package["msgspec"] & {"connect", "through", "call", "raw"}
    vendored = {
        v["name"] for f in data["findings"] if f["package"] in {"uvloop", "cryptography"} for v in f["vendored"]
    }
    assert vendored >= {"libuv", "openssl"}
    assert data["unread"] == []


def test_layer_3_has_seen_a_file_by_its_events(venv: Path) -> None:
    audit = report.audit(tree.of_venv(venv))
    loud = next(f.path for f in audit.findings if f.path.endswith("_loud.so"))
    first, second, third = (f"2026-01-02T03:0{minute}:05.000000006Z" for minute in (4, 5, 6))
    events = [
        {"ts": first, "kind": "bypass", "library": loud, "bottle": "b", "dst": "192.0.2.1", "port": 443},
        {"ts": second, "kind": "bypass", "library": f"{loud} (deleted)", "bottle": "c", "count": 4},
        {"ts": third, "kind": "connect", "library": loud},
        None,
    ]
    data = report.to_dict(audit, sightings.collect(events))
    found = {os.path.basename(f["path"]): f for f in data["findings"]}
    assert found["_loud.so"]["seen"] == {
        "count": 5, "last": "2026-01-02T03:05:05.000000006Z", "bottles": ["b", "c"], "destinations": ["192.0.2.1:443"],
    }  # fmt: skip
    assert (found["_loud.so"]["layer3"], found["libloud-0a1b2c3d.so.1"]["layer3"]) == ("seen", "not seen")
    assert "seen 5 times, last 2026-01-02T03:05:05Z" in audit_text(data)


def test_the_events_are_read_from_what_a_daemon_stored(
    venv: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(paths, "EVENTS", tmp_path / "events.db")
    loud = str(venv / "lib/python3.13/site-packages/loud/_loud.so")
    store = EventStore(str(paths.EVENTS))
    store.append([Event("bypass", "observed", "b", library=loud, ts_ns=10**18)])
    store.close()
    assert main(["audit-native", "--venv", str(venv), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["layer3"]["known"]
    assert [f["layer3"] for f in data["findings"] if f["path"] == loud] == ["seen"]


def test_without_a_daemon_it_is_unknown_and_no_error(venv: Path, capsys: Any) -> None:
    assert main(["audit-native", "--venv", str(venv), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {f["layer3"] for f in data["findings"]} == {"unknown"} and "no events to read" in data["layer3"]["why"]
    assert main(["audit-native", "--venv", str(venv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # progress is for terminals
    assert "3 native files; 2 could get past the guard." in out and "unknown" in out


def test_progress_is_shown_on_a_terminal(venv: Path) -> None:
    master, slave = pty.openpty()
    with contextlib.closing(os.fdopen(master, "rb", 0)) as seen:
        command = [sys.executable, "-m", "agentmon.cli", "audit-native", str(venv)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=True)
        os.close(slave)
        shown = seen.read(65536)
    assert b"reading" in shown and b"100%" in shown and b"reading" not in done.stdout


def test_the_contract_is_import_linters(venv: Path, tmp_path: Path, capsys: Any) -> None:
    project = tmp_path / "project"
    (project / "app").mkdir(parents=True)
    (project / "app/__init__.py").write_text("import json\n")
    args = ["audit-native", "--venv", str(venv), "--import-linter", "--source", "app"]
    assert main(args) == 0
    (project / "pyproject.toml").write_text(capsys.readouterr().out)
    assert lint(project).returncode == 0
    (project / "app/__init__.py").write_text("import loud\n")
    broken = lint(project)
    assert broken.returncode == 1 and "app is not allowed to import loud" in broken.stdout
    assert main([*args, "--reviewed", "loud-pkg"]) == 0
    (project / "pyproject.toml").write_text(capsys.readouterr().out)
    assert lint(project).returncode == 0


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    environment = os.environ | {"PYTHONPATH": str(project)}
    args = [command, "--no-logo", "--no-cache"]
    return subprocess.run(args, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_the_contract_takes_its_packages_from_the_project(
    venv: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    args = ["audit-native", "--venv", str(venv), "--import-linter"]
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2 and "--source PKG" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").write_text("[tool.importlinter]\nroot_packages = ['one', 'two']\n")
    assert main(args) == 0 and 'source_modules = ["one", "two"]' in capsys.readouterr().out
    (tmp_path / "pyproject.toml").write_text("[tool")
    assert main(args) == 2 and "is not TOML" in capsys.readouterr().err


def test_libc_is_a_library_and_python_a_program() -> None:
    kinds = {}
    for path in (sys.executable, "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/aarch64-linux-gnu/libc.so.6"):
        if os.path.exists(path):
            kinds[os.path.basename(path)] = elf.read(path).program
    assert kinds.pop(os.path.basename(sys.executable)) is True
    assert set(kinds.values()) <= {False}


def test_programs_are_not_imported() -> None:
    calls = frozenset({"connect"})
    owner = Owner("tool", "1", ("tool",))
    ran = Finding("/v/bin/tool", owner, Image(program=True, imports=calls), {Way.CONNECT: ("connect",)})
    assert linter.forbidden([ran], ()) == {}


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["{}/none"], "cannot be read: No such file or directory"),
        (["{}/text"], "is no ELF file"),
        (["{}/half.so"], "is truncated: "),
        (["{}/junk.so"], "is a broken ELF file"),
        (["--venv", "{}/none"], "no such directory"),
        (["--venv", "{}/text"], "is not a directory"),
        (["--venv", "{}"], "is not a virtual environment"),
        ([], "name either a PATH or --venv DIR"),
        (["{}", "--venv", "{}"], "name either a PATH or --venv DIR"),
        (["{}", "--json", "--import-linter"], "choose one"),
    ],
)
def test_bad_input_is_named(args: list[str], error: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text").write_text("hello, world\n")
    whole = native.library(native.CONNECTS, tmp_path / "whole.so").read_bytes()
    (tmp_path / "half.so").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.so").write_bytes(b"\x7fELF" + b"\xff" * 200)
    assert main(["audit-native", *(arg.format(tmp_path) for arg in args)]) == 2
    told = capsys.readouterr()
    assert error in told.err and "hint: " in told.err and not told.out


def test_in_a_directory_what_cannot_be_judged_is_listed(venv: Path, capsys: Any) -> None:
    site = venv / "lib/python3.13/site-packages"
    whole = (site / "quiet/_quiet.so").read_bytes()
    (site / "quiet/_quiet.so").write_bytes(whole[:5000])
    (site / "dangling.so").symlink_to("nowhere")
    (site / "loop").symlink_to(".")
    (site / "broken-1.dist-info").mkdir()
    (site / "broken-1.dist-info/RECORD").write_text('"')
    (site / "more.pth").write_text(f"# comment\nimport os\n{venv}\n{venv}/nowhere\n")
    assert main(["audit-native", "--venv", str(venv), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [os.path.basename(u["path"]) for u in data["unread"]] == ["_quiet.so"]
    assert data["elsewhere"] == [str(venv)] and data["files"] == 2
    assert main(["audit-native", str(site)]) == 0
    out = capsys.readouterr().out
    assert "Not judged, so it could be anything:" in out and f"agentmon audit-native {venv}\n" in out


def test_one_file_is_judged_by_itself(venv: Path, capsys: Any) -> None:
    path = venv / "lib/python3.13/site-packages/loud.libs/libloud-0a1b2c3d.so.1"
    assert main(["audit-native", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Loud.Pkg 1.2" in out and "1 native file; 1 could get past the guard." in out
    with pytest.raises(BadInput):
        tree.of_venv(path)
