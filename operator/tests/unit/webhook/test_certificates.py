"""Rotation, step by step, with OpenSSL as the judge: at every moment what is served is trusted by what was announced."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from kvpool_operator.webhook import certificates
from kvpool_operator.webhook.certificates import Bundle, Terms, advance, read

START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
TERMS = Terms(("webhook.system.svc", "127.0.0.1"), ca=300 * DAY, certificate=30 * DAY, overlap=DAY)


def is_trusted(bundle: Bundle, authorities: bytes, at: datetime.datetime) -> bool:
    """By the rules of X.509, for the Service's name, at this time."""
    roots = x509.load_pem_x509_certificates(authorities)
    builder = x509.verification.PolicyBuilder().store(x509.verification.Store(roots)).time(at)
    verifier = builder.build_server_verifier(x509.DNSName(TERMS.names[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(bundle.certificate), [])
    except x509.verification.VerificationError:
        return False
    return True


def test_two_years_in_steps_of_a_quarter_day() -> None:
    bundle = advance(None, TERMS, START)
    announced, now = bundle.announced, START
    served, seen = {bundle.certificate}, set(bundle.authorities)
    for _ in range(2 * 365 * 4):
        now += DAY / 4
        before = announced
        step = advance(bundle, TERMS, now)
        # The API server may not have heard of this step yet.
        assert is_trusted(step, before, now)
        bundle, announced = step, step.announced
        assert is_trusted(bundle, announced, now)
        served.add(bundle.certificate)
        seen |= set(bundle.authorities)
    assert len(seen) == 4
    assert len(served) > 30
    assert len(bundle.authorities) == 1


def test_a_new_ca_is_announced_before_it_is_used_and_the_old_one_leaves_after() -> None:
    first = advance(None, TERMS, START)
    due = START + 200 * DAY
    second = advance(advance(first, TERMS, due - DAY), TERMS, due)
    assert len(second.authorities) == 2
    assert not is_trusted(second, second.authorities[0], due)
    assert advance(second, TERMS, due + DAY / 2) == second
    third = advance(second, TERMS, due + DAY)
    assert is_trusted(third, third.authorities[0], due + DAY)
    assert len(third.authorities) == 2
    assert len(advance(third, TERMS, due + 2 * DAY).authorities) == 1


def test_other_names_make_another_certificate() -> None:
    bundle = advance(None, TERMS, START)
    assert advance(bundle, TERMS, START + DAY) is bundle
    other = Terms(("other.system.svc",), TERMS.ca, TERMS.certificate, TERMS.overlap)
    assert advance(bundle, other, START + DAY).certificate != bundle.certificate


@pytest.mark.parametrize("life", [DAY, 3000 * DAY])
def test_other_lifetimes_count_from_now_on(life: datetime.timedelta) -> None:
    bundle = advance(None, TERMS, START)
    other = Terms(TERMS.names, life * 2, life, life / 10)
    now = START
    for _ in range(2000):
        now += DAY / 4
        bundle = advance(bundle, other, now)
        assert is_trusted(bundle, bundle.announced, now)


def test_after_a_long_sleep_nothing_expired_is_served() -> None:
    late = START + 1000 * DAY
    bundle = advance(advance(None, TERMS, START), TERMS, late)
    assert is_trusted(advance(bundle, TERMS, late), bundle.announced, late)


def test_what_was_written_is_read_and_taken_by_openssl(tmp_path: Path) -> None:
    bundle = advance(None, TERMS, START)
    assert read(bundle.announced, bundle.authority_key, bundle.certificate, bundle.key) == bundle
    pair = tmp_path / "pair"
    pair.write_bytes(bundle.certificate + bundle.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair)


@pytest.mark.parametrize("place", range(4))
def test_what_was_spoilt_is_refused(place: int) -> None:
    bundle, other = advance(None, TERMS, START), advance(None, TERMS, START)
    good = [bundle.announced, bundle.authority_key, bundle.certificate, bundle.key]
    for bad in (b"", b"no PEM", [other.announced, other.authority_key, other.certificate, other.key][place]):
        with pytest.raises((ValueError, IndexError)):
            read(*(bad if number == place else value for number, value in enumerate(good)))


def test_no_key_is_in_its_repr() -> None:
    assert "KEY" not in repr(advance(None, TERMS, START))
    assert certificates.serial_number(advance(None, TERMS, START).certificate)
