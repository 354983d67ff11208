"""What is launched, from a bottle's policy and job: building of LaunchSpec and ProbeSpec."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agentmon import addresses, paths
from agentmon.addresses import Pool
from agentmon.control.state import Bottle
from agentmon.daemon.kernel import Kernel
from agentmon.errors import BadInput
from agentmon.launch.environment import job_environment
from agentmon.launch.etc import etc_files
from agentmon.launch.spec import CA_BUNDLES, LaunchSpec, ProbeSpec
from agentmon.providers.declaration import Provider

PROTECTED4 = "169.254.1.1"
_NOWHERE = frozenset({"/", "/nonexistent", "/dev/null", "/bin", "/usr/sbin"})


def home_inside(uid: int) -> tuple[str, str]:
    """(user name, HOME path inside) of the job's user; a system user without a home gets one under /home.

    :raises BadInput: no such uid.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise BadInput(f"uid {uid} is no user of this host", "use --user NAME with one of /etc/passwd") from None
    home = entry.pw_dir if entry.pw_dir.startswith("/") and entry.pw_dir not in _NOWHERE else f"/home/{entry.pw_name}"
    return entry.pw_name, home


def client_paths(policy_provider: str, home: str, providers: Mapping[str, Provider]) -> tuple[list[str], list[str]]:
    """(ro, rw) existing paths of the provider's own client, in the real HOME."""
    provider = providers.get(policy_provider)
    if provider is None:
        return [], []
    out = []
    for relative in (provider.client.ro, provider.client.rw):
        out.append([str(path) for path in (Path(home) / r for r in relative) if path.exists()])
    return out[0], out[1]


def launch_spec(bottle: Bottle, leaf: Path, trust: Path, pool: Pool, providers: Mapping[str, Provider]) -> LaunchSpec:
    """:raises BadInput: the job's user does not exist, or the spec would not be safe."""
    policy, job = bottle.policy, bottle.job
    user, home = home_inside(job.uid)
    ro, rw = client_paths(policy.provider, home, providers)
    private = policy.home == "private"
    restored = paths.RESTORED / str(bottle.slot) if bottle.restored else None
    spec = LaunchSpec(
        slot=bottle.slot,
        bottle=bottle.name,
        run=bottle.run,
        argv=job.argv,
        env=job_environment(dict(job.env), bottle=bottle.name, user=user, home=home, bundle=CA_BUNDLES[0]),
        cwd=job.cwd,
        uid=job.uid,
        gid=job.gid,
        groups=job.groups,
        home=home,
        home_source=str(paths.HOMES / str(bottle.slot)) if private else home,
        tmp_source=str(restored / "tmp") if restored else "",
        var_tmp_source=str(restored / "var-tmp") if restored else "",
        netns=addresses.netns(bottle.slot),
        cgroup=str(leaf),
        trust=str(trust),
        files=etc_files(
            bottle=bottle.name,
            user=user,
            uid=job.uid,
            gid=job.gid,
            home=home,
            nameservers=[str(address) for address in pool.resolver.all()],
            groups=[(grp.getgrgid(gid).gr_name, gid) for gid in job.groups],
        ),
        ro=(*policy.ro, *(ro if private else ())),
        rw=(*policy.rw, *(rw if private else ())),
        unix=policy.unix,
        tty=job.tty,
        rows=job.rows,
        cols=job.cols,
        io_uring=policy.io_uring,
        owner=job.owner,
    )
    spec.check()
    return spec


def probe_spec(bottle: Bottle, kernel: Kernel) -> ProbeSpec:
    """What the bottle's test tries. In observe mode only protected destinations are refused: a link-local one stands
    for them."""
    net = kernel.net(bottle.slot)
    spec = ProbeSpec(
        slot=bottle.slot,
        netns=net.netns,
        cgroup=str(kernel.tree.probe(bottle.slot)),
        device=net.foreign.device if net.foreign is not None else "eth0",
        resolver=str(kernel.pool.resolver.v4),
        proxy=str(kernel.pool.proxy(bottle.worker).v4),
        mac_bottle=net.mac_bottle,
        mac_host=net.mac_host,
        addr4=str(net.addr4),
    )
    if bottle.policy.observe:
        return msgspec.structs.replace(spec, forbidden4=PROTECTED4, forbidden6="")
    return spec if net.addr6 is not None else msgspec.structs.replace(spec, forbidden6="")
