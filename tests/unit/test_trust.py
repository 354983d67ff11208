"""The installation's authority: made once, constrained, never silently replaced; bundles."""

from __future__ import annotations

import datetime
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from agentmon import trust
from agentmon.errors import HostLacks


def test_the_authority_is_made_once_with_a_private_key_file(tmp_path: Path) -> None:
    first = trust.ensure_ca(tmp_path / "ca")
    again = trust.ensure_ca(tmp_path / "ca")
    assert first == again and first.key_file.read_bytes() == again.key_file.read_bytes()
    assert stat.S_IMODE(first.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.cert_file.stat().st_mode) == 0o644
    assert b"PRIVATE" not in first.cert_file.read_bytes()
    assert trust.expiry(tmp_path / "ca") == first.expires


def test_it_signs_leaves_only_and_no_addresses(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(trust.ensure_ca(tmp_path).cert_file.read_bytes())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert names.critical and {str(n.value) for n in names.value.excluded_subtrees or []} == {
        "0.0.0.0/0", "::/0", "localhost",
    }  # fmt: skip


def test_several_starters_agree(tmp_path: Path) -> None:
    found: list[bytes] = []

    def one() -> None:
        found.append(trust.ensure_ca(tmp_path).key_file.read_bytes())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 1


def test_it_is_renewed_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "LIFE", datetime.timedelta(days=10))
    old = trust.ensure_ca(tmp_path)
    monkeypatch.undo()
    new = trust.ensure_ca(tmp_path)
    assert new.expires > old.expires + datetime.timedelta(days=1000)


def test_a_lost_certificate_file_is_written_again(tmp_path: Path) -> None:
    authority = trust.ensure_ca(tmp_path)
    pem = authority.cert_file.read_bytes()
    authority.cert_file.unlink()
    assert trust.ensure_ca(tmp_path).cert_file.read_bytes() == pem


@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign key"])
def test_a_damaged_authority_is_an_error_not_a_new_one(tmp_path: Path, damage: str) -> None:
    key_file = trust.ensure_ca(tmp_path / "a").key_file
    pem = key_file.read_bytes()
    if damage == "foreign key":
        other = trust.ensure_ca(tmp_path / "b").key_file.read_bytes()
        at = b"-----BEGIN CERTIFICATE-----"
        key_file.write_bytes(pem[: pem.index(at)] + other[other.index(at) :])
    else:
        key_file.write_bytes(pem[:100] if damage == "cut" else b"garbage")
    with pytest.raises(HostLacks, match="damaged") as caught:
        trust.ensure_ca(tmp_path / "a")
    assert str(tmp_path / "a") in caught.value.hint


def test_a_missing_authority_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(HostLacks, match="cannot be read"):
        trust.expiry(tmp_path)


def test_a_bundle_has_the_systems_roots_the_extra_files_and_ours(tmp_path: Path) -> None:
    trust.ensure_ca(tmp_path / "ca")
    extra = trust.ensure_ca(tmp_path / "other").cert_file
    count = trust.bundle(tmp_path / "ca", [extra], tmp_path / "bundle.pem")
    roots = trust.upstream_roots([extra], tmp_path / "roots.pem")
    assert count == roots + 1
    context = ssl.create_default_context(cafile=str(tmp_path / "bundle.pem"))
    assert len(context.get_ca_certs()) >= 2
    ours = x509.load_pem_x509_certificate((tmp_path / "ca/ca.pem").read_bytes())
    assert ours not in x509.load_pem_x509_certificates((tmp_path / "roots.pem").read_bytes())


def test_a_host_without_roots_still_gets_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "system_roots", lambda: None)
    trust.ensure_ca(tmp_path)
    assert trust.bundle(tmp_path, [], tmp_path / "bundle.pem") == 1


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostLacks, match=r"no-such\.pem cannot be read"):
        trust.upstream_roots([tmp_path / "no-such.pem"], tmp_path / "out")
    (tmp_path / "empty.pem").write_text("hello")
    with pytest.raises(HostLacks, match="holds no PEM certificate"):
        trust.upstream_roots([tmp_path / "empty.pem"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_client_is_told_where_the_bundle_is() -> None:
    variables = trust.environment("/bundle.pem")
    assert set(variables.values()) == {"/bundle.pem"}
    assert {"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} <= set(variables)
