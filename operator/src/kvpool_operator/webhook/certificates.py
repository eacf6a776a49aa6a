"""Our own CA and the server's certificate: made, read and moved on. Knows no API server and no clock.

A new CA is announced some time before a certificate of it is served, and the former one as long as a certificate of it may be
seen: so no moment is without a chain that the API server trusts.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SKEW = datetime.timedelta(hours=1)
"""Certificates begin earlier, for API servers whose clock is behind."""
_RENEW = 2 / 3
"""Renewed when this share of the life is over."""


@dataclass(frozen=True)
class Terms:
    """How long things last, and for which host names and addresses."""

    names: tuple[str, ...]
    ca: datetime.timedelta
    certificate: datetime.timedelta
    overlap: datetime.timedelta


@dataclass(frozen=True, repr=False)
class Bundle:
    """Everything, as PEM. Without ``repr``: it holds private keys.

    Attributes:
        authorities: CA certificates, the newest first; all are announced.
        authority_key: of the newest.
        certificate, key: what the server shows.
    """

    authorities: tuple[bytes, ...]
    authority_key: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Bundle({len(self.authorities)} authorities)"

    @property
    def announced(self) -> bytes:
        """What the API server shall trust."""
        return b"".join(self.authorities)


def advance(bundle: Bundle | None, terms: Terms, now: datetime.datetime) -> Bundle:
    """The bundle as it should be now; the same one where nothing is due. Call it again and again.

    Args:
        bundle: None: there is none, or it can't be read.
    """
    if bundle is None:
        certificate, key = _new_authority(terms, now)
        return _issue(Bundle((certificate,), key, b"", b""), terms, now)
    newest, served = _load(bundle.authorities[0]), _load(bundle.certificate)
    if _is_old(newest, now, terms.ca):
        certificate, key = _new_authority(terms, now)
        return replace(bundle, authorities=(certificate, *bundle.authorities), authority_key=key)
    by_newest = _is_issued_by(served, newest)
    # What has ended is trusted by nobody, so there is nothing to wait for.
    chain = (served, *map(_load, bundle.authorities[1:]))
    announced_long_enough = now >= min(_born(newest) + terms.overlap, *(one.not_valid_after_utc for one in chain))
    if (not by_newest and announced_long_enough) or (
        by_newest and (_is_old(served, now, terms.certificate) or _names(served) != set(terms.names))
    ):
        return _issue(bundle, terms, now)
    if by_newest and len(bundle.authorities) > 1 and now >= _born(served) + terms.overlap:
        return replace(bundle, authorities=bundle.authorities[:1])
    return bundle


def read(authorities: bytes, authority_key: bytes, certificate: bytes, key: bytes) -> Bundle:
    """A bundle as it was written.

    Raises:
        ValueError: it can't be used.
    """
    found = tuple(one.public_bytes(serialization.Encoding.PEM) for one in x509.load_pem_x509_certificates(authorities))
    bundle = Bundle(found, authority_key, certificate, key)
    for private, public in ((authority_key, found[0]), (key, certificate)):
        if _private(private).public_key() != _load(public).public_key():
            raise ValueError("a key does not belong to its certificate")
    return bundle


def serial_number(certificate: bytes) -> str:
    """For people and logs."""
    return f"{_load(certificate).serial_number:x}"


def _new_authority(terms: Terms, now: datetime.datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Two CAs of one name would be told apart by nothing but their keys.
    name = _name(f"kvpool webhook CA {now:%Y-%m-%dT%H:%M:%S}.{now.microsecond:06d}")
    certificate = (
        _builder(name, name, key.public_key(), now, terms.ca)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def _issue(bundle: Bundle, terms: Terms, now: datetime.datetime) -> Bundle:
    authority, authority_key = _load(bundle.authorities[0]), _private(bundle.authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name("kvpool webhook"), authority.subject, key.public_key(), now, terms.certificate)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in terms.names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return replace(bundle, certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_pem(key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _is_old(certificate: x509.Certificate, now: datetime.datetime, life: datetime.timedelta) -> bool:
    """By the life that it has or should have, whichever is shorter: the settings may have changed since."""
    born = _born(certificate)
    return now >= born + min(life, certificate.not_valid_after_utc - born) * _RENEW


def _born(certificate: x509.Certificate) -> datetime.datetime:
    return certificate.not_valid_before_utc + _SKEW


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # a wrong name is a ValueError, a wrong signature one of cryptography's own
        return False
    return True


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(one.value) for one in found}


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
