"""From a request's arguments to validated values: policy, job, budget. Raises BadInput with what to write instead."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import Any

from agentmon.channel import Peer
from agentmon.compile import with_rule as _with_rule
from agentmon.control.state import Job
from agentmon.errors import BadInput, HostLacks, Refused
from agentmon.policy import explain as _explain
from agentmon.policy import manifest, merge
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

JOB_USER = "agentmon-job"


def policy(args: Mapping[str, Any], settings: Settings, providers: Mapping[str, Provider], peer: Peer) -> EffectivePolicy:
    """The whole policy of a `run` request: settings, manifest chain, options.

    :raises BadInput: file, line, key and what was expected. :raises Refused: the peer may not ask for that.
    """
    if args.get("observe") and peer.uid != 0 and "observe" not in settings.grants:
        raise Refused("--observe relaxes the allowlist: only root may ask for it", "or grants: {observe: true} in settings.yml")
    path = args.get("policy_file")
    chain = manifest.load(path, settings, providers) if path else None
    options = merge.Options(
        name=str(args.get("name") or ""),
        allow=tuple(args.get("allow") or ()),
        provider=str(args.get("provider") or ""),
        agent=str(args.get("agent") or ""),
        budgets=tuple(args.get("budgets") or ()),
        shutdown=str(args.get("shutdown") or ""),
        observe=bool(args.get("observe")),
        home=str(args.get("home") or ""),
        ro=tuple(args.get("ro") or ()),
        rw=tuple(args.get("rw") or ()),
    )
    return merge.effective(settings, chain, options, providers)


def job(args: Mapping[str, Any], peer: Peer) -> Job:
    """Whom the command runs as: the peer; for root the user of --user, of sudo, or agentmon-job; never uid 0."""
    argv = tuple(str(word) for word in args.get("argv") or ())
    if not argv:
        raise BadInput("no command given", "agentmon run -- COMMAND [ARGUMENT...]")
    entry = _user(args, peer)
    groups = tuple(g for g in os.getgrouplist(entry.pw_name, entry.pw_gid) if g not in {0, entry.pw_gid})
    return Job(
        argv=argv,
        env=tuple(sorted((str(k), str(v)) for k, v in (args.get("env") or {}).items())),
        cwd=str(args.get("cwd") or "/"),
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=groups,
        tty=bool(args.get("tty")),
        rows=int(args.get("rows") or 24),
        cols=int(args.get("cols") or 80),
        owner=peer.uid,
    )


def _user(args: Mapping[str, Any], peer: Peer) -> pwd.struct_passwd:
    wanted = args.get("user")
    if wanted and peer.uid != 0:
        raise Refused("--user is for root only", "leave it out: the command runs as you")
    try:
        if peer.uid != 0:
            entry = pwd.getpwuid(peer.uid)
        elif wanted:
            entry = pwd.getpwnam(str(wanted))
        elif (run_as := args.get("run_as")) and int(run_as[0]) != 0:
            entry = pwd.getpwuid(int(run_as[0]))
        else:
            entry = _job_user()
    except KeyError:
        raise BadInput(f"there is no user {wanted or peer.uid!r} on this host", "give one of /etc/passwd with --user") from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise BadInput("a bottle's command never runs as the host's root", "leave --user out, or name another user")
    return entry


def _job_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(JOB_USER)
    except KeyError:
        raise HostLacks(f"the system user {JOB_USER} does not exist", "make setup creates it") from None


def budget(value: Any) -> tuple[int, str]:
    """(tokens, provider) of `N` or `PROVIDER=N`; (0, "") for nothing.

    :raises BadInput: neither form, or not more than 0.
    """
    if value in {None, "", 0}:
        return 0, ""
    provider, _, number = str(value).rpartition("=")
    if not number.isdigit() or int(number) <= 0:
        raise BadInput(f"budget {value!r} is not a number of tokens", "write 200000, or PROVIDER=200000")
    return int(number), provider


def with_rule(before: EffectivePolicy, text: str, *, deny: bool) -> tuple[EffectivePolicy, bool]:
    """The policy after allow or deny of `text`, and whether something allowed may have been taken away."""
    return _with_rule(before, text, deny), deny


def explain(of: EffectivePolicy, dest: Any) -> Any:
    """Data for `policy explain` of a running bottle."""
    return _explain.explain(of, str(dest) if dest else None)
