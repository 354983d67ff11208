"""The small files of /etc that a bottle gets its own version of. Pure: values in, texts out."""

from __future__ import annotations

from collections.abc import Sequence

_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""


def etc_files(
    *, bottle: str, user: str, uid: int, gid: int, home: str, nameservers: Sequence[str],
    groups: Sequence[tuple[str, int]] = (), shell: str = "/bin/sh",
) -> dict[str, str]:  # fmt: skip
    """resolv.conf, hosts, hostname, nsswitch.conf, passwd, group, machine-id by their path inside the bottle.

    Names are looked up in files and by DNS only: no mdns, no resolved, no nscd, whose sockets are not there.

    :param groups: (name, gid) of the user's supplementary groups.
    """
    resolv = "".join(f"nameserver {address}\n" for address in nameservers)
    passwd = [("root", 0, 0, "/nonexistent", "/usr/sbin/nologin"), (user, uid, gid, home, shell)]
    passwd.append(("nobody", 65534, 65534, "/nonexistent", "/usr/sbin/nologin"))
    group = {0: "root", gid: user, 65534: "nogroup"} | {number: name for name, number in groups}
    return {
        "/etc/resolv.conf": resolv + "options timeout:3 attempts:2\n",
        "/etc/hosts": f"127.0.0.1 localhost {bottle}\n::1 localhost ip6-localhost ip6-loopback\n",
        "/etc/hostname": f"{bottle}\n",
        "/etc/nsswitch.conf": _NSSWITCH,
        "/etc/passwd": "".join(f"{n}:x:{u}:{g}::{h}:{s}\n" for n, u, g, h, s in passwd),
        "/etc/group": "".join(f"{name}:x:{number}:\n" for number, name in sorted(group.items())),
    }
