"""Gets a kernel of the matrix into .cache/kernels, with apt of this host but none of its state. The only edge to apt.

Nothing is installed: packages are downloaded, their signatures checked by apt, and unpacked.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.kernel import archive
from tests.kernel.config import ARCHITECTURES, Kernel

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ETC_APT = Path("/etc/apt")
_FETCH_S = 600


class Unavailable(Exception):
    """A kernel could not be had: what is wrong, and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True)
class Files:
    """A kernel on disk. `modules` is the directory that holds `release`; `shell` a static busybox."""

    release: str
    image: str
    modules: str
    shell: str


def debian_mirror() -> str:
    """$AGENTMON_KERNEL_MIRROR, or the mirror that this Debian host itself uses.

    :raises Unavailable: there is none, or not the keys to check it with.
    """
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} is missing", "apt-get install debian-archive-keyring")
    if given := os.environ.get("AGENTMON_KERNEL_MIRROR"):
        return given
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    files = [ETC_APT / "sources.list", *sorted((ETC_APT / "sources.list.d").glob("*"))]
    texts = [f.read_text(encoding="utf-8") for f in files if f.suffix in (".list", ".sources") and f.is_file()]
    if platform.freedesktop_os_release().get("ID") == "debian":
        found = archive.mirror((s for text in texts for s in archive.sources(text)), codename)
        if found:
            return found
    raise Unavailable(
        "the kernels are Debian's, and this host's apt sources name no Debian mirror",
        "AGENTMON_KERNEL_MIRROR=<address of a Debian mirror> make test-kernels",
    )


def have(directory: Path) -> Files | None:
    """What an earlier `fetch` has put into `directory`."""
    return _found(directory / "root") if (directory / "root").is_dir() else None


def fetch(kernel: Kernel, directory: Path, mirror: str) -> Files:
    """Download and unpack the newest kernel of the suite; what was there before is replaced when that is done.

    :raises Unavailable: apt or dpkg said no.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise Unavailable(f"the kernel matrix does not know {platform.machine()}", f"use {', '.join(ARCHITECTURES)}")
    fresh = directory / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    apt, packages, root = _apt(fresh / "apt", kernel.suite, mirror), fresh / "packages", fresh / "root"
    packages.mkdir()
    _run(["apt-get", *apt, "-q", "update"])
    show = ["apt-cache", *apt, "--no-all-versions", "show"]
    meta = archive.META.format(architecture)
    names = archive.parts(_run([*show, meta]))
    if not names:
        raise Unavailable(f"{kernel.suite} has no {meta}", "see tests/kernel/config.py")
    for name in names:  # the list grows while it is read
        names += [n for n in archive.parts(_run([*show, name])) if n not in names]
    _run(["apt-get", *apt, "-q", "download", *names, archive.SHELL], packages)
    for package in packages.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(root)])
    files = _found(root)
    _run(["depmod", "-b", str(Path(files.modules).parent.parent), files.release])
    shutil.rmtree(directory / "root", ignore_errors=True)
    root.rename(directory / "root")
    shutil.rmtree(fresh)
    return _found(directory / "root")


def _found(root: Path) -> Files:
    """Where the unpacked packages have what: since Debian 13 below /usr, since 7.0 the image beside the modules."""
    modules = next(d for d in (root / "usr/lib/modules", root / "lib/modules") if d.is_dir())
    (release,) = (d.name for d in modules.iterdir())
    image = next(f for f in (modules / release / "vmlinuz", root / f"boot/vmlinuz-{release}") if f.exists())
    shell = next(f for f in (root / "usr/bin/busybox", root / "bin/busybox") if f.exists())
    return Files(release, str(image), str(modules), str(shell))


def _apt(directory: Path, suite: str, mirror: str) -> list[str]:
    """Options that give apt one suite and a place of its own."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "status").write_text("")
    lines = [f"deb [signed-by={KEYRING}] {mirror} {name} main\n" for name in archive.suites(suite)]
    (directory / "sources.list").write_text("".join(lines), encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": directory / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "APT::Default-Release": suite,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _run(argv: list[str], directory: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=directory, capture_output=True, text=True, check=False, timeout=_FETCH_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        command = " ".join(word for word in (argv[0], *argv[-4:]) if "=" not in word and word != "-o")
        raise Unavailable(
            f"{command}: {said[-1] if said else done.returncode}", "check the network and the mirror, then run it again"
        )
    return done.stdout
