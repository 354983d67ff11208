"""From a request's arguments to validated values: policy, job, budget. Raises BadInput with what to write instead."""

from __future__ import annotations

import os
import pwd
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.channel import Peer
from agentmon.control.state import Bottle, Job
from agentmon.daemon import saved_state
from agentmon.daemon.saved_state import Saved
from agentmon.errors import BadInput, HostLacks, Refused
from agentmon.policy import change, manifest, merge, unbuilt
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.options import Options, budget_option
from agentmon.policy.origin import Origin
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

JOB_USER = "agentmon-job"


def policy(
    args: Mapping[str, Any],
    settings: Settings,
    providers: Mapping[str, Provider],
    peer: Peer,
    features: frozenset[str],
) -> EffectivePolicy:
    """The whole policy of a `run` request: settings, manifest chain, options. A bottle without a name is called after
    its command.

    :param features: what the BPF programs can do on this host.
    :raises BadInput: file, line, key and what was expected. :raises Refused: the peer may not ask for that.
    :raises HostLacks: the policy relies on what this kernel does not do.
    """
    path = args.get("policy_file")
    given = {str(file): str(text) for file, text in (args.get("manifests") or {}).items()}
    read = manifest.reader(given, settings.bottles_dir)
    chain = manifest.load_chain(str(path), settings.bottles_dir, read) if path else None
    name = str(args.get("name") or "") or ("" if chain else _name(args))
    entry = _user(args, peer)

    def texts(key: str) -> tuple[str, ...]:
        return tuple(str(word) for word in args.get(key) or ())

    options = Options(
        name=name,
        allow=texts("allow"),
        provider=str(args.get("provider") or ""),
        agent=str(args.get("agent") or ""),
        budgets=texts("budgets"),
        shutdown=str(args.get("shutdown") or ""),
        observe=bool(args.get("observe")),
        home=str(args.get("home") or ""),
        ro=texts("ro"),
        rw=texts("rw"),
        uid=peer.uid,
        user_home=entry.pw_dir,
    )
    found = merge.effective(settings, chain, options, providers=providers)
    unbuilt.refuse_on_kernel(found, features)
    origin = Origin(str(path or ""), given, replace(options, name=found.bottle))
    return replace(found, origin=origin)


def _name(args: Mapping[str, Any]) -> str:
    word = Path(str((args.get("argv") or ["job"])[0])).name.lower()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in word).strip("-")[:20]
    return f"{plain or 'job'}-{secrets.token_hex(2)}"


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
        raise BadInput(
            f"there is no user {wanted or peer.uid!r} on this host", "give one of /etc/passwd with --user"
        ) from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise BadInput("a bottle's command never runs as the host's root", "leave --user out, or name another user")
    return entry


def _job_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(JOB_USER)
    except KeyError:
        raise HostLacks(f"the system user {JOB_USER} does not exist", "make setup creates it") from None


def restarted(saved: Saved, args: Mapping[str, Any], uid: int, settings: Settings, features: frozenset[str]) -> Bottle:
    """The saved bottle as it is to start again: the policy it was frozen with, under the `deny:` of today; the terminal
    of whoever resumes it. Reads files: not for the event loop.

    :raises BadInput: what it needs has gone or changed. :raises Refused: only root goes on past a changed manifest.
    :raises HostLacks: as policy().
    """
    saved_state.check(saved, paths.SAVED / saved.bottle.run)
    if args.get("saved_policy"):
        if uid != 0:
            raise Refused("--saved-policy is for root only", f"sudo agentmon resume {saved.bottle.name} --saved-policy")
    else:
        saved_state.check_manifests(saved)
    found = change.with_host_denied(saved.bottle.policy, settings.deny)
    unbuilt.refuse_on_kernel(found, features)
    rows, cols = int(args.get("rows") or 24), int(args.get("cols") or 80)
    job = replace(saved.bottle.job, tty=bool(args.get("tty")), rows=rows, cols=cols)
    return replace(saved.bottle, policy=found, job=job)


def budget(value: Any) -> tuple[int, str]:
    """(tokens, provider) of `N` or `PROVIDER=N`; (0, "") for nothing.

    :raises BadInput: neither form, or not more than 0.
    """
    if value in {None, "", 0}:
        return 0, ""
    provider, tokens = budget_option(str(value))
    return tokens, provider


def with_rule(before: EffectivePolicy, text: str, *, deny: bool) -> tuple[EffectivePolicy, bool]:
    """The policy after allow or deny of `text`, and whether something allowed may have been taken away.

    :raises BadInput: no rule. :raises Refused: a deny that stays covers it.
    """
    after = change.with_denied(before, text) if deny else change.with_allowed(before, text)
    if (origin := before.origin) is not None:
        after = replace(after, origin=origin.denying(text) if deny else origin.allowing(text))
    return after, change.is_removal(before, after)
