"""From `upstream: {dns: …}` to what the resolver is given and what nft lets the service namespace reach."""

from __future__ import annotations

from ipaddress import ip_address

from agentmon.daemon import specs
from agentmon.policy import settings
from agentmon.resolver.config import UpstreamConfig
from agentmon.resolver.upstream import Server
from tests.unit.test_resolver_core import BASE, convert

TEXT = """
upstream:
  dns:
    ".": ['tls://dns.example@192.0.2.1', '192.0.2.2:5353']
    corp.example: 'tls://[2001:db8::53]:8853'
  ca: /etc/ssl/extra.pem
"""


def test_servers_over_tls_reach_the_resolver_with_their_names_and_nft_with_their_ports() -> None:
    given = settings.parse(TEXT, "s.yml")
    upstream: UpstreamConfig = convert(BASE | {"upstream": specs.upstream(given)}).upstream
    assert upstream.servers == (Server("192.0.2.1", 853, "dns.example"), Server("192.0.2.2", 5353))
    assert upstream.suffixes == {"corp.example": (Server("2001:db8::53", 8853, "2001:db8::53"),)}
    assert (upstream.ca, upstream.over_tls) == (("/etc/ssl/extra.pem",), True)
    assert set(specs.host_spec(given).upstream_dns) == {
        (ip_address("192.0.2.1"), 853), (ip_address("192.0.2.2"), 5353), (ip_address("2001:db8::53"), 8853),
    }  # fmt: skip
