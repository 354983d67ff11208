"""The import table of docs/design/seams.md, held against every import statement in the product."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("agentmon", "netfilter", "ebpf")

# Foreign module → the modules (prefixes) that may import it; everybody else may not.
EDGES = {
    "mitmproxy": ("agentmon.proxy.edge",),
    "wsproto": ("agentmon.proxy.edge",),
    "h11": ("agentmon.proxy.edge",),
    "apsw": (  # events have a database of their own (DESIGN 8)
        *(f"agentmon.ledger.{name}" for name in ("store", "transaction", "migrations", "retention", "reader", "check")),
        "agentmon.ledger.outbox",
        "agentmon.ledger.events_store",
        "agentmon.daemon.eventlog",
    ),
    "psycopg": ("agentmon.ledger.postgres",),
    "sqlite3": (),
    "hyperscan": ("agentmon.dlp.engine",),
    "re2": ("agentmon.dlp.rules", "agentmon.injection.rules"),
    "click": ("agentmon.cli",),
    "textual": ("agentmon.tui",),
    "dns": ("agentmon.resolver",),
    "bcc": ("ebpf.loader", "ebpf.child"),  # the loader's short-lived child compiles
    "nftables": ("netfilter.nft",),
    "pyroute2": ("netfilter.netns",),
    "netfilter.host": ("netfilter", "agentmon.daemon"),
    "netfilter.nft": ("netfilter", "agentmon.daemon"),
    "netfilter.netns": ("netfilter", "agentmon.daemon"),
    "elftools": ("agentmon.audit_native.elf", "ebpf.symbols"),
    "ebpf.loader": ("ebpf", "agentmon.daemon"),
    "ebpf.maps": ("ebpf", "agentmon.daemon"),
    "ebpf.programs": ("ebpf", "agentmon.daemon"),
    "subprocess": ("agentmon",),
    "tests": (),
}
# Module (prefix) → what it must not import.
FORBIDDEN = {
    "netfilter": ("agentmon", "ebpf"),
    "ebpf": ("agentmon", "netfilter"),
    "agentmon.policy": ("netfilter", "ebpf"),
}
STDLIB_ONLY = {"agentmon.policy.rules": "agentmon.policy.rules", "agentmon.guard": "agentmon.policy.rules"}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def under(module: str, prefix: str) -> bool:
    """`agentmon.proxy.edge` covers edge.py, the package edge/, and siblings named edge_….py."""
    return module == prefix or module.startswith((prefix + ".", prefix + "_"))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    importer = module_name(path, root)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, place)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(importer, f"{source}.{alias.name}", place)


def all_imports(root: Path) -> list[Import]:
    return [found for top in PRODUCT for path in sorted((root / top).rglob("*.py")) for found in imports_of(path, root)]


def violations(found: list[Import]) -> list[str]:
    return [str(i) for i in found if breaks_edge(i) or breaks_direction(i) or breaks_stdlib_only(i) or meets_twice(i)]


def breaks_edge(i: Import) -> bool:
    return any(
        under(i.imported, edge) and not any(under(i.importer, place) for place in allowed)
        for edge, allowed in EDGES.items()
    )


def breaks_direction(i: Import) -> bool:
    return any(
        under(i.importer, module) and any(under(i.imported, no) for no in forbidden)
        for module, forbidden in FORBIDDEN.items()
    )


def breaks_stdlib_only(i: Import) -> bool:
    top = i.imported.split(".")[0]
    return any(
        under(i.importer, module) and top not in sys.stdlib_module_names and not under(i.imported, itself)
        for module, itself in STDLIB_ONLY.items()
        if not under(i.imported, module)
    )


def meets_twice(i: Import) -> bool:
    """Only agentmon.compile and the daemon see kernel specs; the compiler is where policy meets them."""
    kernel_spec = under(i.imported, "netfilter") or under(i.imported, "ebpf")
    at_home = any(under(i.importer, top) for top in ("netfilter", "ebpf"))
    tried = under(i.importer, "agentmon.posture.probe") and any(under(i.imported, p) for p in KERNEL_PROBES)
    return kernel_spec and not at_home and not tried and not any(under(i.importer, ok) for ok in KERNEL_SPEC_READERS)


KERNEL_PROBES = ("netfilter.probe", "netfilter.errors", "ebpf.probe", "ebpf.errors")  # what posture tries
KERNEL_SPEC_READERS = ("agentmon.compile", "agentmon.daemon", "agentmon.control")


def test_no_import_breaks_the_table() -> None:
    found = violations(all_imports(ROOT))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("netfilter/x.py", "import agentmon.wire"),
        ("netfilter/x.py", "import subprocess"),
        ("ebpf/x.py", "from netfilter import spec"),
        ("agentmon/relay/x.py", "from netfilter.spec import Mode"),
        ("agentmon/relay/x.py", "import dns.message"),
        ("agentmon/relay/x.py", "import apsw"),
        ("agentmon/ledger/book.py", "import apsw"),
        ("agentmon/ledger/worker.py", "from psycopg import errors"),
        ("agentmon/cli/x.py", "from ebpf import loader"),
        ("agentmon/cli/top.py", "from textual.app import App"),
        ("agentmon/posture/probe_kernel.py", "from netfilter.spec import Mode"),
        ("agentmon/posture/judge.py", "import netfilter.probe"),
        ("agentmon/policy/x.py", "from .. import compile\nfrom ebpf.spec import Bpf"),
        ("agentmon/policy/rules/x.py", "import msgspec"),
        ("agentmon/policy/rules/x.py", "from ..effective import EffectivePolicy"),
        ("agentmon/guard/x.py", "from agentmon import wire"),
        ("agentmon/daemon/x.py", "import tests.internet"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert len(violations(all_imports(tmp_path))) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("agentmon/proxy/edge_addon.py", "import mitmproxy.http"),
        ("agentmon/guard/x.py", "import socket\nfrom agentmon.policy.rules import parse_rule"),
        ("agentmon/policy/rules/x.py", "from .names import canonical_host\nimport re"),
        ("agentmon/compile.py", "from netfilter.spec import Direct\nfrom agentmon.policy import effective"),
    ],
)
def test_a_permitted_import_is_not(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert violations(all_imports(tmp_path)) == []
