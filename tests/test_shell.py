"""Texts of any kind, shell patterns, regular expressions: what is read and matched, and what is refused."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgkit.rootfs.scripts.budget import Budget
from imgkit.rootfs.scripts.grammar import parse
from imgkit.rootfs.scripts.patterns import shell_pattern
from imgkit.rootfs.scripts.regex import compile_expressions
from imgkit.rootfs.scripts.words import Unsupported


def refused_line(text: str) -> int | None:
    """Return the line of the refusal, None if the text is read."""
    try:
        parse(text)
    except Unsupported as refusal:
        return refusal.line
    return None


_PIECES = """
if then fi for do done case esac while until in elif else { } ! a b $x ${x ${x:- ${x#* } $( ) ( a) ;; ; && || | &
' " ` \\ <<E E > 2>&1 < # f() x= $
"""


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES.split()) | st.sampled_from(["\n", " ", "\t"]), max_size=30).map(" ".join))
def test_any_mixture_of_pieces_is_read_or_refused(text: str) -> None:
    assert refused_line(text) in {None, *range(1, text.count("\n") + 2)}


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert refused_line(text) in {None, *range(1, text.count("\n") + 2)}


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.conf", ["a.conf", ".conf", "a/b.conf"], ["a.con"]),
        ("[!a]?", ["bc"], ["ab", "b"]),
        ("[]x]", ["]", "x"], ["a"]),
        ("[[:digit:]]*", ["1a"], ["a"]),
        ("\\*", ["*"], ["a"]),
        ("[a", ["[a"], ["a"]),
        ("[]", ["[]"], ["", "]"]),
        ("[a-c-]", ["b", "-"], ["d"]),
        ("[a-c]", ["a", "b", "c"], ["-", "d"]),
        ("[-a]", ["-", "a"], ["b", "0"]),
        ("[!-a]", ["b"], ["-", "a"]),
        ("[a--c]", ["c"], ["b", "0"]),
        ("[[:digit:]-]", ["-", "1"], ["a"]),
        ("[\\]a]", ["]", "a"], ["\\"]),
        ("a\\", ["a\\"], ["a"]),
        ("?", ["\n", "a"], ["", "ab"]),
        ("*a*", ["a", "ba", "ab"], ["", "b"]),
        ("a*a", ["aa", "aba"], ["a", "ab"]),
        ("\\a\\?", ["a?"], ["ab"]),
        ("[--a]", ["-", "a"], ["b"]),
        ("[[&&]", ["[", "&"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_shell_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    compiled = shell_pattern(pattern, Budget())
    assert all(compiled.fullmatch(text) for text in yes)
    assert not any(compiled.fullmatch(text) for text in no)


def test_pathname_patterns_stop_at_slashes() -> None:
    assert shell_pattern("/lib/*", Budget(), pathname=True).fullmatch("/lib/modules")
    assert not shell_pattern("/lib/*", Budget(), pathname=True).fullmatch("/lib/modules/6.1")
    assert not shell_pattern("/lib?x", Budget(), pathname=True).fullmatch("/lib/x")
    assert not shell_pattern("/lib[!a]x", Budget(), pathname=True).fullmatch("/lib/x")


def found(pattern: str, text: str, *, extended: bool = True) -> bool:
    return compile_expressions([pattern], Budget(), extended=extended).search(text, Budget())


@pytest.mark.parametrize(
    ("pattern", "extended", "yes", "no"),
    [
        ("a+(b)", False, ["a+(b)"], ["aab"]),
        (r"a\+\(b\|c\)", False, ["aab", "ac"], ["a+b"]),
        ("a+(b|c)", True, ["aab", "ac"], ["a+b", "b"]),
        ("*a", False, ["*a"], ["a"]),
        (r"a\*", False, ["a*"], ["a", "ab"]),
        (r"\(*a\)", False, ["*a"], ["a"]),
        (r"\(^a\)b", False, ["ab"], ["cab"]),
        (r"\(a$\)", False, ["ba"], ["ab"]),
        (r"a\{2,\}b\?$", False, ["aa", "aaab"], ["ab", "aabb"]),
        (r"a\(b\)\+", False, ["abb"], ["a"]),
        (r"a\|^b", False, ["ca", "bc"], ["cb"]),
        (r"\(a\)\|\.", False, ["a", "."], ["b"]),
        (r"a\+\*", True, ["a+*"], ["aa", "a"]),
        (r"\(\)\{\}\|", True, ["(){}|"], [""]),
        ("^a{0}b$", True, ["b"], ["ab"]),
        ("^a*b$", True, ["b", "aab"], ["a"]),
        ("^a+b?$", True, ["a", "aab"], ["b", "abb"]),
        ("^a{2}$", True, ["aa"], ["a", "aaa"]),
        ("^(a|bc){1,2}$", True, ["a", "abc", "bcbc"], ["", "aaa", "b"]),
        (r"\<b\>", True, ["b-c", "a b"], ["bc", "ab"]),
        ("a^b$c", False, ["a^b$c"], ["ab"]),
        (r"[[:space:]]\.", True, [" ."], [" x"]),
        (r"\<a\>", False, ["b a c"], ["ab", "ba"]),
        (r"^a{2,3}$", True, ["aa", "aaa"], ["a", "aaaa"]),
        (r"^a\{2\}$", False, ["aa"], ["a", "aaa"]),
        ("^(ab|)*$", True, ["", "abab"], ["aba"]),
        (r"\Bb", True, ["ab"], ["b"]),
        (r"^\w+\s\W$", True, ["a_1 ."], ["a b"]),
        ("^$", True, [""], ["a"]),
        ("x|", True, ["", "a"], []),
    ],
)
def test_regular_expressions(pattern: str, extended: bool, yes: list[str], no: list[str]) -> None:
    assert all(found(pattern, text, extended=extended) for text in yes)
    assert not any(found(pattern, text, extended=extended) for text in no)


_ITEMS = ["a", "b", ".", "[ab]", "[^a]", "(", ")", "|", "*", "+", "?", "{1,2}", "{0}", "^", "$", r"\b", r"\.", r"\w"]


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(_ITEMS), max_size=10).map("".join), st.text("ab. ", max_size=8))
def test_expressions_mean_what_they_mean_elsewhere(pattern: str, text: str) -> None:
    """Python's own engine is the second opinion; what means something else there (possessive repeats) is left out."""
    try:
        expected = re.search(pattern, text) is not None
        assume(not re.search(r"[*+?}][+?]", pattern))
        mine = found(pattern, text)
    except (re.error, ValueError):
        return
    assert mine == expected


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(st.text("ab*?!", max_size=10), st.text("abc!", max_size=10))
def test_patterns_mean_what_they_mean_elsewhere(pattern: str, text: str) -> None:
    compiled, expected = shell_pattern(pattern, Budget()), re.compile(fnmatch.translate(pattern)).match
    prefixes = [size for size in range(len(text) + 1) if expected(text[:size])]
    suffixes = [size for size in range(len(text) + 1) if expected(text[len(text) - size :])]
    assert compiled.fullmatch(text) == (expected(text) is not None)
    assert compiled.prefix(text, longest=False) == min(prefixes, default=None)
    assert compiled.prefix(text, longest=True) == max(prefixes, default=None)
    assert compiled.suffix(text, longest=False) == min(suffixes, default=None)
    assert compiled.suffix(text, longest=True) == max(suffixes, default=None)


def test_prefixes_and_suffixes_do_not_overlap() -> None:
    compiled = shell_pattern("a*a", Budget())
    for longest in (False, True):
        assert compiled.prefix("a", longest=longest) is None
        assert compiled.suffix("a", longest=longest) is None
    assert (compiled.prefix("aaa", longest=False), compiled.prefix("aaa", longest=True)) == (2, 3)
    assert (compiled.suffix("baa", longest=False), compiled.suffix("aba", longest=True)) == (2, 3)


@pytest.mark.parametrize("pattern", ["[z-a]", "[[:nope:]]"])
def test_shell_patterns_without_a_meaning(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"nope|bad character range"):
        shell_pattern(pattern, Budget())


@settings(deadline=None)
@given(st.text("a[]!^-\\:*?/&|~", max_size=12))
def test_any_shell_pattern_compiles_or_is_refused(pattern: str) -> None:
    try:
        compiled = shell_pattern(pattern, Budget())
    except ValueError:
        return
    compiled.fullmatch("a-b")


@pytest.mark.parametrize(
    "pattern",
    ["[a", r"\d", r"\(a\)\1", "[[:nope:]]", "a\\", r"\(", r"\)", r"a\{2,1\}", r"a\{256\}", r"a\{x\}", r"a\{1", r"^\+",
     r"\(\(a\{99\}\)\{99\}\)", r"\(" * 60],
)  # fmt: skip
def test_regular_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        found(pattern, "", extended=False)


@pytest.mark.parametrize("pattern", ["*a", "a|*", "(+)", "{1}"])
def test_nothing_to_repeat(pattern: str) -> None:
    with pytest.raises(ValueError, match="nothing to repeat"):
        found(pattern, "")


# ---- boundaries and messages -----------------------------------------------------------------------------------------


def test_groups_may_have_50_levels() -> None:
    assert found("(" * 50 + "a" + ")" * 50, "a")
    with pytest.raises(ValueError, match=r"^groups deeper than 50 levels$"):
        found("(" * 51 + "a" + ")" * 51, "a")
    assert found("(a)" * 60, "a" * 60)
    with pytest.raises(ValueError, match=r"^groups deeper than 50 levels$"):
        found("(a)" * 10 + "(" * 51 + "a" + ")" * 51, "a")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a)", "unmatched )"),
        ("(a", "unmatched ("),
        ("a\\", "a backslash at the end"),
        ("[a", "unterminated bracket expression"),
        (r"\d", "escape \\d"),
        (r"(a)\1", "escape \\1"),
        ("a{2,1}", "an improper interval"),
        ("a{256}", "an improper interval"),
        ("a{1,256}", "an improper interval"),
        ("a{x}", "an improper interval"),
        ("a{1", "an improper interval"),
        ("^*", "nothing to repeat"),
        ("(a{99}){99}", "more than this computes"),
    ],
)
def test_why_regular_expressions_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        found(pattern, "")


def test_programs_have_5000_states() -> None:
    compile_expressions(["(a{100}){50}"], Budget(), extended=True)
    with pytest.raises(ValueError, match="more than this computes"):
        found("(a{100}){50}a", "")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a{255}", ["a" * 255], ["a" * 254]),
        ("^a{2,}$", ["aa", "aaaa"], ["a"]),
        ("^a{0,1}b?$", ["", "a", "ab"], ["aa", "abb"]),
        ("^(ab)+$", ["ab", "abab"], ["", "aba"]),
        ("^(a|b|c)$", ["a", "b", "c"], ["d", "ab"]),
        (r"\<b", ["b", "a b", "a-b"], ["ab", "_b", "1b"]),
        (r"b\>", ["b", "b a", "b-"], ["ba", "b_", "b1"]),
        (r"\bb", ["b", "a b"], ["ab"]),
        (r"a\Bb", ["ab"], ["a b"]),
        (r"\Ba", ["ba"], ["a", "b a"]),
        (r"^\w\W\s\S$", ["a- b"], ["--  ", "a- "]),
        (r"^\.$", ["."], ["a"]),
        ("^.$", ["a", "é"], ["", "ab"]),
        ("a$|^b", ["ca", "bc"], ["ac", "cb"]),
    ],
)
def test_more_regular_expressions(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not found(pattern, text)] == []
    assert [text for text in no if found(pattern, text)] == []


@pytest.mark.parametrize(
    ("around", "yes", "no"),
    [
        (("^", "$"), ["ab"], ["xab", "abx", "x ab"]),
        (("before", "after"), ["ab", "x ab", "ab x", "(ab)"], ["xab", "abx", "ab_", "1ab"]),
    ],
)
def test_whole_lines_and_words(around: tuple[str, str], yes: list[str], no: list[str]) -> None:
    expression = compile_expressions(["ab", "other"], Budget(), around=around)
    assert [text for text in yes if not expression.search(text, Budget())] == []
    assert [text for text in no if expression.search(text, Budget())] == []


def test_literal_and_caseless_expressions() -> None:
    literal = compile_expressions(["a.b*"], Budget(), literal=True)
    assert literal.search("xa.b*x", Budget())
    assert not literal.search("aXb", Budget())
    assert compile_expressions(["a+."], Budget()).search("a+b", Budget())
    caseless = compile_expressions(["Ab"], Budget(), ignore_case=True)
    assert caseless.search("xaBx", Budget())
    assert not compile_expressions(["Ab"], Budget()).search("xaBx", Budget())


def test_pathname_patterns_have_as_many_parts_as_paths() -> None:
    pattern = shell_pattern("/a*/b", Budget(), pathname=True)
    assert [text for text in ("/a/b", "/ax/b", "/a/b/", "a/b", "/b", "/a//b") if pattern.fullmatch(text)] == [
        "/a/b",
        "/ax/b",
    ]
    assert shell_pattern("A?", Budget(), ignore_case=True).fullmatch("ab")
    assert not shell_pattern("A?", Budget()).fullmatch("ab")
