"""Compiles, loads, attaches and pins: the only file that imports bcc, run as a short-lived child of the daemon.

    python -P -m ebpf.loader REQUEST       REQUEST is the JSON of a Request; the answer is JSON on descriptor 3,
                                           the texts of clang and of the verifier are on descriptor 2

LLVM costs 130 MB and never enters the daemon. What a killed child leaves is whole: maps are pinned before any program
is attached, and each attachment is one atomic replacement.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ebpf import abi, btf, encode, links, sources, syscall
from ebpf.errors import BpfError, Missing, last_useful_line
from ebpf.maps import Map

ANSWER_FD = 3
_PASS = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit
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
    attached: tuple[str, ...] = ()  # directories of links on other cgroups, to be updated

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        fields = json.loads(text)
        sizes, attached = sources.Sizes(**fields["sizes"]), tuple(fields["attached"])
        return cls(**{**fields, "sizes": sizes, "attached": attached})


class CompilerFailed(Exception):
    """clang or the verifier said no; their text is on standard error."""

    def __init__(self, program: str, number: int) -> None:
        super().__init__(program)
        self.program = program
        self.number = number


def load(request: Request) -> dict[str, str]:
    """Bring the programs of `request` into force. Optional groups that this host does not take, with the reason.

    :raises Missing: bcc is not there or too old.
    :raises CompilerFailed: nothing was attached.
    :raises BpfError: an attachment was refused; those before it are in force.
    """
    bcc = _import_bcc()
    left_out: dict[str, str] = {}
    flags = [*request.sizes.defines(), f'-DAM_PINS="{request.maps}"']
    try:
        flags += [f"-D{name}={value}" for name, value in btf.definitions().items()]
        flags += _security_hooks(bcc, left_out)
    except Missing as error:
        left_out = dict.fromkeys(links.FEATURES, f"{error.what}: {error.hint}")
    text = sources.program_text(abi.SOURCES, request.source)
    try:
        module = _Compiled.by(bcc)(text=text, cflags=flags)
    except Exception as error:  # bcc raises nothing narrower
        raise CompilerFailed(request.source, 0) from error
    programs = {h: _load(module, h) for h in links.REQUIRED}
    for feature in links.FEATURES:
        if feature not in left_out:
            left_out |= _load_feature(module, feature, programs)
    with Map(f"{request.maps}/am_config") as config:
        new = sources.program_hash(text, request.sizes)
        # The hash says "attached, all of them": zero until they are.
        config.update(b"\0\0\0\0", encode.CONFIG.pack(0, request.bottle_level, request.flags, 0))
        left_out |= _attach_all(request, programs)
        _carry_guarded(request)
        features = abi.feature_bits(f for f in links.FEATURES if f not in left_out)
        config.update(b"\0\0\0\0", encode.CONFIG.pack(new, request.bottle_level, request.flags, features))
    return left_out


def _security_hooks(bcc: Any, left_out: dict[str, str]) -> list[str]:
    """What compiles the programs for security hooks in; nothing, and the reason in `left_out`, where the kernel refuses
    one that does nothing."""
    try:
        find = bcc.libbcc.lib.libbpf_find_vmlinux_btf_id
        number = find(b"socket_connect", links.LSM_MAC)
        if number <= 0:
            raise BpfError(-number, "looking for the security hook socket_connect in the kernel's BTF")
        os.close(syscall.prog_load(_PASS, links.LSM, links.LSM_MAC, number))
    except (AttributeError, BpfError) as error:
        left_out["lsm"] = str(error)
        return []
    return ["-DAM_LSM"]


class _Compiled:
    """bcc.BPF without its habit to attach whatever has a known prefix (lsm__) as soon as it is compiled."""

    def _trace_autoload(self) -> None:
        pass

    @classmethod
    def by(cls, bcc: Any) -> Any:
        return type("Compiled", (cls, bcc.BPF), {})


def _load(module: Any, hook: links.Hook) -> int:
    """bcc remembers a function by its name alone: one that is loaded for several hooks is forgotten each time."""
    attach_type = {"attach_type": hook.attach_type} if not hook.tracepoint else {}
    code = hook.code or hook.function
    module.funcs.pop(code.encode(), None)
    try:
        return int(module.load_func(code, hook.prog_type, **attach_type).fd)
    except Exception as error:  # bcc raises nothing narrower; the errno is in ctypes' copy
        raise CompilerFailed(hook.function, _errno_of(error)) from error


def _load_feature(module: Any, feature: str, programs: dict[links.Hook, int]) -> dict[str, str]:
    """Add the programs of an optional group to `programs`, all or none; the reason where it is none."""
    fresh: dict[links.Hook, int] = {}
    try:
        for hook in (h for h in links.HOOKS if h.feature == feature):
            fresh[hook] = _load(module, hook)
    except CompilerFailed as error:
        return {feature: f"{error.program}: {os.strerror(error.number)}{_said()}"}
    programs |= fresh
    return {}


def _carry_guarded(request: Request) -> None:
    """Who registered before an upgrade to another layout stays guarded; what follows processes is attached already.
    What sockets were vouched for is gone: under `strict` they are refused until their guard vouches again."""
    mine = Path(request.maps)
    with Map(str(mine / "am_guarded")) as now:
        for path in mine.parent.glob("layout-*/am_guarded"):
            if path.parent == mine:
                continue
            with Map(str(path)) as before:
                if (before.key_bytes, before.value_bytes) == (now.key_bytes, now.value_bytes):
                    for key, value in before.items():
                        now.update(key, value)


def _said() -> str:
    """The last useful line of what the verifier has written, in brackets; standard error is a file of the parent's."""
    end = os.fstat(2).st_size
    try:
        line = last_useful_line(os.pread(2, 4096, max(0, end - 4096)).decode("utf-8", "replace"))
    except OSError:
        return ""
    return f" ({line})" if line else ""


def _attach_all(request: Request, programs: dict[links.Hook, int]) -> dict[str, str]:
    """Attach in the order of links.HOOKS. Optional groups of which an attachment was refused, with the reason."""
    left_out: dict[str, str] = {}
    for hook in links.HOOKS:
        path = f"{request.links}/{hook.function}"
        if hook.feature in left_out or hook not in programs:
            for place in (path, *(f"{directory}/{hook.function}" for directory in request.attached)):
                links.detach(place)
            continue
        try:
            if not hook.feature and not links.is_in_force(path, hook, request.cgroup_id):
                links.detach(f"{request.links}/{attribution_of(hook)}")  # it must come after what decides
            links.attach(path, hook, programs[hook], request.cgroup, request.cgroup_id)
            for directory in request.attached:
                if not hook.everywhere and os.path.lexists(f"{directory}/{hook.function}"):
                    links.update(f"{directory}/{hook.function}", hook, programs[hook])
        except BpfError as error:
            if not hook.feature:
                raise
            left_out[hook.feature] = str(error)
            for other in (h for h in links.HOOKS if h.feature == hook.feature):
                links.detach(f"{request.links}/{other.function}")
    return left_out


def attribution_of(hook: links.Hook) -> str:
    """The attribution's function for the hook of a decision; there may be none of that name."""
    return {"am_sock_create": "am_by_create"}.get(hook.function, hook.function.replace("am_", "am_by_", 1))


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
        answer["left_out"] = load(Request.from_json(argv[0]))
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
