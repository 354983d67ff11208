"""podman with a storage, a configuration and cgroups of its own, and containers whose files are the host's, read-only.

No image and no registry: `--rootfs /:O`. The network is a bridge of ours (CNI would leave its iptables chains behind).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from agentmon.daemon.cgroups import find_v2

_STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/storage"\nrunroot = "{0}/run"\n'
_STORAGE += '[storage.options.overlay]\nskip_mount_home = "true"\n'  # else it comes and goes with the commands
_CONFIG = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
tmp_dir = "{0}/tmp"
"""


def missing() -> str:
    """What to install; empty: nothing."""
    lacking = [name for name in ("podman", "runc") if shutil.which(name) is None]
    return f"apt-get install {' '.join(lacking)}" if lacking else ""


class Podman:
    """`env` is what podman, and whoever asks it, needs to see these containers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "storage.conf").write_text(_STORAGE.format(directory))
        (directory / "containers.conf").write_text(_CONFIG.format(directory))
        self.env = {
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "CONTAINERS_CONF": str(directory / "containers.conf"),
        }
        self._parent = f"agentmon-test-podman-{os.getpid()}"
        (find_v2() / self._parent).mkdir()

    def __call__(self, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", *argv], env=os.environ | self.env, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, (argv, done.stderr)
        return done.stdout.strip()

    def command(self, name: str, netns: str, *more: str) -> list[str]:
        """Starts a container that reads standard input; to be followed by its own command."""
        return [
            "podman", "run", "-i", "--name", name, "--cgroup-parent", self._parent, f"--network=ns:{netns}", *more,
            "--rootfs", "/:O",
        ]  # fmt: skip

    def close(self) -> None:
        self("rm", "--all", "--force", "--time", "0", check=False)
        self("unmount", "--all", check=False)
        for root in Path("/sys/fs/cgroup").iterdir():
            top = root / self._parent
            for directory in sorted((Path(p) for p, _, _ in os.walk(top)), key=lambda p: -len(p.parts)):
                with contextlib.suppress(OSError):
                    directory.rmdir()
        with contextlib.suppress(OSError):
            (Path("/sys/fs/cgroup") / self._parent).rmdir()
        shutil.rmtree(self._directory, ignore_errors=True)
