"""The interpreter of package scripts: runs a syntax tree on a :class:`ShellState` (POSIX.1-2017, 2.7–2.12)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from imgkit.rootfs.accounts import AccountError
from imgkit.rootfs.scripts import files as file_commands
from imgkit.rootfs.scripts import find, sorting, triggers
from imgkit.rootfs.scripts import text as text_commands
from imgkit.rootfs.scripts import users as account_commands
from imgkit.rootfs.scripts.budget import COMMAND, PARSED, Budget, whole_number
from imgkit.rootfs.scripts.expansion import FIRST_JOB, Expander
from imgkit.rootfs.scripts.grammar import (
    AndOr,
    Body,
    Case,
    For,
    Function,
    Grouping,
    If,
    Pipeline,
    Redirect,
    Redirected,
    Simple,
    While,
    parse,
)
from imgkit.rootfs.scripts.state import PATH, Command, Failed, ShellState, Sink, Streams, number
from imgkit.rootfs.scripts.words import Unsupported, Word
from imgkit.tree import TreeError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: Mapping[str, Command] = {
    **file_commands.COMMANDS,
    **text_commands.COMMANDS,
    **account_commands.COMMANDS,
    **find.COMMANDS,
    **sorting.COMMANDS,
    **triggers.NATIVE,
}
_BIN = frozenset({"/bin", "/sbin", "/usr/bin", "/usr/sbin"})
_DECLARATIONS = frozenset({"export", "local", "readonly"})
_MAX_CALLS = 20


class Leave(Exception):  # noqa: N818 - control flow
    """``exit``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Return(Leave):
    """``return``."""


class Jump(Exception):  # noqa: N818 - control flow
    """``break`` or ``continue`` out of ``levels`` loops."""

    def __init__(self, levels: int, *, again: bool) -> None:
        super().__init__(levels)
        self.levels = levels
        self.again = again


def _discard(_: str) -> None:
    """The sink of /dev/null."""


def collector(collected: list[str], budget: Budget) -> Sink:
    """A sink that appends to a list what it is given, and charges it."""

    def collect(text: str) -> None:
        collected.append(budget.text(text))

    return collect


class Shell(Expander):
    """One run of one script."""

    def __init__(self, state: ShellState, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self.state = state
        state.execute = self._execute
        self.arguments = list(arguments)
        self.variables = dict(variables)
        self.functions: dict[str, Redirected] = {}
        self.status = 0
        self.dash = False  # the script is for dash, not for Alpine's ash
        self.jobs: list[int] = []
        self.errexit = self.nounset = self.pipefail = False
        self.line = 0
        self._tested = 0  # inside how many conditions a failure does not end the script (set -e)
        self._calls = 0
        self._substituted: int | None = None
        self._streams = Streams(io.StringIO(), _discard, _discard)
        self._builtins: Mapping[str, Callable[[list[str], Streams], int]] = {
            ":": lambda arguments, streams: 0,  # noqa: ARG005
            ".": self.source,
            "break": lambda arguments, streams: self._jump(arguments, again=False),  # noqa: ARG005
            "cd": self._cd,
            "command": self._command,
            "continue": lambda arguments, streams: self._jump(arguments, again=True),  # noqa: ARG005
            "exec": self._exec,
            "exit": self._exit,
            "export": self._declare,
            "local": self._declare,
            "read": self._read,
            "readonly": self._declare,
            "return": self._return,
            "set": self._set,
            "shift": self._shift,
            "umask": self._umask,
            "unset": self._unset,
            "wait": self._wait,
        }

    def run(self, body: Body, streams: Streams) -> int:
        """Run statements; the status of the last one is returned."""
        for statement in body:
            self.status = (
                self._background(statement, streams) if statement.background else self._and_or(statement, streams)
            )
        return self.status

    def run_text(self, text: str, streams: Streams) -> int:
        """Run the statements of a text; reading them takes about a step and :data:`PARSED` bytes for each character."""
        self.state.budget.work(len(text))
        self.state.budget.memory(PARSED * len(text))
        return self.run(parse(text), streams)

    def _background(self, node: AndOr, streams: Streams) -> int:
        """``… &``: a subshell without input, which runs to its end before the script goes on.

        That is one of the orders in which a real system may do it, and the only one that a script may rely on
        which waits for its results.
        """
        apart = replace(streams, stdin=io.StringIO())
        self.state.budget.work(COMMAND)
        try:
            status = self._isolated(lambda: self._and_or(node, apart))
        except Jump:  # out of a loop that this subshell is not in
            status = 0
        self.jobs.append(status)
        return 0

    def capture(self, body: object) -> str:
        collected: list[str] = []
        streams = Streams(io.StringIO(), collector(collected, self.state.budget), self._streams.err)
        self._substituted = self._isolated(lambda: self.run(cast("Body", body), streams) if body else 0)
        return self._joined(collected).rstrip("\n")

    def _isolated(self, action: Callable[[], int]) -> int:
        """Run in a subshell: files change, this shell's own state does not."""
        size = len(self.variables) + len(self.functions) + len(self.arguments) + len(self.jobs)
        self.state.budget.work(size // 10 + COMMAND)
        saved = dict(self.variables), dict(self.functions), list(self.arguments), self._streams
        flags = self.errexit, self.nounset, self.pipefail, self.state.cwd, self.state.umask
        jobs = list(self.jobs)
        try:
            return action()
        except Leave as left:
            return left.status
        finally:
            self.variables, self.functions, self.arguments, self._streams = saved
            self.jobs = jobs
            self.errexit, self.nounset, self.pipefail, self.state.cwd, self.state.umask = flags

    # ---- statements ----------------------------------------------------------------------------------------------

    def _and_or(self, node: AndOr, streams: Streams) -> int:
        status = self._pipeline(node.first, streams, tested=bool(node.rest))
        for index, (operator, pipeline) in enumerate(node.rest):
            self.status = status
            if (operator == "&&") == (status == 0):
                status = self._pipeline(pipeline, streams, tested=index < len(node.rest) - 1)
        return status

    @contextmanager
    def _condition(self, on: bool = True) -> Iterator[None]:  # noqa: FBT001
        self._tested += on
        try:
            yield
        finally:
            self._tested -= on

    def _pipeline(self, node: Pipeline, streams: Streams, *, tested: bool) -> int:
        with self._condition(tested or node.negated):
            if len(node.commands) == 1:
                status = self._redirected(node.commands[0], streams)
            else:
                status = self._pipe(node.commands, streams)
        command = node.commands[0].command
        plain = (
            len(node.commands) > 1
            or isinstance(command, Simple)
            or (isinstance(command, Grouping) and command.subshell)
        )
        if status and self.errexit and plain and not (tested or node.negated or self._tested):
            raise Leave(status)
        return int(status == 0) if node.negated else status

    def _pipe(self, commands: Sequence[Redirected], streams: Streams) -> int:
        """Each command in a subshell, its output the next one's input."""
        statuses: list[int] = []
        source = streams.stdin
        for index, command in enumerate(commands):
            collected: list[str] = []
            last = index == len(commands) - 1
            sink = streams.out if last else collector(collected, self.state.budget)
            step = Streams(source, sink, streams.err)
            statuses.append(self._isolated(partial(self._redirected, command, step)))
            source = self._input(collected)
        failed = [status for status in statuses if status]
        return failed[-1] if failed and self.pipefail else statuses[-1]

    def _input(self, texts: Sequence[str]) -> io.StringIO:
        """Texts as an input, which has four bytes for each character."""
        self.state.budget.memory(4 * sum(map(len, texts)))
        return io.StringIO(self._joined(texts))

    def _redirected(self, node: Redirected, streams: Streams) -> int:
        command = node.command
        if isinstance(command, Simple):
            return self._simple(command, node.redirects, streams)
        try:
            streams = self._redirect(node.redirects, streams)
        except (Failed, TreeError) as cause:
            streams.err(f"{cause}\n")
            return cause.status if isinstance(cause, Failed) else 1
        if isinstance(command, Function):
            self.functions[command.name] = command.body
            return 0
        if isinstance(command, Grouping):
            if command.subshell:
                return self._isolated(lambda: self.run(command.body, streams))
            return self.run(command.body, streams)
        if isinstance(command, If):
            return self._if(command, streams)
        if isinstance(command, Case):
            return self._case(command, streams)
        return self._loop(command, streams)

    def _if(self, node: If, streams: Streams) -> int:
        for condition, body in node.branches:
            with self._condition():
                holds = self.run(condition, streams) == 0
            if holds:
                return self._block(body, streams)
        return self._block(node.otherwise, streams)

    def _block(self, body: Body, streams: Streams) -> int:
        """Statements of which there may be none; then the status is 0."""
        return self.run(body, streams) if body else 0

    def _case(self, node: Case, streams: Streams) -> int:
        subject = self.text(node.subject)
        for patterns, body in node.arms:
            if any(self.matches(pattern, subject) for pattern in patterns):
                return self._block(body, streams)
        return 0

    def _loop(self, node: For | While, streams: Streams) -> int:
        status = 0
        for _ in self._rounds(node, streams):
            try:
                status = self._block(node.body, streams)
            except Jump as jump:
                status = 0
                if jump.levels > 1:
                    raise Jump(jump.levels - 1, again=jump.again) from None
                if not jump.again:
                    break
        return status

    def _rounds(self, node: For | While, streams: Streams) -> Iterator[None]:
        if isinstance(node, For):
            for value in list(self.arguments) if node.words is None else self.fields(node.words):
                self.state.budget.work(COMMAND)
                self._assign(node.variable, value)
                yield
            return
        while True:
            self.state.budget.work(COMMAND)
            with self._condition():
                status = self.run(node.condition, streams)
            if (status == 0) == node.until:
                return
            yield

    # ---- simple commands -----------------------------------------------------------------------------------------

    def _simple(self, node: Simple, redirects: Sequence[Redirect], streams: Streams) -> int:
        self.line = node.line
        self.state.budget.work(COMMAND)
        self._streams = streams
        self._substituted = None
        try:
            words = self._words(node.words)
            values = [(name, self.text(word)) for name, word in node.assignments]
            streams = self._redirect(redirects, streams)
        except (Failed, TreeError) as cause:
            streams.err(f"{cause}\n")
            if isinstance(cause, TreeError):
                return 1
            if cause.status == 2:  # ${name:?} and set -u end the script
                raise Leave(2) from cause
            return cause.status
        if not words:
            for name, value in values:
                self._assign(name, value)
            return self._substituted or 0
        return self._with_variables(values, lambda: self.call(words, streams))

    def _words(self, words: Sequence[Word]) -> list[str]:
        """Arguments; what follows ``export`` or ``local`` is an assignment and is not split."""
        if words and words[0].plain in _DECLARATIONS:
            return [self.text(word) for word in words]
        return self.fields(words)

    def _with_variables(self, values: Sequence[tuple[str, str]], action: Callable[[], int]) -> int:
        """Assignments in front of a command hold for that command."""
        old = {name: self.variables.get(name) for name, _ in values}
        for name, value in values:
            self._assign(name, value)
        status = action()
        for name, before in old.items():
            if before is None:
                self.variables.pop(name, None)
            else:
                self.variables[name] = before
        return status

    def _assign(self, name: str, value: str) -> None:
        if name in ("IFS", "PATH") and self.variables.get(name) != value:
            raise Unsupported(f"a value of its own for {name}")
        self.state.budget.memory(len(name))
        self.variables[name] = value

    def call(self, words: Sequence[str], streams: Streams) -> int:
        """Run a function, a builtin or a command.

        Raises:
            Unsupported: it is none that is known here.
        """
        self.state.budget.words(len(words))
        name, *arguments = words
        if self.dash:
            _refuse_difference(name, arguments)
        if name in self.functions:
            return self._function(name, arguments, streams)
        if name not in self._builtins:
            return self._execute([name, *arguments], streams)
        try:
            return self._builtins[name](arguments, streams)
        except (Failed, AccountError, TreeError) as cause:
            streams.err(f"{name}: {cause}\n")
            return cause.status if isinstance(cause, Failed) else 1

    def _function(self, name: str, arguments: list[str], streams: Streams) -> int:
        if self._calls >= _MAX_CALLS:
            raise Unsupported(f"function {name}: calls deeper than {_MAX_CALLS}")
        saved = self.arguments
        self.arguments = arguments
        self._calls += 1
        try:
            return self._redirected(self.functions[name], streams)
        except _Return as done:
            return done.status
        finally:
            self.arguments = saved
            self._calls -= 1

    def _execute(self, words: list[str], streams: Streams) -> int:
        """Run what is neither function nor builtin."""
        try:
            return self.external(words[0], words[1:], streams)
        except (Failed, AccountError, TreeError) as cause:
            streams.err(f"{words[0]}: {cause}\n")
            return cause.status if isinstance(cause, Failed) else 1

    def external(self, name: str, arguments: list[str], streams: Streams) -> int:
        self.state.budget.work(COMMAND)
        self.state.budget.words(len(arguments))
        directory, _, base = name.rpartition("/")
        if base == "busybox" and arguments and (not directory or directory in _BIN):
            if arguments[0].startswith("-"):
                return triggers.install_links("bin/busybox")(self.state, arguments, streams)
            return self.external(arguments[0], arguments[1:], streams)
        if directory and directory not in _BIN:
            raise Unsupported(f"the command {name}")
        if base in self.state.hooks.commands:
            return self.state.hooks.commands[base](self.state.tree, tuple(arguments))
        if base not in COMMANDS:
            raise Unsupported(f"the command {name}")
        return COMMANDS[base](self.state, list(arguments), streams)

    # ---- redirections --------------------------------------------------------------------------------------------

    def _redirect(self, redirects: Sequence[Redirect], streams: Streams) -> Streams:
        for redirect in redirects:
            target = self.text(redirect.target)
            if redirect.operator in (">&", "<&"):
                streams = self._duplicate(redirect.descriptor, target, streams)
            elif redirect.operator in ("<", "<<"):
                text = target if redirect.operator == "<<" else self.state.read(target)
                if redirect.descriptor != 0:
                    raise Unsupported(f"the redirection {redirect.descriptor}{redirect.operator}")
                streams = replace(streams, stdin=self._input([text]))
            else:
                sink = self._open(target, streams, append=redirect.operator == ">>")
                streams = _set(streams, redirect.descriptor, sink)
        return streams

    def _duplicate(self, descriptor: int, target: str, streams: Streams) -> Streams:
        sinks: dict[str, Sink] = {"1": streams.out, "2": streams.err, "-": _discard}
        if target not in sinks:
            raise Unsupported(f"the redirection {descriptor}>&{target}")
        return _set(streams, descriptor, sinks[target])

    def _open(self, target: str, streams: Streams, *, append: bool) -> Sink:
        special: dict[str, Sink] = {"/dev/null": _discard, "/dev/stdout": streams.out, "/dev/stderr": streams.err}
        if target in special:
            return special[target]
        state = self.state
        path = state.path(target)
        if path not in state.tree:
            file_commands.new_file(state, path)
        elif not append:
            state.tree.write(path, b"", mtime=state.epoch)

        def write(text: str) -> None:
            state.write(path, state.tree.text(path) + text)

        return write

    # ---- builtins that change the shell --------------------------------------------------------------------------

    def source(self, arguments: list[str], streams: Streams) -> int:
        if not arguments or "/" not in arguments[0]:
            raise Unsupported("sourcing a file from PATH")
        text = self.state.read(arguments[0])
        try:
            return self.run_text(text, streams)
        except Unsupported as cause:
            raise Unsupported(f"in {arguments[0]}: {cause}") from cause

    def _jump(self, arguments: list[str], *, again: bool) -> int:
        raise Jump(_count(arguments), again=again)

    def _cd(self, arguments: list[str], _: Streams) -> int:
        if len(arguments) != 1 or arguments[0] == "-":
            raise Unsupported("cd without a directory")
        if not self.state.is_directory(arguments[0]):
            raise Failed(f"can't cd to {arguments[0]}: No such file or directory", 2)
        self.state.cwd = "/" + self.state.path(arguments[0])
        return 0

    def _command(self, arguments: list[str], streams: Streams) -> int:
        if arguments[:1] not in (["-v"], ["-V"]):
            return self._execute(arguments, streams) if arguments else 0
        if len(arguments) < 2:
            return 127
        name = arguments[1]
        known = name in self.functions or name in self._builtins or name in ("[", "test", "echo", "printf", "true")
        found = name if known else text_commands.which(self.state, name)
        streams.out(f"{found}\n" if found else "")
        return 0 if found else 127

    def _exec(self, arguments: list[str], streams: Streams) -> int:
        if not arguments:
            raise Unsupported("exec without a command")
        raise Leave(self.call(arguments, streams))

    def _exit(self, arguments: list[str], _: Streams) -> int:
        raise Leave(_count(arguments, self.status) & 0xFF)

    def _return(self, arguments: list[str], _: Streams) -> int:
        raise _Return(_count(arguments, self.status) & 0xFF)

    def _declare(self, arguments: list[str], _: Streams) -> int:
        """``export`` and ``local``: there is one set of variables, as no command here looks at its environment."""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if name.startswith("-"):
                raise Unsupported(f"the option {name}")
            if equals:
                self._assign(name, value)
        return self._substituted or 0

    def _read(self, arguments: list[str], streams: Streams) -> int:
        names = [name for name in arguments if name != "-r"]
        if not names or any(name.startswith("-") for name in names):
            raise Unsupported("this form of read")
        line = self.state.budget.text(streams.stdin.readline())
        fields = line.rstrip("\n").strip(" \t").split(None, len(names) - 1) if line else []
        for index, name in enumerate(names):
            self._assign(name, fields[index] if index < len(fields) else "")
        return 0 if line.endswith("\n") else 1

    def _set(self, arguments: list[str], _: Streams) -> int:
        while arguments and arguments[0][:1] in ("-", "+"):
            word = arguments.pop(0)
            if word == "--":
                self.arguments = arguments
                return 0
            self._flags(word, arguments)
        if arguments:
            self.arguments = arguments
        return 0

    def _flags(self, word: str, arguments: list[str]) -> None:
        for letter in word[1:]:
            name = {"e": "errexit", "u": "nounset", "x": "xtrace"}.get(letter)
            if letter == "o" and arguments:
                name = arguments.pop(0)
            if name not in ("errexit", "nounset", "pipefail", "xtrace"):
                raise Unsupported(f"set {word}")
            if name != "xtrace":
                setattr(self, name, word[0] == "-")

    def _shift(self, arguments: list[str], _: Streams) -> int:
        count = _count(arguments)
        if count > len(self.arguments):
            raise Failed("can't shift that many")
        del self.arguments[:count]
        return 0

    def _umask(self, arguments: list[str], streams: Streams) -> int:
        if not arguments:
            streams.out(f"{self.state.umask:04o}\n")
        elif len(arguments[0]) > 4 or not arguments[0] or arguments[0].strip("01234567"):
            raise Unsupported(f"umask {arguments[0]}")
        else:
            self.state.umask = int(arguments[0], 8)
        return 0

    def _wait(self, arguments: list[str], _: Streams) -> int:
        """Every job has ended by now."""
        status = 0
        for word in arguments:
            if not word.isdecimal():
                raise Unsupported(f"wait {word}")
            index = number(word) - FIRST_JOB
            status = self.jobs[index] if 0 <= index < len(self.jobs) else 127
        return status

    def _unset(self, arguments: list[str], _: Streams) -> int:
        for name in arguments:
            if name.startswith("-"):
                raise Unsupported(f"unset {name}")
            self.variables.pop(name, None)
        return 0


def _refuse_difference(name: str, arguments: Sequence[str]) -> None:
    """Refuse what dash does otherwise than ash."""
    if name == "echo" and (
        (arguments[:1] not in ([], ["-n"]) and arguments[0][:1] == "-") or "\\" in "".join(arguments)
    ):
        raise Unsupported("echo of options or backslashes in a script for dash")
    if name in ("[", "test") and "==" in arguments:
        raise Unsupported(f"{name} with == in a script for dash")
    if name == "set" and "pipefail" in arguments:
        raise Unsupported("set -o pipefail in a script for dash")


def _set(streams: Streams, descriptor: int, sink: Sink) -> Streams:
    if descriptor == 1:
        return replace(streams, out=sink)
    if descriptor == 2:
        return replace(streams, err=sink)
    raise Unsupported(f"the redirection of descriptor {descriptor}")


def _count(arguments: Sequence[str], default: int = 1) -> int:
    if not arguments:
        return default
    value = whole_number(arguments[0])
    if value is None:
        raise Failed(f"Illegal number: {arguments[0][:80]}", 2)
    return value


def environment(package: str, kind: str) -> Mapping[str, str]:
    """The variables that apk 3 gives to a script."""
    return {"PATH": PATH, "APK_SCRIPT": kind, "APK_PACKAGE": package, "PWD": "/"}
