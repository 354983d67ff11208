"""Why something was refused, in words: the reasons of all layers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmon.render.words import printable

_CUT = "the bottle is cut off"
# The layers that tell a spent budget from an operator's cut.
_METERS = frozenset({"proxy", "resolver", "relay", "daemon", ""})
# Allowed, and not reached all the same.
UNREACHED = frozenset({"unreachable", "nxdomain", "servfail", "timeout", "stripped", "uncommitted", "unavailable"})
_REASONS = {
    # policy
    "default": "no rule allows it",
    "policy": "no rule allows it",
    "deny": "a rule denies it",
    "protected": "this destination is closed to every bottle",
    "expired": "the address is no longer an answer for any allowed name",
    # the bottle
    "cut": _CUT,
    "budget": "its token budget is spent",
    "closed": "the bottle is not open yet",
    "limit": "a limit of the bottle is reached",
    "rate": "too many in too short a time",
    # the process
    "family": "this kind of socket is closed to every bottle",
    "spoof": "the source address is not the bottle's own",
    "netns": "the process has left the bottle's network namespace",
    "unknown": "the process belongs to no bottle that is known",
    "stranger": "it is a process of the host",
    "unvouched": "its guard did not see it",
    "listen": "no rule lets it listen on this port",
    "unix": "no rule allows this unix socket",
    # the name
    "bad-name": "this cannot be a host name",
    "secret": "the name carries a secret that is known of the bottle",
    "inspected": "this name is checked inside TLS, which only the proxy does",
    "direct": "this name is opened by address, not through the relay",
    "unreachable": "the destination cannot be reached",
    "nxdomain": "this name does not exist",
    "servfail": "the name servers cannot answer for this name",
    "timeout": "the name servers did not answer in time",
    "stripped": "all addresses of this name are closed to every bottle",
    "uncommitted": "its addresses could not be opened",
    "unavailable": "the resolver does not answer",
    # TLS
    "not-tls": "it does not speak TLS, by which this port is checked",
    "no-sni": "its TLS hello names no host",
    "sni": "its TLS hello names no host",
    "bad-sni": "its TLS hello is malformed, or does not name one host",
    "slow": "it did not say in time which host it wants",
    "client-tls": "it does not trust the proxy's certificate, or gave up",
    # the request
    "host": "it does not name one and the same host in TLS, Host and target",
    "path": "its path is not among the allowed ones, or ambiguous",
    "method": "its method is not among the allowed ones",
    "credential": "its route asks for a credential, which cannot be put in yet",
    "upgrade": "of upgraded connections only WebSockets are supported",
    "framing": "the request can be read in more than one way",
    "plain": "a metered host is reached by https only",
    "endpoint": "what this endpoint uses cannot be metered",
    "mitmproxy": "deciding about it failed",
}


def reason_text(event: Mapping[str, Any]) -> str:
    """ "" without a reason; what is no known word is a text already."""
    reason = str(event.get("reason") or "")
    if reason == "budget" and str(event.get("layer") or "") not in _METERS:
        return _CUT
    return _REASONS.get(reason, printable(reason))
