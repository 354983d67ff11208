"""First on PYTHONPATH in a child started with EgressGuard.child_env(): installs the parent's policy at start-up.

site swallows what a sitecustomize raises and goes on, so a policy that cannot be installed ends the process.
Another sitecustomize, further down the path, runs after this one.
"""

import os
import sys


def _install() -> None:
    text = os.environ.get("AGENTMON_GUARD", "")
    if not text:
        return
    try:
        from agentmon.guard import children

        children.install_text(text)
    except BaseException as e:  # noqa: BLE001 - whatever it is, the child must not run unguarded
        print(f"error: the guard of the parent process cannot be installed: {type(e).__name__}: {e}", file=sys.stderr)
        print("hint: start the child without EgressGuard.child_env(), or make agentmon importable", file=sys.stderr)
        sys.stderr.flush()
        os._exit(125)


def _go_on() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    later = [p for p in sys.path if os.path.abspath(p) != here]
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("sitecustomize", later)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_install()
_go_on()
