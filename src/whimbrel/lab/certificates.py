"""A lab's own certificate authority: made with the lab, used once, and its key never written down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from whimbrel.lab.state import write_private
from whimbrel.ops import clock

SERVICES = ("broker", "api")
VALID = timedelta(days=3650)
EARLIER = timedelta(hours=1)
"""A certificate holds from a little before it was made, for clocks that are slow."""


@dataclass(frozen=True)
class Tls:
    """The files by which one service proves itself, and those who use it know it (PEM)."""

    authority: Path
    certificate: Path
    key: Path


def tls_of(dir: Path, service: str) -> Tls:
    """Return where the files of a service are, in the directory that `make` was given."""
    return Tls(dir / "ca.pem", dir / f"{service}.pem", dir / f"{service}.key")


def make(dir: Path, address: str) -> None:
    """Make an authority, and a certificate for each service at this IP address."""
    dir.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("Whimbrel lab")
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    (dir / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for service in SERVICES:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        certificate = (
            _builder(_name(f"Whimbrel lab, {service}"), issuer, key.public_key(), authority_key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(names, critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        files = tls_of(dir, service)
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_private(files.key, _pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(clock.now(), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
