"""The grammar of package scripts: what is read, and what is refused."""

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
from imgkit.rootfs.scripts.syntax import AndOr, Case, For, Function, Grouping, If, Redirected, Simple, While
from imgkit.rootfs.scripts.words import Literal, Parameter, Substitution, Unsupported, Word


def only(text: str) -> Redirected:
    """Return the single command of a script."""
    (statement,) = parse(text)
    assert isinstance(statement, AndOr)
    assert not statement.rest
    return statement.first.commands[0]


def simple(text: str) -> Simple:
    command = only(text).command
    assert isinstance(command, Simple)
    return command


def texts(words: tuple[Word, ...]) -> list[str]:
    """Words without expansions, quotes removed."""
    assert all(isinstance(part, Literal) for word in words for part in word.parts)
    return ["".join(part.text for part in word.parts if isinstance(part, Literal)) for word in words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo a  b # comment", ["echo", "a", "b"]),
        ("echo a#b", ["echo", "a#b"]),
        ("echo a\\\n b", ["echo", "a", "b"]),
        ("echo 'a  b' \"c 'd'\" e\\ f", ["echo", "a  b", "c 'd'", "e f"]),
        ("echo \"\" ''", ["echo", "", ""]),
        ('echo "a\\"b\\$c\\d"', ["echo", 'a"b$c\\d']),
        ("echo 'a\\b'", ["echo", "a\\b"]),
        ("echo $ a$", ["echo", "$", "a$"]),
        ("echo if then fi", ["echo", "if", "then", "fi"]),
        ("a;", ["a"]),
        ("\n\n a \n # end", ["a"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert texts(simple(text).words) == words


def test_quoting_is_kept_for_splitting_and_patterns() -> None:
    assert simple("echo a'*'").words[1].parts == (Literal("a"), Literal("*", quoted=True))
    assert simple('echo "$x"$y').words[1].parts == (Parameter("x", quoted=True), Parameter("y"))
    assert simple('echo ""').words[1].parts == (Literal("", quoted=True),)


@pytest.mark.parametrize(
    ("text", "name", "operator", "word"),
    [
        ("$abc", "abc", "", None),
        ("$1", "1", "", None),
        ("${10}", "10", "", None),
        ("$@", "@", "", None),
        ("${#x}", "x", "length", None),
        ("${#}", "#", "", None),
        ("$#", "#", "", None),
        ("${x:-a}", "x", ":-", "a"),
        ("${x-}", "x", "-", ""),
        ("${x##*/}", "x", "##", "*/"),
        ("${x%.}", "x", "%", "."),
        ("${x#\\}}", "x", "#", "}"),
    ],
)
def test_parameters(text: str, name: str, operator: str, word: str | None) -> None:
    (part,) = simple(f"echo {text}").words[1].parts
    assert isinstance(part, Parameter)
    assert (part.name, part.operator) == (name, operator)
    assert (texts((part.word,))[0] if part.word else None) == word


def test_the_pattern_in_a_quoted_expansion_is_a_pattern() -> None:
    (part,) = simple('echo "${i#*/lib/}"').words[1].parts
    assert isinstance(part, Parameter)
    assert part.word is not None
    assert part.word.parts == (Literal("*/lib/"),)


def test_command_substitution_nests() -> None:
    (part,) = simple("echo $(a $(b; c) ')' | d)").words[1].parts
    assert isinstance(part, Substitution)
    (backquoted,) = simple("echo `a \\`b\\``").words[1].parts
    assert isinstance(backquoted, Substitution)
    (plain,) = simple("echo $(a $(b))").words[1].parts
    assert isinstance(plain, Substitution)


def test_compound_commands() -> None:
    assert isinstance(only("if a; then b; elif c; then d; else e; fi").command, If)
    assert isinstance(only("for i in a b\ndo c; done").command, For)
    assert isinstance(only("for i; do c; done").command, For)
    assert isinstance(only("while a; do b; done").command, While)
    assert isinstance(only("until a; do b; done").command, While)
    assert isinstance(only("case $x in (a|b) c;; *) d; esac").command, Case)
    assert isinstance(only("{ a; b; }").command, Grouping)
    assert isinstance(only("( a )").command, Grouping)
    assert isinstance(only("f() { a; }").command, Function)
    assert isinstance(only("f ()\n{\na\n}").command, Function)


def test_lists_and_pipelines() -> None:
    statements = parse("a && b || ! c | d\ne")
    assert [operator for operator, _ in statements[0].rest] == ["&&", "||"]
    last = statements[0].rest[1][1]
    assert last.negated
    assert len(last.commands) == 2
    assert len(statements) == 2


def test_lines_are_counted_through_quotes_and_here_documents() -> None:
    text = "a 'x\ny'\ncat <<E\none\ntwo\nE\nb\n"
    commands = [statement.first.commands[0].command for statement in parse(text)]
    assert [command.line for command in commands if isinstance(command, Simple)] == [1, 3, 7]


def test_redirections() -> None:
    found = only("a >f 2>&1 2>>'g h' <i").redirects
    assert [(each.descriptor, each.operator) for each in found] == [(1, ">"), (2, ">&"), (2, ">>"), (0, "<")]
    both = only("a &>f").redirects
    assert [(each.descriptor, each.operator) for each in both] == [(1, ">"), (2, ">&")]
    assert texts(simple("a 2 >f").words) == ["a", "2"]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("cat <<E\na $x\nE\n", None),
        ("cat <<'E'\na $x\nE\n", "a $x\n"),
        ("cat <<E\n'a' \"b\" \\$x\nE\n", "'a' \"b\" $x\n"),
        ("cat <<-E\n\t\ta\n\tE\n", "a\n"),
        ("cat <<E\nE", ""),
    ],
)
def test_here_documents(text: str, document: str | None) -> None:
    (redirect,) = only(text).redirects
    if document is None:
        assert any(isinstance(part, Parameter) for part in redirect.target.parts)
    else:
        assert texts((redirect.target,)) == [document]


def test_two_here_documents_on_a_line() -> None:
    command = only("cat <<A - <<B\na\nA\nb\nB\n")
    assert [texts((each.target,)) for each in command.redirects] == [["a\n"], ["b\n"]]


@pytest.mark.parametrize(
    ("text", "construct", "line"),
    [
        ("\necho $((1+2))", "arithmetic", 2),
        ("cd ~", "tilde", 1),
        ("echo ${x/a/b}", "expansion ${x/a/b}", 1),
        ("echo ${!x}", "expansion ${!x}", 1),
        ("echo $'a'", "quoting", 1),
        ("a <> b", "redirection <>", 1),
        ("if a; then b", "'fi' expected", 1),
        ("if a then\n b\nfi", "'then' expected", 3),
        ("echo 'a", "unterminated '", 1),
        ('echo "a', 'unterminated "', 1),
        ("echo `a", "unterminated `", 1),
        ("echo ${x", "expansion", 1),
        ("echo ${x:-a", "unterminated ${", 1),
        ("echo $(a", "')' expected", 1),
        ("cat <<E\na\n", "without its E", 1),
        ("cat <<E 'x\ny'\nE\n", "quoted newline", 1),
        ("a=(1 2)", "syntax error", 1),
        ("a b (c)", "syntax error", 1),
        ("done", "syntax error", 1),
        ("a | ; b", "syntax error", 1),
        ("case x in a) b", "';;' expected", 1),
        ("for 1 in a; do b; done", "a name expected", 1),
        ("f() a |", "syntax error", 1),
        ("(" * 100, "nesting", 1),
        ("a > ; b", "word expected", 1),
        ("a\n` b\n)`\nc", "syntax error", 3),
    ],
)
def test_what_is_refused(text: str, construct: str, line: int) -> None:
    with pytest.raises(Unsupported) as refusal:
        parse(text)
    assert construct in refusal.value.construct
    assert refusal.value.line == line


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


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES.split()) | st.sampled_from(["\n", " ", "\t"]), max_size=30).map(" ".join))
def test_any_mixture_of_pieces_is_read_or_refused(text: str) -> None:
    assert refused_line(text) in {None, *range(1, text.count("\n") + 2)}


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert refused_line(text) in {None, *range(1, text.count("\n") + 2)}


def test_bottomless_nesting_is_refused() -> None:
    assert refused_line("echo " + "${x:-" * 2000) == 1


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


def test_50_levels_are_read() -> None:
    assert parse("(" * 49 + "a" + ")" * 49)
    with pytest.raises(Unsupported, match="nesting deeper than 50 levels"):
        parse("(" * 50 + "a" + ")" * 50)
    assert found("(" * 50 + "a" + ")" * 50, "a")
    with pytest.raises(ValueError, match=r"^groups deeper than 50 levels$"):
        found("(" * 51 + "a" + ")" * 51, "a")
    assert found("(a)" * 60, "a" * 60)
    assert parse("(a);" * 60)


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


@pytest.mark.parametrize(
    ("text", "line", "construct"),
    [
        ("a\nb <> c", 2, "the redirection <>"),
        ("~", 1, "tilde expansion"),
        ("echo ${x/a/b} more", 1, "the expansion ${x/a/b} more"),
        ("echo ${#x%y}", 1, "the expansion ${#x%y}"),
        ("echo $'a'", 1, "the quoting $'…'"),
        ("echo $((1))", 1, "arithmetic expansion"),
        ("cat <<$x\n", 1, "an expansion in the delimiter of a here-document"),
        ("cat <<E 'a\nb'\nE\n", 1, "a quoted newline on the line of a here-document"),
        ('cat <<E "a\nb"\nE\n', 1, "a quoted newline on the line of a here-document"),
        ("if a; then b; done", 1, "syntax error: 'fi' expected near 'done'"),
        ("a\n)", 2, "syntax error near ')'"),
        ("fi", 1, "syntax error near 'fi'"),
        ("a | fi", 1, "syntax error: unexpected 'fi'"),
        ("for", 1, "syntax error: a name expected near ''"),
        ("case a in b c) ;; esac", 1, "syntax error: ')' expected near 'c) ;; esac'"),
        ("a < ; b", 1, "syntax error: a word expected near '; b'"),
        ("echo 'a", 1, "syntax error: unterminated '"),
        ('echo "a', 1, 'syntax error: unterminated "'),
        ("echo `a", 1, "syntax error: unterminated `"),
        ("echo ${x:-a", 1, "syntax error: unterminated ${"),
        ("cat <<E\na\n", 1, "syntax error: here-document without its E"),
        ("a (", 1, "syntax error near '('"),
        ("a\\\n\n'b\nc' <> d", 4, "the redirection <>"),
    ],
)
def test_refusals_in_full(text: str, line: int, construct: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        parse(text)
    assert (refusal.value.construct, refusal.value.line) == (construct, line)
    assert str(refusal.value) == f"line {line}: {construct}"
