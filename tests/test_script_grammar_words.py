"""The grammar of package scripts: which words and commands are read, and what is refused."""

from __future__ import annotations

import re

import pytest

from imgkit.rootfs.scripts.grammar import parse
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
        ("a \\\n b", ["a", "b"]),
        ("a \t \\\n\t# comment", ["a"]),
        ("echo a\\", ["echo", "a\\"]),
        ('echo "a\\\nb"', ["echo", "ab"]),
        ('echo "$\'a\'" "$"', ["echo", "$'a'", "$"]),
        ("echo '' 'a'b", ["echo", "", "ab"]),
        ("\n\n a \n # end", ["a"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert texts(simple(text).words) == words


def test_quoting_is_kept_for_splitting_and_patterns() -> None:
    assert simple("echo a'*'").words[1].parts == (Literal("a"), Literal("*", quoted=True))
    assert simple('echo "$x"$y').words[1].parts == (Parameter("x", quoted=True), Parameter("y"))
    assert simple('echo ""').words[1].parts == (Literal("", quoted=True),)
    assert simple('echo "$"').words[1].parts == (Literal("$", quoted=True),)
    assert simple('echo "\\$\\\\"').words[1].parts == (Literal("$\\", quoted=True),)
    assert simple("echo \\*").words[1].parts == (Literal("*", quoted=True),)
    assert simple('echo "${x}${#x}"').words[1].parts == (
        Parameter("x", quoted=True),
        Parameter("x", "length", quoted=True),
    )


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
        ("cat << E\na\nE", "a\n"),
        ('cat <<E\n\\"a\\\\ \\` \\$x\nE\n', '\\"a\\ ` $x\n'),
        ('cat <<"$"\n$x\n$\n', "$x\n"),
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


def test_bottomless_nesting_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"^line 1: nesting without end$"):
        parse("echo " + "${x:-" * 2000)


def test_50_levels_are_read() -> None:
    assert parse("(" * 49 + "a" + ")" * 49)
    assert parse("(a);" * 60)
    for before in ("", "(a);" * 10):
        with pytest.raises(Unsupported, match=r"^line 1: nesting deeper than 50 levels$"):
            parse(before + "(" * 50 + "a" + ")" * 50)


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
        ("(a) b", 1, "syntax error near 'b'"),
        ("if a; then b; fi c", 1, "syntax error near 'c'"),
        ("for i in a; dofoo; done", 1, "syntax error: 'do' expected near 'dofoo; done'"),
        ("case a in a\n) b;; esac", 1, "syntax error: ')' expected near ''"),
        ("case a in a) b;; c d) e;; esac", 1, "syntax error: ')' expected near 'd) e;; esac'"),
        ("! ! a", 1, "syntax error: unexpected '!'"),
        ("a | ! b", 1, "syntax error: unexpected '!'"),
        ("fi 34567890123456789012345678901", 1, "syntax error near 'fi 345678901234567890123456789'"),
        ("cat <<E <> x\na\nE\n", 1, "the redirection <>"),
        ("\n\ncat <<E <> x\na\nE\n", 3, "the redirection <>"),
        ("cat <<E\na\nb\nE\n\nb <> c", 6, "the redirection <>"),
        ("a\\\n\n'b\nc' <> d", 4, "the redirection <>"),
    ],
)
def test_refusals_in_full(text: str, line: int, construct: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        parse(text)
    assert (refusal.value.construct, refusal.value.line) == (construct, line)
    assert str(refusal.value) == f"line {line}: {construct}"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("a&&b||c", "a && b || c"),
        ("a|b", "a | b"),
        ("a |\n# comment\n\nb", "a | b"),
        ("a &&\n\n b", "a && b"),
        ("while(a); do b; done", "while (a); do b; done"),
        ("until(a)\ndo b\ndone", "until (a); do b; done"),
        ("for i\nin a; do b; done", "for i in a; do b; done"),
        ("for i in a;do b;done", "for i in a; do b; done"),
        ("for i;do b;done", "for i; do b; done"),
        ("for i do b; done", "for i; do b; done"),
        ("case a in\n\n( a | b ) c\n\n;;\n\nesac", "case a in a|b) c;; esac"),
        ("case a in a) b; esac", "case a in a) b;; esac"),
        ("case a\nin\nesac", "case a in esac"),
        ("if a\nthen\nb\nelse\nc\nfi", "if a; then b; else c; fi"),
        ("if a; then b; elif c; then d; fi;e", "if a; then b; elif c; then d; fi; e"),
        ("f()\n\n{ a; }", "f() { a; }"),
        ("f() (a)", "f ( ) ( a )"),
        ("a>b", "a > b"),
        ("a 2>b", "a 2> b"),
        ("a >|b", "a >b"),
        ("{ a; } >b <c", "{ a; }  > b  < c"),
        ("(a;b)", "( a ; b )"),
        ("!a", "'!a'"),
        ("${#}", "$#"),
    ],
)
def test_two_ways_to_write_the_same(text: str, other: str) -> None:
    def without_places(text: str) -> str:
        return re.sub(r"line=\d+|quoted=\w+|Simple\(line=\d+", "", repr(parse(text)))

    assert without_places(text) == without_places(other)
    assert without_places(text) != without_places("a b")
