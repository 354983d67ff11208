"""What the launcher is told and what it answers: frozen, serialisable values (msgspec), validated before use."""

from __future__ import annotations

import msgspec

from agentmon.errors import BadInput

CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine; curl, Go, git
    "/etc/ssl/cert.pem",  # OpenSSL's default file on Debian (through /usr/lib/ssl/cert.pem)
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
)
FORBIDDEN4 = "198.18.0.1"  # RFC 2544 benchmarking range: no policy names it, nothing answers there
FORBIDDEN6 = "2001:2::1"  # RFC 5180, the same for IPv6


class LaunchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job. Paths are absolute host paths unless the name says otherwise; they appear at the same place inside."""

    slot: int
    bottle: str  # also the host name inside
    run: str  # unique id of this run
    argv: tuple[str, ...]
    env: dict[str, str]  # complete; see environment.job_environment
    cwd: str
    uid: int  # never 0
    gid: int  # never 0
    home: str  # HOME inside
    home_source: str  # directory on the host that is mounted there (owned by uid)
    netns: str  # a name in /run/netns, or a path
    cgroup: str  # leaf directory, frozen
    groups: tuple[int, ...] = ()  # supplementary
    trust: str = ""  # CA bundle that replaces the system's (CA_BUNDLES); "": the host's own
    files: dict[str, str] = {}  # path inside -> content, read-only; see etc.etc_files
    ro: tuple[str, ...] = ()
    rw: tuple[str, ...] = ()
    unix: tuple[
        str, ...
    ] = ()  # the host's sockets, and directories of them, which end in "/"; mounted where they exist
    tmp_source: str = ""  # directory mounted as /tmp; "": a private tmpfs
    var_tmp_source: str = ""  # the same for /var/tmp
    tty: bool = False
    rows: int = 24
    cols: int = 80
    io_uring: bool = False
    umask: int = 0o022
    owner: int = 0  # who asked: for anyone but root, `cwd`, `ro` and `rw` must be reachable by `uid`
    rlimits: dict[str, int] = {}  # "nofile": 1024 … (names of resource.RLIMIT_*, lower case)

    def check(self) -> None:
        """:raises BadInput: for what could never be launched safely."""
        if self.uid == 0 or self.gid == 0 or 0 in self.groups:
            raise BadInput(
                f'bottle "{self.bottle}" would run its command with the host\'s uid or gid 0',
                "use --user NAME, or let agentmon use its own user agentmon-job",
            )
        if not self.argv or not self.argv[0]:
            raise BadInput("no command given", "agentmon run -- COMMAND [ARGUMENT...]")
        for path in (self.cwd, self.home, self.home_source, self.cgroup, *self.ro, *self.rw, *self.unix, *self.files):
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise BadInput(f'path "{path}" is not absolute', 'write it from "/" on, without ".."')
        for text in (*self.argv, *self.env, *self.env.values()):
            if "\0" in text:
                raise BadInput(f"argument or variable {text!r} contains a NUL byte")
        for name in self.env:
            if not name or "=" in name:
                raise BadInput(f'"{name}" is not a name for an environment variable')


class ProbeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a probe runs and what must work and must not from there."""

    slot: int
    netns: str
    cgroup: str  # leaf directory, a thawed sibling of the job's
    resolver: str  # address; port 53, UDP
    proxy: str  # address; port 80
    forbidden4: str = FORBIDDEN4
    forbidden6: str = FORBIDDEN6  # "": the host has no IPv6
    device: str = "eth0"
    mac_bottle: str = ""  # with the next two: send one AF_PACKET frame on `device` to forbidden4
    mac_host: str = ""
    addr4: str = ""  # the bottle's own, source of the frame
    timeout_ms: int = 1000  # for each step


class ProbeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen. A forbidden path holds the name of the errno that refused it, "open" or "timeout"."""

    slot: int
    dns: str = ""  # the address that the resolver gave for agentmon.internal, or the error
    http: str = ""  # the status of GET http://agentmon.internal/healthz, or the error
    bpf4: str = ""
    bpf6: str = ""
    nft4: str = ""
    nft6: str = ""
    frame: str = ""  # "sent" (now host-side refusals must have grown) or the errno that stopped it
    problems: tuple[str, ...] = ()  # for people; empty: everything was as it should be
    elapsed_us: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


class Exited(msgspec.Struct, frozen=True):
    """A job has ended. `exit` is as a shell reports it; `signal` 0: it ended by itself."""

    slot: int
    run: str
    exit: int
    signal: int


class Job(msgspec.Struct, frozen=True):
    """A job the spawner holds: what a new daemon adopts."""

    slot: int
    run: str
    pid: int


class Spawned(msgspec.Struct, frozen=True):
    """A job at the gate: in its frozen cgroup, its command not yet executed. `fds` belong to the receiver."""

    slot: int
    pid: int
    fds: tuple[int, ...] = ()
