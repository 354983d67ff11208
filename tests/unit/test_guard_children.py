"""Processes that a guarded one starts: fork and multiprocessing keep the policy, a Python child can be given it."""

from __future__ import annotations

import json

import pytest

from agentmon.guard import children
from tests.support import guarded

PYTHONS = guarded.versions()
TRY = "import socket, json\nfrom agentmon.guard import EgressGuard, EgressViolation\n"

# multiprocessing's children import the main module again, so it is a file.
MAIN = """
import json, multiprocessing, socket, sys
from agentmon.guard import EgressGuard, EgressViolation

def tries(queue=None):
    out = []
    for address in ("198.51.100.1", "198.51.100.2", "192.0.2.9", "127.0.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try: s.connect((address, 53)); out.append("ok")
            except EgressViolation as e: out.append(e.reason)
            except OSError: out.append("ok")  # no route here: the guard let it go on
    return out

if __name__ == "__main__":
    EgressGuard.install(["udp://198.51.100.1", "udp://198.51.100.2"])
    context = multiprocessing.get_context(sys.argv[1])
    with EgressGuard.scope(["udp://198.51.100.1"]), context.Pool(1) as pool:
        scoped = pool.apply(tries)
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(json.dumps([scoped, pool.submit(tries).result(), EgressGuard.status().installed]))
"""


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize(
    ("method", "imported"), [("fork", "after"), ("spawn", "before"), ("spawn", "after"), ("forkserver", "after")]
)
def test_multiprocessing_keeps_the_policy(version, method, imported, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(MAIN if imported == "before" else _late(MAIN))
    done = guarded.run_file(script, version, method)
    assert done.returncode == 0, done.stderr
    scoped, plain, _ = json.loads(done.stdout)
    assert scoped == ["ok", "scope", "default", "loopback"]
    assert plain == ["ok", "ok", "default", "loopback"]


def _late(text):
    """multiprocessing is imported after the guard was installed."""
    return text.replace("import json, multiprocessing,", "import json,").replace(
        "    context = ", "    import multiprocessing\n    context = "
    )


@pytest.mark.parametrize("version", PYTHONS)
def test_fork_keeps_policy_lock_and_scope(version):
    body = """
import os, threading
EgressGuard.install(["udp://198.51.100.1", "udp://198.51.100.2"], lock="secret")
busy = threading.Event()
def hold():  # lookups go on in another thread while this one forks
    while not busy.is_set(): attempt(socket.getaddrinfo, "evil.test", 1)
t = threading.Thread(target=hold); t.start()
out = []
for _ in range(8):
    r, w = os.pipe()
    with EgressGuard.scope(["udp://198.51.100.1"]): pid = os.fork()
    if pid == 0:
        with EgressGuard.scope(["udp://198.51.100.1"]):
            found = [reason(udp(a, 53)) for a in ("198.51.100.1", "198.51.100.2", "127.0.0.1")]
        found.append(attempt(EgressGuard.uninstall)["error"])
        EgressGuard.extend(["udp://192.0.2.9"], lock="secret")
        found.append(reason(udp("192.0.2.9", 1)))
        os.write(w, json.dumps(found).encode()); os._exit(0)
    os.close(w); out.append(json.loads(os.read(r, 4096))); os.close(r); os.waitpid(pid, 0)
busy.set(); t.join()
print(json.dumps([out, reason(udp("192.0.2.9", 1))]))
"""
    out, here = guarded.answer(body, version)
    assert out == [["ok", "scope", "loopback", "EgressLocked", "ok"]] * 8
    assert here == "default"  # what the child was given is its own


@pytest.mark.parametrize("version", PYTHONS)
def test_a_python_child_can_be_given_the_policy(version):
    body = (
        f"CODE = {TRY!r}"
        + """ + '''
out = []
for address in ("198.51.100.1", "198.51.100.2", "192.0.2.9", "127.0.0.1"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect((address, 53)); out.append("ok")
        except EgressViolation as e: out.append(e.reason)
        except OSError: out.append("ok")  # no route here: the guard let it go on
import threading
def other():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect(("198.51.100.2", 53)); out.append("ok")
        except EgressViolation as e: out.append(e.reason)
        except OSError: out.append("ok")
t = threading.Thread(target=other); t.start(); t.join()
import sitecustomize
print(json.dumps([out, getattr(sitecustomize, "MARK", None)]))
'''
import os, subprocess, tempfile
with tempfile.TemporaryDirectory() as tmp:
    open(os.path.join(tmp, "sitecustomize.py"), "w").write("MARK = 'theirs'")
    env = dict(os.environ, PYTHONPATH=os.environ["PYTHONPATH"] + ":" + tmp)
    EgressGuard.install(["udp://198.51.100.1", "udp://198.51.100.2"], on_child=lambda c: seen.append(c.inherits))
    seen = []
    def child(*options, env=None):
        return json.loads(subprocess.run([sys.executable, *options, "-c", CODE], env=env, check=True, stdout=-1).stdout)
    out = [child(env=EgressGuard.child_env(env))]
    with EgressGuard.scope(["udp://198.51.100.1"]):
        out.append(child(env=EgressGuard.child_env(env)))
    os.environ.update(EgressGuard.child_env(env))
    out.append(child())
    subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
    subprocess.run(["true"], env=EgressGuard.child_env(), check=True)
    os.system("true")
    subprocess.run([sys.executable, "-c", "pass"], env={}, check=True)
print(json.dumps([out, seen, [c.command for c in EgressGuard.status().children][-3:]]))
"""
    )
    out, seen, commands = guarded.answer(body, version)
    assert out == [
        [["ok", "ok", "default", "loopback", "ok"], "theirs"],
        [["ok", "scope", "default", "loopback", "scope"], "theirs"],
        [["ok", "ok", "default", "loopback", "ok"], "theirs"],
    ]
    assert seen == [True, True, True, False, False, False, False]
    assert commands[0:2] == ["true", "true"]


LOCKED = """
import json, multiprocessing, os, subprocess, sys
from agentmon.guard import EgressGuard, EgressLocked
def extend(): EgressGuard.extend(["192.0.2.9"])
def install(): EgressGuard.install([], lock="guess")
CALLS = [EgressGuard.uninstall, extend, install]
def opened():
    out = [EgressGuard.status().locked]
    for call in CALLS:
        try: call(); out.append("opened")
        except EgressLocked: out.append("locked")
    return out
if __name__ == "__main__":
    EgressGuard.install(["udp://198.51.100.1"], lock="secret")
    with multiprocessing.get_context("spawn").Pool(1) as pool: spawned = pool.apply(opened)
    argv = [sys.executable, "-c", "import json, main; print(json.dumps(main.opened()))"]
    env = EgressGuard.child_env({**os.environ, "PYTHONPATH": os.path.dirname(__file__)})
    given = subprocess.run(argv, env=env, stdout=-1, check=True).stdout
    print(json.dumps([spawned, json.loads(given), "secret" in EgressGuard.child_env()["AGENTMON_GUARD"]]))
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_the_lock_travels_to_children_and_its_token_does_not(version, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(LOCKED)
    done = guarded.run_file(script, version)
    assert done.returncode == 0, done.stderr
    locked = [True, "locked", "locked", "locked"]
    assert json.loads(done.stdout) == [locked, locked, False]


def test_a_child_that_cannot_install_does_not_run():
    env = {children.VARIABLE: '{"allow": ["*"], "mode": "enforce", "bind": "any", "within": []}'}
    env["PYTHONPATH"] = f"{children.BOOTSTRAP}:{guarded.ROOT}"
    done = guarded.run("print('ran')", env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert "error: the guard of the parent process cannot be installed: RuleError" in done.stderr
    assert "hint:" in done.stderr


def test_the_environment_alone_opens_nothing_in_a_guarded_process():
    body = """
import os
EgressGuard.install(["udp://198.51.100.1"])
os.environ["AGENTMON_GUARD"] = '{"allow": ["192.0.2.0/24"], "mode": "observe", "bind": "any", "within": []}'
from agentmon.guard import children
children.install_text(os.environ["AGENTMON_GUARD"])
print(json.dumps(reason(udp("192.0.2.9", 53))))
"""
    assert guarded.answer(body) == "default"


def test_forking_while_another_thread_installs_is_no_tampering():
    body = """
import os, threading
one, two = ["udp://198.51.100.1"], ["udp://198.51.100.1", "udp://198.51.100.2"]
EgressGuard.install(one)
stop = threading.Event()
def swap():
    while not stop.is_set(): EgressGuard.install(two); EgressGuard.install(one)
t = threading.Thread(target=swap); t.start()
codes = set()
for _ in range(150):
    pid = os.fork()
    if pid == 0: os._exit(0 if reason(udp("198.51.100.1", 53)) == "ok" else 1)
    codes.add(os.waitpid(pid, 0)[1])
stop.set(); t.join()
print(json.dumps([sorted(codes), reason(udp("198.51.100.1", 53))]))
"""
    assert guarded.answer(body) == [[0], "ok"]


def test_children_do_not_go_without_the_policy_where_it_was_taken_from_its_carrier():
    body = """
import subprocess
from agentmon.guard import children
EgressGuard.install(["udp://198.51.100.1"])
env = EgressGuard.child_env()
children._control = None
out = [attempt(EgressGuard.child_env), attempt(children._Carrier().__reduce__)]
out += [attempt(subprocess.run, [sys.executable, "-c", "print('ran')"], env=env), udp("198.51.100.1", 53)]
print(json.dumps([reason(each) for each in out]))
"""
    assert guarded.answer(body) == ["AttributeError", "AttributeError", "tampered", "tampered"]
