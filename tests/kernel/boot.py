"""Boots a kernel in QEMU on this host's files, which it cannot change, and waits for what its job writes.

No network device. Software emulation, because nested machines seldom have better; $AGENTMON_KERNEL_ACCEL names another
accelerator (kvm).
"""

from __future__ import annotations

import lzma
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kernel import config, initramfs
from tests.kernel.fetch import Files, Unavailable

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
QEMU = "qemu-system-x86_64"
UP, DONE = "guest: up", "guest: done"
_KERNEL_LINE = "console=ttyS0 rdinit=/init panic=-1 oops=panic mitigations=off loglevel=4"


@dataclass(frozen=True)
class Boot:
    """What came of it: `status` of the job, None when it did not end; times in seconds from the start of QEMU."""

    status: int | None
    up_s: float
    took_s: float


def ram_disk(files: Files) -> bytes:
    """The initial ram disk for a kernel on disk."""
    release = Path(files.modules) / files.release
    modules = initramfs.closure((release / "modules.dep").read_text(encoding="ascii"), initramfs.WANTED)
    contents = {
        "init": (0o755, (HERE / "init.sh").read_bytes()),
        "bin/busybox": (0o755, Path(files.shell).read_bytes()),
        "guest": (0o644, str(HERE / "guest.sh").encode()),
    }
    names = [f"{initramfs.module_name(path)}.ko" for path in modules]
    for name, path in zip(names, modules, strict=True):
        data = (release / path).read_bytes()
        contents[f"modules/{name}"] = (0o644, lzma.decompress(data) if path.endswith(".xz") else data)
    contents["modules/order"] = (0o644, "".join(f"{name}\n" for name in names).encode())
    return initramfs.archive(contents)


def argv(files: Files, initrd: Path, shared: Path, kernel_line: str) -> list[str]:
    """QEMU's command line. Pure."""
    accel = os.environ.get("AGENTMON_KERNEL_ACCEL", "tcg,thread=multi")
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-nic", "none"),
        *("-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", str(config.CPUS), "-m", str(config.MEMORY_MB)),
        *("-kernel", files.image, "-initrd", str(initrd), "-append", f"{_KERNEL_LINE} {kernel_line}".strip()),
        *_share("root", Path("/"), "readonly=on,multidevs=remap"),
        *_share("out", shared, "multidevs=remap"),
    ]


def run(files: Files, job: str, shared: Path, kernel_line: str = "") -> Boot:
    """Run the shell text `job` in the checkout, as root of the guest. `shared` is its /mnt/out, and gets the `log`.

    :raises Unavailable: QEMU is not there.
    """
    shared.mkdir(parents=True, exist_ok=True)
    for name, text in {"job": job, "modules": files.modules, "checkout": str(ROOT)}.items():
        (shared / name).write_text(text + "\n", encoding="utf-8")
    (shared / "status").unlink(missing_ok=True)
    initrd = shared / "initrd"
    initrd.write_bytes(ram_disk(files))
    command = argv(files, initrd, shared, kernel_line)
    start = time.monotonic()
    with open(shared / "log", "wb") as log:
        log.write(f"{shlex.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except FileNotFoundError as error:
            raise Unavailable(f"{QEMU} is not installed", "sudo make test-kernels") from error
        try:
            up = _until(process, shared / "log", UP, start + config.BOOT_S)
            up_s = time.monotonic() - start
            if up:
                _until(process, shared / "log", DONE, start + config.BOOT_S + config.TESTS_S)
                process.wait(30)
        except subprocess.TimeoutExpired:
            pass  # it has said that it is done; only the power stays on
        finally:
            process.kill()
            process.wait()
    initrd.unlink()
    status = shared / "status"
    return Boot(int(status.read_text()) if status.exists() else None, up_s if up else 0.0, time.monotonic() - start)


def _until(process: subprocess.Popen[bytes], log: Path, text: str, deadline: float) -> bool:
    """Whether the guest has said `text` before the deadline and its end."""
    while not (said := text.encode() in log.read_bytes()):
        if time.monotonic() > deadline:
            break
        try:
            process.wait(0.5)
            return text.encode() in log.read_bytes()
        except subprocess.TimeoutExpired:
            continue
    return said


def _share(tag: str, path: Path, options: str) -> tuple[str, ...]:
    """A directory of the host as a 9p device."""
    where = str(path).replace(",", ",,")  # how QEMU writes a comma
    return ("-fsdev", f"local,id={tag},path={where},security_model=none,{options}",
            "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")  # fmt: skip
