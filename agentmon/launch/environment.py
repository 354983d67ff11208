"""The caller's environment made fit for a bottle. Pure.

Removed: what points at sockets, sessions and proxies of the host, and our own variables. Added: HOME and the
user's names, and where each TLS library looks for the CA bundle, for programs that bring their own.
"""

from __future__ import annotations

from collections.abc import Mapping

_GONE = frozenset({
    "SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_SESSION_ID", "WAYLAND_DISPLAY",
    "DISPLAY", "XAUTHORITY", "ICEAUTHORITY", "SESSION_MANAGER", "PULSE_SERVER", "TMUX", "TMUX_PANE", "STY",
    "DOCKER_HOST", "CONTAINER_HOST", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID", "JOURNAL_STREAM",
    "SUDO_COMMAND", "SUDO_USER", "SUDO_UID", "SUDO_GID", "MAIL", "TMPDIR", "TEMP", "TMP",
})  # fmt: skip
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL, Go, Rust native-certs
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "DENO_CERT",
)


def _passes(name: str) -> bool:
    return name not in _GONE and name.lower() not in _PROXIES and not name.startswith("AGENTMON_")


def trust_variables(bundle: str) -> dict[str, str]:
    """Variables that make TLS libraries read `bundle` (a path inside the bottle)."""
    return dict.fromkeys(_BUNDLE_VARIABLES, bundle)


def job_environment(
    caller: Mapping[str, str],
    *,
    bottle: str,
    user: str,
    home: str,
    bundle: str = "",
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What the job gets.

    :param bundle: path inside of the CA bundle; "" sets no trust variables.
    :param extra: from `--env`; wins over everything.
    """
    env = {name: value for name, value in caller.items() if _passes(name)}
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env |= {"HOME": home, "USER": user, "LOGNAME": user, "AGENTMON_BOTTLE": bottle}
    if bundle:
        env |= trust_variables(bundle)
    return env | dict(extra or {})
