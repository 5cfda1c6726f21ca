"""Who signed a release file: the pinned key of Alpine, keys made here, and everything that is not one."""

from __future__ import annotations

import functools
import hashlib
import re
import time
import zlib
from datetime import datetime, timedelta, timezone
from importlib import resources
from pathlib import Path

import pysequoia
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgkit.errors import HostError, InputError
from imgkit.fetch import openpgp
from imgkit.fetch.openpgp import ALPINE_FINGERPRINT, Certificate, alpine_certificate, read_certificate, verify_detached

DATA = b"a release\n" * 1000


@functools.cache
def secret(name: str) -> pysequoia.Tsk:
    return pysequoia.Tsk.generate(f"{name} <{name}@example.org>", profile=pysequoia.Profile.RFC4880)


def certificate(name: str = "mirror") -> Certificate:
    return read_certificate(str(secret(name).extract_certificate()).encode(), name=f"{name}.asc")


@functools.cache
def signature(name: str = "mirror", *, armor: bool = True) -> bytes:
    return pysequoia.sign(secret(name).signer(), DATA, mode=pysequoia.SignatureMode.DETACHED, armor=armor)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    path = tmp_path / "release.tar.gz"
    path.write_bytes(DATA)
    return path


def test_the_key_of_alpine_is_the_one_that_its_site_publishes() -> None:
    data = resources.files("imgkit.fetch").joinpath("alpine-release-key.asc").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "75a9a7e0cc35bfa946ce40c26133b3ed29a204fbd98a3b33331b659d927b3027"
    assert ALPINE_FINGERPRINT == "0482D84022F52DF1C4E7CD43293ACD0907D9495A"
    alpine = alpine_certificate()
    assert alpine.fingerprint == ALPINE_FINGERPRINT
    assert alpine.keys == (ALPINE_FINGERPRINT, "498A2E7C598FFE67966416B19E2CE29C63FE7A06")


def test_the_key_of_alpine_satisfies_the_policy() -> None:
    """Its self-signatures still count (SHA-256), so that signatures by it can be verified at all."""
    alpine = pysequoia.Cert.from_bytes(alpine_certificate().data)
    assert [str(user) for user in alpine.user_ids] == ["Natanael Copa <ncopa@alpinelinux.org>"]
    assert alpine.expiration is None


@pytest.mark.parametrize("armor", [True, False])
def test_a_good_signature_names_the_certificate(armor: bool, release: Path) -> None:
    fingerprint = str(secret("mirror").extract_certificate().fingerprint).upper()
    assert verify_detached(release, signature(armor=armor), certificate()) == fingerprint


def test_a_changed_file_is_refused(release: Path) -> None:
    release.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(InputError, match=r"release\.tar\.gz: bad signature: it is not what") as caught:
        verify_detached(release, signature(), certificate())
    assert "\n" not in caught.value.message


def test_another_key_is_named_with_the_trusted_one(release: Path) -> None:
    other = pysequoia.Sig.from_bytes(signature("other")).issuer_fingerprint
    assert other is not None
    with pytest.raises(InputError, match=f"signed by an unknown key: {other.upper()}") as caught:
        verify_detached(release, signature("other"), certificate(), name="the minirootfs")
    assert caught.value.message.startswith("the minirootfs: ")
    assert certificate().fingerprint in str(caught.value.hint)
    with pytest.raises(InputError, match="signed by an unknown key"):
        verify_detached(release, signature(), alpine_certificate())


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<html></html>", b"-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n"]
)
def test_what_is_no_signature(data: bytes, release: Path) -> None:
    with pytest.raises(InputError, match="is not an OpenPGP signature"):
        verify_detached(release, data, certificate())


def test_a_certificate_is_no_signature(release: Path) -> None:
    with pytest.raises(InputError, match="is not an OpenPGP signature"):
        verify_detached(release, certificate().data, certificate())


@pytest.mark.slow
def test_a_signature_made_after_the_key_expired_is_refused(release: Path) -> None:
    key = secret("expired")
    before = pysequoia.sign(key.signer(), DATA, mode=pysequoia.SignatureMode.DETACHED)
    end = datetime.now(timezone.utc) + timedelta(seconds=1)
    expired = read_certificate(bytes(key.extract_certificate().set_expiration(end, key.certifier())), name="x")
    time.sleep(2.1)
    after = pysequoia.sign(key.signer(), DATA, mode=pysequoia.SignatureMode.DETACHED)
    assert verify_detached(release, before, expired) == expired.fingerprint
    with pytest.raises(InputError, match=r"bad signature: .* \(the key expired on \d{4}-\d\d-\d\d\)"):
        verify_detached(release, after, expired)


def test_a_revoked_certificate_is_refused() -> None:
    key = secret("revoked")
    cert = key.extract_certificate()
    revoked = bytes(cert) + bytes(cert.revoke(key.certifier()))
    with pytest.raises(InputError, match="was revoked"):
        read_certificate(revoked, name="old.asc")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8b", signature()])
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(InputError, match=r"key\.asc: is not an OpenPGP certificate \(.*\)$"):
        read_certificate(data, name="key.asc")


def test_a_secret_key_is_refused() -> None:
    with pytest.raises(InputError, match="holds a secret key"):
        read_certificate(str(secret("mirror")).encode(), name="key.asc")


def test_a_fingerprint_must_fit() -> None:
    trusted = certificate()
    spaced = " ".join(trusted.fingerprint[start : start + 4] for start in range(0, 40, 4)).lower()
    assert read_certificate(trusted.data, name="x", fingerprint=spaced) == trusted
    with pytest.raises(InputError, match=f"is the certificate {trusted.fingerprint}, not {ALPINE_FINGERPRINT}"):
        read_certificate(trusted.data, name="x", fingerprint=ALPINE_FINGERPRINT)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_signature_never_verifies_something_else(where: int, bit: int, release: Path) -> None:
    data = bytearray(signature(armor=False))
    data[where % len(data)] ^= 1 << bit
    try:
        signer = verify_detached(release, bytes(data), certificate())
    except InputError:
        return
    assert signer == certificate().fingerprint  # a bit that is not signed (the unhashed area)
    release_was = release.read_bytes()
    release.write_bytes(b"other")
    with pytest.raises(InputError):
        verify_detached(release, bytes(data), certificate())
    release.write_bytes(release_was)


COMPRESSED = zlib.compress(bytes(60_000_000), 9)[2:-4]  # without zlib's own header and checksum, as packets have it
ABSURD = {
    "a compressed bomb": b"\xa3\x01" + COMPRESSED,
    "bombs in one another": b"\xa3\x01" + zlib.compress(b"\xa3\x01" + COMPRESSED, 9)[2:-4],
    "very many packets": b"\x88\x05\x04\x00\x01\x08\x00" * 9000,
    "nested without end": b"\xa3\x00" * 30_000,
    "armour in armour": b"-----BEGIN PGP SIGNATURE-----\n" * 2000,
    "armour without end": b"-----BEGIN PGP SIGNATURE-----\n\n" + b"A" * 60_000,
    "a packet of 4 GiB": b"\xc2\xff\xff\xff\xff\xff" + bytes(1000),
    "parts without end": b"\xc2\xe0" + b"\x04\xe0" * 30_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ABSURD)
def test_absurd_signatures_are_refused_soon(attack: str, release: Path) -> None:
    """A mirror may send 64 KiB of anything."""
    start = time.process_time()
    with pytest.raises(InputError):
        verify_detached(release, ABSURD[attack], alpine_certificate())
    with pytest.raises(InputError):
        read_certificate(ABSURD[attack], name="x")
    assert time.process_time() - start < 10


def packet(tag: int, body: bytes) -> bytes:
    """Return a packet in the old format, whose length is one byte."""
    return bytes([tag, len(body)]) + body


PACKETS = st.builds(packet, st.integers(0x80, 0xBF), st.binary(max_size=190))


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | PACKETS)
def test_any_bytes_are_no_signature(data: bytes, release: Path) -> None:
    with pytest.raises(InputError):
        verify_detached(release, data, alpine_certificate())


def test_a_clock_before_the_key_was_made(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequoia then says nothing of the key at all: nothing that the key says of itself is valid yet."""

    class Unborn:
        @property
        def expiration(self) -> None:
            raise RuntimeError("No binding signature at time 1990-01-01T00:00:00Z\n\nStack backtrace:\n")

    def refuse(**_: object) -> None:
        raise RuntimeError("Malformed message")

    mirror, signed = certificate(), signature()
    monkeypatch.setattr(openpgp, "_sequoia", lambda _: Unborn())
    monkeypatch.setattr(pysequoia, "verify", refuse)
    with pytest.raises(
        HostError, match=rf"by this host's clock, the key {mirror.fingerprint} is not valid yet$"
    ) as caught:
        verify_detached(release, signed, mirror)
    assert re.fullmatch(r"set the clock, which says that it is \d{4}-\d\d-\d\d \d\d:\d\d UTC", caught.value.hint or "")
