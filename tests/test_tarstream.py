"""The tar reader, field by field: what each one may hold, how wide it is, and what is said of one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from imgkit.tree.tarstream import BLOCK, Header, TarError, TarStream

FIELDS = {
    "name": (0, 100), "mode": (100, 108), "uid": (108, 116), "gid": (116, 124), "size": (124, 136), "mtime": (136, 148),
    "kind": (156, 157), "link": (157, 257), "magic": (257, 263), "version": (263, 265), "uname": (265, 297),
    "gname": (297, 329), "major": (329, 337), "minor": (337, 345), "prefix": (345, 500),
}  # fmt: skip


def header(**values: bytes) -> bytes:
    """Return a header block. Fields that are not given are those of an empty file ``f`` of root's."""
    block = bytearray(BLOCK)
    defaults = {"name": b"f", "mode": b"0000644", "size": b"00000000000", "kind": b"0", "magic": b"ustar\0"}
    for field, value in {**defaults, "version": b"00", **values}.items():
        start, end = FIELDS[field]
        assert len(value) <= end - start
        block[start:end] = value.ljust(end - start, b"\0")
    block[148:156] = b"%08o" % (sum(block) + 8 * ord(" "))
    return bytes(block)


def extended(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    """Return an extended header with these records."""
    body = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode(errors="surrogateescape")
        length = next(size for size in range(len(rest), len(rest) + 9) if len(str(size)) + len(rest) == size)
        body += str(length).encode() + rest
    return raw_extended(body, kind)


def raw_extended(body: bytes, kind: bytes = b"x") -> bytes:
    return header(kind=kind, size=b"%011o" % len(body)) + body + bytes(-len(body) % BLOCK)


def read(raw: bytes, cut: int = 1 << 20) -> list[Header]:
    """Read an archive that comes in pieces of ``cut`` bytes."""
    return list(TarStream(iter([raw[start : start + cut] for start in range(0, len(raw), cut)])))


# ---- the fields of a header -----------------------------------------------------------------------------------------


def test_every_field_may_be_filled_to_its_end() -> None:
    """Nothing separates a field from its neighbour then, so each one has to end where the next one starts."""
    (found,) = read(
        header(
            name=b"\xff" * 99 + b"n", mode=b"00007654", uid=b"00000123", gid=b"00000456", size=b"000000000000",
            mtime=b"000000001234", kind=b"3", link=b"\xfe" * 99 + b"l", uname=b"u" * 31 + b"U", gname=b"g" * 31 + b"G",
            major=b"00000010", minor=b"00000020", prefix=b"\xfd" * 154 + b"p",
        )
    )  # fmt: skip
    assert found == Header(
        name="\udcfd" * 154 + "p/" + "\udcff" * 99 + "n", kind="3", size=0, mode=0o7654, uid=0o123, gid=0o456,
        mtime=0o1234, link="\udcfe" * 99 + "l", uname="u" * 31 + "U", gname="g" * 31 + "G", pax={}, major=8, minor=16,
    )  # fmt: skip


def test_every_digit_of_a_number_counts() -> None:
    (found,) = read(header(mode=b"76543217", uid=b"10000001", gid=b"20000002", mtime=b"300000000003"))
    assert (found.mode, found.uid, found.gid, found.mtime) == (0o3217, 0o10000001, 0o20000002, 0o300000000003)
    (device,) = read(header(kind=b"4", major=b"10000003", minor=b"20000004"))
    assert (device.major, device.minor) == (0o10000003, 0o20000004)


def test_a_size_of_twelve_digits_is_read_whole() -> None:
    archive = TarStream(iter([header(size=b"100000000001")]))
    assert next(iter(archive)).size == 0o100000000001


def test_fields_without_digits_are_zero() -> None:
    (found,) = read(header(mode=b"", uid=b" " * 8, gid=b"\0 \0 ", size=b" ", mtime=b""))
    assert (found.mode, found.uid, found.gid, found.size, found.mtime) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("digits", [b"  644 \0", b"0000644", b" 644", b"644    "])
def test_blanks_and_zeros_around_digits_do_not_count(digits: bytes) -> None:
    assert read(header(mode=digits))[0].mode == 0o644


@pytest.mark.parametrize("digits", [b"6 44", b"0648", b"-644", b"0x1", b"64\x004", b"\x81\0\0\0\0\0\0\x01"])
def test_a_field_that_is_not_a_number_is_shown(digits: bytes) -> None:
    with pytest.raises(TarError) as caught:
        read(header(mode=digits))
    assert str(caught.value) == f"is damaged (a header has {digits.ljust(8, bytes(1))!r} as its mode)"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"uid": b"8"}, "uid"),
        ({"gid": b"8"}, "gid"),
        ({"size": b"8"}, "size"),
        ({"mtime": b"8"}, "mtime"),
        ({"major": b"8", "kind": b"3"}, "device number"),
        ({"minor": b"8", "kind": b"4"}, "device number"),
    ],
)
def test_the_field_that_is_damaged_is_named(values: dict[str, bytes], field: str) -> None:
    with pytest.raises(TarError, match=rf"^is damaged \(a header has b'8.*' as its {field}\)$"):
        read(header(**values))


def test_numbers_in_base_256() -> None:
    numbers = {
        "uid": b"\x80\0\0\0\xff\xff\xff\xfe", "gid": b"\x80\0\0\0\0\x01\0\0", "mtime": b"\x80" + bytes(6) + b"\x01" * 5,
    }  # fmt: skip
    (found,) = read(header(**numbers))
    assert (found.uid, found.gid, found.mtime) == (0xFFFFFFFE, 0x10000, 0x101010101)
    with pytest.raises(TarError, match=f"^has a member with uid {1 << 48}$"):
        read(header(uid=b"\x80\x01\0\0\0\0\0\0"))


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_owners_have_32_bits(field: str) -> None:
    assert getattr(read(header(**{field: b"\x80\0\0\0\xff\xff\xff\xff"}))[0], field) == 0xFFFFFFFF
    assert getattr(read(extended((field, "4294967295")) + header())[0], field) == 0xFFFFFFFF
    for raw in (header(**{field: b"\x80\0\0\x01\0\0\0\0"}), extended((field, "4294967296")) + header()):
        with pytest.raises(TarError, match=f"^has a member with {field} 4294967296$"):
            read(raw)


def test_only_devices_have_numbers() -> None:
    numbers = {"major": b"0000010", "minor": b"0000020"}
    for kind, expected in ((b"3", (8, 16)), (b"4", (8, 16)), (b"0", (0, 0)), (b"5", (0, 0)), (b"6", (0, 0))):
        (found,) = read(header(kind=kind, **numbers))
        assert (found.major, found.minor) == expected, kind


@pytest.mark.parametrize("kind", [b"\0", b"7"])
def test_older_spellings_of_a_regular_file(kind: bytes) -> None:
    (found,) = read(header(kind=kind))
    assert found.kind == "0"


@pytest.mark.parametrize(
    ("magic", "name"), [(b"ustar\0", "dir/file"), (b"ustar ", "file")]
)  # the old GNU format has times where POSIX has the prefix
def test_only_posix_has_a_prefix(magic: bytes, name: str) -> None:
    assert read(header(name=b"file", prefix=b"dir", magic=magic))[0].name == name


def test_a_name_without_a_prefix_stays_relative() -> None:
    assert read(header(name=b"file"))[0].name == "file"


def test_the_checksum_covers_every_byte_of_the_header() -> None:
    raw = header(name=b"\xff" * 100, link=b"\xff" * 100, prefix=b"\xff" * 155)
    assert raw[148:156] == b"%08o" % (sum(raw) - sum(raw[148:156]) + 256)
    assert raw[148:151] == b"002", "all digits of the checksum that there can be are in use"
    for place in (0, 147, 148, 151, 155, 499, 511):
        damaged = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(TarError, match=r"^is damaged \(a header does not match its checksum\)$"):
            read(damaged)


@pytest.mark.parametrize("magic", [b"Ustar\0", b"ustaR\0", b"\0ustar", b""])
def test_a_header_has_a_magic(magic: bytes) -> None:
    with pytest.raises(TarError, match=r"^is not a tar archive \(a header lacks the ustar magic\)$"):
        read(header(magic=magic))


# ---- extended headers -----------------------------------------------------------------------------------------------


def test_an_extended_header_overrules_every_field() -> None:
    records = {
        "path": "new", "linkpath": "target", "uid": "1", "gid": "2", "mtime": "3.999", "size": "0", "uname": "u",
        "gname": "g", "comment": "ignored",
    }  # fmt: skip
    old = header(
        name=b"old", kind=b"2", link=b"old", uid=b"7", gid=b"7", mtime=b"7", size=b"7", uname=b"old", gname=b"old"
    )
    assert read(extended(*records.items()) + old) == [
        Header(
            name="new", kind="2", size=0, mode=0o644, uid=1, gid=2, mtime=3, link="target", uname="u", gname="g",
            pax=records, major=0, minor=0, nanoseconds=999_000_000,
        )
    ]  # fmt: skip


def test_an_extended_header_may_take_a_name_away_but_not_a_path() -> None:
    records = {"path": "", "linkpath": "", "uname": "", "gname": ""}
    (found,) = read(extended(*records.items()) + header(link=b"l", uname=b"u", gname=b"g"))
    assert (found.name, found.link, found.uname, found.gname) == ("f", "l", "", "")


def test_an_extended_header_is_about_one_member() -> None:
    found = read(extended(("path", "a"), ("uid", "5")) + header() + header(name=b"b"))
    assert [(member.name, member.uid) for member in found] == [("a", 5), ("b", 0)]


def test_global_headers_are_ignored_and_members_follow() -> None:
    found = read(extended(("uid", "5"), kind=b"g") + header(name=b"a") + header(name=b"b"))
    assert [(member.name, member.uid, member.pax) for member in found] == [("a", 0, {}), ("b", 0, {})]


def test_long_names_of_gnu() -> None:
    long_name, long_link = b"n" * 700, b"l" * 700
    raw = raw_extended(long_name + b"\0", b"L") + raw_extended(long_link + b"\0", b"K") + header(kind=b"2")
    (found,) = read(raw)
    assert (found.name, found.link) == (long_name.decode(), long_link.decode())


@pytest.mark.parametrize(
    ("text", "seconds", "nanoseconds"),
    [
        ("0", 0, 0), ("12", 12, 0), ("12.9", 12, 900_000_000), ("12.", 12, 0), ("12.000000001", 12, 1),
        ("12.1234567899", 12, 123_456_789), ("-1", -1, 0), ("-0.5", -1, 500_000_000), ("-1.5", -2, 500_000_000),
        ("-2.000000001", -3, 999_999_999), ("-0", 0, 0),
    ],
)  # fmt: skip
def test_times(text: str, seconds: int, nanoseconds: int) -> None:
    (found,) = read(extended(("mtime", text)) + header(mtime=b"7"))
    assert (found.mtime, found.nanoseconds) == (seconds, nanoseconds)


@pytest.mark.parametrize("text", ["", "x", ".5", "1e3", "+1", "9" * 20, "-", "--1", "-x"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(TarError) as caught:
        read(extended(("mtime", text)) + header())
    assert (
        str(caught.value)
        == f"is damaged (an extended header has {text.partition('.')[0].removeprefix('-')!r} as mtime)"
    )


@pytest.mark.parametrize("text", ["1.x", "1.5.5", "1.-5", "1.5e3", "1.²"])
def test_what_is_no_fraction_of_a_second(text: str) -> None:
    with pytest.raises(TarError) as caught:
        read(extended(("mtime", text)) + header())
    assert str(caught.value) == f"is damaged (an extended header has {text!r} as mtime)"


def test_numbers_that_are_shown_are_cut() -> None:
    with pytest.raises(TarError) as caught:
        read(extended(("size", "x" * 50)) + header())
    assert str(caught.value) == f"is damaged (an extended header has {'x' * 40!r} as size)"


def test_the_length_of_a_record_has_20_digits_at_most() -> None:
    """Zeros before it are no fault in themselves."""
    record = b"%020d path=name\n"
    assert read(raw_extended(record % 31) + header())[0].name == "name"
    with pytest.raises(TarError, match=r"^is damaged \(an extended header has a broken record\)$"):
        read(raw_extended(b"0" + record % 32) + header())


def test_a_large_extended_header_is_one_or_several() -> None:
    one = header(kind=b"x", size=b"%011o" % ((256 << 10) + 1))
    with pytest.raises(TarError, match=r"^has an extended header of 262145 bytes for one member, where at most 262144"):
        read(one)
    with pytest.raises(TarError, match=r"^has extended headers of 262160 bytes for one member, where at most 262144 "):
        read(extended(("path", "name")) + header(kind=b"L", size=b"%011o" % ((256 << 10) + 3)))


def test_the_size_of_an_extended_header_may_fill_its_field() -> None:
    block = header(kind=b"x", size=b"700000000001", mtime=b"777777777777")
    with pytest.raises(TarError, match=rf"^has an extended header of {0o700000000001} bytes "):
        read(block)


def test_an_extended_header_needs_a_member() -> None:
    with pytest.raises(TarError, match=r"^ends after an extended header$"):
        read(extended(("path", "a")) + bytes(2 * BLOCK))
    assert read(extended(("path", "a"), kind=b"g") + bytes(2 * BLOCK)) == []


# ---- members --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_only_files_have_contents(kind: bytes) -> None:
    with pytest.raises(TarError, match=r"^has contents for something that is not a file: 'f'$"):
        read(header(kind=kind, size=b"1") + bytes(BLOCK))


@pytest.mark.parametrize("kind", [b"D", b"M", b"V", b"N", b"X", b"8", b"\xff"])
def test_members_of_other_types_are_refused(kind: bytes) -> None:
    with pytest.raises(TarError) as caught:
        read(header(kind=kind))
    assert str(caught.value) == f"has a member that is of type {chr(kind[0])!r}: 'f'"


def test_sparse_files_are_refused_by_name() -> None:
    for raw in (header(kind=b"S"), extended(("GNU.sparse.major", "1")) + header()):
        with pytest.raises(TarError, match=r"^has a member that is a sparse file: 'f'$"):
            read(raw)


def archive() -> bytes:
    """Return an archive of three files, the second of them with contents of several blocks, and its end."""
    first, second = b"x" * BLOCK, b"y" * (2 * BLOCK + 1)
    return b"".join([
        header(name=b"first", size=b"1000"), first,
        header(name=b"second", size=b"2001"), second, bytes(BLOCK - 1),
        header(name=b"third"), bytes(2 * BLOCK),
    ])  # fmt: skip


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 513, 1024, 1 << 20])
def test_the_stream_may_be_split_anywhere(cut: int) -> None:
    raw = archive()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(raw), cut):
            yield b""
            yield raw[start : start + cut]

    stream = TarStream(pieces())
    assert [(member.name, stream.read(1025)) for member in stream] == [
        ("first", b"x" * 512),
        ("second", b"y" * 1025),
        ("third", b""),
    ]


def test_contents_are_read_up_to_the_limit_and_not_beyond() -> None:
    stream = TarStream(iter([header(size=b"5") + b"12345" + bytes(507)]))
    next(iter(stream))
    with pytest.raises(TarError, match=r"^has a member of 5 bytes where at most 4 are allowed$"):
        stream.read(4)
    assert stream.read(5) == b"12345"
    assert stream.read(0) == b"", "there is nothing left"


def test_contents_may_be_read_in_part() -> None:
    raw = archive()
    stream = TarStream(iter([raw[start : start + 600] for start in range(0, len(raw), 600)]))
    names = []
    for member in stream:
        names.append(member.name)
        assert bytes(next(stream.content(), b""))[:1] == {"first": b"x", "second": b"y", "third": b""}[member.name]
    assert names == ["first", "second", "third"]


@pytest.mark.parametrize("size", [1, 300, 511, 513, 700, 1100])
def test_a_truncated_archive_is_noticed(size: int) -> None:
    with pytest.raises(TarError, match=r"^is truncated$"):
        read(archive()[:size], 100)


@pytest.mark.parametrize("end", [b"", bytes(BLOCK), bytes(2 * BLOCK), bytes(20 * BLOCK), bytes(BLOCK + 1)])
@pytest.mark.parametrize("cut", [100, 1 << 20])
def test_ends_of_an_archive(end: bytes, cut: int) -> None:
    assert [member.name for member in read(header() + end, cut)] == ["f"]


@pytest.mark.parametrize("end", [bytes(BLOCK) + b"x", bytes(BLOCK) + header(), bytes(3 * BLOCK) + b"\x01"])
@pytest.mark.parametrize("cut", [100, 512, 1 << 20])
def test_nothing_follows_the_end_of_an_archive(end: bytes, cut: int) -> None:
    with pytest.raises(TarError, match=r"^has data after its end marker$"):
        read(header() + end, cut)
