"""From settings to what the kernel and the services are given at start: pure but for reading resolv.conf and /proc."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.addresses import MAX_PROXIES, SERVICE_NETNS, SERVICE_VETH, Pool
from agentmon.daemon import shared_ledger
from agentmon.daemon.services import Spec
from agentmon.errors import HostLacks
from agentmon.policy.settings import Settings
from netfilter.spec import HostSpec

USERS = {name: f"agentmon-{name}" for name in ("resolver", "relay", "proxy", "ledger")}
FIRST_PROXY = "proxy"
_RESOLV_CONFS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")


def system_nameservers(files: tuple[str, ...] = _RESOLV_CONFS) -> tuple[tuple[str, int], ...]:
    """The host's nameservers. A local stub (127.0.0.53) cannot be reached from the service namespace, so the file
    behind it is read. Empty when there is none: then only names that need no look-up are answered."""
    for name in files:
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        words = [line.split() for line in lines]
        found = tuple((w[1].partition("%")[0], 53) for w in words if len(w) > 1 and w[0] == "nameserver")
        usable = tuple(pair for pair in found if not ip_address(pair[0]).is_loopback)
        if usable:
            return usable
    return ()


def upstream(settings: Settings) -> dict[str, Any]:
    """{"servers": [[address, port]…], "suffixes": {suffix: [[address, port]…]}, "ca": [file…]}; a server over TLS has
    the name of its certificate as well."""
    default = settings.upstream_dns.get(".", ())
    servers = default or system_nameservers()
    suffixes = {k: [list(p) for p in v] for k, v in settings.upstream_dns.items() if k != "."}
    return {"servers": [list(server) for server in servers], "suffixes": suffixes, "ca": list(settings.upstream_ca)}


def host_spec(settings: Settings) -> HostSpec:
    pool = settings.pool
    services = [pool.resolver, pool.relay, *(pool.proxy(n) for n in range(MAX_PROXIES))]
    resolve = upstream(settings)
    pairs = {tuple(server[:2]) for some in (resolve["servers"], *resolve["suffixes"].values()) for server in some}
    return HostSpec(
        pool4=pool.v4,
        pool6=pool.v6,
        gateway4=pool.gateway.v4,
        gateway6=pool.gateway.v6,
        service_netns=SERVICE_NETNS,
        service_veth=SERVICE_VETH,
        service_addresses=tuple(address for pair in services for address in pair.all()),
        upstream_dns=tuple(sorted(((ip_address(a), int(p)) for a, p in pairs), key=str)),
        service_dials=shared_ledger.dials(settings),
    )


def own_addresses() -> list[str]:
    """Every address of the host: never answered by the resolver.

    :raises HostLacks: ip(8) is missing.
    """
    try:
        done = subprocess.run(["ip", "-j", "address"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        raise HostLacks(f"the host's addresses cannot be listed: {e}", "apt-get install iproute2") from e
    links = json.loads(done.stdout or b"[]")
    return sorted(info["local"] for link in links for info in link.get("addr_info", ()) if "local" in info)


def proxy_name(worker: int) -> str:
    """The service's name, and so of its socket, log and configuration."""
    return FIRST_PROXY if worker == 0 else f"{FIRST_PROXY}-{worker}"


def services(settings: Settings, pool: Pool) -> list[Spec]:
    """What to start, ledger first."""
    both = {"pool4": str(pool.v4), "pool6": str(pool.v6) if pool.v6 else None}
    lookup = str(paths.SVC / "lookup.sock")

    def listen(*addresses: Any) -> list[str]:
        return [str(address) for pair in addresses for address in pair.all()]

    def spec(name: str, kind: str, **config: Any) -> Spec:
        return Spec(
            name, f"agentmon.{kind}", {"socket": str(paths.SVC / f"{name}.sock"), "user": USERS[kind], **config}
        )

    def proxy(worker: int) -> Spec:
        ports = [[address, port] for address in listen(pool.proxy(worker)) for port in (443, 80)]
        ports += [[address, 80] for address in listen(pool.relay)] if worker == 0 else []
        return spec(
            proxy_name(worker), "proxy", worker=worker, lookup_socket=lookup, listen=ports,
            ledger_socket=str(paths.SVC / "ledger.sock"), ca_dir=str(paths.CA_DIR), rules_kept=str(paths.RULES),
            upstream_ca=list(settings.upstream_ca), upstream_proxy=settings.upstream_proxy,
            providers=settings.providers, **both,
        )  # fmt: skip

    return [
        spec(
            "ledger", "ledger", path=str(paths.LEDGER), group="agentmon-svc", usage_age_s=settings.usage_age_s,
            **shared_ledger.config(settings),
        ),
        spec(
            "resolver", "resolver", lookup_socket=lookup, listen=listen(pool.resolver), upstream=upstream(settings),
            strip=own_addresses(), internal={"agentmon.internal": "proxy"}, **both,
        ),
        spec("relay", "relay", lookup_socket=lookup, listen=listen(pool.relay), port=443, **both),
        *(proxy(worker) for worker in range(settings.proxies)),
    ]  # fmt: skip
