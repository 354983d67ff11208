"""Compiles, loads, attaches and pins: the only file that imports bcc, run as a short-lived child of the daemon.

    python -P -m ebpf.loader REQUEST       REQUEST is the JSON of a Request; the answer is JSON on descriptor 3,
                                           the texts of clang and of the verifier are on descriptor 2

LLVM costs 130 MB and never enters the daemon. What a killed child leaves is whole: maps are pinned before any program
is attached, and each attachment is one atomic replacement.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from ebpf import abi, encode, links, sources
from ebpf.errors import BpfError, Missing
from ebpf.maps import Map

ANSWER_FD = 3
MINIMUM_BCC = (0, 25)  # load_func's attach_type


@dataclass(frozen=True, slots=True)
class Request:
    """`maps`: directory of this layout's pins; `links`: directory of the attachments; both exist."""

    source: str
    maps: str
    links: str
    cgroup: str
    cgroup_id: int
    bottle_level: int
    flags: int
    sizes: sources.Sizes

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        fields = json.loads(text)
        return cls(**{**fields, "sizes": sources.Sizes(**fields["sizes"])})


class CompilerFailed(Exception):
    """clang or the verifier said no; their text is on standard error."""

    def __init__(self, program: str, number: int) -> None:
        super().__init__(program)
        self.program = program
        self.number = number


def load(request: Request) -> None:
    """Bring the programs of `request` into force.

    :raises Missing: bcc is not there or too old.
    :raises CompilerFailed: nothing was attached.
    :raises BpfError: an attachment was refused; those before it are in force.
    """
    bcc = _import_bcc()
    text = sources.program_text(abi.SOURCES, request.source)
    flags = [*request.sizes.defines(), f'-DAM_PINS="{request.maps}"']
    try:
        module = bcc.BPF(text=text, cflags=flags)
    except Exception as error:  # bcc raises nothing narrower
        raise CompilerFailed(request.source, 0) from error
    programs = []
    for hook in links.HOOKS:
        try:
            programs.append(module.load_func(hook.function, hook.prog_type, attach_type=hook.attach_type).fd)
        except Exception as error:  # bcc raises nothing narrower; the errno is in ctypes' copy
            raise CompilerFailed(hook.function, _errno_of(error)) from error
    with Map(f"{request.maps}/am_config") as config:
        new = sources.program_hash(text, request.sizes)
        # The hash says "attached, all of them": zero until they are.
        config.update(b"\0\0\0\0", encode.CONFIG.pack(0, request.bottle_level, request.flags))
        for hook, fd in zip(links.HOOKS, programs, strict=True):
            links.attach(f"{request.links}/{hook.function}", hook, fd, request.cgroup, request.cgroup_id)
        config.update(b"\0\0\0\0", encode.CONFIG.pack(new, request.bottle_level, request.flags))


def _import_bcc() -> Any:
    os.environ["BCC_KERNEL_SOURCE"] = str(abi.SOURCES / "shim")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bcc
    except ImportError as error:
        raise Missing(
            f"bcc ({error})", "apt-get install python3-bpfcc (the PyPI package named bcc is another thing)"
        ) from error
    version = getattr(bcc, "__version__", "")
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if not hasattr(bcc, "BPF") or numbers < MINIMUM_BCC:
        raise Missing(
            f"bcc 0.25 or newer (found {version or 'a package without bcc.BPF'})",
            "apt-get install python3-bpfcc; Debian 12 and Ubuntu 24.04 have what is needed",
        )
    return bcc


def _errno_of(error: Exception) -> int:
    text = str(error)
    return next((n for n in range(1, 134) if text.endswith(os.strerror(n))), 1 if "super-user" in text else 22)


def main(argv: list[str]) -> int:
    answer: dict[str, Any] = {"ok": True}
    try:
        load(Request.from_json(argv[0]))
    except Missing as error:
        answer = {"error": "missing", "what": error.what, "hint": error.hint}
    except CompilerFailed as error:
        answer = {"error": "refused", "program": error.program, "errno": error.number}
    except BpfError as error:
        answer = {"error": "kernel", "operation": error.operation, "errno": error.errno, "hint": error.hint}
    with os.fdopen(ANSWER_FD, "w", encoding="utf-8") as out:
        json.dump(answer, out)
    return 0 if "error" not in answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
