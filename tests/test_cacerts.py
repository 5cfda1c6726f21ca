"""The CA bundle and its links."""

from __future__ import annotations

import base64
import datetime
import re
import subprocess
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.rootfs import cacerts
from imgkit.tree import Symlink, Tree
from tests.conftest import need_program
from tests.trees import tree_from_tar

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

_DATE = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
C, O, OU, CN = (  # noqa: E741
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.COMMON_NAME,
)


@lru_cache(maxsize=1)
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(name: x509.Name) -> bytes:
    builder = x509.CertificateBuilder(name, name, key().public_key(), 1, _DATE, _DATE + datetime.timedelta(days=1))
    return builder.sign(key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def named(*pairs: tuple[x509.ObjectIdentifier, str]) -> bytes:
    return certificate(x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs]))


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([(C, "US"), (O, "Internet Security Research Group"), (CN, "ISRG Root X1")], 0x4042BCEE),
        ([(C, "US"), (O, "DigiCert Inc"), (OU, "www.digicert.com"), (CN, "DigiCert Global Root G2")], 0x607986C7),
        ([(C, "US"), (O, "Amazon"), (CN, "Amazon Root CA 1")], 0xCE5E74EF),
        ([(C, "us"), (O, "  AMAZON "), (CN, "amazon   root CA\t1")], 0xCE5E74EF),
    ],
)
def test_hash_of_well_known_subjects(pairs: list[tuple[x509.ObjectIdentifier, str]], value: int) -> None:
    assert cacerts.subject_hash(named(*pairs)) == value


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([O, OU, CN]),
            st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
            st.sampled_from([_ASN1Type.UTF8String, _ASN1Type.BMPString, _ASN1Type.UniversalString]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_encoding_case_and_blanks_of_a_name_do_not_count(
    parts: list[tuple[x509.ObjectIdentifier, str, _ASN1Type]],
) -> None:
    parts = [
        (oid, "".join(letter for letter in text if ord(letter) < 0x10000) or "x", kind) for oid, text, kind in parts
    ]
    plain = x509.Name([x509.NameAttribute(oid, text) for oid, text, _ in parts])
    other = x509.Name([x509.NameAttribute(oid, f" {_shout(text)}  ", kind) for oid, text, kind in parts])
    assert cacerts.subject_hash(certificate(plain)) == cacerts.subject_hash(certificate(other))


def _shout(text: str) -> str:
    return "".join(letter.upper() if letter.isascii() else letter for letter in text)


def test_hash_agrees_with_openssl() -> None:
    program = need_program("openssl")
    relative = x509.RelativeDistinguishedName([x509.NameAttribute(CN, "B b"), x509.NameAttribute(OU, "Ünit  Z")])
    name = x509.Name([x509.RelativeDistinguishedName([x509.NameAttribute(C, "DE")]), relative])
    for pem in (certificate(name), named((O, "x" * 64), (CN, "y" * 64), (OU, "z" * 40)), named((CN, " "))):
        printed = subprocess.run([program, "x509", "-noout", "-subject_hash"], input=pem, stdout=-1, check=True).stdout
        assert f"{cacerts.subject_hash(pem):08x}" == printed.decode().strip()


def test_what_is_no_certificate_is_named() -> None:
    with pytest.raises(InputError, match=r"x\.crt: not a certificate: no PEM block"):
        cacerts.subject_hash(b"hello", "x.crt")
    good = named((CN, "a"))
    for broken in (
        good.replace(b"MI", b"AA", 1),
        good.replace(b"MI", b"*MI", 1),
        re.sub(rb".\n-----END", b"\n-----END", good),
        _cut(good, 40),
        _cut(good, 1),
        _cut(good, 0),
    ):
        with pytest.raises(InputError, match=r"x\.crt: not a certificate"):
            cacerts.subject_hash(broken, "x.crt")


def _cut(pem: bytes, size: int) -> bytes:
    """Return a certificate of which only the first bytes are left."""
    return _der(base64.b64decode(b"".join(pem.splitlines()[1:-1]))[:size])


def _der(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_hashed_or_refused(data: bytes) -> None:
    try:
        assert 0 <= cacerts.subject_hash(_der(data)) < 1 << 32
    except InputError as refusal:
        assert refusal.hint is None  # noqa: PT017 - the property is that nothing else is raised


def base() -> tuple[Tree, dict[str, bytes]]:
    tree = Tree()
    pems = {name: named((CN, name)) for name in ("One", "Two", "Off")}
    for name, pem in pems.items():
        tree.write(f"usr/share/ca-certificates/mozilla/{name}.crt", pem)
    tree.write(
        "etc/ca-certificates.conf", "# comment\nmozilla/One.crt\n!mozilla/Off.crt\nmozilla/Two.crt\nmozilla/Gone.crt\n"
    )
    return tree, pems


def test_update_writes_bundle_and_links() -> None:
    tree, pems = base()
    local = named((CN, "mine"))
    tree.write("usr/local/share/ca-certificates/My (own), CA.crt", local)
    tree.write("usr/local/share/ca-certificates/README", "no certificate")
    assert cacerts.update(tree, epoch=9) == 3
    bundle = pems["One"] + b"\n" + pems["Two"] + b"\n" + local + b"\n"
    assert tree.read(cacerts.BUNDLE) == bundle
    assert {path: node.target for path, node in tree.walk(cacerts.CERTS) if isinstance(node, Symlink)} == {
        "etc/ssl/certs/ca-cert-One.pem": "/usr/share/ca-certificates/mozilla/One.crt",
        "etc/ssl/certs/ca-cert-Two.pem": "/usr/share/ca-certificates/mozilla/Two.crt",
        "etc/ssl/certs/ca-cert-My_=own=__CA.pem": "/usr/local/share/ca-certificates/My (own), CA.crt",
    }


def test_what_is_written_has_the_time_of_the_build() -> None:
    for epoch in (9, None):
        tree, pems = base()
        if epoch is None:
            cacerts.update(tree)
            assert cacerts.rehash(tree) == []
        else:
            cacerts.update(tree, epoch=epoch)
            assert cacerts.rehash(tree, epoch=epoch) == []
        value = cacerts.subject_hash(pems["One"])
        paths = (cacerts.CERTS, cacerts.BUNDLE, f"{cacerts.CERTS}/ca-cert-One.pem", f"{cacerts.CERTS}/{value:08x}.0")
        assert {tree[path].mtime for path in paths} == {epoch or 0}


def test_only_the_links_of_certificates_that_are_gone_are_removed() -> None:
    tree, _ = base()
    tree.symlink("etc/ssl/certs/own.pem", "nowhere")
    tree.symlink("etc/ssl/certs/ca-cert-Gone.pem", "nowhere")
    tree.symlink("etc/ssl/certs/ca-cert-Kept.pem", "/usr/share/ca-certificates/mozilla/Off.crt")
    tree.symlink("etc/ssl/certs/ca-cert-One.pem", "nowhere")
    cacerts.update(tree)
    links = {path.rpartition("/")[2] for path, node in tree.walk(cacerts.CERTS) if isinstance(node, Symlink)}
    assert links == {"own.pem", "ca-cert-Kept.pem", "ca-cert-One.pem", "ca-cert-Two.pem"}
    assert tree[f"{cacerts.CERTS}/ca-cert-One.pem"] == Symlink(target="/usr/share/ca-certificates/mozilla/One.crt")


def test_without_a_configuration_there_are_local_certificates_only() -> None:
    tree, pems = base()
    tree.remove("etc/ca-certificates.conf")
    assert cacerts.update(tree) == 0
    assert tree.read(cacerts.BUNDLE) == b""
    tree.write("usr/local/share/ca-certificates/own.crt", pems["Off"])
    assert cacerts.update(tree) == 1
    assert tree.read(cacerts.BUNDLE) == pems["Off"] + b"\n"


def test_the_links_of_another_directory() -> None:
    """Other files and links that only resemble those of hashes stay."""
    tree = Tree()
    pem = named((CN, "One"))
    for name in ("a.pem", "b.crt", "c.cer", "d.txt", "ca-certificates.crt"):
        tree.write(f"srv/{name}", pem.replace(b"CERTIFICATE", b"X509 CERTIFICATE") if name == "b.crt" else pem)
    tree.mkdir("srv/folder.pem")
    tree.symlink("srv/0123abc.0", "x")
    tree.symlink("srv/01234567.x", "x")
    tree.symlink("srv/01234567.0", "x")
    tree.write("srv/89abcdef.0", "a file")
    assert cacerts.rehash(tree, "srv") == [
        "srv/c.cer: duplicate certificate: skipped",
        "srv/ca-certificates.crt: duplicate certificate: skipped",
    ]
    value = f"{cacerts.subject_hash(pem):08x}"
    names = [path.removeprefix("srv/") for path in tree.children("srv")]
    assert sorted({f"{value}.0", f"{value}.1", "0123abc.0", "01234567.x", "89abcdef.0"} & set(names)) == sorted(
        [f"{value}.0", f"{value}.1", "0123abc.0", "01234567.x", "89abcdef.0"]
    )
    assert "01234567.0" not in names


@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_file_of_certificates(more: int) -> None:
    tree, pems = base()
    data = pems["One"].ljust((4 << 20) + more, b"\n")
    tree.write("etc/ssl/certs/large.pem", data)
    tree.write("usr/share/ca-certificates/mozilla/Two.crt", data)
    if not more:
        assert cacerts.rehash(tree) == []
        assert cacerts.update(tree) == 2
        return
    with pytest.raises(InputError, match=r"^/etc/ssl/certs/large\.pem: more than 4 MiB of certificates$"):
        cacerts.rehash(tree)
    with pytest.raises(InputError, match=r"mozilla/Two\.crt"):
        cacerts.update(tree)


def test_where_a_block_ends() -> None:
    """At least one character is between its lines; after a block without an end nothing else is looked for."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    pem = named((CN, "One"))
    tree = Tree()
    tree.write("x/a.pem", begin + end)
    tree.write("x/b.pem", pem + begin)
    tree.write("x/c.pem", begin + b"\n" + pem.replace(begin, b""))
    assert cacerts.rehash(tree, "x") == ["x/a.pem: does not contain exactly one certificate: skipped"]
    tree.write("x/a.pem", begin + b"\n" + end)
    with pytest.raises(InputError, match=r"^x/a\.pem: not a certificate: "):
        cacerts.rehash(tree, "x")


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, "0400"),
        (127, "047f"),
        (128, "048180"),
        (255, "0481ff"),
        (256, "04820100"),
        (65535, "0482ffff"),
        (65536, "0483010000"),
    ],
)
def test_lengths_of_elements(size: int, header: str) -> None:
    """X.690, 8.1.3."""
    encoded = cacerts._element(4, bytes(size))
    assert encoded == bytes.fromhex(header) + bytes(size)
    assert list(cacerts._elements(encoded + b"\x05\0")) == [(4, bytes(size)), (5, b"")]
    with pytest.raises(ValueError, match="damaged DER"):
        list(cacerts._elements(encoded[:-1] if size else b"\x04\1"))


def test_rehash_numbers_equal_subjects_and_leaves_duplicates_out() -> None:
    tree, pems = base()
    cacerts.update(tree)
    value = cacerts.subject_hash(pems["One"])
    tree.write("etc/ssl/certs/second.pem", named((CN, "ONE")))
    tree.write("etc/ssl/certs/same.crt", pems["Two"])
    tree.write("etc/ssl/certs/both.pem", pems["One"] + pems["Off"])
    tree.symlink("etc/ssl/certs/deadbeef.0", "gone.pem")
    warnings = cacerts.rehash(tree, epoch=3)
    assert warnings == [
        "etc/ssl/certs/both.pem: does not contain exactly one certificate: skipped",
        "etc/ssl/certs/same.crt: duplicate certificate: skipped",
    ]
    assert tree[f"etc/ssl/certs/{value:08x}.0"] == Symlink(target="ca-cert-One.pem", mtime=3)
    assert tree[f"etc/ssl/certs/{value:08x}.1"] == Symlink(target="second.pem", mtime=3)
    assert "etc/ssl/certs/deadbeef.0" not in tree


def test_a_second_update_changes_nothing_and_a_third_removes_what_went() -> None:
    tree, _ = base()
    cacerts.update(tree, epoch=1)
    cacerts.rehash(tree, epoch=1)
    before = dict(tree.items())
    cacerts.update(tree, epoch=2)
    cacerts.rehash(tree, epoch=2)
    assert dict(tree.items()) == before
    tree.remove("usr/share/ca-certificates/mozilla/One.crt")
    assert cacerts.update(tree, epoch=3) == 1
    cacerts.rehash(tree, epoch=3)
    assert not any("One" in path or (isinstance(node, Symlink) and "One" in node.target) for path, node in tree.items())


@pytest.mark.mirror
def test_links_are_those_that_alpine_itself_made(mirror: Mirror) -> None:
    for tar in mirror.oracle.values():
        expected = tree_from_tar(tar)
        tree = expected.copy()
        links = [path for path in tree.children(cacerts.CERTS) if isinstance(tree[path], Symlink)]
        assert len(links) == 242
        for path in links:
            tree.remove(path)
        cacerts.update(tree)
        assert cacerts.rehash(tree) == []
        for path in tree.children(cacerts.CERTS):
            old, new = expected[path], tree[path]
            assert isinstance(old, Symlink) == isinstance(new, Symlink)
            assert not isinstance(old, Symlink) or (isinstance(new, Symlink) and old.target == new.target)
        assert tree.children(cacerts.CERTS) == expected.children(cacerts.CERTS)
        assert tree.read(cacerts.BUNDLE) == expected.read(cacerts.BUNDLE)
