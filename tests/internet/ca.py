"""The stand-in's certificate authority and one certificate for each name, made anew at every start."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.internet import world

_DAY = timedelta(days=1)


class Authority:
    """Signs leaves; `ca.pem` in `directory` is what a client must trust, the others are key and chain of a name."""

    def __init__(self, directory: Path, name: str = "stand-in internet CA") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._certificate = _sign(
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_ca_usage(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False),
            self._key,
        )
        self.path = directory / "ca.pem"
        self.path.write_bytes(_pem(self._certificate))
        self.path.chmod(0o644)

    def context(self, name: str, protocols: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
        """A server context for `name`, with the faults that world.py gives to two of them."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer, signer = (_name(name), key) if name == world.SELF_SIGNED else (self._name, self._key)
        covered = "elsewhere.example" if name == world.MISNAMED else name
        leaf = _sign(
            _builder(_name(covered), issuer, key)
            .add_extension(x509.SubjectAlternativeName([_covers(covered)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False),
            signer,
        )
        file = self._directory / f"{name.replace('*', '_')}.pem"
        file.write_bytes(_key_pem(key) + _pem(leaf))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.set_alpn_protocols(protocols)
        return context


def server_context(authority: Authority, apis_speak: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    """Chooses the certificate by SNI, like a shared front; an unknown or missing name is an alert."""
    apis = set(world.APIS.values())
    contexts = {
        name: authority.context(name, *([apis_speak] if entry.addresses in apis else []))
        for name, entry in world.NAMES.items()
    }

    def choose(tls: ssl.SSLObject, name: str | None, _first: ssl.SSLContext) -> int | None:
        entry = name and (contexts.get(name) or contexts.get("*." + name.partition(".")[2]))
        if not entry:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = entry
        tls.asked_name = name  # type: ignore[attr-defined]
        return None

    first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    first.set_alpn_protocols(["http/1.1"])
    first.sni_callback = choose  # type: ignore[assignment]
    return first


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _covers(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
    )


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
