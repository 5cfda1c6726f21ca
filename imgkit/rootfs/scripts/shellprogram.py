"""The interpreter of package scripts: runs a syntax tree on a :class:`ShellState` (POSIX.1-2017, 2.7–2.12)::

shell = Shell(ShellState(tree), arguments=["1.2-r0"], variables=environment("nginx", "post-install"))
status = shell.run_text("addgroup -S nginx", streams)
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from imgkit.rootfs.scripts.budget import COMMAND, PARSED
from imgkit.rootfs.scripts.builtins import BUILTINS
from imgkit.rootfs.scripts.control import Jump, Leave, Return
from imgkit.rootfs.scripts.expansion import Expander
from imgkit.rootfs.scripts.grammar import parse
from imgkit.rootfs.scripts.programs import run_program
from imgkit.rootfs.scripts.redirections import collector, discard, redirect, standard_input
from imgkit.rootfs.scripts.state import FAILURES, PATH, ShellState, Streams, report
from imgkit.rootfs.scripts.syntax import (
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
)
from imgkit.rootfs.scripts.words import Unsupported, Word

_DECLARATIONS = (["export"], ["local"], ["readonly"])
_MAX_CALLS = 20


class Shell(Expander):
    """One run of one script.

    Attributes:
        functions: the functions that the script has defined, by name.
        options: the options that ``set`` has switched on: errexit, nounset, pipefail, xtrace.
        dash: whether the script is for dash, not for Alpine's ash.
        line: the line of the last simple command, for messages.
    """

    def __init__(self, state: ShellState, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self.state = state
        state.execute = self.execute
        self.arguments = list(arguments)
        self.variables = dict(variables)
        self.functions: dict[str, Redirected] = {}
        self.options = set()
        self.jobs = []
        self.status = 0
        self.dash = False
        self.line = 0
        self._substituted: int  # status of the last command substitution of the present command
        self._conditions = 0  # how many conditions the present command is part of, where set -e has no effect
        self._calls = 0
        self._streams = Streams(io.StringIO(), discard, discard)

    def run(self, body: Body, streams: Streams) -> int:
        """Run statements; the status of the last one is returned."""
        for statement in body:
            self.status = (
                self._background(statement, streams) if statement.background else self._and_or(statement, streams)
            )
        return self.status

    def run_text(self, text: str, streams: Streams) -> int:
        """Run the statements of a text; reading it costs a step and :data:`PARSED` bytes for each character."""
        self.state.budget.work(len(text))
        self.state.budget.memory(PARSED * len(text))
        return self.run(parse(text), streams)

    def capture(self, body: Body) -> str:
        """Run the statements of ``$(…)``, and return what they write without the newlines at its end."""
        collected: list[str] = []
        streams = Streams(io.StringIO(), collector(collected, self.state.budget), self._streams.err)
        with self._outside_of_conditions():
            self._substituted = self._isolated(lambda: self._block(body, streams))
        return self.state.budget.joined(collected).rstrip("\n")

    def assign(self, name: str, value: str) -> None:
        """Set a variable.

        Raises:
            Unsupported: the script changes IFS or PATH.
        """
        if name in ("IFS", "PATH") and self.variables.get(name) != value:
            raise Unsupported(f"a value of its own for {name}")
        self.state.budget.memory(len(name))
        self.variables[name] = value

    def call(self, words: Sequence[str], streams: Streams) -> int:
        """Run a function, a builtin or a program, and return its status.

        Raises:
            Unsupported: imgkit does not know a command of this name.
        """
        self.state.budget.words(len(words))
        name, *arguments = words
        if self.dash:
            _refuse_difference(name, arguments)
        if name in self.functions:
            return self._function(name, arguments, streams)
        if name not in BUILTINS:
            return self.execute([name, *arguments], streams)
        try:
            return BUILTINS[name](self, arguments, streams)
        except FAILURES as cause:
            return report(streams, cause, name)

    def execute(self, words: list[str], streams: Streams) -> int:
        """Run a program, and return its status; a failure is written to standard error."""
        try:
            return self.external(words[0], words[1:], streams)
        except FAILURES as cause:
            return report(streams, cause, words[0])

    def external(self, name: str, arguments: list[str], streams: Streams) -> int:
        """Run a program; subclasses decide here which programs there are."""
        return run_program(self.state, name, arguments, streams)

    def source(self, arguments: list[str], streams: Streams) -> int:
        """Run ``. FILE``; subclasses decide here how a file is read."""
        if not arguments or "/" not in arguments[0]:
            raise Unsupported("sourcing a file from PATH")
        text = self.state.read(arguments[0])
        try:
            return self.run_text(text, streams)
        except Unsupported as cause:
            raise Unsupported(f"in {arguments[0]}: {cause}") from cause

    # ---- subshells -----------------------------------------------------------------------------------------------

    def _background(self, node: AndOr, streams: Streams) -> int:
        """Run ``… &`` in a subshell without input, to its end, before the script goes on.

        This is one of the orders in which a real system may run the two, and the only one that a script can rely on if
        it waits for the results.
        """
        without_input = replace(streams, stdin=io.StringIO())
        self.state.budget.work(COMMAND)
        try:
            with self._outside_of_conditions():
                status = self._isolated(lambda: self._and_or(node, without_input))
        except Jump:  # the loop that it would leave is outside of this subshell
            status = 0
        self.jobs.append(status)
        return 0

    def _isolated(self, action: Callable[[], int]) -> int:
        """Run in a subshell: changes of files stay, changes of variables, options and the like do not."""
        size = len(self.variables) + len(self.functions) + len(self.arguments) + len(self.jobs)
        self.state.budget.work(size // 10 + COMMAND)
        saved = dict(self.variables), dict(self.functions), list(self.arguments), list(self.jobs), set(self.options)
        streams, folder, umask = self._streams, self.state.cwd, self.state.umask
        try:
            return action()
        except Leave as leave:
            return leave.status
        finally:
            self.variables, self.functions, self.arguments, self.jobs, self.options = saved
            self._streams, self.state.cwd, self.state.umask = streams, folder, umask

    # ---- lists and pipelines -------------------------------------------------------------------------------------

    def _and_or(self, node: AndOr, streams: Streams) -> int:
        status = self._pipeline(node.first, streams, tested=bool(node.rest))
        for index, (operator, pipeline) in enumerate(node.rest):
            self.status = status
            if (operator == "&&") == (status == 0):
                status = self._pipeline(pipeline, streams, tested=index < len(node.rest) - 1)
        return status

    @contextmanager
    def _condition(self, *, active: bool = True) -> Iterator[None]:
        """Disable ``set -e`` during the block while ``active``, because the script tests the status."""
        self._conditions += active
        try:
            yield
        finally:
            self._conditions -= active

    @contextmanager
    def _outside_of_conditions(self) -> Iterator[None]:
        """Enable ``set -e`` again during the block, for ``$(…)`` and ``… &`` inside a command that is tested."""
        saved = self._conditions
        self._conditions = 0
        try:
            yield
        finally:
            self._conditions = saved

    def _pipeline(self, node: Pipeline, streams: Streams, *, tested: bool) -> int:
        with self._condition(active=tested or node.negated):
            if len(node.commands) == 1:
                status = self._redirected(node.commands[0], streams)
            else:
                status = self._pipe(node.commands, streams)
        if status and not (tested or node.negated or self._conditions) and self._ends_script(node):
            raise Leave(status)
        return int(status == 0) if node.negated else status

    def _ends_script(self, node: Pipeline) -> bool:
        """Return whether ``set -e`` applies. A failure in any other compound command has ended the script already."""
        command = node.commands[0].command
        is_subshell = isinstance(command, Grouping) and command.subshell
        return "errexit" in self.options and (len(node.commands) > 1 or isinstance(command, Simple) or is_subshell)

    def _pipe(self, commands: Sequence[Redirected], streams: Streams) -> int:
        """Run each command in a subshell; the output of one is the input of the next."""
        statuses: list[int] = []
        source = streams.stdin
        for index, command in enumerate(commands):
            collected: list[str] = []
            is_last = index == len(commands) - 1
            sink = streams.out if is_last else collector(collected, self.state.budget)
            step = Streams(source, sink, streams.err)
            statuses.append(self._isolated(partial(self._redirected, command, step)))
            source = standard_input(collected, self.state.budget)
        failures = [status for status in statuses if status]
        return failures[-1] if failures and "pipefail" in self.options else statuses[-1]

    # ---- compound commands ---------------------------------------------------------------------------------------

    def _redirected(self, node: Redirected, streams: Streams) -> int:
        command = node.command
        if isinstance(command, Simple):
            return self._simple(command, node.redirects, streams)
        try:
            streams = redirect(self.state, node.redirects, streams, self.text)
        except FAILURES as cause:
            return report(streams, cause)
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
        """Run statements; the status is 0 if there are none."""
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
        """Yield before each round of a loop."""
        if isinstance(node, For):
            for value in list(self.arguments) if node.words is None else self.fields(node.words):
                self.state.budget.work(COMMAND)
                self.assign(node.variable, value)
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
        self._substituted = 0
        try:
            words = self._words(node.words)
            values = [(name, self.text(word)) for name, word in node.assignments]
            streams = redirect(self.state, redirects, streams, self.text)
        except FAILURES as cause:
            status = report(streams, cause)
            if status == 2:  # ${name:?} and set -u end the script
                raise Leave(2) from cause
            return status
        if not words:
            for name, value in values:
                self.assign(name, value)
            return self._substituted
        return self._with_variables(values, lambda: self.call(words, streams))

    def _words(self, words: Sequence[Word]) -> list[str]:
        """Return the arguments of a command; assignments after ``export`` or ``local`` are not split."""
        arguments = self.fields(words[:1])
        keeps_assignments = arguments[:1] in _DECLARATIONS
        for word in words[1:]:
            arguments += [self.text(word)] if keeps_assignments and word.is_assignment else self.fields([word])
        return arguments

    def _with_variables(self, values: Sequence[tuple[str, str]], action: Callable[[], int]) -> int:
        """Run a command with the assignments that stand in front of it; they end with the command."""
        previous = {name: self.variables.get(name) for name, _ in values}
        for name, value in values:
            self.assign(name, value)
        status = action()
        for name, old in previous.items():
            if old is None:
                self.variables.pop(name, None)
            else:
                self.variables[name] = old
        return status

    def _function(self, name: str, arguments: list[str], streams: Streams) -> int:
        if self._calls >= _MAX_CALLS:
            raise Unsupported(f"function {name}: calls deeper than {_MAX_CALLS}")
        saved = self.arguments
        self.arguments = arguments
        self._calls += 1
        try:
            return self._redirected(self.functions[name], streams)
        except Return as done:
            return done.status
        finally:
            self.arguments = saved
            self._calls -= 1


def _refuse_difference(name: str, arguments: Sequence[str]) -> None:
    """Refuse the commands that behave differently in dash and in ash.

    Raises:
        Unsupported: this is such a command.
    """
    if name == "echo" and (
        (arguments[:1] not in ([], ["-n"]) and arguments[0][:1] == "-") or "\\" in "".join(arguments)
    ):
        raise Unsupported("echo of options or backslashes in a script for dash")
    if name in ("[", "test") and "==" in arguments:
        raise Unsupported(f"{name} with == in a script for dash")
    if name == "set" and "pipefail" in arguments:
        raise Unsupported("set -o pipefail in a script for dash")


def environment(package: str, kind: str) -> Mapping[str, str]:
    """Return the variables that apk 3 gives to a script."""
    return {"PATH": PATH, "APK_SCRIPT": kind, "APK_PACKAGE": package, "PWD": "/"}
