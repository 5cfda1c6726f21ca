"""Signed package indexes: the real one of Alpine 3.17, and what must be refused."""

from __future__ import annotations

import functools
import gzip
import io
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fixtures import apkbuild
from fixtures.apkbuild import Entry, SigningKey
from imgkit.apk import signature
from imgkit.apk.branches import branch_of
from imgkit.apk.signature import BadSignatureError, Keyring, SignedIndex, UnknownKeyError, UnsignedError
from imgkit.errors import InputError
from imgkit.fetch.checks import Version3Error
from tests.files import REAL_INDEX, REAL_MINIROOTFS, needs_alpine

NAME = "http://mirror/APKINDEX.tar.gz"
RECORDS = ("C:Q1AAAA\nP:one\nV:1", "C:Q1BBBB\nP:two\nV:2\nm:Jöran")
TEXT = "".join(record + "\n\n" for record in RECORDS)


def verify_index(data: bytes, keys: Keyring) -> SignedIndex:
    return signature.verify_index(data, keys, name=NAME)


@functools.cache
def signing_key(name: str = "test-1.rsa.pub") -> SigningKey:
    return SigningKey(name, rsa.generate_private_key(public_exponent=65537, key_size=2048))


def public(key: SigningKey) -> bytes:
    return key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def keyring(*keys: SigningKey) -> Keyring:
    return Keyring.from_files({key.name: public(key) for key in keys or (signing_key(),)})


def index_member(text: str = TEXT, name: str = "APKINDEX") -> bytes:
    entries = [Entry(name="DESCRIPTION", data=b"v3.23.6\n", checksum=""), Entry(name=name, data=text.encode())]
    return apkbuild.gzip_member(apkbuild.tar_stream(entries, end=True))


def signature_member(signatures: dict[str, bytes]) -> bytes:
    entries = [Entry(name=name, data=value, checksum="") for name, value in signatures.items()]
    return apkbuild.gzip_member(apkbuild.tar_stream(entries, end=False))


def signed(member: bytes) -> bytes:
    return apkbuild.signature_segment(member, signing_key()) + member


def renamed(old: str, new: str) -> bytes:
    """Return the signature of the good index by one algorithm, which says that it is by another."""
    segment = gzip.decompress(apkbuild.signature_segment(index_member(), signing_key(), old))
    name = f".SIGN.{old}.test-1.rsa.pub"
    with tarfile.open(fileobj=io.BytesIO(segment)) as archive:
        content = archive.extractfile(name)
        assert content is not None
        return signature_member({name.replace(old, new): content.read()})


@pytest.mark.parametrize("algorithm", ["RSA", "RSA256", "RSA512"])
def test_a_signed_index_gives_its_text_and_the_key_that_vouched(algorithm: str) -> None:
    data = apkbuild.build_index(RECORDS, signing_key(), description="v3.23.6-1-gabc", algorithm=algorithm)
    assert verify_index(data, keyring()) == SignedIndex(text=TEXT, description="v3.23.6-1-gabc", key="test-1.rsa.pub")


def real_keyring() -> Keyring:
    """Alpine's own keys, from a real minirootfs."""
    with tarfile.open(REAL_MINIROOTFS["aarch64"]) as archive:
        members = [member for member in archive if member.name.endswith(".rsa.pub") and member.isfile()]
        return Keyring.from_files(
            {Path(member.name).name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        )


@needs_alpine
def test_the_real_index_is_vouched_for_by_the_real_key() -> None:
    keys = real_keyring()
    found = verify_index(REAL_INDEX.read_bytes(), keys)
    assert found.key == "alpine-devel@lists.alpinelinux.org-616ae350.rsa.pub"
    assert found.text.count("\nP:") == 5004
    assert (found.date, branch_of(found.description)) == (1685173753, "v3.17")
    others = Keyring({name: key for name, key in keys.keys.items() if name != found.key})
    with pytest.raises(UnknownKeyError, match="unknown key"):
        verify_index(REAL_INDEX.read_bytes(), others)


def test_one_trusted_signature_among_several_is_enough() -> None:
    member = index_member()
    ours = apkbuild.signature_segment(member, signing_key())
    other = apkbuild.signature_segment(member, signing_key("other.rsa.pub"), "RSA256")
    both = apkbuild.gzip_member(gzip.decompress(other) + gzip.decompress(ours))
    assert verify_index(both + member, keyring()).key == "test-1.rsa.pub"


def test_names_of_keys_may_have_dots_and_unknown_algorithms_are_passed_over() -> None:
    key = SigningKey("a.b@c.d-1.rsa.pub", signing_key().private)
    member = index_member()
    good = gzip.decompress(apkbuild.signature_segment(member, key))
    odd = gzip.decompress(signature_member({f".SIGN.DSA.{key.name}": b"x", ".SIGN.odd": b"", ".SIGN.RSA9.k": b"?"}))
    assert verify_index(apkbuild.gzip_member(odd + good) + member, keyring(key)).key == key.name


MEMBER = index_member()
BAD = "bad signature: it is not what test-1.rsa.pub signed"
FAULTS: dict[str, tuple[bytes, type[InputError], str]] = {
    "unsigned": (MEMBER, UnsignedError, "is not signed"),
    "web page": (b"\n<!DOCTYPE html><html>login</html>", InputError, "is a web page"),
    "empty": (b"", InputError, "is empty"),
    "not gzip": (b"hello", InputError, "is not gzip data"),
    "version 3": (b"ADBdxxxx", Version3Error, "is in format version 3 (ADB), which imgkit does not read"),
    "version 3 stored": (b"ADB.schm", Version3Error, "is in format version 3 (ADB), which imgkit does not read"),
    "only a signature": (signed(b""), InputError, "is truncated: nothing follows the signature"),
    "not a tar": (
        signed(apkbuild.gzip_member(b"x" * 512)),
        InputError,
        "is not a package index: it is not a tar archive (a header lacks the ustar magic)",
    ),
    "signatures that are not a tar": (
        apkbuild.gzip_member(b"x" * 512) + MEMBER,
        InputError,
        "is not a tar archive (a header lacks the ustar magic)",
    ),
    "without APKINDEX": (
        signed(index_member(name="OTHER")),
        InputError,
        "is not a package index: there is no APKINDEX in it",
    ),
    "three members": (signed(MEMBER)[: -len(MEMBER)] + MEMBER + MEMBER, BadSignatureError, BAD),
    "not signed by this key": (
        signature_member({".SIGN.RSA.test-1.rsa.pub": b"x" * 256}) + MEMBER,
        BadSignatureError,
        BAD,
    ),
    "signature of another length": (
        signature_member({".SIGN.RSA.test-1.rsa.pub": b""}) + MEMBER,
        BadSignatureError,
        BAD,
    ),
    "signature over something else": (
        signed(MEMBER)[: -len(MEMBER)] + index_member("P:evil"),
        BadSignatureError,
        BAD,
    ),
    "another algorithm": (
        renamed("RSA", "RSA256") + MEMBER,
        BadSignatureError,
        BAD,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trusted_is_refused(fault: str) -> None:
    data, kind, message = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        verify_index(data, keyring())
    assert (type(caught.value), caught.value.message) == (kind, f"{NAME}: {message}")


def test_a_third_member_is_refused_even_when_it_is_signed() -> None:
    with pytest.raises(InputError, match="more than two gzip members"):
        verify_index(signed(MEMBER + MEMBER), keyring())


def test_an_unknown_key_is_named_with_those_that_are_trusted() -> None:
    data = apkbuild.build_index(RECORDS, signing_key("evil.rsa.pub"))
    with pytest.raises(UnknownKeyError, match=r"unknown key: evil\.rsa\.pub \(RSA\)") as caught:
        verify_index(data, keyring())
    assert "test-1.rsa.pub" in str(caught.value.hint)
    assert caught.value.message.startswith("http://mirror/APKINDEX.tar.gz: ")
    with pytest.raises(UnknownKeyError, match="unknown key") as caught:
        verify_index(data, Keyring())
    assert "trusted keys: none" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_an_index_that_inflates_without_end_is_refused(whole: bool) -> None:
    endless = apkbuild.gzip_member(bytes((64 << 20) + 1))
    data, limit = (signed(endless), 64 << 20) if whole else (endless, 1 << 20)
    with pytest.raises(InputError) as caught:
        verify_index(data, keyring())
    assert caught.value.message == f"{NAME}: inflates to more than {limit} bytes"


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        ("test-1.rsa.pub", 1 << 16, BadSignatureError),
        ("test-1.rsa.pub", (1 << 16) + 1, UnsignedError),
        ("../test-1.rsa.pub", 256, UnsignedError),
    ],
)
def test_signatures_that_apk_passes_over_are_none(name: str, size: int, kind: type[InputError]) -> None:
    data = signature_member({f".SIGN.RSA.{name}": b"x" * size}) + MEMBER
    with pytest.raises(InputError) as caught:
        verify_index(data, keyring())
    assert type(caught.value) is kind


@pytest.mark.parametrize("other", ["APKINDEX", "a.SIGN.RSA.test-1.rsa.pub", "SIGN.RSA.test-1.rsa.pub", "......RSA.k"])
@pytest.mark.parametrize("first", [False, True])
def test_signatures_beside_another_file_are_none(other: str, first: bool) -> None:
    names = [".SIGN.RSA.test-1.rsa.pub", other][:: -1 if first else 1]
    segment = apkbuild.tar_stream([Entry(name=name, data=b"x", checksum="") for name in names], end=False)
    assert signature.read_signatures(segment, NAME) == ()


def test_signatures_come_in_their_order() -> None:
    names = [".SIGN.RSA512.b.pub", ".SIGN.RSA.a.pub", ".SIGN.odd", ".SIGN.RSA./a.pub", ".SIGN.DSA.c"]
    segment = apkbuild.tar_stream([Entry(name=name, data=b"x", checksum="") for name in names], end=False)
    assert signature.read_signatures(segment, NAME) == (
        signature.Signature("RSA512", "b.pub", b"x"),
        signature.Signature("RSA", "a.pub", b"x"),
        signature.Signature("DSA", "c", b"x"),
    )
    assert signature.read_signatures(bytes(1024), NAME) == ()


@pytest.mark.slow
@given(st.data())
def test_a_truncated_index_is_refused_wherever_it_was_cut(data: st.DataObject) -> None:
    whole = signed(MEMBER)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InputError):
        verify_index(whole[:cut], keyring())


@pytest.mark.slow
@given(st.data())
def test_a_flipped_bit_changes_nothing_or_is_refused(data: st.DataObject) -> None:
    whole = bytearray(signed(MEMBER))
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = verify_index(bytes(whole), keyring())
    except InputError:
        return
    assert found == verify_index(signed(MEMBER), keyring())
    assert where < len(whole) - len(MEMBER)  # what is signed cannot change; how the signature is packed says nothing


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "not an RSA key",
        ),
    ],
)
def test_what_is_no_key_is_refused_by_name(pem: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"odd.rsa.pub: is {message}"):
        Keyring.from_files({"odd.rsa.pub": pem})
