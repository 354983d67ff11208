"""The installation's certificate authority, and the bundles of roots that bottles and proxy workers trust.

    ca_dir/mitmproxy-ca.pem   key + certificate, 0600, owner: the proxy's user (the name mitmproxy expects)
    ca_dir/ca.pem             certificate alone, 0644

The authority is made once, by root, under a lock, and lands on disk complete or not at all: two workers that both
made one would sign with a certificate that nobody trusts. It may sign leaves only (pathlen 0) and never an address or
localhost (name constraints, critical).
"""

from __future__ import annotations

import datetime
import fcntl
import os
import pwd
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentmon.errors import HostLacks

KEY_FILE = "mitmproxy-ca.pem"
CERT_FILE = "ca.pem"
LIFE = datetime.timedelta(days=5 * 365)
RENEW_BEFORE = datetime.timedelta(days=30)

# Where distributions keep their roots; a bottle's bundle is mounted over those that exist.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)
_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT",
    "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "DENO_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Authority:
    """A complete authority on disk."""

    key_file: Path
    cert_file: Path
    expires: datetime.datetime  # UTC


def ensure_ca(directory: Path, owner: str = "") -> Authority:
    """The authority in `directory`, made if it is missing or ends within RENEW_BEFORE.

    Needs root where `owner` is named.

    :param owner: user that may read the key.
    :raises HostLacks: what is there cannot be read or is damaged; it is never replaced silently.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key_file, cert_file = directory / KEY_FILE, directory / CERT_FILE
        if key_file.exists():
            expires = expiry(directory)
            if expires - _now() > RENEW_BEFORE:
                if not cert_file.exists():
                    _write(cert_file, _certificate(key_file).public_bytes(serialization.Encoding.PEM), 0o644, "")
                return Authority(key_file, cert_file, expires)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(cert_file, pem, 0o644, "")
        _write(key_file, secret + pem, 0o600, owner)
        return Authority(key_file, cert_file, certificate.not_valid_after_utc)


def expiry(directory: Path) -> datetime.datetime:
    """When the authority in `directory` ends, UTC.

    :raises HostLacks: it cannot be read, or key and certificate differ.
    """
    return _certificate(directory / KEY_FILE).not_valid_after_utc


def system_roots() -> Path | None:
    """The host's own bundle of roots: OpenSSL's default, else a distribution's usual place; None on a host without."""
    default = ssl.get_default_verify_paths()
    candidates = (os.environ.get(default.openssl_cafile_env), default.openssl_cafile, *SYSTEM_BUNDLES)
    return next((Path(c) for c in candidates if c and Path(c).is_file() and Path(c).stat().st_size), None)


def upstream_roots(extra: Iterable[Path], out: Path) -> int:
    """Write what upstream servers are verified with: the system's roots and the certificates of `extra`.

    Atomic, 0644; returns how many there are. :raises HostLacks: a file cannot be read or holds no certificate.
    """
    hint = "see `upstream: ca:` in the settings"
    roots = system_roots()
    parts = [] if roots is None else [roots.read_bytes()]
    for path in extra:
        try:
            certificates = x509.load_pem_x509_certificates(path.read_bytes())
        except OSError as e:
            raise HostLacks(f"CA file {path} cannot be read: {e.strerror}", hint) from e
        except ValueError as e:
            raise HostLacks(f"CA file {path} holds no PEM certificate", hint) from e
        parts += [c.public_bytes(serialization.Encoding.PEM) for c in certificates]
    text = b"\n".join(parts)
    _write(out, text, 0o644, "")
    return text.count(b"-----BEGIN CERTIFICATE-----")


def bundle(directory: Path, extra: Iterable[Path], out: Path) -> int:
    """Write what a bottle trusts: the same roots and this installation's authority in `directory`.

    A name rule's server is verified by the bottle itself, so the roots stay. :raises HostLacks: as upstream_roots().
    """
    return upstream_roots([*extra, directory / CERT_FILE], out)


def environment(bundle_path: str) -> dict[str, str]:
    """The variables by which OpenSSL, Python, curl, Node, git, pip and others find the bottle's roots."""
    return dict.fromkeys(_VARIABLES, bundle_path)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    host = os.uname().nodename[:40]
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "agentmon"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"agentmon on {host} {os.urandom(4).hex()}"),
        ]
    )
    everywhere = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    excluded = [x509.IPAddress(n) for n in everywhere] + [x509.DNSName("localhost")]
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(days=3))  # leaves are dated back two days
        .not_valid_after(_now() + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=None, excluded_subtrees=excluded), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(key_file: Path) -> x509.Certificate:
    hint = f"restore it, or remove {key_file.parent} and start the daemon again: it makes a new one"
    try:
        pem = key_file.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except OSError as e:
        raise HostLacks(f"the certificate authority {key_file} cannot be read: {e.strerror}", hint) from e
    except (ValueError, TypeError) as e:
        raise HostLacks(f"the certificate authority {key_file} is damaged: {e}", hint) from e
    if key.public_key() != certificate.public_key():
        raise HostLacks(f"the certificate authority {key_file} is damaged: its key is not its certificate's", hint)
    return certificate


def _write(path: Path, data: bytes, mode: int, owner: str) -> None:
    """Replace `path` atomically; the content is on disk before the name is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        if owner:
            entry = pwd.getpwnam(owner)
            os.fchown(out.fileno(), entry.pw_uid, entry.pw_gid)
        os.fchmod(out.fileno(), mode)
        os.fsync(out.fileno())
    temporary.replace(path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
